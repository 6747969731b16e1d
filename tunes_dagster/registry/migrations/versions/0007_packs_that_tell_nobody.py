"""Public packs keep of their prompts what can be shared: callbacks, addresses and ids of their authors go."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# As `gateway.dialects.astria.packs.SHARED` was when this was written.
_SHARED = frozenset(
    [
        "id",
        "class",
        "text",
        "negative_prompt",
        "num_images",
        "seed",
        "cfg_scale",
        "steps",
        "w",
        "h",
        "ar",
        "aspect_ratio",
        "resolution",
        "scheduler",
        "lora_scale",
        "super_resolution",
        "hires_fix",
        "inpaint_faces",
        "face_correct",
        "film_grain",
        "controlnet_txt2img",
        "style",
        "color_grading",
        "controlnet",
        "controlnet_conditioning_scale",
        "denoising_strength",
    ]
)


def upgrade() -> None:
    """Apply."""
    packs = sa.table(
        "packs",
        sa.column("number", sa.Integer),
        sa.column("prompts", sa.JSON),
        sa.column("public_at", sa.DateTime),
    )
    connection = op.get_bind()
    public = sa.select(packs.c.number, packs.c.prompts).where(packs.c.public_at.is_not(None))
    for number, prompts in connection.execute(public).all():
        rows = [
            {name: value for name, value in row.items() if name in _SHARED}
            for row in (prompts or {}).get("rows", [])
        ]
        connection.execute(packs.update().where(packs.c.number == number).values(prompts={"rows": rows}))


def downgrade() -> None:
    """Nothing: what is gone was nobody's to have."""

"""Work on tunes that train nothing is a kind of its own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"

_work = sa.table("work", sa.column("kind", sa.String), sa.column("subject_id", sa.String))
_tunes = sa.table(
    "tunes", sa.column("id", sa.String), sa.column("recipe", sa.JSON().with_variant(JSONB(), "postgresql"))
)


def upgrade() -> None:
    """Apply."""
    faces = sa.select(_tunes.c.id).where(_tunes.c.recipe["training"]["kind"].as_string() == "faceid")
    mine = (_work.c.kind == "train", _work.c.subject_id.in_(faces))
    op.execute(sa.update(_work).where(*mine).values(kind="embed"))


def downgrade() -> None:
    """Take back."""
    op.execute(sa.update(_work).where(_work.c.kind == "embed").values(kind="train"))

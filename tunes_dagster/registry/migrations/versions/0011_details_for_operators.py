"""What a failure quotes of the inside has a column of its own, which callers never see.

Sentences of earlier versions could quote exceptions and places on this machine; those that look like it are moved
there, and callers read a general one.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_TABLES = ("tunes", "prompts", "work")
# Codes whose sentences quoted the inside, and what is said of them instead.
_SAID = {
    "internal": "Something went wrong on our side.",
    "store_unavailable": "The store could not be used.",
    "base_not_installed": "A model that is needed is not installed.",
    "weights_unusable": "Weights that are needed cannot be used.",
    "render_failed": "Rendering stopped unexpectedly.",
    "out_of_memory": "The memory for this work ran out.",
    "picture_unreadable": "A picture cannot be read.",
    "conflict": "The work could not be done in this state.",
}
_QUOTES = " OR ".join(
    f"{{0}} LIKE '%{mark}%'" for mark in ("Error", "Exception", "Errno", " at /", ": /", "s3://", "CUDA")
)


def upgrade() -> None:
    """Apply."""
    bind = op.get_bind()
    for name in _TABLES:
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column("failure_detail", sa.Text(), nullable=True))
        for code, said in _SAID.items():
            quotes = "1 = 1" if code == "internal" else _QUOTES.format("failure_message")
            bind.execute(
                sa.text(
                    f"UPDATE {name} SET failure_detail = failure_message, failure_message = :said "  # noqa: S608
                    f"WHERE failure_code = :code AND failure_message IS NOT NULL AND ({quotes})"
                ),
                {"said": said, "code": code},
            )
    sqlite = bind.dialect.name == "sqlite"
    kept = (
        "json_patch(data, json_object('detail', message))"
        if sqlite
        else "data || jsonb_build_object('detail', message)"
    )
    bind.execute(
        sa.text(
            f"UPDATE events SET data = {kept}, message = :said "  # noqa: S608
            f"WHERE phase IN ('failed', 'queued') AND message NOT LIKE 'http%' AND ({_QUOTES.format('message')})"
        ),
        {"said": _SAID["internal"]},
    )


def downgrade() -> None:
    """Revert."""
    for name in _TABLES:
        with op.batch_alter_table(name) as table:
            table.drop_column("failure_detail")

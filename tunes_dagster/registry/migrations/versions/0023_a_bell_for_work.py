"""Whoever waits is told of new work: on PostgreSQL rows that somebody waits for ring a bell when they are committed.

SQLite has a counter of commits that costs nothing to look at (`sessions/waking.py`).
"""

from alembic import op

revision = "0023"
down_revision = "0022"

# What is watched of each table: heartbeats and progress ring nothing.
_WATCHED = {"work": "state, available_at", "prompts": "status", "callbacks": "state, next_attempt_at"}


def _is_server() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def upgrade() -> None:
    """Apply."""
    if not _is_server():
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION tunes_ring() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_notify('tunes', ''); RETURN NULL; END $$"
    )
    for table, columns in _WATCHED.items():
        op.execute(
            f"CREATE TRIGGER tunes_ring AFTER INSERT OR UPDATE OF {columns} ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION tunes_ring()"
        )


def downgrade() -> None:
    """Take back."""
    if not _is_server():
        return
    for table in _WATCHED:
        op.execute(f"DROP TRIGGER IF EXISTS tunes_ring ON {table}")
    op.execute("DROP FUNCTION IF EXISTS tunes_ring()")

"""Deletions that are driven to their end, and which tunes and prompts need which shared files.

What was deleted before is driven once more: its words may stand in the rows, and its files may have been left behind.
Shared files that rows name are written down here; those that only manifests name by `service/references.py`.
"""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from tunes_dagster.core.ids import new_id

revision = "0016"
down_revision = "0015"
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_SHARED = ("blobs/", "uploads/")
_PART = 1000

_time = sa.DateTime(timezone=True)
_tunes = sa.table(
    "tunes",
    sa.column("number", sa.Integer),
    sa.column("id", sa.String),
    sa.column("account_id", sa.String),
    sa.column("status", sa.String),
    sa.column("request", _JSON),
    sa.column("created_at", _time),
    sa.column("deleted_at", _time),
)
_prompts = sa.table(
    "prompts",
    sa.column("number", sa.Integer),
    sa.column("id", sa.String),
    sa.column("settings", _JSON),
    sa.column("created_at", _time),
)
_seen = sa.table(
    "api_objects",
    sa.column("id", sa.String),
    sa.column("account_id", sa.String),
    sa.column("public_id", sa.String),
    sa.column("created_at", _time),
)


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("deletions") as table:
        table.add_column(sa.Column("state", sa.String(10), nullable=False, server_default="done"))
        table.add_column(sa.Column("step", sa.String(20), nullable=False, server_default=""))
        table.add_column(sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("next_at", _time))
        table.add_column(sa.Column("traces", _JSON, nullable=False, server_default="{}"))
        table.add_column(sa.Column("done_at", _time))
        table.create_index("ix_deletions_due", ["state", "next_at"])
    blobs = op.create_table(
        "blobs",
        sa.Column("key", sa.String(300), nullable=False),
        sa.Column("named_at", _time, nullable=False),
        sa.Column("held_until", _time),
        sa.PrimaryKeyConstraint("key"),
    )
    uses = op.create_table(
        "blob_uses",
        sa.Column("key", sa.String(300), nullable=False),
        sa.Column("subject_id", sa.String(80), nullable=False),
        sa.Column("ended_at", _time),
        sa.ForeignKeyConstraint(["key"], ["blobs.key"]),
        sa.PrimaryKeyConstraint("key", "subject_id"),
    )
    op.create_index("ix_blob_uses_subject", "blob_uses", ["subject_id"])
    # Not in a batch, which would make the table anew and forget the largest number that SQLite gave out.
    op.add_column("tunes", sa.Column("blobs_named", sa.Boolean(), nullable=False, server_default=sa.false()))
    connection = op.get_bind()
    _name(connection, blobs, uses)
    _delete_again(connection)


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("tunes", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.drop_column("blobs_named")
    op.drop_table("blob_uses")
    op.drop_table("blobs")
    with op.batch_alter_table("deletions") as table:
        table.drop_index("ix_deletions_due")
        for name in ("state", "step", "attempts", "next_at", "traces", "done_at"):
            table.drop_column(name)


def _name(connection: sa.Connection, blobs: sa.Table, uses: sa.Table) -> None:
    """Write which shared files the rows of tunes and prompts name."""
    known: set[str] = set()
    for part in _naming(connection):
        fresh = sorted({key for key, _subject, _at in part} - known)
        if fresh:
            at = {key: moment for key, _subject, moment in part}
            connection.execute(
                blobs.insert(), [{"key": key, "named_at": at[key], "held_until": None} for key in fresh]
            )
            known.update(fresh)
        pairs = sorted({(key, subject) for key, subject, _at in part})
        if pairs:
            connection.execute(
                uses.insert(), [{"key": key, "subject_id": one, "ended_at": None} for key, one in pairs]
            )


def _naming(connection: sa.Connection) -> Iterator[list[tuple[str, str, Any]]]:
    for row in _rows(connection, _tunes, "request"):
        keys = ((row.request or {}).get("sources") or {}).get("uploads") or []
        yield [(key, row.id, row.created_at) for key in _shared(keys)]
    for row in _rows(connection, _prompts, "settings"):
        yield [(key, row.id, row.created_at) for key in _shared((row.settings or {}).values())]


def _shared(values: Any) -> list[str]:
    return [one for one in values if isinstance(one, str) and one.startswith(_SHARED) and len(one) <= 300]


def _rows(connection: sa.Connection, table: Any, column: str) -> Iterator[Any]:
    """Yield the rows whose JSON names something that looks like a shared file."""
    said, last = sa.cast(table.c[column], sa.Text), -1
    like = sa.or_(said.like("%blobs/%"), said.like("%uploads/%"))
    while True:
        query = sa.select(table).where(table.c.number > last, like).order_by(table.c.number).limit(_PART)
        rows = list(connection.execute(query))
        yield from rows
        if len(rows) < _PART:
            return
        last = rows[-1].number


def _delete_again(connection: sa.Connection) -> None:
    """Open a deletion for each tune and prompt that was deleted; its record of before stays beside it."""
    deletions = sa.table(
        "deletions",
        *(
            sa.column(name)
            for name in ("id", "account_id", "kind", "subject_id", "label", "reason", "rule", "state")
        ),
        *(sa.column(name) for name in ("step", "attempts", "files", "bytes")),
        sa.column("traces", _JSON),
        sa.column("what", _JSON),
        sa.column("at", _time),
    )
    gone = [
        *(
            ("tune", *row)
            for row in connection.execute(
                sa.select(_tunes.c.id, _tunes.c.account_id, _tunes.c.deleted_at).where(
                    _tunes.c.status == "deleted"
                )
            )
        ),
        *(
            ("prompt", *row)
            for row in connection.execute(
                sa.select(_seen.c.id, _seen.c.account_id, _seen.c.created_at).where(
                    _seen.c.public_id == "deleted"
                )
            )
        ),
    ]
    rows = [
        {
            "id": new_id("del"),
            "account_id": account_id,
            "kind": kind,
            "subject_id": subject_id,
            "label": "",
            "reason": "asked",
            "rule": "deleted by an earlier version",
            "state": "open",
            "step": "",
            "attempts": 0,
            "files": 0,
            "bytes": 0,
            "traces": {},
            "what": {},
            "at": moment,
        }
        for kind, subject_id, account_id, moment in gone
    ]
    for start in range(0, len(rows), _PART):
        connection.execute(deletions.insert(), rows[start : start + _PART])
    connection.execute(sa.text("UPDATE deletions SET label = '' WHERE label <> ''"))

"""Which tunes a prompt uses, by id; titles are looked up within an account.

Prompts that are there already are linked: their own tune as it stands, tags by what was really rendered with, else by
the one tune of the account that the word means. What means none or several keeps a row without a tune.
"""

import re
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_PART = 1000
# As tags were written when this revision was.
_TAG = re.compile(r"<\s*(lora|faceid)\s*:([^<>:]*)(?::([^<>]*))?>", re.IGNORECASE)

_tunes = sa.table(
    "tunes",
    sa.column("id", sa.String),
    sa.column("number", sa.Integer),
    sa.column("account_id", sa.String),
    sa.column("title", sa.String),
    sa.column("deleted_at", sa.DateTime(timezone=True)),
)
_prompts = sa.table(
    "prompts",
    sa.column("id", sa.String),
    sa.column("number", sa.Integer),
    sa.column("account_id", sa.String),
    sa.column("tune_id", sa.String),
    sa.column("text", sa.String),
    sa.column("result", JSON),
)


def upgrade() -> None:
    """Apply."""
    links = op.create_table(
        "prompt_tunes",
        sa.Column("prompt_id", sa.String(length=80), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("tune_id", sa.String(length=80), nullable=True),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("word", sa.Text(), nullable=False),
        sa.Column("scale", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.id"]),
        sa.ForeignKeyConstraint(["tune_id"], ["tunes.id"]),
        sa.PrimaryKeyConstraint("prompt_id", "place"),
    )
    own = sa.select(
        _prompts.c.id, sa.literal(0), _prompts.c.tune_id, sa.literal("tune"), _prompts.c.tune_id
    ).where(_prompts.c.tune_id.is_not(None))
    op.execute(links.insert().from_select(["prompt_id", "place", "tune_id", "kind", "word"], own))
    connection = op.get_bind()
    for rows in _tagged(connection):
        if found := [link for row in rows for link in _links(connection, row)]:
            connection.execute(links.insert(), found)
    with op.batch_alter_table("prompt_tunes", schema=None) as batch_op:
        batch_op.create_index("ix_prompt_tunes_tune", ["tune_id", "prompt_id"], unique=False)
    with op.batch_alter_table("tunes", schema=None) as batch_op:
        batch_op.drop_index("ix_tunes_title")
        batch_op.create_index("ix_tunes_title", ["account_id", "title", "number"], unique=False)


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("tunes", schema=None) as batch_op:
        batch_op.drop_index("ix_tunes_title")
        batch_op.create_index("ix_tunes_title", ["title", "number"], unique=False)
    op.drop_table("prompt_tunes")


def _tagged(connection: sa.Connection) -> Iterator[list[Any]]:
    """Yield the prompts with something like a tag in their text, in parts."""
    last = -1
    while True:
        query = (
            sa.select(_prompts)
            .where(_prompts.c.number > last, _prompts.c.text.like("%<%:%>%"))
            .order_by(_prompts.c.number)
            .limit(_PART)
        )
        rows = list(connection.execute(query))
        if not rows:
            return
        yield rows
        last = rows[-1].number


def _links(connection: sa.Connection, prompt: Any) -> list[dict[str, Any]]:
    """Return a link for each tag of a prompt."""
    tags: dict[tuple[str, str], float] = {}
    for match in _TAG.finditer(prompt.text):
        try:
            scale = float(match.group(3) or 1.0)
        except ValueError:
            continue  # it was never rendered like this
        name = (match.group(1).lower(), match.group(2).strip())
        tags[name] = tags.get(name, 0.0) + scale
    if not tags:
        return []
    rendered = list(((prompt.result or {}).get("weights") or {}).keys())
    meant = _as_rendered(connection, prompt, tags, rendered) if rendered else {}
    if not rendered:
        meant = {word: _only(_meant(connection, prompt.account_id, word)) for _kind, word in tags}
    first = 0 if prompt.tune_id is None else 1
    return [
        {
            "prompt_id": prompt.id,
            "place": first + place,
            "tune_id": meant.get(word),
            "kind": kind,
            "word": word,
            "scale": scale,
        }
        for place, ((kind, word), scale) in enumerate(tags.items())
    ]


def _as_rendered(
    connection: sa.Connection, prompt: Any, tags: dict[tuple[str, str], float], rendered: list[str]
) -> dict[str, str | None]:
    """Return which of the tunes that a prompt was rendered with each of its tags meant, whosever they are."""
    rows = list(connection.execute(sa.select(_tunes).where(_tunes.c.id.in_(rendered))))
    words = {word for _kind, word in tags}
    meant: dict[str, str | None] = {
        word: _only([row.id for row in rows if word in (row.id, str(row.number), row.title)])
        for word in words
    }
    lacking = [word for word in words if meant[word] is None]
    others = {row.id for row in rows} - {prompt.tune_id} - set(meant.values())
    if len(lacking) == len(others) == 1:  # renamed since
        meant[lacking[0]] = others.pop()
    return meant


def _meant(connection: sa.Connection, account_id: str, word: str) -> list[str]:
    """Return the tunes of an account that a word may mean."""
    number = int(word) if word.isdecimal() and len(word) <= 10 and int(word) < 2**31 else -1
    titled = sa.and_(_tunes.c.title == word, _tunes.c.deleted_at.is_(None))
    named = sa.or_(_tunes.c.id == word, _tunes.c.number == number, titled)
    return list(connection.scalars(sa.select(_tunes.c.id).where(_tunes.c.account_id == account_id, named)))


def _only(ids: list[str]) -> str | None:
    """Return the one id of a list, or None when there are several or none."""
    return ids[0] if len(ids) == 1 else None

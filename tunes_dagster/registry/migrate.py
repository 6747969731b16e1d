"""Runs the alembic revisions that ship in `migrations/`; imported only when a schema is not current.

After a change in the tables, `python scripts/new_revision.py "what changes"` writes the next revision from the
difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from tunes_dagster.core.failures import Failure, FailureCode

# Any constant will do as long as every version of this software takes the same one.
_ADVISORY_LOCK = 7_401_883_302


def alembic_config() -> Config:
    """Return alembic's configuration without a file: the scripts lie beside this module."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


def check_known(revision: str) -> None:
    """Refuse a schema that a newer version of this software made.

    Raises:
        Failure: `CONFLICT`.
    """
    scripts = ScriptDirectory.from_config(alembic_config())
    if revision not in {one.revision for one in scripts.walk_revisions()}:
        raise Failure(
            FailureCode.CONFLICT,
            f"The registry has schema {revision}, which this version does not know.",
            "It was upgraded by a newer version of tunes-dagster: upgrade this installation too.",
        )


def upgrade(engine: Engine) -> None:
    """Upgrade to the newest revision in one transaction that keeps every other upgrader out.

    SQLite's `BEGIN IMMEDIATE` is that lock; PostgreSQL takes an advisory one. Whoever comes second finds
    nothing left to do. SQLite changes a table by copying it, so its foreign keys rest meanwhile and are checked
    before the transaction ends.

    Raises:
        Failure: `CONFLICT` when the schema is newer than this software.
    """
    config = alembic_config()
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection, _foreign_keys_resting(connection), connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        current = MigrationContext.configure(connection).get_current_revision()
        if current == scripts.get_current_head():
            return
        if current is not None:
            check_known(current)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if connection.dialect.name == "sqlite":
            broken = connection.execute(text("PRAGMA foreign_key_check")).fetchall()
            if broken:
                raise Failure(
                    FailureCode.CONFLICT,
                    f"{len(broken)} rows of the registry refer to rows that are not there, first in {broken[0][0]}.",
                    "Nothing was changed. Restore the registry from a backup, or repair these rows, and start again.",
                )


@contextmanager
def _foreign_keys_resting(connection: Connection) -> Iterator[None]:
    """Turn SQLite's foreign keys off outside of any transaction, where alone that works, and on again."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")

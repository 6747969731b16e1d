"""Writes the registry's next revision: the difference between the newest one and the tables in the code.

.venv/bin/python scripts/new_revision.py "what changes"
"""

from __future__ import annotations

import sys
import tempfile

from alembic import command
from alembic.script import ScriptDirectory

from tunes_dagster.registry.engine import make_engine
from tunes_dagster.registry.migrate import alembic_config, upgrade


def revise(message: str) -> None:
    """Write the revision into `tunes_dagster/registry/migrations/versions/`, for a person to look at."""
    config = alembic_config()
    number = sum(1 for _ in ScriptDirectory.from_config(config).walk_revisions()) + 1
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(f"sqlite:///{folder}/registry.db").execution_options(tunes_writes=True)
        if number > 1:
            upgrade(engine)
        with engine.connect() as connection, connection.begin():
            config.attributes["connection"] = connection
            command.revision(config, message, autogenerate=True, rev_id=f"{number:04d}")
        engine.dispose()


if __name__ == "__main__":
    revise(" ".join(sys.argv[1:]))

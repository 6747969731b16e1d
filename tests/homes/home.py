"""The home of 29075c1, unpacked for a test, with everything that its callers and its operator would see around it."""

from __future__ import annotations

import http.server
import json
import shutil
import sqlite3
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import create_engine

from tunes_dagster.cli import main
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.core.store import Store
from tunes_dagster.registry import Registry, open_registry

ARCHIVE = Path(__file__).resolve().parents[1] / "data" / "home-29075c1.tar.xz"
RECEIVER = "http://127.0.0.1:8765"
"""Where the callers were when the home was made."""

ENVIRONMENT = {
    "TUNES_DEVICE": "cpu",
    "TUNES_COHORT_WAIT_SECONDS": "0",
    "TUNES_BATCH_WAIT_SECONDS": "0",
    "TUNES_HEARTBEAT_SECONDS": "0.5",
    "TUNES_REPORT_CHECKPOINTS": "0",
    "TUNES_REPORT_RENDERS": "2",
    "TUNES_RETRY_BACKOFF": "[0, 0, 0]",
    "TUNES_ALLOW_HOSTS": '["127.0.0.1"]',
    "TUNES_GATEWAY_PUBLIC_URL": "https://tunes.example.com",
}


class Callers(http.server.ThreadingHTTPServer):
    """The callers' side: takes every callback, and remembers what came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.seen: list[tuple[str, bytes, dict[str, str]]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Of this server."""
        return f"http://127.0.0.1:{self.server_port}"

    def counts(self) -> Counter[str]:
        """Return how often each path was called."""
        return Counter(path for path, _body, _headers in self.seen)


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Callers

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append((self.path, body, dict(self.headers)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@dataclass
class OldHome:
    """The home in a folder of its own.

    Attributes:
        folder: `TUNES_HOME`.
        url: Of its registry.
        made: Who is who, as `make_home_29075c1.py` wrote it.
        before: The rows before this version's code saw them, by table.
        callers: Where its callbacks lead now.
    """

    folder: Path
    url: str
    made: dict[str, Any]
    before: dict[str, list[dict[str, Any]]]
    callers: Callers
    _opened: list[Registry] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """As the environment says."""
        return get_settings()

    @property
    def registry(self) -> Registry:
        """The registry, upgraded when it is first opened."""
        if not self._opened:
            self._opened.append(open_registry(self.settings))
        return self._opened[0]

    @property
    def store(self) -> Store:
        """The files."""
        return Store(self.settings.resolved_store_url, self.settings.store_options)

    @property
    def instance(self) -> dg.DagsterInstance:
        """The Dagster instance with the runs of back then."""
        from tunes_dagster.pipeline.inprocess import open_instance

        return open_instance(self.settings)

    def tune(self, role: str) -> str:
        """Return the id of a tune by its part."""
        return str(self.made["tunes"][role])

    def prompt(self, role: str) -> str:
        """Return the id of a prompt by its part."""
        return str(self.made["prompts"][role])

    def was(self, table: str, key: str = "id") -> dict[str, dict[str, Any]]:
        """Return the rows of a table as they were."""
        return {row[key]: row for row in self.before[table]}

    def close(self) -> None:
        """Give the connections back."""
        for registry in self._opened:
            registry.close()


def unpack(target: Path) -> Path:
    """Unpack the archive; returns the folder that holds `home/`, `registry.sql` and `made.json`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(target, filter="data")
    return target


@contextmanager
def old_home(unpacked: Path, folder: Path, postgres: str | None = None) -> Iterator[OldHome]:
    """Set the home up as this process's installation.

    Args:
        unpacked: From `unpack`; nothing in it is changed.
        folder: For this test alone.
        postgres: URL of an empty database that gets the dump; None keeps the SQLite file.
    """
    home = folder / "home"
    shutil.copytree(unpacked / "home", home)
    callers = Callers()
    before = _move_receiver(home / "registry.db", callers.address)
    url = f"sqlite:///{home / 'registry.db'}"
    if postgres is not None:
        (home / "registry.db").unlink()
        restore_dump((unpacked / "registry.sql").read_text().replace(RECEIVER, callers.address), postgres)
        url = postgres
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("DAGSTER_HOME", raising=False)
        patch.setenv("TUNES_HOME", str(home))
        patch.setenv("TUNES_DAGSTER_STORAGE", str(home / "dagster"))
        patch.setenv("TUNES_CATALOG", str(home / "catalog.yaml"))
        patch.setenv("TUNES_CONTENT_RULES", str(home / "rules.txt"))
        if postgres is not None:
            patch.setenv("TUNES_REGISTRY_URL", postgres)
        get_settings.cache_clear()
        opened = OldHome(home, url, json.loads((unpacked / "made.json").read_text()), before, callers)
        try:
            if postgres is not None:  # a server's database waits for its operator's word
                assert main(["registry", "upgrade"]) == 0
            yield opened
        finally:
            opened.close()
            callers.shutdown()
            callers.server_close()
    get_settings.cache_clear()


def _move_receiver(file: Path, address: str) -> dict[str, list[dict[str, Any]]]:
    """Let every address of the callers lead to this test's; returns all rows by table."""
    with sqlite3.connect(file) as database:
        database.row_factory = sqlite3.Row
        names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {}
        for name in names:
            for column in database.execute(f"PRAGMA table_info('{name}')").fetchall():
                word = column["name"]
                database.execute(
                    f'UPDATE "{name}" SET "{word}" = replace("{word}", ?, ?) '
                    f'WHERE typeof("{word}") = \'text\' AND instr("{word}", ?)',
                    (RECEIVER, address, RECEIVER),
                )
            rows[name] = [dict(row) for row in database.execute(f'SELECT * FROM "{name}"')]
    database.close()
    return rows


def restore_dump(text: str, url: str) -> None:
    """Load a plain dump of `pg_dump --inserts`, without the settings that only newer servers know."""
    lines = [
        line
        for line in text.splitlines()
        if not line.startswith(("\\", "SET ", "SELECT pg_catalog.set_config"))
    ]
    engine = create_engine(url)
    with engine.begin() as connection:  # the driver's own cursor: a dump has no parameters
        connection.connection.cursor().execute("\n".join(lines))
    engine.dispose()

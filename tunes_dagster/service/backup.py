"""Taking and putting back a backup of a whole installation: registry, store, Dagster's history, the signing secret.

The registry is copied first, as of one moment, and the store after it: files are written before the rows that name
them, so what the copied rows name is there, unless it was deleted in between. Everything may go on meanwhile.
What an installation needs after a backup was put back is in `restore.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.core.store_files import files_below
from tunes_dagster.registry import open_registry

# Made again when they are missed, or nobody's business.
_LEFT_OUT = ("cache", "doctor")
_SQLITE, _POSTGRES, _ABOUT = "registry.db", "registry.dump", "backup.json"
_SECRETS = ("gateway.key",)


@dataclass(frozen=True)
class Backup:
    """What a backup holds; written last, so that a folder without it is none.

    Attributes:
        taken_at: The moment of its registry.
        registry: `sqlite` or `postgresql`.
        files: Files of the store; None when it was left out.
        bytes: Their size.
        dagster: Whether Dagster's history is in it.
        deleted: Kind and id of what was deleted while it was made: its registry has the rows, its store may have files.
    """

    taken_at: str
    registry: str
    files: int | None
    bytes: int
    dagster: bool
    deleted: list[list[str]]


def back_up(settings: Settings, folder: Path, *, with_store: bool = True) -> Backup:
    """Copy the installation into a folder, while it works.

    A folder that holds an earlier backup is brought up to date: what has not changed stays, what was deleted goes.

    Args:
        settings: The operator's.
        folder: Where to; made when missing.
        with_store: False for stores that are copied by other means, such as replication of a bucket.

    Raises:
        Failure: `STORE_UNAVAILABLE` when something cannot be read or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _ABOUT).unlink(missing_ok=True)
    url = make_url(settings.resolved_registry_url)
    taken_at = _database_now(settings)
    kind = url.get_backend_name()
    if kind == "sqlite":
        _copy_sqlite(Path(str(url.database)).expanduser(), folder / _SQLITE)
    else:
        _dump(url, folder / _POSTGRES)
    files: int | None = None
    size = 0
    if with_store:
        source = Store(settings.resolved_store_url, settings.store_options)
        files, size = mirror(source, Store(folder / "store"))
    dagster = dagster_storage(settings)
    if dagster.is_dir():
        _copy_history(dagster, folder / "dagster")
    for name in _SECRETS:
        if (settings.resolved_home / name).is_file():
            shutil.copy2(settings.resolved_home / name, folder / name)
    registry = open_registry(settings)
    try:
        deleted = registry.restoring.deleted_since(taken_at)
    finally:
        registry.close()
    made = Backup(clock.iso(taken_at) or "", kind, files, size, dagster.is_dir(), deleted)
    (folder / _ABOUT).write_text(json.dumps(asdict(made), indent=1) + "\n", encoding="utf-8")
    return made


def read_about(folder: Path) -> Backup:
    """Return what a backup says about itself.

    Raises:
        Failure: `INVALID_REQUEST` for a folder that is no complete backup.
    """
    try:
        return Backup(**json.loads((folder / _ABOUT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{folder.name!r} is no complete backup: {_ABOUT} is missing or cannot be read.",
            "Name a folder that `tunes backup` has finished.",
            detail_of(error, folder),
        ) from error


def put_back(settings: Settings, folder: Path, *, with_store: bool = True) -> Backup:
    """Put a backup into an installation that has no registry yet; nothing may run on it.

    Raises:
        Failure: `INVALID_REQUEST` for no backup, or one of another kind of database; `CONFLICT` when there is a
            registry already; `STORE_UNAVAILABLE` when something cannot be read or written.
    """
    about = read_about(folder)
    url = make_url(settings.resolved_registry_url)
    if about.registry != url.get_backend_name():
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The backup is of {about.registry}, but TUNES_REGISTRY_URL names {url.get_backend_name()}.",
            "Name a database of the same kind.",
        )
    _must_be_empty(settings, url)
    if about.registry == "sqlite":
        target = Path(str(url.database)).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / _SQLITE, target)
    else:
        _run(
            "pg_restore",
            url,
            "--no-owner",
            "--no-privileges",
            "--single-transaction",
            str(folder / _POSTGRES),
        )
        _upgrade(settings)  # a backup of an earlier version, put back by this one
    if with_store and about.files is not None:
        mirror(
            Store(folder / "store"), Store(settings.resolved_store_url, settings.store_options), prune=False
        )
    if about.dagster and not dagster_storage(settings).exists():
        shutil.copytree(folder / "dagster", dagster_storage(settings))
    for name in _SECRETS:
        if (folder / name).is_file() and not (settings.resolved_home / name).exists():
            shutil.copy2(folder / name, settings.resolved_home / name)
    return about


def _upgrade(settings: Settings) -> None:
    from tunes_dagster.registry.engine import Database

    database = Database(settings.resolved_registry_url, migrate=False)
    try:
        database.migrate(older=True)
    finally:
        database.close()


def dagster_storage(settings: Settings) -> Path:
    """Return the folder of Dagster's own storage; when that is a database, what lies there is little or nothing."""
    return Path(os.environ.get("TUNES_DAGSTER_STORAGE") or settings.resolved_home / "dagster")


def mirror(source: Store, target: Store, *, prune: bool = True) -> tuple[int, int]:
    """Bring a store to the state of another one, without caches; returns number and size of its files.

    Args:
        source: Read while others write and delete: a file that vanishes meanwhile is left out.
        target: Written.
        prune: Delete what the source does not have. What a person had deleted must not live on in a backup.
    """
    there = set(keys_of(target))
    seen: set[str] = set()
    size = 0
    for key in keys_of(source):
        try:
            wanted = source.path(key).stat()
            if key not in there or not _same(source, target, key):
                with source.open_read(key) as file:
                    target.write_stream(key, file)
                if target.is_local:
                    os.utime(str(target.path(key)), (wanted.st_mtime, wanted.st_mtime))
        except FileNotFoundError:
            continue
        seen.add(key)
        size += int(wanted.st_size)
    for key in there - seen if prune else ():
        target.delete(key)
    return len(seen), size


def _same(source: Store, target: Store, key: str) -> bool:
    """Whether a file was copied already and has not changed since; files under their own hash never do."""
    ours, copy = source.path(key).stat(), target.path(key).stat()
    if ours.st_size != copy.st_size:
        return False
    return key.startswith("blobs/") or copy.st_mtime >= ours.st_mtime


def keys_of(store: Store) -> Iterator[str]:
    """Yield every key of a store but those of caches."""
    if not store.root.exists():
        return
    for entry in sorted(store.root.iterdir(), key=lambda path: path.name):
        if entry.name in _LEFT_OUT or entry.name.endswith(".part"):
            continue
        if entry.is_dir():
            yield from store.list(entry.name)
        else:
            yield entry.name


def _database_now(settings: Settings) -> datetime:
    from tunes_dagster.registry.engine import Database

    database = Database(settings.resolved_registry_url, migrate=False)
    try:
        return database.now()
    finally:
        database.close()


def _must_be_empty(settings: Settings, url: URL) -> None:
    from tunes_dagster.registry.engine import Database

    where = url.render_as_string(hide_password=True)
    taken = Failure(
        FailureCode.CONFLICT,
        "There is a registry already.",
        "Move it away, or name an empty database (TUNES_REGISTRY_URL) and home (TUNES_HOME): nothing is overwritten.",
        f"It is at {where}.",
    )
    if url.get_backend_name() == "sqlite":
        if Path(str(url.database)).expanduser().exists():
            raise taken
        return
    database = Database(settings.resolved_registry_url, migrate=False)
    try:
        if database.revision() is not None:
            raise taken
    finally:
        database.close()


def _copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database as of one moment, while others write to it (SQLite's online backup)."""
    if not source.is_file():
        raise Failure(
            FailureCode.STORE_UNAVAILABLE,
            "There is no registry.",
            "Check TUNES_REGISTRY_URL.",
            f"No file {source}.",
        )
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        with (
            closing(sqlite3.connect(source, timeout=60)) as reading,
            closing(sqlite3.connect(part)) as writing,
        ):
            reading.backup(writing)  # in one step: a copy in several begins again with every write in between
            writing.execute("PRAGMA journal_mode=DELETE")
        part.replace(target)
    except sqlite3.Error as error:
        part.unlink(missing_ok=True)
        raise Failure(
            FailureCode.STORE_UNAVAILABLE,
            f"{source.name} cannot be copied.",
            "Check the disk and try again.",
            detail_of(error, source),
        ) from error


def _copy_history(source: Path, target: Path) -> None:
    """Copy Dagster's own storage: databases as of one moment each, the rest as it lies."""
    shutil.rmtree(target, ignore_errors=True)
    for file in sorted(files_below(source)):
        place = target / file.relative_to(source)
        if file.name.endswith(("-wal", "-shm", "-journal")):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # a run that was deleted meanwhile
            if file.suffix == ".db":
                _copy_sqlite(file, place)
            else:
                shutil.copy2(file, place)


def _dump(url: URL, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    _run("pg_dump", url, "--format=custom", "--no-owner", "--no-privileges", "--file", str(part))
    part.replace(target)


def _run(tool: str, url: URL, *words: str) -> None:
    """Run one of PostgreSQL's tools; the password goes through the environment, where `ps` does not show it."""
    plain = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    try:
        ended = subprocess.run(  # noqa: S603 - the operator's own address
            [tool, "--dbname", plain, *words], env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise Failure(
            FailureCode.STORE_UNAVAILABLE,
            f"{tool} is not installed.",
            "Install PostgreSQL's client programs (Debian: postgresql-client) of the server's version or newer.",
        ) from error
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or ["no message"])[0]
        raise Failure(
            FailureCode.STORE_UNAVAILABLE,
            f"{tool} failed.",
            f"Use a {tool} of the server's version or newer, and check TUNES_REGISTRY_URL.",
            said,
        )

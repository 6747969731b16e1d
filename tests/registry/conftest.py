"""A registry on SQLite, and on PostgreSQL where one can be had; a clock that tests move by hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from tests.support.databases import new_database
from tests.support.registry import Clock
from tunes_dagster.registry import Account, Registry
from tunes_dagster.registry.tables import Table


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def shared_database(postgres: Engine) -> str:
    """One database for all tests that do not mind: making one takes as long as a test."""
    return new_database(postgres)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    return new_database(request.getfixturevalue("postgres"))


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

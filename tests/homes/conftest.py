"""The home that 29075c1 left behind, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.homes.home import OldHome, old_home, unpack
from tests.support.databases import new_database


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's content; read-only."""
    return unpack(tmp_path_factory.mktemp("home-29075c1"))


@pytest.fixture(params=["sqlite", "postgres"])
def home(request: pytest.FixtureRequest, unpacked: Path, tmp_path: Path) -> Iterator[OldHome]:
    """The home, not yet opened by this version; on PostgreSQL upgraded by its operator."""
    url = new_database(request.getfixturevalue("postgres")) if request.param == "postgres" else None
    with old_home(unpacked, tmp_path, url) as opened:
        yield opened

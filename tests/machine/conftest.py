"""A registry for the plain tests of what the machine found: each is about what the rows say, not about a database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.conftest import clock, migrated_file  # noqa: F401 - fixtures
from tests.support.registry import Clock
from tunes_dagster.registry import Registry


@pytest.fixture
def registry(tmp_path: Path, clock: Clock, migrated_file: Path) -> Iterator[Registry]:  # noqa: F811
    """A registry without rows."""
    shutil.copyfile(migrated_file, tmp_path / "registry.db")
    opened = Registry(f"sqlite:///{tmp_path / 'registry.db'}", now=clock)
    yield opened
    opened.close()

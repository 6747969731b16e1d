"""A workshop: an installation in a temporary folder, on random bases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sessions import Workshop, make_workshop


@pytest.fixture
def workshop(tmp_path: Path, base_folder: Path) -> Iterator[Workshop]:
    """An installation without Dagster."""
    opened = make_workshop(tmp_path, base_folder)
    yield opened
    opened.installation.close()

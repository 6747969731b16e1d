"""What all histories share: settings, a catalog of bases by name, a registry to begin with, on a disk of memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.machine.world import Chance, House, furnish
from tests.support.houses import write_catalog
from tunes_dagster.core import ids
from tunes_dagster.core.settings import Settings
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.registry import Registry

_MEMORY = Path("/dev/shm")


@contextmanager
def make_house(tmp_path_factory: pytest.TempPathFactory, postgres: str | None = None) -> Iterator[House]:
    """Make it, on SQLite or in a PostgreSQL database, and take it away."""
    kept = tmp_path_factory.mktemp("house")
    fast = _MEMORY if os.access(_MEMORY, os.W_OK) else kept
    folder = Path(tempfile.mkdtemp(prefix="tunes-histories-", dir=fast))
    base = kept / "base"
    base.mkdir()
    (base / "model_index.json").write_text("{}")
    template = kept / "registry.db"
    first = Registry(f"sqlite:///{template}")
    furnish(first)
    first.close()
    overlay = write_catalog(kept / "catalog.yaml", base)
    settings = Settings(home=kept / "home", cohort_wait_seconds=0, batch_wait_seconds=0, max_batch_prompts=3)
    chance = Chance()
    drawn = pytest.MonkeyPatch()
    drawn.setattr(ids, "time", chance)
    drawn.setattr(ids, "secrets", chance)
    house = House(chance, settings, load_catalog(settings.profile, str(overlay)), template, folder, postgres)
    try:
        yield house
    finally:
        house.registry.close()
        drawn.undo()
        shutil.rmtree(folder, ignore_errors=True)

"""Fixtures that tests of several rooms use."""

from __future__ import annotations

import operator
import os
import random
import sys
from pathlib import Path

# Two threads on shared cores are slower than one for models this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests of sensors, runs and commands say which way of working they mean, and most mean a process per run; those of
# sessions switch them on, and whole installations (tests/e2e) are as they come.
os.environ.setdefault("TUNES_SESSIONS", "off")
# Nothing but .tunes/ and .venv/ appears in a clone.
_CACHE = Path(__file__).resolve().parent.parent / ".tunes" / "cache"
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(_CACHE / "hypothesis"))

import pytest  # noqa: E402 - hypothesis reads its folder when pytest loads its plugins

from tests.support import lock_order  # noqa: E402
from tests.support.databases import (  # noqa: E402, F401 - fixtures
    own_postgres,
    own_postgres_server,
    postgres,
)
from tunes_dagster.core import disk  # noqa: E402

# None of them needs what it wrote after a power loss.
disk.ENABLED = False
# Every transaction of every test is watched.
lock_order.watch()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: tests of servers and databases wait more than they compute."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def _drawn_alike() -> None:
    """Tests that draw numbers draw the same ones every time, alone and together."""
    random.seed(0)
    for name, seed in (("numpy", "random.seed"), ("torch", "manual_seed")):
        if name in sys.modules:
            operator.attrgetter(seed)(sys.modules[name])(0)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight base of the SDXL pipeline class in diffusers layout; read-only."""
    from tests.support.tiny_bases import make_random_sdxl

    return make_random_sdxl(tmp_path_factory.mktemp("bases") / "random-sdxl")


@pytest.fixture
def without_upscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every catalog is one in which no shipped model stands in for `upscale-4x`."""
    from tunes_dagster.families.catalog import BaseModelEntry, Catalog

    made = Catalog.__init__

    def make(self: Catalog, entries: dict[str, BaseModelEntry], profile: str = "embedded") -> None:
        named = {n: e.model_copy(update={"embedded": ""}) for n, e in entries.items() if n == "upscale-4x"}
        made(self, {**entries, **named}, profile)

    monkeypatch.setattr(Catalog, "__init__", make)

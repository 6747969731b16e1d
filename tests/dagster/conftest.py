"""A whole installation in a temporary folder, on the random base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.support.databases import Server, new_database
from tests.support.houses import draw_pictures, odd_keys, write_catalog
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.registry import Registry, Tune, open_registry
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.submit import submit_tune


@dataclass
class House:
    """One installation.

    Attributes:
        home: Its folder.
        settings: As the environment says.
        registry: Its rows.
        store: Its files.
        instance: Its Dagster instance.
    """

    home: Path
    settings: Settings
    registry: Registry
    store: Store
    instance: dg.DagsterInstance

    def submit(self, title: str = "bob", pictures: int = 5, **fields) -> Tune:
        """Submit a tune on freshly drawn pictures."""
        folder = draw_pictures(self.home / "pictures" / title, pictures, seed=sum(map(ord, title)))
        request = TuneRequest.model_validate(
            {
                "name": "mug",
                "title": title,
                "sources": {"folder": str(folder)},
                "dataset": {"captioner": False},
                **fields,
            }
        )
        return submit_tune(
            Installation(self.settings, registry=self.registry, store=self.store, catalog=load_catalog()),
            request,
            allow_folder=str(folder),
        )

    def status(self, tune_id: str) -> str:
        """Return the status of a tune."""
        return self.registry.tunes.get(tune_id).status


def _open_house(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    catalog = write_catalog(tmp_path / "catalog.yaml", base_folder)
    for name, value in {
        "TUNES_HOME": str(tmp_path / "home"),
        "TUNES_CATALOG": str(catalog),
        "TUNES_DEVICE": "cpu",
        "TUNES_COHORT_WAIT_SECONDS": "0",
        "TUNES_BATCH_WAIT_SECONDS": "0",
        "TUNES_HEARTBEAT_SECONDS": "0.2",
        "TUNES_RETRY_BACKOFF": "[0, 0, 0]",
        "TUNES_DROP_SETTLE_SECONDS": "0",
        "TUNES_REPORT_CHECKPOINTS": "1",
        "TUNES_REPORT_RENDERS": "2",
    }.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    settings = get_settings()
    store = Store(settings.resolved_store_url, settings.store_options)
    return House(tmp_path / "home", settings, open_registry(settings), store, dg.DagsterInstance.ephemeral())


@pytest.fixture
def house(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """An installation with the random base."""
    opened = _open_house(tmp_path, base_folder, monkeypatch)
    yield opened
    opened.registry.close()
    get_settings.cache_clear()
    assert not (odd := odd_keys(opened.instance)), odd


@pytest.fixture
def paper_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """An installation whose base is there by name only."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "model_index.json").write_text("{}")
    opened = _open_house(tmp_path, base, monkeypatch)
    yield opened
    opened.registry.close()
    get_settings.cache_clear()
    assert not (odd := odd_keys(opened.instance)), odd


@pytest.fixture
def house_on_postgres(
    own_postgres: Server, tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[House]:
    """An installation whose registry lies on a PostgreSQL that the test may kill."""
    monkeypatch.setenv("TUNES_REGISTRY_URL", new_database(own_postgres.engine))
    opened = _open_house(tmp_path, base_folder, monkeypatch)
    yield opened
    opened.registry.close()
    get_settings.cache_clear()


@pytest.fixture
def place(paper_house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An installation with sessions on, on paper, and Dagster's part of it."""
    from tests.support.told_places import Place
    from tunes_dagster.pipeline.launcher import DeviceRunLauncher

    monkeypatch.setenv("TUNES_SESSIONS", "true")
    get_settings.cache_clear()
    paper_house.settings = get_settings()
    instance = paper_house.instance
    launcher = DeviceRunLauncher()
    launcher.register_instance(instance)
    monkeypatch.setattr(instance, "_run_launcher", launcher)
    yield Place(paper_house, instance)
    launcher.dispose()

"""`tunes dev` on a home of its own, and a page of Debian's Chromium that looks at it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.test_supervising import free_port
from tests.support.houses import draw_pictures, write_catalog
from tunes_dagster.cli.supervising import Place
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.core.store import Store
from tunes_dagster.registry import Registry, Tune, open_registry
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.submit import submit_tune

if TYPE_CHECKING:
    from playwright.sync_api import Page

CALL = "from tunes_dagster.cli import main; main()"
# A busy machine with two cores; an idle one needs a tenth.
PATIENCE = 400


@dataclass
class Dev:
    """An installation that `tunes dev` works on.

    Attributes:
        ui: Address of Dagster's UI.
        home: Its folder.
        settings: As the environment says.
        registry: Its rows.
        store: Its files.
    """

    ui: str
    home: Path
    settings: Settings
    registry: Registry
    store: Store

    def submit(self, title: str, pictures: int = 5, **fields: Any) -> Tune:
        """Hand a tune in."""
        folder = draw_pictures(self.home / "pictures" / title, pictures, seed=sum(map(ord, title)))
        asked = {
            "name": "mug",
            "title": title,
            "sources": {"folder": str(folder)},
            "dataset": {"captioner": False},
        }
        request = TuneRequest.model_validate({**asked, **fields})
        return submit_tune(self.whole, request, allow_folder=str(folder))

    @property
    def whole(self) -> Installation:
        """The installation."""
        return Installation(self.settings, registry=self.registry, store=self.store)

    def until(self, tune: Tune, *statuses: str) -> None:
        """Wait until a tune has one of some statuses."""
        wait_for(
            lambda: self.registry.tunes.get(tune.id).status in statuses, f"{tune.title} was never {statuses}"
        )


def wait_for(true: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Iterator[Dev]:
    """Start `tunes dev`, and end it with everything that it started."""
    root = tmp_path_factory.mktemp("ui")
    port, api_port = free_port(), free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DAGSTER_HOME", "TUNES_DAGSTER_STORAGE", "TUNES_SESSIONS"):
            patch.delenv(name, raising=False)
        for name, value in {
            "TUNES_HOME": str(root / "home"),
            "TUNES_CATALOG": str(write_catalog(root / "catalog.yaml", base_folder)),
            "TUNES_DEVICE": "cpu",
            "TUNES_COHORT_WAIT_SECONDS": "0",
            "TUNES_BATCH_WAIT_SECONDS": "0",
            "TUNES_REPORT_CHECKPOINTS": "1",
            "TUNES_REPORT_RENDERS": "2",
            "DAGSTER_GRPC_TIMEOUT_SECONDS": "240",
        }.items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        settings = get_settings()
        command = [sys.executable, "-c", CALL, "dev", "--port", str(port), "--api-port", str(api_port)]
        with (root / "dev.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
            registry = None
            try:
                place = Place("", "127.0.0.1", port, "/server_info")
                wait_for(place.answers, f"the UI did not answer: {(root / 'dev.log').read_text()}")
                registry = open_registry(settings)
                store = Store(settings.resolved_store_url, settings.store_options)
                yield Dev(f"http://127.0.0.1:{port}", root, settings, registry, store)
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(60)
                if registry is not None:
                    registry.close()
                get_settings.cache_clear()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of Chromium; `TUNES_CHROMIUM` names another one than Debian's."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install 'tunes-dagster[ui]'")
    chromium = os.environ.get("TUNES_CHROMIUM") or shutil.which("chromium")
    if not chromium:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: `TUNES_SHOTS`, to be looked at or put into docs/images."""
    folder = Path(os.environ.get("TUNES_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder

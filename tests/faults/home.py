"""A home at each stage of its work, and what has come of it: what a fault must not change."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.houses import draw_pictures, write_catalog
from tests.support.registry import around
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.settings import get_settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.pipeline.inprocess import drive, open_instance
from tunes_dagster.registry import Registry, open_registry
from tunes_dagster.service.erase import drive as drive_deletions
from tunes_dagster.service.erase import erase_tunes
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.submit import submit_tune
from tunes_dagster.sessions.hosting import host

SETTINGS = {
    "TUNES_DEVICE": "cpu",
    "TUNES_COHORT_WAIT_SECONDS": "0",
    "TUNES_BATCH_WAIT_SECONDS": "0",
    "TUNES_HEARTBEAT_SECONDS": "0.1",
    "TUNES_LOST_AFTER_SECONDS": "1.0",
    "TUNES_RETRY_BACKOFF": "[0, 0, 0]",
    "TUNES_MAX_ATTEMPTS": "6",
    "TUNES_REPORT_CHECKPOINTS": "1",
    "TUNES_REPORT_RENDERS": "2",
    "TUNES_UI_URL": "",
}
CAMPAIGN = b"""name: looks
cron: "0 7 * * 1"
start: 2026-03-02
settings: {steps: 2, width: 64, height: 64}
prompts:
  - {text: a mug, seeds: 1-3}
"""
DATE = "2026-03-09"
PROMPT = {"text": "a photo of ohwx mug", "settings": {"num_images": 2, "seed": 5, "steps": 2}}


@dataclass
class Home:
    """One home.

    Attributes:
        folder: Its own folder and nobody else's.
        registry: Its rows.
        store: Its files.
        whole: All of it.
    """

    folder: Path
    registry: Registry
    store: Store
    whole: Installation

    def status(self, title: str) -> str:
        """Return the status of a tune."""
        return next(tune.status for tune in self.registry.tunes.rows() if tune.title == title)


def opened(folder: Path) -> Home:
    """Open a home in this process, which is told by the environment which one is meant."""
    os.environ.update(
        SETTINGS
        | {
            "TUNES_HOME": str(folder / "home"),
            "TUNES_CATALOG": str(folder / "catalog.yaml"),
            "TUNES_DAGSTER_STORAGE": str(folder / "home" / "dagster"),
        }
    )
    os.environ.pop("DAGSTER_HOME", None)
    get_settings.cache_clear()
    settings = get_settings()
    store = Store(settings.resolved_store_url)
    registry = open_registry(settings, works=True)
    whole = Installation(settings, registry=registry, store=store, catalog=load_catalog())
    return Home(folder, registry, store, whole)


def begin(folder: Path, base: Path) -> None:
    """Make a home in which everything is asked for and nothing is done."""
    write_catalog(folder / "catalog.yaml", base)
    home = opened(folder)
    for title in ("kept", "gone"):
        request = TuneRequest.model_validate(
            {
                "name": "mug",
                "title": title,
                "sources": {"folder": str(draw_pictures(folder / "pictures", 3))},
                "dataset": {"captioner": False, "face_crop": False},
                "training": {"steps": 4, "checkpoint_every": 2, "prior_weight": 0.0},
                "prompts": [PROMPT] if title == "kept" else [],
            }
        )
        submit_tune(
            Installation(
                home.whole.settings, registry=home.registry, store=home.store, catalog=home.whole.catalog
            ),
            request,
            allow_folder=str(folder / "pictures"),
        )
    keeper = Keeper(home.whole)
    keeper.add(Source("looks.yaml", CAMPAIGN, {}), home.registry.now())
    home.registry.close()


def _driven(home: Home, until: Callable[[], bool], **settings_of: Any) -> None:
    settings = home.whole.settings.model_copy(update=settings_of)
    with open_instance(settings) as instance:
        drive(Installation(settings, registry=home.registry), until, instance=instance)


def _both(home: Home, *wanted: str) -> bool:
    return all(home.status(title) in (*wanted, "failed", "cancelled") for title in ("kept", "gone"))


def _prompts_over(home: Home) -> bool:
    return not any(one.status in ("waiting", "queued", "rendering") for one in home.registry.prompts.rows())


def _plan(home: Home) -> None:
    keeper = Keeper(home.whole)
    keeper.plan(home.registry.campaigns.get("looks"), DATE)


def _delete(home: Home) -> None:
    gone = [tune for tune in home.registry.tunes.rows() if tune.title == "gone"]
    erase_tunes(around(home.registry, home.store), gone)
    for _ in range(5):
        drive_deletions(around(home.registry, home.store))


# In the order in which a home goes through them; each leaves what the next one begins with.
STAGES: dict[str, Callable[[Home], None]] = {
    # One that is prepared again waits for nobody: the other must not be trained meanwhile.
    "prepare": lambda home: _driven(home, lambda: _both(home, "prepared"), cohort_wait_seconds=3600.0),
    "make": lambda home: _driven(home, lambda: _both(home, "ready") and _prompts_over(home)),
    "plan": _plan,
    "render": lambda home: _driven(home, lambda: _prompts_over(home)),
    "delete": _delete,
}


def _held(home: Home) -> None:
    """Have a device session do it, as the one after it does when it dies."""
    while not (_both(home, "ready") and _prompts_over(home)):
        try:
            host(home.whole, warm_seconds=0.2)
        except Failure as failure:  # the one that died is silent for too short a time
            if failure.code != FailureCode.CONFLICT:
                raise
            time.sleep(0.1)


# What does the work of a stage in another way, and has to come to the same.
INSTEAD: dict[str, tuple[str, Callable[[Home], None]]] = {"session": ("make", _held)}


def doing(stage: str) -> Callable[[Home], None]:
    """Return what is done in a stage."""
    return INSTEAD[stage][1] if stage in INSTEAD else STAGES[stage]


def copied(snapshot: Path, folder: Path) -> Path:
    """Return a copy of a home, at a place of its own."""
    shutil.copytree(snapshot, folder, symlinks=True)
    return folder


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def outcome(home: Home) -> dict[str, Any]:
    """Return what has come of a home: states, the bytes of weights and pictures, what is owed, and what is wrong."""
    found: dict[str, Any] = {}
    for tune in home.registry.tunes.rows():
        about: dict[str, Any] = {"status": tune.status, "why": tune.failure_message}
        if tune.made.weights_key and tune.status != "deleted":
            about["weights"] = _digest(home.store.read_bytes(tune.made.weights_key))
        about["files"] = any(True for _ in home.store.list(f"tunes/{tune.id}"))
        about["work"] = sorted((work.kind, work.state) for work in home.registry.work.of(tune.id))
        found[tune.title] = about
    prompts = sorted(home.registry.prompts.rows(limit=1000), key=lambda one: (one.text, one.settings["seed"]))
    found["prompts"] = [
        (
            one.text,
            one.settings["seed"],
            one.status,
            [_pixels(home.store.read_bytes(key)) for key in one.images or []],
        )
        for one in prompts
    ]
    found["faults"] = [str(fault) for fault in home.registry.audit.faults()]
    return found


def _pixels(data: bytes) -> str:
    return _digest(Image.open(io.BytesIO(data)).convert("RGB").tobytes())

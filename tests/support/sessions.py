"""An installation for sessions, without Dagster: prepared tunes are written, not prepared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.houses import write_catalog
from tests.support.registry import add_prompt, prompt_request
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.intake.captions import CaptionRow, CaptionTable
from tunes_dagster.intake.training_set import TrainingItem, TrainingSet
from tunes_dagster.registry import Prompt, Tune
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.submit import submit_tune
from tunes_dagster.sessions.hardware import Device
from tunes_dagster.sessions.journal import Journal
from tunes_dagster.sessions.session import Session

SMALL = {"width": 64, "height": 64, "steps": 2}
CPU = Device("cpu", "float32", 8.0, "CPU")


@dataclass
class Workshop:
    """An installation on random bases."""

    installation: Installation

    @property
    def registry(self):
        return self.installation.registry

    def session(self, journal: Journal | None = None) -> Session:
        return Session(self.installation, CPU, journal)

    def prompt(
        self, seed: int = 1, base_id: str = "tiny-sdxl", origin: str = "cli", **more: object
    ) -> Prompt:
        """Queue a prompt on a bare base."""
        request = prompt_request("a photo of a mug", seed=seed, **{**SMALL, **more})
        return add_prompt(self.registry, request, base_id=base_id, origin=origin)

    def status(self, prompt: Prompt) -> str:
        return self.registry.prompts.get(prompt.id).status

    def picture(self, prompt: Prompt) -> bytes:
        (key,) = self.registry.prompts.get(prompt.id).images
        return self.installation.store.read_bytes(key)

    def prepared(self, title: str = "mug", pictures: int = 3, base: str = "tiny", **training: object) -> Tune:
        """Add a tune that waits to be trained."""
        from tests.training.conftest import add_picture

        store, catalog = self.installation.store, self.installation.catalog
        keys = [add_picture(store, seed) for seed in range(pictures)]
        request = TuneRequest.model_validate(
            {
                "name": "mug",
                "title": title,
                "base": base,
                "sources": {"image_urls": ["http://127.0.0.1/one.png"]},
                "training": training,
            }
        )
        tune = submit_tune(
            Installation(self.installation.settings, registry=self.registry, store=store, catalog=catalog),
            request,
        )
        items = [
            TrainingItem(
                hash=key.rpartition("/")[2],
                picture=key,
                key=key,
                name=f"{number}.png",
                kind="full",
                bucket=(64, 64),
                crop=(0, 0, 64, 64),
            )
            for number, key in enumerate(keys)
        ]
        rows = [
            CaptionRow(
                name=one.name, caption=f"{tune.token} mug, {one.name}", source="template", hash=one.hash
            )
            for one in items
        ]
        TrainingSet(tune_id=tune.id, class_name="mug", resolution=64, seed=0, items=items).save(store)
        CaptionTable(tune_id=tune.id, token=tune.token, class_name="mug", rows=rows).save(store, "test")
        work = self.registry.work.claim("prepare", tune.id, "preparation")
        self.registry.work.finish(work.id, "preparation")
        return self.registry.tunes.get(tune.id)

    def weights(self, tune: Tune) -> dict[str, np.ndarray]:
        """Return the numbers that training wrote."""
        from safetensors.numpy import load

        key = self.registry.tunes.get(tune.id).made.last_weights_key
        return load(self.installation.store.read_bytes(key))


def with_family(overlay: Path, name: str, **fields: object) -> Path:
    """Return a catalog's overlay with `random-NAME`, a random base of another family (`tests/support/families.py`)."""
    import yaml

    from tests.support.doubles import write_double
    from tests.support.families import CASES

    entries = yaml.safe_load(overlay.read_text())
    case, base_id = CASES[name], f"random-{name}"
    folder = write_double(case.double, overlay.with_name(base_id), **case.changed)
    like = {key: value for key, value in entries["tiny-sdxl"].items() if key != "aliases"}
    entries[base_id] = {
        **like,
        "family": case.family,
        "repo_id": str(folder),
        "embedded": base_id,
        **case.entry,
        **fields,
    }
    fuller = overlay.with_name(f"{base_id}.yaml")
    fuller.write_text(yaml.safe_dump(entries))
    return fuller


def make_workshop(folder: Path, base_folder: Path, **changes: object) -> Workshop:
    """Return an installation whose bases are random."""
    catalog = write_catalog(folder / "catalog.yaml", base_folder)
    values = {
        "home": folder / "home",
        "device": "cpu",
        "heartbeat_seconds": 0.2,
        "retry_backoff": (0.0, 0.0, 0.0),
        "report_checkpoints": 0,
        "report_renders": 2,
        "allow_hosts": ["127.0.0.1"],
        "safety_checker": False,
        **changes,
    }
    settings = Settings.model_validate(values)
    return Workshop(Installation(settings, catalog=load_catalog(extra=str(catalog)), works=True))


__all__ = ["CPU", "SMALL", "Workshop", "make_workshop"]

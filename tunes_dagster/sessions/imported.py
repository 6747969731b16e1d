"""Tunes whose weights were made elsewhere: taken in where others are trained, on the base that is loaded for these.

They are inspected, materialized and checked like tunes that were trained, under the same `lora` asset.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.progress import Phase
from tunes_dagster.core.recipe import TrainingOptions

if TYPE_CHECKING:
    from tunes_dagster.registry import Tune
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.sessions.attempts import Attempt
    from tunes_dagster.training.jobs import TrainingResult, TuneJob


def is_import(tune: Tune) -> bool:
    """Whether a tune's weights are taken in, not trained."""
    return "imported" in tune.recipe


def import_job(mine: Attempt, tune: Tune, installation: Installation) -> TuneJob:
    """Return what taking in needs to know of a tune, its file fetched and looked through if it was not yet.

    Raises:
        Failure: `SOURCE_REFUSED`, `SOURCE_UNREACHABLE`, `WEIGHTS_UNUSABLE`.
    """
    from tunes_dagster.training.jobs import TuneJob

    recipe = dict(tune.recipe)
    if not recipe["imported"].get("key"):
        recipe["imported"] = fetched(mine, tune, installation)
        tune = installation.registry.tunes.set_recipe(mine.work.id, mine.run_id, recipe)
    return TuneJob(
        tune_id=tune.id,
        # What the memory that it takes is planned by: the base and one adapter on it.
        options=TrainingOptions(steps=1, rank=16, batch_size=1, prior_weight=0, gradient_checkpointing=True),
        items=[],
        token=tune.token,
        class_name=tune.class_name,
        out_prefix=f"tunes/{tune.id}/lora/{mine.work.attempt}",
        report=mine.report,
        recipe=recipe,
        title=tune.title,
        date=tune.created_at.date().isoformat(),
    )


def fetched(mine: Attempt, tune: Tune, installation: Installation) -> dict[str, Any]:
    """Fetch a tune's file into the store, and return what its recipe says of it."""
    from tunes_dagster.intake.fetch import MB, Fetcher, FetchLimits
    from tunes_dagster.intake.weights import fetch_weights, look_at
    from tunes_dagster.training.files import sha256_of

    said, settings = dict(tune.recipe["imported"]), installation.settings
    most = settings.import_max_mb
    mine.report.phase(Phase.FETCHING, f"Fetching {said['name']}.")
    with (
        tempfile.TemporaryDirectory(prefix="tunes-import-") as folder,
        Fetcher(allow_hosts=tuple(settings.allow_hosts), limits=FetchLimits(max_bytes=most * MB)) as fetcher,
    ):
        found = fetch_weights(said["url"], Path(folder), fetcher)
        look_at(found.path, found.name, most)
        key = installation.store.write_file(f"tunes/{tune.id}/uploads/weights.safetensors", found.path)
        config = {**said.get("config", {}), **found.config}
        return {**said, "name": found.name, "key": key, "sha256": sha256_of(found.path), "config": config}


def known_now(tune: Tune, result: TrainingResult) -> dict[str, Any]:
    """Return a tune's recipe with what its file turned out to hold."""
    figures = result.figures
    training = {
        **tune.recipe["training"],
        "kind": "pti" if figures.get("embeddings") else "lora",
        "dora": bool(figures["dora"]),
    }
    imported = {
        **result.recipe["imported"],
        "rank": figures["rank"],
        "continued_as": figures.pop("continued_as"),
    }
    return {**tune.recipe, "training": training, "imported": imported}

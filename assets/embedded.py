"""Tunes that train nothing (`faceid`): what an image encoder sees in their pictures is kept, on the CPU.

They are finished, materialized and checked like tunes that were trained, under the same `lora` asset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg

from tunes_dagster.assets.display import files, picture
from tunes_dagster.assets.names import LORA
from tunes_dagster.assets.trained import DIFFERS, FINITE, LOADS, Trained
from tunes_dagster.core.progress import Phase

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.registry import Tune
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.training.jobs import TuneJob, TuneResult


def embed(tune: Tune, job: TuneJob, installation: Installation) -> Trained:
    """Look at a tune's pictures, write its files and check them.

    Args:
        tune: Its row.
        job: What training would need to know of it.
        installation: Where its base and the IP-Adapter are looked up, and its files are kept.

    Raises:
        Failure: `BASE_NOT_INSTALLED`, `WEIGHTS_UNUSABLE`, `TOO_FEW_PICTURES`.
    """
    from tunes_dagster.families.ipadapter import adapter_for, read_adapter
    from tunes_dagster.training import faceid

    store, folder = installation.store, installation.settings.bases_folder
    base, _ = installation.usable(tune.branch)
    entry = adapter_for(installation.catalog, base, folder)
    result = faceid.make(job, base, entry, folder, store)
    job.report.phase(Phase.EVALUATING, "Looking at what the base will be told.")
    seen = faceid.verify(result.weights_key, read_adapter(entry, folder), store)
    return Trained(tune, result, metadata=described(tune, job, result, store), checks=answers(seen))


def answers(seen: Any) -> list[dg.AssetCheckResult]:
    """Return what was verified as the answers of `LORA_CHECKS`."""
    said = (
        (FINITE, seen.finite, "Every number of the embeddings."),
        (LOADS, seen.loads, "The adapter's projection, by diffusers' own code, makes finite tokens of it."),
        (
            DIFFERS,
            seen.differs,
            f"Its tokens differ from those of no picture by {seen.difference:.2g} on average.",
        ),
    )
    return [
        dg.AssetCheckResult(passed=bool(passed), check_name=spec.name, asset_key=LORA, description=sentence)
        for spec, passed, sentence in said
    ]


def described(tune: Tune, job: TuneJob, result: TuneResult, store: Store) -> dict[str, Any]:
    """Return what the UI shows: the pictures that were looked at, numbers, files and the recipe."""
    from tunes_dagster.rendering.sheets import Cell, contact_sheet, in_rows
    from tunes_dagster.training.cache import load_picture
    from tunes_dagster.training.faceid import chosen_pictures

    shown = [Cell(load_picture(store, one)) for one in chosen_pictures(job.items)]
    return {
        "looked at": picture(contact_sheet(in_rows(shown)), "what was looked at"),
        "pictures looked at": len(shown),
        "faces": bool(result.figures["faces"]),
        "ip adapter": result.figures["ip_adapter"],
        "seconds": round(result.seconds, 1),
        "class": tune.class_name,
        "base": tune.branch,
        **files(store, {"embeddings": result.weights_key, "model card": result.card_key}),
        "recipe": dg.MetadataValue.json({k: v for k, v in result.recipe.items() if k != "pictures"}),
        "recipe hash": result.recipe_hash,
    }

"""What Dagster shows of a tune that was just trained: weights, curve, samples over its checkpoints, and checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from tunes_dagster.assets.attempt import Context
from tunes_dagster.assets.display import called, device_facts, files, picture, save_sheet, sparkline
from tunes_dagster.assets.journal import log_materialized
from tunes_dagster.assets.names import LORA, check_spec
from tunes_dagster.core.recipe import UNTRAINED
from tunes_dagster.core.store import Store
from tunes_dagster.pipeline.partitions import tunes
from tunes_dagster.sessions import results
from tunes_dagster.sessions.results import Trained

if TYPE_CHECKING:
    from tunes_dagster.registry import Tune
    from tunes_dagster.sessions.hardware import Device
    from tunes_dagster.training.jobs import TrainingResult

FINITE = check_spec(
    results.FINITE, asset=LORA, partitions_def=tunes, description="Every number of the weights is finite."
)
LOADS = check_spec(
    results.LOADS,
    asset=LORA,
    partitions_def=tunes,
    description=(
        "The exported file, loaded by diffusers' own code into a stock pipeline, renders what training rendered."
    ),
)
DIFFERS = check_spec(
    results.DIFFERS,
    asset=LORA,
    partitions_def=tunes,
    description="With the weights, the pipeline renders another picture than the base does.",
)
LORA_CHECKS = [FINITE, LOADS, DIFFERS]


def described(trained: Trained, store: Store) -> dg.MaterializeResult[None]:
    """Return the materialization of one tune's weights, with the answers of `LORA_CHECKS`."""
    if trained.tune.kind in UNTRAINED:
        metadata = {**called(trained.tune), **embedded_facts(trained, store)}
    else:
        metadata = {
            **called(trained.tune),
            **pictures(trained.tune, trained.result, store),
            **facts(trained.tune, trained.result, store, trained.device),
        }
    return dg.MaterializeResult(
        metadata=metadata,
        check_results=answers(trained),
        data_version=dg.DataVersion(trained.result.recipe_hash),
    )


def answers(trained: Trained) -> list[dg.AssetCheckResult]:
    """Return what was verified as the answers of `LORA_CHECKS`."""
    return [
        dg.AssetCheckResult(
            passed=one.passed,
            check_name=one.name,
            asset_key=LORA,
            description=one.said,
            metadata=dict(one.numbers),
        )
        for one in trained.answers
    ]


def pictures(tune: Tune, result: TrainingResult, store: Store) -> dict[str, Any]:
    """Return thumbnails: samples over the checkpoints, and the loss curve."""
    from tunes_dagster.rendering.plots import figure_image, loss_figure

    shown: dict[str, Any] = {}
    if result.samples_key:
        shown["samples_over_training"] = picture(store, result.samples_key, "samples")
    if result.loss_curve:
        steps, losses = zip(*result.loss_curve, strict=True)
        figure = loss_figure(steps, losses, title=f"Loss of {tune.title}")
        key = f"{result.folder}/loss.png"
        shown["loss_at_a_glance"] = sparkline(losses, "loss")
        shown["loss_curve"] = save_sheet(store, key, figure_image(figure), "loss curve")
        shown["loss"] = round(float(losses[-1]), 4)
    return shown


def facts(tune: Tune, result: TrainingResult, store: Store, device: Device | None) -> dict[str, Any]:
    """Return numbers, files and the recipe."""
    keys = {
        "model (diffusers)" if result.pipeline_key else "weights (diffusers)": result.weights_key,
        "weights (kohya)": result.kohya_key,
        "model card": result.card_key,
        "samples": result.samples_key,
    }
    return {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        **({"stopped_early": True} if result.stopped else {}),
        "base": tune.base_id,
        **device_facts(device),
        **files(store, keys),
        "checkpoints": len(result.checkpoints),
        "options": dg.MetadataValue.json(plain_options(result.recipe)),
        "recipe_of_the_weights": result.recipe_hash,
        **{name: v for name, v in result.figures.items() if not name.endswith("bytes")},
    }


def plain_options(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a training that are numbers and choices; what people wrote stays in the recipe's file."""
    options = recipe.get("training") or {}
    return {name: value for name, value in options.items() if isinstance(value, int | float | bool)}


def embedded_facts(trained: Trained, store: Store) -> dict[str, Any]:
    """Return what is shown of a tune that trains nothing: the pictures that were looked at, numbers, files, recipe."""
    from tunes_dagster.rendering.sheets import Cell, contact_sheet, in_rows
    from tunes_dagster.training.cache import load_picture

    tune, result = trained.tune, trained.result
    shown = [Cell(load_picture(store, one)) for one in trained.looked_at]
    key = f"{result.weights_key.rpartition('/')[0]}/looked_at.png"
    return {
        "looked_at": save_sheet(store, key, contact_sheet(in_rows(shown)), "what was looked at"),
        "pictures_looked_at": len(shown),
        "faces": bool(result.figures["faces"]),
        "ip_adapter": result.figures["ip_adapter"],
        "seconds": round(result.seconds, 1),
        "base": tune.base_id,
        **files(store, {"embeddings": result.weights_key, "model card": result.card_key}),
        "options": dg.MetadataValue.json(plain_options(result.recipe)),
        "recipe_of_the_weights": result.recipe_hash,
    }


def log_trained(context: Context, tune: Tune, shown: dg.MaterializeResult[None]) -> None:
    """Log materialization and checks of one tune's partition from a run that has many."""
    log_materialized(context, LORA, tune.id, shown)

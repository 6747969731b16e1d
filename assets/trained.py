"""What is shown and checked of a tune that was just trained: weights, curve, samples over its checkpoints."""

from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from tunes_dagster.assets.attempt import Context
from tunes_dagster.assets.display import files, load_pictures, picture, save_sheet, sparkline
from tunes_dagster.assets.journal import log_materialized
from tunes_dagster.assets.names import LORA, check_spec
from tunes_dagster.core.failures import Cancelled
from tunes_dagster.core.progress import Phase, Reporter
from tunes_dagster.core.results import TuneResult
from tunes_dagster.core.store import Store
from tunes_dagster.intake.subject import example_prompt
from tunes_dagster.pipeline.partitions import tunes
from tunes_dagster.registry import Tune
from tunes_dagster.resources import Device

FINITE = check_spec(
    "finite_weights", asset=LORA, partitions_def=tunes, description="Every number of the weights is finite."
)
LOADS = check_spec(
    "loads_into_fresh_pipeline",
    asset=LORA,
    partitions_def=tunes,
    description=(
        "The exported file, loaded by diffusers' own code into a stock pipeline, renders what training rendered."
    ),
)
DIFFERS = check_spec(
    "differs_from_base",
    asset=LORA,
    partitions_def=tunes,
    description="With the weights, the pipeline renders another picture than the base does.",
)
LORA_CHECKS = [FINITE, LOADS, DIFFERS]


@dataclass
class Trained:
    """A tune that has its weights.

    Attributes:
        tune: Its row.
        result: What the training loop says.
        metadata: For the materialization.
        checks: Answers of `LORA_CHECKS`.
    """

    tune: Tune
    result: Any
    metadata: dict[str, Any] = field(default_factory=dict)
    checks: list[dg.AssetCheckResult] = field(default_factory=list)

    def row_result(self) -> TuneResult:
        """Return what the tune's row keeps."""
        result = self.result
        return TuneResult(
            weights_key=result.weights_key,
            kohya_key=result.kohya_key,
            words_key=result.figures.get("embeddings", ""),
            card_key=result.card_key,
            samples_key=result.samples_key,
            steps=result.steps,
            seconds=round(result.seconds, 1),
            stopped=result.stopped,
            weights_recipe_hash=result.recipe_hash,
            # What the report card chooses from; it may publish another checkpoint than the last one.
            checkpoints=list(result.checkpoints),
            published_step=result.steps,
            last_weights_key=result.weights_key,
            last_kohya_key=result.kohya_key,
            pipeline_key=result.pipeline_key,
            last_pipeline_key=result.pipeline_key,
            report_card=None,
            checks={str(check.check_name): check.passed for check in self.checks},
        )


class Inspector:
    """Checks the weights of tunes as they are trained, on the base that they were trained on."""

    def __init__(self, base: Any, device: Device, store: Store) -> None:
        self._base, self._device, self._store = base, device, store

    def inspect(self, tune: Tune, result: Any, report: Reporter) -> Trained:
        """Check a tune's files and make what people look at."""
        from tunes_dagster.training.layouts import Files
        from tunes_dagster.training.verify import verify
        from tunes_dagster.training.words import speaking

        report.phase(Phase.EVALUATING, "Loading the weights into a stock pipeline.")
        prompt = example_prompt(tune.token, tune.class_name)
        files = Files(result.weights_key, result.kohya_key, result.pipeline_key)
        seen = verify(files, prompt, self._base, self._store)
        trained = Trained(tune, result, checks=answers(seen))
        with speaking(self._base, self._store, result.weights_key):
            result.samples_key = self._samples(tune, result, report)
        trained.metadata = {
            **pictures(tune, result, self._store),
            **facts(tune, result, self._store, self._device),
        }
        return trained

    def _samples(self, tune: Tune, result: Any, report: Reporter) -> str | None:
        """Render over the checkpoints; a tune is good without, so that nothing but a cancel stops it here."""
        from tunes_dagster.training.samples import sample_prompts, write_samples

        key = f"{result.folder}/samples.png"
        report.phase(Phase.EVALUATING, "Rendering samples over the checkpoints.")
        try:
            write_samples(
                key,
                result.checkpoints,
                sample_prompts(tune.token, tune.class_name),
                self._base,
                self._store,
                report,
                title=f"{tune.title} over training",
            )
        except Cancelled:
            raise
        except Exception as error:
            report.finding("Samples over the checkpoints could not be rendered; the weights are as they are.")
            report.note(
                f"Samples over the checkpoints could not be rendered: {type(error).__name__}: {error}"
            )
            return None
        return key


def answers(seen: Any) -> list[dg.AssetCheckResult]:
    """Return what was verified as the answers of `LORA_CHECKS`."""
    return [
        dg.AssetCheckResult(
            passed=seen.finite,
            check_name=FINITE.name,
            asset_key=LORA,
            description=f"{seen.layers} layers looked at.",
        ),
        dg.AssetCheckResult(
            passed=seen.loads,
            check_name=LOADS.name,
            asset_key=LORA,
            description=f"Largest pixel difference {seen.furthest:.2g}, allowed {seen.tolerance:g} (of 1).",
            metadata={
                "diffusers": seen.diffusers_difference,
                **({} if seen.kohya_difference is None else {"kohya": seen.kohya_difference}),
            },
        ),
        dg.AssetCheckResult(
            passed=seen.differs,
            check_name=DIFFERS.name,
            asset_key=LORA,
            description=f"Mean pixel difference to the base {seen.base_difference:.2g} (of 1).",
        ),
    ]


def pictures(tune: Tune, result: Any, store: Store) -> dict[str, Any]:
    """Return thumbnails: samples over the checkpoints, and the loss curve."""
    from tunes_dagster.rendering.plots import figure_image, loss_figure

    shown: dict[str, Any] = {}
    if result.samples_key:
        (sheet,) = load_pictures(store, [result.samples_key], max_side=1200)
        shown["samples over training"] = picture(sheet, "samples", store.url(result.samples_key))
    if result.loss_curve:
        steps, losses = zip(*result.loss_curve, strict=True)
        figure = loss_figure(steps, losses, title=f"Loss of {tune.title}")
        key = f"{result.folder}/loss.png"
        shown["loss at a glance"] = sparkline(losses, "loss")
        shown["loss curve"] = save_sheet(store, key, figure_image(figure), "loss curve")
        shown["loss"] = round(float(losses[-1]), 4)
    return shown


def facts(tune: Tune, result: Any, store: Store, device: Device) -> dict[str, Any]:
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
        **({"stopped early": True} if result.stopped else {}),
        "trigger": f"{tune.token} {tune.class_name}",
        "base": tune.branch,
        **device.metadata(),
        **files(store, keys),
        "checkpoints": len(result.checkpoints),
        "recipe": dg.MetadataValue.json({k: v for k, v in result.recipe.items() if k != "pictures"}),
        "recipe hash": result.recipe_hash,
        **{name.replace("_", " "): v for name, v in result.figures.items() if not name.endswith("bytes")},
    }


def log_trained(context: Context, trained: Trained) -> None:
    """Log materialization and checks of one tune's partition from a run that has many."""
    result: dg.MaterializeResult[None] = dg.MaterializeResult(
        metadata=trained.metadata, check_results=trained.checks
    )
    log_materialized(context, LORA, trained.tune.id, result)

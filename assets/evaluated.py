"""What is scored, shown and checked of a tune before it is ready.

Scoring decides which checkpoint is published, never whether: whatever goes wrong leaves a card that says so and
the last checkpoint in its place.
"""

import time
import traceback
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from tunes_dagster.assets.attempt import Attempt, Context
from tunes_dagster.assets.display import files, picture, table
from tunes_dagster.assets.names import REPORT_CARD, check_spec
from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.core.progress import Phase, Reporter, Tee
from tunes_dagster.core.recipe import UNTRAINED
from tunes_dagster.core.results import TuneResult
from tunes_dagster.core.store import Store
from tunes_dagster.evaluation.card import Card, CardOptions
from tunes_dagster.pipeline.partitions import tunes
from tunes_dagster.registry import Tune
from tunes_dagster.resources import ComputeResource, ScorersResource
from tunes_dagster.service.installation import Installation

ABOVE_BASE = check_spec(
    "likeness_above_base",
    asset=REPORT_CARD,
    partitions_def=tunes,
    description="With its token, the tune's renders are more like the subject than the untuned base's.",
)

SCORE_COLUMNS = {
    "step": "string",
    "published": "string",
    "likeness": "string",
    "learned": "string",
    "obedience": "string",
    "right scene": "string",
    "variety": "string",
    "copies": "string",
    "nearest picture": "string",
    "score": "string",
}


@dataclass
class Evaluated:
    """A tune that was scored, or a card that says why it was not.

    Attributes:
        card: The card.
        shown: Its files.
        result: What changes in the tune's result.
    """

    card: Card
    shown: Any
    result: TuneResult = field(default_factory=TuneResult)


class _Patient(Tee):
    """Watches the wait for a device, and gives up after a while."""

    def __init__(self, report: Reporter, seconds: float) -> None:
        super().__init__([report])
        self._until, self._seconds = time.monotonic() + seconds, seconds

    def check_cancelled(self) -> None:
        """Raise when cancelled, or when the wait has been long enough."""
        super().check_cancelled()
        if time.monotonic() > self._until:
            raise Failure(FailureCode.TIMED_OUT, f"No device was free within {self._seconds:g} s.")


def evaluate(
    context: Context,
    mine: Attempt,
    tune: Tune,
    options: CardOptions,
    installation: Installation,
    compute: ComputeResource,
    scorers: ScorersResource,
) -> Evaluated:
    """Score a tune's checkpoints, write the card, and publish the chosen one.

    Raises:
        Cancelled: When somebody asked for it and does not want to keep the tune.
    """
    from tunes_dagster.evaluation.scoring import Scored, failed_card
    from tunes_dagster.evaluation.showing import write_card

    store = installation.store
    prefix = f"tunes/{tune.id}/report_card/{mine.work.attempt}"
    called = f"{tune.token} {tune.class_name}"
    training: list[Any] = []
    held_out: list[Any] = []
    # What training wrote last, whatever an earlier card published.
    made = tune.made
    last = {
        "weights_key": made.last_weights_key or None,
        "kohya_key": made.last_kohya_key,
        "pipeline_key": made.last_pipeline_key,
    }
    result = TuneResult.of({name: key for name, key in last.items() if key is not None})
    try:
        _must_be_scored(tune, mine, options, installation.settings.max_attempts)
        training, held_out = subject_pictures(tune.id, store)
        scored, published = _scored(
            tune, mine, options, installation, compute, scorers, context.run.run_id, training, held_out
        )
        result = result.beside(published)
    except Exception as error:
        if isinstance(error, Cancelled) and not error.keep:
            raise
        passing = isinstance(error, Failure) and error.code == FailureCode.STORE_UNAVAILABLE
        if passing and mine.work.tries < mine.registry.max_attempts:
            raise
        said = f"{error} {error.detail}".strip() if isinstance(error, Failure) else traceback.format_exc()
        context.log.warning(f"The report card could not be made; the last checkpoint is published. {said}")
        scored = Scored(failed_card(tune.id, called, options, error))
    shown = write_card(scored, training, held_out, tune.title, prefix, store)
    result.report_card = scored.card.summary(
        card_key=shown.card_key,
        page_key=shown.page_key,
        sheet_key=shown.sheet_key,
        curve_key=shown.curve_key,
    )
    mine.report.note(f"Report card: {scored.card.line}. {scored.card.why}")
    return Evaluated(scored.card, shown, result)


def _must_be_scored(tune: Tune, mine: Attempt, options: CardOptions, limit: int) -> None:
    """Raise when scoring is turned off, impossible, or has taken the process down before."""
    if options.checkpoints == 0:
        raise Failure(FailureCode.BLOCKED, "Scoring is turned off (report_checkpoints is 0).")
    if tune.kind in UNTRAINED:
        raise Failure(FailureCode.BLOCKED, "Nothing was trained: there are no checkpoints to choose from.")
    if not tune.made.checkpoints:
        raise Failure(FailureCode.BLOCKED, "Training left no checkpoints that could be scored.")
    if limit > 1 and mine.work.attempt == limit and mine.work.origin != "ui":
        raise Failure(FailureCode.BLOCKED, f"Scoring ended {limit - 1} attempts before; it is left out now.")


def subject_pictures(tune_id: str, store: Store) -> tuple[list[Any], list[Any]]:
    """Return the training pictures and the held-out ones as they are trained on: cropped, in their bucket's size."""
    from tunes_dagster.intake.training_set import TrainingSet
    from tunes_dagster.training.cache import load_picture
    from tunes_dagster.training.jobs import TrainExample

    found: tuple[list[Any], list[Any]] = ([], [])
    for item in TrainingSet.load(store, tune_id).items:
        if item.kind == "full":
            example = TrainExample(item.key, "", item.bucket, item.crop)
            found[item.held_out].append(load_picture(store, example))
    return found


def _scored(
    tune: Tune,
    mine: Attempt,
    options: CardOptions,
    installation: Installation,
    compute: ComputeResource,
    scorers: ScorersResource,
    run_id: str,
    training: list[Any],
    held_out: list[Any],
) -> tuple[Any, TuneResult]:
    """Score on a device, and return the card with its pictures and what publishing changes."""
    from tunes_dagster.evaluation.publishing import publish_checkpoint
    from tunes_dagster.evaluation.scoring import Subject, score_tune
    from tunes_dagster.families.base import load_family
    from tunes_dagster.training.words import speaking

    store, settings = installation.store, installation.settings
    entry, folder = installation.usable(tune.branch)
    made = tune.made
    keys = [key for key in made.checkpoints if store.exists(key)]
    subject = Subject(tune.id, tune.token, tune.class_name, training, held_out, keys)
    with compute.lease(_Patient(mine.report, options.seconds), settings, holder=run_id) as device:
        mine.report.phase(Phase.EVALUATING, f"Scoring on {device.name}: loading {entry.branch}.")
        base = load_family(entry, folder, device.name, device.torch_dtype)
        looking = scorers.open(settings, device.name)
        mine.report.phase(Phase.EVALUATING, "Scoring the untuned base and the checkpoints.")
        with speaking(base, store, made.trained_key):
            scored = score_tune(subject, base, looking, store, options, mine.report)
        card = scored.card
        if not card.chosen_key or card.chosen_key == keys[-1]:
            return scored, TuneResult(published_step=card.chosen_step or made.steps)
        return scored, publish_checkpoint(made.trained_key, card.chosen_key, card.chosen_step, base, store)


def described(done: Evaluated, tune: Tune, store: Store) -> dg.MaterializeResult:
    """Return the materialization: verdicts, before and after, scores over the checkpoints, files, and the check."""
    from tunes_dagster.evaluation.showing import score_rows

    card, shown = done.card, done.shown
    verdicts = "\n".join(
        f"- **{one.code.replace('_', ' ')}** ({one.tone}): {one.sentence} {one.remedy}".rstrip()
        for one in card.verdicts
    )
    metadata: dict[str, Any] = {
        "verdict": card.line,
        "published": card.why,
        "verdicts": dg.MetadataValue.md(verdicts or f"- not scored: {card.failure}"),
        "scores": table(score_rows(card), SCORE_COLUMNS),
    }
    if shown.sheet is not None:
        metadata["before and after"] = picture(shown.sheet, "before and after", store.url(shown.sheet_key))
    if shown.curve is not None:
        metadata["over the checkpoints"] = picture(shown.curve, "scores", store.url(shown.curve_key))
    if card.unmeasured:
        metadata["not measured"] = dg.MetadataValue.md("\n".join(f"- {one}" for one in card.unmeasured))
    if card.chosen is not None:
        metadata |= {"likeness": card.chosen.likeness, "published step": card.chosen_step}
    metadata |= {
        "scorers": dg.MetadataValue.json(card.scorers),
        "seconds": card.seconds,
        **files(
            store,
            {
                "page": shown.page_key,
                "card": shown.card_key,
                "before and after": shown.sheet_key,
                "scores": shown.curve_key,
            },
        ),
    }
    return dg.MaterializeResult(metadata=metadata, check_results=[above_base(card)])


def above_base(card: Card) -> dg.AssetCheckResult:
    """Return the answer of `likeness_above_base`; what could not be measured is a warning, not an error."""
    chosen, base = card.chosen, card.base
    measured = chosen is not None and base is not None
    above = measured and chosen.likeness > base.likeness  # type: ignore[union-attr]
    said = card.line if measured else f"Not measured: {card.failure}"
    return dg.AssetCheckResult(
        passed=bool(above),
        check_name=ABOVE_BASE.name,
        asset_key=REPORT_CARD,
        severity=dg.AssetCheckSeverity.ERROR if measured else dg.AssetCheckSeverity.WARN,
        description=said,
        metadata={"likeness": chosen.likeness, "base": base.likeness} if measured else {},  # type: ignore[union-attr]
    )

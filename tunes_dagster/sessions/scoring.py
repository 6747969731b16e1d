"""Scoring a tune before it is ready: its report card, and which checkpoint is published.

Scoring decides which checkpoint is published, never whether: whatever goes wrong leaves a card that says so and
the last checkpoint in its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Cancelled, Failure, FailureCode, where
from tunes_dagster.core.progress import Phase, Reporter, Tee
from tunes_dagster.core.recipe import UNTRAINED
from tunes_dagster.core.results import TuneResult
from tunes_dagster.sessions.results import Evaluated

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.evaluation.card import CardOptions
    from tunes_dagster.evaluation.scoring import Scorers
    from tunes_dagster.registry import Tune
    from tunes_dagster.sessions.attempts import Attempt
    from tunes_dagster.sessions.cohorts import Place


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
    mine: Attempt, tune: Tune, options: CardOptions, place: Place, open_scorers: Callable[[str], Scorers]
) -> Evaluated:
    """Score a tune's checkpoints, write the card, and publish the chosen one.

    Args:
        mine: The attempt.
        tune: Its row.
        options: How much is looked at.
        place: Where it is scored.
        open_scorers: Loads the scorers onto a device.

    Raises:
        Cancelled: When somebody asked for it and does not want to keep the tune.
    """
    from tunes_dagster.evaluation.scoring import Scored, failed_card
    from tunes_dagster.evaluation.showing import write_card

    store = place.installation.store
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
        _must_be_scored(tune, mine, options, place.installation.settings.max_attempts)
        training, held_out = subject_pictures(tune.id, store)
        scored, published = _scored(tune, mine, options, place, open_scorers, training, held_out)
        result = result.beside(published)
    except Exception as error:
        if isinstance(error, Cancelled) and not error.keep:
            raise
        if isinstance(error, Failure) and error.code == FailureCode.STORE_UNAVAILABLE:
            raise  # nothing could be published either; it is waited for
        said = str(error.code) if isinstance(error, Failure) else where(error)
        place.log.warning(f"The report card could not be made; the last checkpoint is published: {said}.")
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
    if "imported" in tune.recipe and not tune.made.captions:
        raise Failure(FailureCode.BLOCKED, "It was imported without pictures that it could be compared with.")
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
            example = TrainExample(key=item.key, caption="", bucket=item.bucket, crop=item.crop)
            found[item.held_out].append(load_picture(store, example))
    return found


def _scored(
    tune: Tune,
    mine: Attempt,
    options: CardOptions,
    place: Place,
    open_scorers: Callable[[str], Scorers],
    training: list[Any],
    held_out: list[Any],
) -> tuple[Any, TuneResult]:
    """Score on a device, and return the card with its pictures and what publishing changes."""
    from tunes_dagster.evaluation.publishing import publish_checkpoint
    from tunes_dagster.evaluation.scoring import Subject, score_tune
    from tunes_dagster.sessions.bases import fitting
    from tunes_dagster.training.words import speaking

    store = place.installation.store
    entry, folder = place.installation.usable(tune.base_id)
    made = tune.made
    keys = [key for key in made.checkpoints if store.exists(key)]
    subject = Subject(tune.id, tune.token, tune.class_name, training, held_out, keys)
    with place.lease(_Patient(mine.report, options.seconds)) as device:
        mine.report.phase(Phase.EVALUATING, f"Scoring on {device.name}: loading {entry.base_id}.")
        base = place.load(entry, folder, device, fitting(entry, folder, device, scoring=True))
        looking = open_scorers(device.name)
        mine.report.phase(Phase.EVALUATING, "Scoring the untuned base and the checkpoints.")
        with speaking(base, store, made.trained_key):
            scored = score_tune(subject, base, looking, store, options, mine.report)
        card = scored.card
        if not card.chosen_key or card.chosen_key == keys[-1]:
            # What was imported has no steps.
            step = 0 if made.steps == 0 else card.chosen_step or made.steps
            return scored, TuneResult(published_step=step)
        return scored, publish_checkpoint(made.trained_key, card.chosen_key, card.chosen_step, base, store)

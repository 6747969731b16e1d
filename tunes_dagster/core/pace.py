"""How far work is, in percent over all of its phases: each counts as long as it took here the last times.

A phase is a pair of the kind of work and `progress.Phase`. What a row shows never falls: a phase that is done again,
or a whole attempt, leaves the number where it is until it is passed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tunes_dagster.core.progress import Phase
from tunes_dagster.core.work import WorkKind, stage_of

Stage = tuple[str, str]

# The phases of a tune, in their order, with the seconds they took for eight pictures on the shipped base, on two cores
# (`tunes demo`); what was made here since takes their place.
TUNE: dict[Stage, float] = {
    (WorkKind.PREPARE, Phase.FETCHING): 0.5,
    (WorkKind.PREPARE, Phase.CHECKING): 3.0,
    (WorkKind.PREPARE, Phase.CAPTIONING): 4.0,
    (WorkKind.TRAIN, Phase.LOADING): 2.0,
    (WorkKind.TRAIN, Phase.ENCODING): 2.0,
    (WorkKind.TRAIN, Phase.WORDS): 0.0,
    (WorkKind.TRAIN, Phase.TRAINING): 40.0,
    (WorkKind.TRAIN, Phase.PACKAGING): 1.0,
    (WorkKind.TRAIN, Phase.EVALUATING): 6.0,
    (WorkKind.FINISH, Phase.EVALUATING): 20.0,
    (WorkKind.FINISH, Phase.PACKAGING): 1.0,
}
# The same of a render batch.
BATCH: dict[Stage, float] = {(WorkKind.RENDER, Phase.LOADING): 4.0, (WorkKind.RENDER, Phase.RENDERING): 8.0}
# The phases that take longer the more steps are asked for, and the steps that the seconds above are for.
BY_STEPS = {
    (WorkKind.TRAIN, Phase.WORDS): 100,
    (WorkKind.TRAIN, Phase.TRAINING): 300,
    (WorkKind.RENDER, Phase.RENDERING): 200,
}
# What is shown while something is left to do.
_ALMOST = 99.9


@dataclass(frozen=True)
class Pace:
    """How long phases take.

    Attributes:
        seconds: Of a phase.
        step_seconds: Of one step of a phase in `BY_STEPS`.
    """

    seconds: Mapping[Stage, float] = field(default_factory=dict)
    step_seconds: Mapping[Stage, float] = field(default_factory=dict)

    def lasts(self, stage: Stage, usual: float, steps: int | None) -> float:
        """Return the seconds of a phase, by what was measured or else as usual."""
        if stage not in BY_STEPS:
            return self.seconds.get(stage, usual)
        return self.step_seconds.get(stage, usual / BY_STEPS[stage]) * (steps or BY_STEPS[stage])

    def percent(
        self,
        kind: str,
        phase: str,
        done: float,
        steps: int | None,
        without: Sequence[Stage] = (),
    ) -> float | None:
        """Return how far work is, 0 to 99.9; None for what is no phase of it.

        Args:
            kind: Of work.
            phase: That it is in; empty when all of the kind is done.
            done: Part of the phase that is done, 0 to 1.
            steps: Of the phases that go by steps.
            without: Phases that this piece of work does not have.
        """
        usual = BATCH if kind == WorkKind.RENDER else TUNE
        kinds = [name for name, _ in usual]
        here = (kind, phase)
        if here not in usual and (phase or kind not in kinds):
            return None
        lasts = {s: 0.0 if s in without else self.lasts(s, usual[s], steps) for s in usual}
        stages = list(usual)
        at = stages.index(here) if phase else len(kinds) - kinds[::-1].index(kind)
        before = sum(lasts[stage] for stage in stages[:at])
        inside = lasts[here] * min(1.0, max(0.0, done)) if phase else 0.0
        total = sum(lasts.values())
        return min(_ALMOST, round(100 * (before + inside) / total, 1)) if total else 0.0


def measured(tunes: Iterable[tuple[int, Sequence[Any]]]) -> Pace:
    """Return the medians of finished tunes.

    Args:
        tunes: The steps of each, and its timeline, oldest first; see `registry.Event`.
    """
    seconds: dict[Stage, list[float]] = defaultdict(list)
    step_seconds: dict[Stage, list[float]] = defaultdict(list)
    for steps, events in tunes:
        for stage, lasted in _phases(events).items():
            if stage not in BY_STEPS:
                seconds[stage].append(lasted)
            elif steps > 0:
                step_seconds[stage].append(lasted / steps)
    return Pace(_medians(seconds), _medians(step_seconds))


def _phases(events: Sequence[Any]) -> dict[Stage, float]:
    """Return how long each phase of a tune's latest attempts took."""
    found: dict[Stage, float] = {}
    kind = ""
    for event, after in zip(events, events[1:], strict=False):
        if event.phase == "started":
            kind = stage_of(event.message.partition(" ")[0])
            found = {stage: lasted for stage, lasted in found.items() if stage[0] != kind}
        stage = (kind, event.phase)
        if stage in TUNE:
            found[stage] = found.get(stage, 0.0) + max(0.0, (after.at - event.at).total_seconds())
    return found


def measured_batches(batches: Iterable[Any]) -> Pace:
    """Return the medians of finished render batches; see `registry.Batch`."""
    loading, stepping = [], []
    for batch in batches:
        made = batch.made
        if made.seconds is None or not batch.total_steps:
            continue
        loading.append(made.load_seconds)
        stepping.append(max(0.0, made.seconds - made.load_seconds) / batch.total_steps)
    if not loading:
        return Pace()
    return Pace(
        {(WorkKind.RENDER, Phase.LOADING): median(loading)},
        {(WorkKind.RENDER, Phase.RENDERING): median(stepping)},
    )


def _medians(values: Mapping[Stage, list[float]]) -> dict[Stage, float]:
    return {stage: median(numbers) for stage, numbers in values.items()}

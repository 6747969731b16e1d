"""How far tunes and batches are, weighted by how long their phases took here; the reckoning is in `core/pace.py`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunes_dagster.core.pace import Pace, Stage, measured, measured_batches
from tunes_dagster.core.progress import Phase
from tunes_dagster.core.recipe import UNTRAINED
from tunes_dagster.core.work import MAKING, WorkKind, stage_of
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.tables import Batch, Event, Tune, Work

# How many of the latest tunes and batches of a base count, and for how long their figures are taken as read.
_SAMPLE = 10
_READ_AGAIN = timedelta(minutes=1)
# What the share of a price goes by.
_COMPUTED = ((WorkKind.TRAIN, Phase.TRAINING), (WorkKind.RENDER, Phase.RENDERING))
# Phases that only some kinds of tune have.
_OF_PTI: Stage = (WorkKind.TRAIN, Phase.WORDS)
_OF_TRAINED: Stage = (WorkKind.TRAIN, Phase.TRAINING)


class Paces(Part):
    """The pace of a base, and what it makes of a phase and a step."""

    _paces: dict[tuple[str, str], tuple[datetime, Pace]]

    def pace(self, session: Session, base_id: str, kind: str) -> Pace:
        """Return how long phases take on a base, for tunes of a kind or, with the kind `batch`, for renders."""
        now = self.now()
        known: dict[tuple[str, str], tuple[datetime, Pace]] = self.__dict__.setdefault("_paces", {})
        found = known.get((base_id, kind))
        if found is None or abs(now - found[0]) > _READ_AGAIN:
            pace = _batches(session, base_id) if kind == "batch" else _tunes(session, base_id, kind)
            found = known[base_id, kind] = (now, pace)
        return found[1]

    def advanced(
        self, session: Session, kind: str, row: Tune | Batch, phase: str, done: float
    ) -> dict[str, Any]:
        """Return what a report of progress changes in a row: `progress` and `computed`, which never fall.

        Args:
            session: The transaction.
            kind: Of work.
            row: Its tune or batch.
            phase: That it is in; empty when all of the kind is done.
            done: Part of the phase that is done.
        """
        if isinstance(row, Batch):
            percent = self.pace(session, row.base_id, "batch").percent(kind, phase, done, row.total_steps)
        else:
            pace = self.pace(session, row.base_id, row.kind)
            percent = pace.percent(stage_of(kind), phase, done, _steps(row), _without(row.kind))
        changes: dict[str, Any] = {} if percent is None else {"progress": max(row.progress, percent)}
        if (kind, phase) in _COMPUTED or (kind in MAKING and not phase):
            changes["computed"] = max(row.computed, min(1.0, done))
        return changes

    def note_progress(self, session: Session, work: Work, row: Tune | Batch, phase: str, done: float) -> None:
        """Write what `advanced` says into a row."""
        for name, value in self.advanced(session, work.kind, row, phase, done).items():
            setattr(row, name, value)


def _steps(tune: Tune) -> int | None:
    steps = tune.recipe.get("training", {}).get("steps")
    return int(steps) if steps else None


def _without(kind: str) -> tuple[Stage, ...]:
    if kind in UNTRAINED:
        return (_OF_PTI, _OF_TRAINED)
    return () if kind == "pti" else (_OF_PTI,)


def _tunes(session: Session, base_id: str, kind: str) -> Pace:
    """Return the pace of the latest ready tunes of a base and kind."""
    latest = select(Tune).where(Tune.status == "ready", Tune.base_id == base_id, Tune.ready_at.is_not(None))
    rows = session.scalars(latest.order_by(Tune.number.desc()).limit(5 * _SAMPLE)).all()
    tunes = [tune for tune in rows if tune.kind == kind][:_SAMPLE]
    timelines: dict[str, list[Event]] = {tune.id: [] for tune in tunes}
    for event in session.scalars(select(Event).where(Event.subject_id.in_(timelines)).order_by(Event.id)):
        timelines[event.subject_id].append(event)
    return measured((tune.made.steps or 0, timelines[tune.id]) for tune in tunes)


def _batches(session: Session, base_id: str) -> Pace:
    latest = select(Batch).where(Batch.base_id == base_id, Batch.status == "done")
    return measured_batches(session.scalars(latest.order_by(Batch.created_at.desc()).limit(_SAMPLE)))

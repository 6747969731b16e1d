"""What is kept beside the work itself: accounts, the timeline, and what the drop folder's sensor has seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import select

from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock_one
from tunes_dagster.registry.tables import Drop, Event
from tunes_dagster.registry.transitions import note


class Events(Part):
    """Accounts, events, drops."""

    def add(self, subject_id: str, phase: str, message: str, data: dict[str, Any] | None = None) -> None:
        """Add a line to the timeline of a tune, prompt or batch."""
        with self.writing() as session:
            note(session, subject_id, phase, message, self.now(), **(data or {}))

    def of(self, subject_id: str, after: int = 0, limit: int = 500) -> list[Event]:
        """Return the timeline of a subject, oldest first, from after event number `after`."""
        query = select(Event).where(Event.subject_id == subject_id, Event.id > after)
        with self.reading() as session:
            return list(session.scalars(query.order_by(Event.id).limit(limit)))

    def last(self, subject_ids: Sequence[str]) -> list[Event]:
        """Return the timelines of several subjects together, oldest first."""
        with self.reading() as session:
            query = select(Event).where(Event.subject_id.in_(list(subject_ids))).order_by(Event.id)
            return list(session.scalars(query.limit(1000)))


class Drops(Part):
    """What is known about dropped datasets."""

    def rows(self, paths: Iterable[str] | None = None) -> dict[str, Drop]:
        """Return what is known about dropped datasets, by path."""
        query = select(Drop)
        if paths is not None:
            query = query.where(Drop.path.in_(list(paths)))
        with self.reading() as session:
            return {drop.path: drop for drop in session.scalars(query)}

    def record(
        self, path: str, *, fingerprint: str, state: str, tune_id: str | None = None, message: str = ""
    ) -> Drop:
        """Write what the sensor saw and did about one dropped dataset."""
        with self.writing() as session:
            drop = lock_one(session, Drop, Drop.path == path)
            if drop is None:
                drop = Drop(path=path, fingerprint=fingerprint, state=state, seen_at=self.now())
                session.add(drop)
            drop.fingerprint, drop.state, drop.message = fingerprint, state, message
            drop.tune_id = tune_id or drop.tune_id
            drop.seen_at = self.now()
            return drop

    def forget(self, path: str) -> None:
        """Forget a dropped dataset, so that it counts as new."""
        with self.writing() as session:
            drop = lock_one(session, Drop, Drop.path == path)
            if drop is not None:
                session.delete(drop)

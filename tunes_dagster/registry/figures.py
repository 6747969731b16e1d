"""What is counted for whoever watches an installation: how much there is of everything, in a few queries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Float, Integer, cast, func, select

from tunes_dagster.registry.api_tables import Wallet
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.tables import Batch, Callback, Prompt, Tune, Work


@dataclass(frozen=True)
class Spent:
    """What was made on a base so far, and the seconds that it took."""

    base: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Figures:
    """Counts of a moment.

    Attributes:
        at: The moment.
        work: Kind and state → open pieces of work.
        oldest: Kind → since when the one that waits longest could have started.
        tunes: Status → tunes.
        prompts: Status → prompts.
        callbacks: State → callbacks that are not delivered yet (`pending`, `held`, `dead`).
        reserved: Micro-dollars that open work holds.
        steps: Training steps of all tunes, by base.
        pictures: Pictures of all batches, by base.
    """

    at: datetime
    work: dict[tuple[str, str], int]
    oldest: dict[str, datetime]
    tunes: dict[str, int]
    prompts: dict[str, int]
    callbacks: dict[str, int]
    reserved: int
    steps: list[Spent]
    pictures: list[Spent]


class Measured(Part):
    """The counts."""

    def read(self) -> Figures:
        """Return how much there is of everything."""
        now, working = self.now(), ("queued", "submitted", "running")
        with self.reading() as session:

            def counted(column: Any, *where: Any) -> dict[str, int]:
                rows = session.execute(select(column, func.count()).where(*where).group_by(column))
                return dict(rows.tuples().all())

            work = session.execute(
                select(Work.kind, Work.state, func.count(), func.min(Work.available_at))
                .where(Work.state.in_(working))
                .group_by(Work.kind, Work.state)
            ).all()
            prompts = counted(Prompt.status)
            callbacks = counted(Callback.state, Callback.state != "delivered")
            oldest = {kind: since for kind, state, _count, since in work if state == "queued"}
            first = session.scalar(select(func.min(Prompt.queued_at)).where(Prompt.status == "queued"))
            if first is not None:  # prompts wait before there is a batch, and so any work, for them
                oldest["render"] = min(first, oldest.get("render", first))
            return Figures(
                at=now,
                work={(kind, state): count for kind, state, count, _since in work},
                oldest=oldest,
                tunes=counted(Tune.status),
                prompts=prompts,
                callbacks=callbacks,
                reserved=int(session.scalar(select(func.sum(Wallet.reserved))) or 0),
                steps=[Spent(*row) for row in session.execute(_spent(Tune, "steps"))],
                pictures=[Spent(*row) for row in session.execute(_spent(Batch, "pictures"))],
            )

    def queue_lengths(self) -> dict[str, Any]:
        """Return what waits and runs, and since when the oldest waits."""
        with self.reading() as session:
            rows = session.execute(
                select(Work.kind, Work.state, func.count(), func.min(Work.available_at))
                .where(Work.state.in_(("queued", "submitted", "running")))
                .group_by(Work.kind, Work.state)
            ).all()
            prompts = session.scalar(select(func.count()).where(Prompt.status == "queued"))
            owed = session.scalar(select(func.count()).where(Callback.state == "pending"))
        work = [{"kind": k, "state": s, "count": n, "since": since} for k, s, n, since in rows]
        return {"work": work, "prompts_queued": int(prompts or 0), "callbacks_pending": int(owed or 0)}

    def recent_seconds(self, base_id: str, sample: int = 20) -> list[float]:
        """Return how long the latest ready tunes of a base took from acceptance to ready, in seconds."""
        query = select(Tune.started_at, Tune.ready_at).where(
            Tune.status == "ready",
            Tune.base_id == base_id,
            Tune.started_at.is_not(None),
            Tune.ready_at.is_not(None),
        )
        with self.reading() as session:
            rows = session.execute(query.order_by(Tune.number.desc()).limit(sample))
            return [(ready - started).total_seconds() for started, ready in rows if ready and started]


def _spent(table: type[Tune] | type[Batch], name: str) -> Any:
    count = func.sum(cast(table.result[name].as_string(), Integer))
    seconds = func.sum(cast(table.result["seconds"].as_string(), Float))
    done = table.result[name].as_string().is_not(None)
    return select(table.base_id, count, func.coalesce(seconds, 0.0)).where(done).group_by(table.base_id)

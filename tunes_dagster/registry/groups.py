"""Grouping what waits into runs: prepared tunes of one base into cohorts, queued prompts into render batches."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update

from tunes_dagster.ids import new_id
from tunes_dagster.registry.engine import Database
from tunes_dagster.registry.tables import Batch, Cohort, Prompt, Tune, Work
from tunes_dagster.registry.transitions import open_work
from tunes_dagster.registry.work import take

# Most rows that one decision looks at; more than a tick can launch anyway (25 runs).
LOOK_AHEAD = 20_000


@dataclass(frozen=True)
class _Waiting:
    """One row that waits to be grouped."""

    id: str
    account_id: str
    since: datetime


def fair_order(rows: Sequence[_Waiting]) -> list[_Waiting]:
    """Return rows in turns, one per account, each account's oldest first."""
    queues: dict[str, deque[_Waiting]] = defaultdict(deque)
    for row in rows:
        queues[row.account_id].append(row)
    turns, ordered = deque(queues.values()), []
    while turns:
        queue = turns.popleft()
        ordered.append(queue.popleft())
        if queue:
            turns.append(queue)
    return ordered


def cut(rows: Sequence[_Waiting], size: int, now: datetime, wait_seconds: float) -> list[list[_Waiting]]:
    """Cut the rows of one group into runs of at most `size`; the last, short one only when it waited enough."""
    ordered = fair_order(rows)
    groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    patience = now - timedelta(seconds=wait_seconds)
    return [group for group in groups if len(group) == size or min(row.since for row in group) <= patience]


class GroupQueries(Database):
    """Cohorts and batches."""

    def make_cohorts(
        self, now: datetime | None = None, wait_seconds: float = 2.0, max_cohort: int = 8, limit: int = 25
    ) -> list[tuple[Cohort, list[Work]]]:
        """Group queued training by base and submit it: at most `limit` cohorts, each a run.

        A group is launched when it is full or its oldest member has waited `wait_seconds`.
        """
        now = now or self.now()
        query = (
            select(Work.id, Tune.account_id, Work.available_at, Tune.branch)
            .join(Tune, Tune.id == Work.subject_id)
            .where(Work.kind == "train", Work.state == "queued", Work.available_at <= now)
            .order_by(Work.available_at, Work.id)
            .limit(LOOK_AHEAD)
        )
        with self.reading() as session:
            by_branch: dict[str, list[_Waiting]] = defaultdict(list)
            for work_id, account_id, since, branch in session.execute(query):
                by_branch[branch].append(_Waiting(work_id, account_id, since))
        chosen = [
            (branch, group)
            for branch, rows in by_branch.items()
            for group in cut(rows, max_cohort, now, wait_seconds)
        ]
        cohorts = []
        for branch, group in sorted(chosen, key=lambda item: min(row.since for row in item[1]))[:limit]:
            with self.writing() as session:
                cohort = Cohort(id=new_id("cohort"), branch=branch, created_at=now)
                session.add(cohort)
                session.flush()
                won = take(session, [row.id for row in group], cohort.id, now)
                if not won:
                    session.delete(cohort)
                    continue
                cohorts.append((cohort, won))
        return cohorts

    def get_cohort(self, cohort_id: str) -> Cohort | None:
        """Return a cohort, or None."""
        with self.reading() as session:
            return session.get(Cohort, cohort_id)

    def cohort_members(self, cohort_id: str) -> list[Work]:
        """Return the train rows that are in a cohort now."""
        with self.reading() as session:
            query = select(Work).where(Work.cohort_id == cohort_id).order_by(Work.subject_id)
            return list(session.scalars(query))

    def make_batches(
        self, now: datetime | None = None, wait_seconds: float = 2.0, max_prompts: int = 64, limit: int = 25
    ) -> list[Batch]:
        """Group queued prompts by base and shape into batches, each with queued render work.

        A batch is made when it is full or its oldest prompt has waited `wait_seconds`; accounts take turns.
        """
        now = now or self.now()
        query = (
            select(Prompt.id, Prompt.account_id, Prompt.queued_at, Prompt.branch, Prompt.shape)
            .where(Prompt.status == "queued", Prompt.batch_id.is_(None))
            .order_by(Prompt.number)
            .limit(LOOK_AHEAD)
        )
        with self.reading() as session:
            groups: dict[tuple[str, str], list[_Waiting]] = defaultdict(list)
            for prompt_id, account_id, since, branch, shape in session.execute(query):
                groups[branch, shape].append(_Waiting(prompt_id, account_id, since or now))
        chosen = [
            (key, group)
            for key, rows in groups.items()
            for group in cut(rows, max_prompts, now, wait_seconds)
        ]
        chosen.sort(key=lambda item: min(row.since for row in item[1]))
        batches = []
        for (branch, shape), group in chosen[:limit]:
            batch = self._make_batch(branch, shape, [row.id for row in group], now)
            if batch is not None:
                batches.append(batch)
        return batches

    def _make_batch(self, branch: str, shape: str, prompt_ids: list[str], now: datetime) -> Batch | None:
        with self.writing() as session:
            batch = Batch(id=new_id("batch"), branch=branch, shape=shape, status="queued", created_at=now)
            session.add(batch)
            session.flush()
            taken = session.execute(
                update(Prompt)
                .where(Prompt.id.in_(prompt_ids), Prompt.status == "queued", Prompt.batch_id.is_(None))
                .values(batch_id=batch.id, updated_at=now)
                .returning(Prompt.id)
                .execution_options(synchronize_session=False)
            ).all()
            if not taken:
                session.delete(batch)
                return None
            open_work(session, "render", batch.id, "sensor", now)
            return batch

    def get_batch(self, batch_id: str) -> Batch | None:
        """Return a batch, or None."""
        with self.reading() as session:
            return session.get(Batch, batch_id)

    def list_batches(self, limit: int = 50) -> list[Batch]:
        """Return batches, newest first."""
        with self.reading() as session:
            return list(session.scalars(select(Batch).order_by(Batch.created_at.desc()).limit(limit)))

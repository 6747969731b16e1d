"""Grouping what waits into runs: prepared tunes of one base into cohorts, queued prompts into render batches."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import exists, func, select

from tunes_dagster.core.ids import COHORT, new_id
from tunes_dagster.core.results import BatchResult, Machine
from tunes_dagster.core.work import WorkKind
from tunes_dagster.registry.claims import is_suspect, take
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import chunks, lock
from tunes_dagster.registry.retrying import retried
from tunes_dagster.registry.tables import Batch, Cohort, Prompt, Tune, Work
from tunes_dagster.registry.transitions import open_work

# Most rows that one decision looks at; more than a tick can launch anyway (25 runs). Of one lane it looks at fewer,
# so that whoever queued 100,000 prompts does not hide everybody behind them.
LOOK_AHEAD = 20_000
LANE_AHEAD = 4_000

# Where campaigns queue; see `_lane`.
CAMPAIGN = "campaign"


@dataclass(frozen=True)
class _Waiting:
    """One row that waits to be grouped.

    Attributes:
        lane: Who waits: lanes take turns.
        pictures: That it makes.
    """

    id: str
    lane: str
    since: datetime
    pictures: int = 1


def _lane(account_id: str, campaign: bool) -> str:
    """Return the lane of a prompt: an account's campaigns take turns with what its people ask for one by one."""
    return f"{account_id} {CAMPAIGN}" if campaign else account_id


def fair_order(rows: Sequence[_Waiting]) -> list[_Waiting]:
    """Return rows in turns, one per lane, each lane's oldest first."""
    queues: dict[str, deque[_Waiting]] = defaultdict(deque)
    for row in rows:
        queues[row.lane].append(row)
    turns, ordered = deque(queues.values()), []
    while turns:
        queue = turns.popleft()
        ordered.append(queue.popleft())
        if queue:
            turns.append(queue)
    return ordered


def cut(
    rows: Sequence[_Waiting], size: int, now: datetime, wait_seconds: float, max_pictures: int | None = None
) -> list[list[_Waiting]]:
    """Cut the rows of one group into runs; the last, short one only when it waited enough.

    Args:
        rows: Of one base and shape.
        size: Most rows of a run.
        now: The time.
        wait_seconds: How long a short run waits for company.
        max_pictures: Most pictures of a run, unless one row alone makes more.
    """
    groups: list[list[_Waiting]] = [[]]
    pictures, full = 0, set()
    for row in fair_order(rows):
        crowded = max_pictures is not None and pictures + row.pictures > max_pictures
        if groups[-1] and (len(groups[-1]) == size or crowded):
            full.add(len(groups) - 1)
            groups.append([])
            pictures = 0
        groups[-1].append(row)
        pictures += row.pictures
    patience = now - timedelta(seconds=wait_seconds)
    return [
        group
        for number, group in enumerate(groups)
        if group and (number in full or len(group) == size or min(row.since for row in group) <= patience)
    ]


def in_turns(
    groups: list[tuple[tuple[str, str], list[_Waiting]]], limit: int, campaign_limit: int
) -> list[tuple[tuple[str, str], list[_Waiting], bool]]:
    """Return the groups to run now: those that people wait for and those of campaigns alone in turns.

    Args:
        groups: Key and rows of each.
        limit: Most groups.
        campaign_limit: Most of them that hold nothing but prompts of campaigns.

    Returns:
        Key, rows, and whether all of them are a campaign's.
    """
    groups = sorted(groups, key=lambda item: min(row.since for row in item[1]))
    alone: deque[tuple[tuple[str, str], list[_Waiting]]] = deque()
    wanted: deque[tuple[tuple[str, str], list[_Waiting]]] = deque()
    for item in groups:
        patient = all(row.lane.endswith(f" {CAMPAIGN}") for row in item[1])
        (alone if patient else wanted).append(item)
    chosen: list[tuple[tuple[str, str], list[_Waiting], bool]] = []
    while len(chosen) < limit and (wanted or (alone and campaign_limit > 0)):
        if wanted:
            chosen.append((*wanted.popleft(), False))
        if alone and campaign_limit > 0 and len(chosen) < limit:
            chosen.append((*alone.popleft(), True))
            campaign_limit -= 1
    return chosen


class Groups(Part):
    """Cohorts and batches."""

    def make_cohorts(
        self,
        now: datetime | None = None,
        wait_seconds: float = 2.0,
        max_cohort: int = 8,
        limit: int = 25,
        *,
        kind: WorkKind = WorkKind.TRAIN,
        suspects_alone: bool = False,
    ) -> list[tuple[Cohort, list[Work]]]:
        """Group queued work that makes tunes by base and submit it: at most `limit` cohorts, each a run.

        A group is launched when it is full or its oldest member has waited `wait_seconds`. Tunes that train nothing
        make cohorts of their own (`embed`), which hold no device.

        With `suspects_alone`, what was computed when a process died has a cohort to itself: it may have killed it.
        """
        now = now or self.now()
        query = (
            select(Work.id, Tune.account_id, Work.available_at, Tune.base_id, is_suspect().label("suspect"))
            .join(Tune, Tune.id == Work.subject_id)
            .where(Work.kind == kind, Work.state == "queued", Work.available_at <= now)
            .order_by(Work.available_at, Work.id)
            .limit(LOOK_AHEAD)
        )
        with self.reading() as session:
            groups: dict[tuple[str, str], list[_Waiting]] = defaultdict(list)
            for work_id, account_id, since, base_id, suspect in session.execute(query):
                alone = work_id if suspects_alone and suspect else ""
                groups[base_id, alone].append(_Waiting(work_id, account_id, since))
        chosen = [
            (base_id, group)
            for (base_id, _), rows in groups.items()
            for group in cut(rows, max_cohort, now, wait_seconds)
        ]
        first = sorted(chosen, key=lambda item: min(row.since for row in item[1]))[:limit]
        made = [self._make_cohort(base_id, [row.id for row in group], now) for base_id, group in first]
        return [cohort for cohort in made if cohort is not None]

    @retried
    def _make_cohort(
        self, base_id: str, work_ids: list[str], now: datetime
    ) -> tuple[Cohort, list[Work]] | None:
        with self.writing() as session:
            cohort = Cohort(id=new_id(COHORT), base_id=base_id, created_at=now)
            session.add(cohort)
            session.flush()
            won = take(session, work_ids, cohort.id, now)
            if not won:
                session.rollback()
                return None
            return cohort, won

    def cohort(self, cohort_id: str) -> Cohort | None:
        """Return a cohort, or None."""
        with self.reading() as session:
            return session.get(Cohort, cohort_id)

    def members(self, cohort_id: str) -> list[Work]:
        """Return the rows that are in a cohort now."""
        with self.reading() as session:
            query = select(Work).where(Work.cohort_id == cohort_id).order_by(Work.subject_id)
            return list(session.scalars(query))

    def make_batches(
        self,
        now: datetime | None = None,
        wait_seconds: float = 2.0,
        max_prompts: int = 64,
        limit: int = 25,
        *,
        max_pictures: Callable[[str, str], int] | None = None,
        campaign_limit: int | None = None,
    ) -> list[Batch]:
        """Group queued prompts by base and shape into batches, each with queued render work.

        Lanes take turns inside of a batch, and batches that hold only prompts of campaigns take turns with the
        others, so that a campaign of any size never holds up a single prompt.

        Args:
            now: The time.
            wait_seconds: A batch that is not full is made when its oldest prompt has waited so long.
            max_prompts: Most prompts of a batch.
            limit: Most batches.
            max_pictures: Most pictures of a batch of a base and shape, see `rendering.memory`.
            campaign_limit: Most batches of campaigns alone; None is no limit of its own.
        """
        now = now or self.now()
        groups = self._waiting_prompts(now)
        cuts = [
            (key, group)
            for key, rows in groups.items()
            for group in cut(rows, max_prompts, now, wait_seconds, max_pictures and max_pictures(*key))
        ]
        chosen = in_turns(cuts, limit, limit if campaign_limit is None else campaign_limit)
        made = [self._make_batch(*key, [row.id for row in group], alone, now) for key, group, alone in chosen]
        return [batch for batch in made if batch is not None]

    def _waiting_prompts(self, now: datetime) -> dict[tuple[str, str], list[_Waiting]]:
        """Return the prompts that wait, by base and shape, of each lane its oldest ones."""
        campaign = (Prompt.origin == CAMPAIGN).label("campaign")
        place = func.row_number().over(partition_by=(Prompt.account_id, campaign), order_by=Prompt.number)
        waiting = (
            select(
                Prompt.id,
                Prompt.account_id,
                Prompt.queued_at,
                Prompt.base_id,
                Prompt.shape,
                campaign,
                Prompt.settings["num_images"].as_integer().label("pictures"),
                place.label("place"),
            )
            .where(Prompt.status == "queued", Prompt.batch_id.is_(None))
            .subquery()
        )
        query = (
            select(waiting).where(waiting.c.place <= LANE_AHEAD).order_by(waiting.c.place).limit(LOOK_AHEAD)
        )
        groups: dict[tuple[str, str], list[_Waiting]] = defaultdict(list)
        with self.reading() as session:
            for row in session.execute(query):
                lane = _lane(row.account_id, bool(row.campaign))
                groups[row.base_id, row.shape].append(
                    _Waiting(row.id, lane, row.queued_at or now, row.pictures or 1)
                )
        return groups

    def waiting_campaign_batches(self) -> set[str]:
        """Return the batches of campaigns alone whose run has not begun."""
        query = (
            select(Batch.id)
            .join(Work, (Work.subject_id == Batch.id) & (Work.kind == WorkKind.RENDER))
            .where(Work.state.in_(("queued", "submitted")), Batch.result["campaign"].as_boolean().is_(True))
        )
        with self.reading() as session:
            return set(session.scalars(query))

    def last_machine(self) -> Machine | None:
        """Return what the newest finished batch was rendered on, if one says so."""
        query = select(Batch.result).where(Batch.status == "done").order_by(Batch.created_at.desc()).limit(20)
        with self.reading() as session:
            found = (BatchResult.read(result).machine for result in session.scalars(query))
            return next((one for one in found if one is not None), None)

    def somebody_waits(self) -> bool:
        """Whether a prompt of a person waits: one that is no campaign's, and that no run has begun."""
        begun = exists().where(
            Work.subject_id == Prompt.batch_id, Work.kind == WorkKind.RENDER, Work.state == "running"
        )
        query = select(Prompt.id).where(Prompt.status == "queued", Prompt.origin != CAMPAIGN, ~begun).limit(1)
        with self.reading() as session:
            return session.scalar(query) is not None

    @retried
    def _make_batch(
        self, base_id: str, shape: str, prompt_ids: list[str], campaign: bool, now: datetime
    ) -> Batch | None:
        with self.writing() as session:
            batch = Batch(id=new_id("batch"), base_id=base_id, shape=shape, status="queued", created_at=now)
            batch.result = BatchResult(campaign=True).written({}) if campaign else {}
            session.add(batch)
            session.flush()
            open_work(session, WorkKind.RENDER, batch.id, "sensor", now)
            waiting = (Prompt.status == "queued", Prompt.batch_id.is_(None))
            taken = lock(session, Prompt, Prompt.id.in_(prompt_ids), *waiting, skip=True)
            for prompt in taken:
                prompt.batch_id, prompt.updated_at = batch.id, now
            if not taken:
                session.rollback()
                return None
            return batch

    def batch(self, batch_id: str) -> Batch | None:
        """Return a batch, or None."""
        with self.reading() as session:
            return session.get(Batch, batch_id)

    def progress_of(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Return how far prompts are, in percent by id: each as far as the batch that it is rendered in."""
        wanted = {prompt.batch_id for prompt in prompts if prompt.batch_id and prompt.status != "done"}
        found: dict[str, float] = {}
        if wanted:
            with self.reading() as session:
                rows = session.execute(select(Batch.id, Batch.progress).where(Batch.id.in_(wanted)))
                found = dict(rows.tuples().all())
        return {
            prompt.id: 100.0 if prompt.status == "done" else round(found.get(prompt.batch_id or "", 0.0), 1)
            for prompt in prompts
        }

    def batches(self, limit: int = 50) -> list[Batch]:
        """Return batches, newest first."""
        with self.reading() as session:
            return list(session.scalars(select(Batch).order_by(Batch.created_at.desc()).limit(limit)))

    def newest_done(self, base_id: str, limit: int = 30) -> list[Batch]:
        """Return the newest finished batches of a base, for their seconds."""
        query = select(Batch).where(Batch.base_id == base_id, Batch.status == "done")
        with self.reading() as session:
            return list(session.scalars(query.order_by(Batch.created_at.desc()).limit(limit)))

    def batches_by_id(self, ids: Iterable[str]) -> dict[str, Batch]:
        """Return batches by id."""
        with self.reading() as session:
            rows = (
                row
                for part in chunks(list(ids))
                for row in session.scalars(select(Batch).where(Batch.id.in_(part)))
            )
            return {row.id: row for row in rows}

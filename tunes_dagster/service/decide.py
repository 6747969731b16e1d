"""What the sensors launch: pure decisions over the registry, without dagster.

Each function takes the rows it decides on out of the queue (queued → submitted, by compare-and-set) and returns
what to launch. A tick that dies between the two loses nothing: `find_stuck` puts submitted rows that got no run
back into the queue, under a new attempt and a new run key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import FailureCode
from tunes_dagster.core.progress import format_seconds
from tunes_dagster.core.work import WorkKind
from tunes_dagster.registry import Registry, Work
from tunes_dagster.rendering.rooms import Rooms

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation

# Submitting one run request takes Dagster 0.1-0.25 s: 25 keep a tick under 7 s.
RUNS_PER_TICK = 25

# Runs of a kind that may wait in Dagster's queue. The rest waits in the registry, where it can still be cancelled
# at once, is taken in turns, and finds company: while the GPUs are busy, cohorts and batches fill up.
WAITING_RUNS = {
    WorkKind.PREPARE: 50,
    WorkKind.TRAIN: 4,
    WorkKind.EMBED: 50,
    WorkKind.FINISH: 50,
    WorkKind.RENDER: 8,
}

# Of the render runs that wait, so many may hold nothing but prompts of campaigns: the next single prompt then waits
# for the run at work at most, because it also goes first in Dagster's queue.
WAITING_CAMPAIGN_RUNS = 2

# A tick that still lives creates its runs well within this time of taking the rows.
LAUNCH_GRACE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One run to start.

    Attributes:
        kind: Which job: `prepare`, `train` (a cohort), `embed` (a cohort of tunes that train nothing), `finish`,
            `render`.
        run_key: Unique per attempt.
        partition: Tune or batch id; None for a cohort, whose members stand in the registry.
        work_id: The row it is an attempt at; None for a cohort.
        cohort_id: For `train` and `embed`.
        tags: For people and for finding the run again.
        patient: Nobody waits for it at a screen: it goes behind others of its kind.
    """

    kind: WorkKind
    run_key: str
    partition: str | None = None
    work_id: str | None = None
    cohort_id: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    patient: bool = False


def _launch(registry: Registry, kind: WorkKind, work: Work) -> Launch:
    tags = {"tunes/kind": kind.value, "tunes/work": work.id, "tunes/attempt": str(work.attempt)}
    tags["tunes/batch" if kind == WorkKind.RENDER else "tunes/tune"] = work.subject_id
    if kind != WorkKind.RENDER:
        tags["tunes/number"] = str(registry.tunes.get(work.subject_id).number)
    return Launch(
        kind=kind,
        run_key=work.run_key or work.id,
        partition=work.subject_id,
        work_id=work.id,
        cohort_id=None,
        tags=tags,
    )


def _room(registry: Registry, kind: WorkKind, limit: int) -> int:
    """Return how many runs of a kind may be launched now."""
    return max(0, min(limit, WAITING_RUNS[kind] - registry.work.count_waiting_runs(kind)))


def _take_queued(registry: Registry, kind: WorkKind, limit: int, now: datetime | None) -> list[Launch]:
    queued = registry.work.queued(kind, now, _room(registry, kind, limit))
    if not queued:
        return []
    won = {work.id: work for work in registry.work.submit([work.id for work in queued], now=now)}
    return [_launch(registry, kind, won[work.id]) for work in queued if work.id in won]


def prepare_launches(
    registry: Registry, limit: int = RUNS_PER_TICK, now: datetime | None = None
) -> list[Launch]:
    """Return a run for each queued tune, longest waiting first."""
    return _take_queued(registry, WorkKind.PREPARE, limit, now)


def finish_launches(
    registry: Registry, limit: int = RUNS_PER_TICK, now: datetime | None = None
) -> list[Launch]:
    """Return a run for each trained tune, longest waiting first."""
    return _take_queued(registry, WorkKind.FINISH, limit, now)


def cohort_launches(
    installation: Installation, limit: int = RUNS_PER_TICK, now: datetime | None = None
) -> list[Launch]:
    """Return a run for each cohort of prepared tunes of one base that is full or has waited long enough.

    Tunes that train nothing go first: they take seconds and hold no device.
    """
    first = embed_launches(installation, limit, now)
    left, settings = limit - len(first), installation.settings
    return [
        *first,
        *_cohorts(
            installation.registry,
            WorkKind.TRAIN,
            settings.cohort_wait_seconds,
            settings.max_cohort,
            left,
            now,
        ),
    ]


def embed_launches(
    installation: Installation, limit: int = RUNS_PER_TICK, now: datetime | None = None
) -> list[Launch]:
    """Return a run for prepared tunes that train nothing; it holds no device."""
    most = installation.settings.max_cohort
    return _cohorts(installation.registry, WorkKind.EMBED, 0.0, most, limit, now)


def _cohorts(
    registry: Registry,
    kind: WorkKind,
    wait_seconds: float,
    max_cohort: int,
    limit: int,
    now: datetime | None,
) -> list[Launch]:
    launches: list[Launch] = []
    room = _room(registry, kind, limit)
    if not room:
        return launches
    for cohort, members in registry.groups.make_cohorts(now, wait_seconds, max_cohort, room, kind=kind):
        tags = {
            "tunes/kind": kind.value,
            "tunes/cohort": cohort.id,
            "tunes/base": cohort.base_id,
            "tunes/tunes": str(len(members)),
        }
        if len(members) == 1:
            tags["tunes/tune"] = members[0].subject_id
            tags["tunes/number"] = str(registry.tunes.get(members[0].subject_id).number)
        launches.append(
            Launch(kind=kind, run_key=cohort.id, partition=None, work_id=None, cohort_id=cohort.id, tags=tags)
        )
    return launches


def render_launches(
    installation: Installation, limit: int = RUNS_PER_TICK, now: datetime | None = None
) -> list[Launch]:
    """Group queued prompts into batches and return a run for each batch, longest waiting first."""
    registry, settings = installation.registry, installation.settings
    room = _room(registry, WorkKind.RENDER, limit)
    if not room:
        return []
    alone = registry.groups.waiting_campaign_batches()
    fits = Rooms(registry, settings, installation.catalog)
    registry.groups.make_batches(
        now,
        settings.batch_wait_seconds,
        settings.max_batch_prompts,
        room,
        max_pictures=lambda base_id, shape: fits.room(base_id, shape).pictures,
        campaign_limit=max(0, WAITING_CAMPAIGN_RUNS - len(alone)),
    )
    launches = _take_queued(registry, WorkKind.RENDER, limit, now)
    if launches:
        alone = registry.groups.waiting_campaign_batches()
    return [replace(launch, patient=launch.partition in alone) for launch in launches]


@dataclass(frozen=True)
class Stuck:
    """One attempt that was given up.

    Attributes:
        work: The row after the decision; its state says `queued`, `failed` or `cancelled`.
        reason: One sentence.
        run_id: The run that had it, if one had begun.
    """

    work: Work
    reason: str
    run_id: str | None = None


@dataclass(frozen=True)
class Watch:
    """Since when somebody has looked without a gap: silence counts only while somebody listened.

    After a database, a daemon or a machine was away, the work that went on has as long to show itself as ever.
    """

    since: datetime
    last: datetime

    @classmethod
    def after(cls, before: Watch | None, now: datetime, lost_after_seconds: float) -> Watch:
        """Return the watch of a look at work, given that of the look before it, if there was one."""
        if before is None:
            return cls(datetime.min.replace(tzinfo=UTC), now)
        gap = (now - before.last).total_seconds()
        return cls(now if gap > lost_after_seconds / 2 else before.since, now)

    @classmethod
    def read(cls, text: str | None) -> Watch | None:
        """Return a watch from what `str` made of it."""
        try:
            since, last = (datetime.fromisoformat(part) for part in (text or "").split(" "))
        except ValueError:
            return None
        return cls(since, last)

    def __str__(self) -> str:
        """Return it as a sensor keeps it."""
        return f"{self.since.isoformat()} {self.last.isoformat()}"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long attempts may be silent, and how long they may take.

    Attributes:
        lost_after_seconds: Silence after which running work counts as lost, whatever is said of its run: a
            machine that crashed leaves runs that look alive for ever.
        launch_grace_seconds: Time that a tick may take to create the runs of the rows it took.
        longest: Kind of work → seconds that it may take, however alive it is.
    """

    lost_after_seconds: float = 60.0
    launch_grace_seconds: float = LAUNCH_GRACE_SECONDS
    longest: Callable[[str], float] = lambda _kind: float("inf")


_PATIENCE = Patience()


def _silent_for(work: Work, now: datetime, watch: Watch | None) -> float:
    since = work.heartbeat_at if work.state == "running" else work.submitted_at
    if since is not None and watch is not None and work.state == "running":
        since = max(since, watch.since)
    return 0.0 if since is None else (now - since).total_seconds()


def _why_lost(work: Work, silent: float, patience: Patience, alive: bool | None) -> str | None:
    """Return why an attempt counts as lost, or None while it does not."""
    if work.state == "running":
        if alive is False:
            return f"Run {work.run_id} ended without a word about {work.kind}."
        if silent > patience.lost_after_seconds:
            return f"Run {work.run_id} has been silent for {format_seconds(silent)}."
        return None
    if alive is False:
        return f"The run of launch {work.cohort_id or work.run_key} ended before it began {work.kind}."
    if alive is None and silent > patience.launch_grace_seconds:
        return f"No run came of launch {work.cohort_id or work.run_key} in {format_seconds(silent)}."
    return None


def _too_long(work: Work, now: datetime, longest: Callable[[str], float]) -> str | None:
    """Return why an attempt took too long, or None while it has time; how alive it is does not matter."""
    if work.state != "running" or work.started_at is None:
        return None
    most = longest(work.kind)
    if (now - work.started_at).total_seconds() <= most:
        return None
    setting = f"TUNES_LONGEST_{work.kind.upper()}_SECONDS"
    return (
        f"{work.kind} took longer than {format_seconds(most)}, which is the longest that it may ({setting})."
    )


def find_stuck(
    registry: Registry,
    now: datetime,
    run_is_alive: Callable[[str], bool | None],
    patience: Patience = _PATIENCE,
    *,
    watch: Watch | None = None,
    limit: int = 1000,
) -> list[Stuck]:
    """Give up attempts whose run is gone: requeue them (next attempt) or fail them with a reason.

    Prompts that still wait for a tune which has ended follow it, and tunes whose next work nobody opened go on.

    Args:
        registry: Where the rows lie.
        now: The time.
        run_is_alive: Called with the run id of running work, and with the run key of the launch (`work_…:2`
            or `cohort_…`) of submitted work. True: queued, starting or running. False: ended. None: no such
            run is known, so only silence decides.
        patience: With them.
        watch: Of this look; without one all silence counts.
        limit: Most rows to look at.
    """
    registry.work.end_stranded()
    for tune_id, run_id in registry.mending.idle_tunes(now - timedelta(seconds=patience.lost_after_seconds)):
        if run_id is None or not run_is_alive(run_id):
            registry.mending.queue_tune(tune_id)
    answers: dict[str, bool | None] = {}
    stuck = []
    for work in registry.work.active(limit):
        name = work.run_id if work.state == "running" else work.cohort_id or work.run_key
        if not name:
            continue
        if name not in answers:
            answers[name] = run_is_alive(name)
        silent = _silent_for(work, now, watch)
        code = FailureCode.RUN_LOST
        reason = _why_lost(work, silent, patience, answers[name])
        if reason is None and (reason := _too_long(work, now, patience.longest)) is not None:
            code = FailureCode.TIMED_OUT
        if reason is None:
            continue
        after = registry.work.requeue_lost(work.id, reason, seen=work, code=code)
        if after is not None:
            stuck.append(Stuck(after, reason, work.run_id if work.state == "running" else None))
    return stuck

"""Attempts: how whoever works on a row of the registry owns it meanwhile, and how the row hears of the end.

A row is claimed by compare-and-set before anything is done, kept alive from a thread, and told one end: done, failed
with a code and a remedy, cancelled, or given back because the process was asked to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.logs import set_up_logging
from tunes_dagster.core.progress import Reporter, Tee
from tunes_dagster.core.results import BatchResult, TuneResult
from tunes_dagster.sessions.reporting import Member, Pulse, RunLines

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry, Work
    from tunes_dagster.service.installation import Installation


@dataclass
class Attempt:
    """One attempt that is owned here.

    Attributes:
        registry: Where its row lies.
        work: The row as it was when claimed.
        run_id: Of whom that owns it: a run of Dagster, or a session.
        report: Tells everybody how far it is; raises `Cancelled` when asked to.
        member: Its heartbeat.
        lines: Its structured log lines.
    """

    registry: Registry
    work: Work
    run_id: str
    report: Reporter
    member: Member = field(repr=False)
    lines: RunLines = field(default_factory=RunLines, repr=False)

    def finish(
        self,
        result: TuneResult | BatchResult | None = None,
        continue_: bool | None = None,
        whole: bool = True,
    ) -> None:
        """Close the attempt as done; in the same transaction the row's subject moves on.

        Args:
            result: What the tune's or batch's result gets beside what it has.
            continue_: Open the next piece of work; None does so unless the tune was ready already.
            whole: Whether all of the work was done; the rest of a part is queued.
        """
        # Closed only once the row says so: while its database is away the work is done, and still alive.
        self.member.tell(self.registry)
        self.registry.work.finish(self.work.id, self.run_id, result=result, continue_=continue_, whole=whole)
        self.member.close()
        self.lines.say("done")

    def give_back(self, reason: str) -> None:
        """Put the rest of the work back into the queue; another run goes on with it, and no try is counted."""
        self.registry.work.give_back(self.work.id, self.run_id, reason)
        self.member.close()

    def fail(self, failure: Failure) -> None:
        """Close the attempt as failed (or cancelled); the registry decides whether there is another one."""
        self.lines.say(
            "failed", code=str(failure.code), **({"detail": failure.detail} if failure.detail else {})
        )
        try:
            self.member.tell(self.registry)
            self.registry.work.fail(self.work.id, self.run_id, failure)
        except Failure as refused:
            if refused.code != FailureCode.CONFLICT:  # another attempt owns the row by now, and goes on
                raise
        finally:
            self.member.close()


def own(
    installation: Installation,
    work: Work,
    run_id: str,
    pulse: Pulse,
    watching: Sequence[Reporter] = (),
    asked_last: Sequence[Reporter] = (),
) -> Attempt:
    """Put a claimed row under a pulse.

    Args:
        installation: Its registry holds the row.
        work: Claimed by `run_id`.
        run_id: Of whom that owns it.
        pulse: Keeps it alive.
        watching: Who else is told how far it is, before the row.
        asked_last: Who else is, after it: whether the work is cancelled, the row says first.
    """
    registry = installation.registry
    member = pulse.add(Member(registry, work.id, run_id))
    set_up_logging("tunes.pipeline", installation.settings.log_format)
    lines = RunLines(
        kind=work.kind,
        subject=work.subject_id,
        attempt=work.attempt,
        run_id=run_id,
        request_id=registry.objects.request_id(work.subject_id),
    )
    lines.say("started")
    return Attempt(registry, work, run_id, Tee([*watching, member, lines, *asked_last]), member, lines)


def ended_already(mine: Attempt, error: BaseException) -> bool:
    """Whether a row needs no word of an error: it was told how its attempt ended, or another attempt owns it."""
    return mine.member.closed or (mine.member.lost is not None and error is mine.member.lost)


def percent_of(registry: Registry, work: Work) -> float | None:
    """Return how far all of a tune or batch is; None when the registry cannot say."""
    registry = registry.with_patience(0.0)
    try:
        batch = registry.groups.batch(work.subject_id) if work.kind == "render" else None
        return batch.progress if batch is not None else registry.tunes.get(work.subject_id).progress
    except Exception:  # a line of the log without it is good enough, and the work must not end for it
        return None

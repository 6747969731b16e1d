"""Attempts of a run of Dagster: how it owns a row of the registry, and how it ends when the row does.

What a person starts in the UI takes the same road as what a sensor launched; the registry then notes `origin=ui`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import dagster as dg
from dagster import DagsterExecutionInterruptedError, DagsterRunStatus

from tunes_dagster.core.failures import UNEXPECTED, Cancelled, Failure, FailureCode, as_failure, where
from tunes_dagster.core.work import WorkKind
from tunes_dagster.pipeline.launches import ORIGIN_TAG, RUN_KEY_TAG
from tunes_dagster.pipeline.shown import meaning, what_to_do
from tunes_dagster.sessions import attempts
from tunes_dagster.sessions.attempts import Attempt, ended_already, percent_of
from tunes_dagster.sessions.reporting import Pulse, RunLog

if TYPE_CHECKING:
    from tunes_dagster.core.settings import Settings
    from tunes_dagster.registry import Work
    from tunes_dagster.service.installation import Installation

# What a failure of these codes says is about what was asked for, and names ids.
_OF_THE_REQUEST = (
    FailureCode.INVALID_REQUEST,
    FailureCode.CONFLICT,
    FailureCode.UNKNOWN_TUNE,
    FailureCode.UNKNOWN_BASE,
)
Context = dg.AssetExecutionContext | dg.OpExecutionContext


def run_origin(run: dg.DagsterRun) -> tuple[str, str | None]:
    """Return who started a run (`sensor`, `cli`, `ui`) and its run key.

    A re-execution carries its parent's tags, but it is a person's doing and an attempt of its own.
    """
    run_key = run.tags.get(RUN_KEY_TAG)
    if run_key is None or run.parent_run_id is not None:
        return "ui", None
    return run.tags.get(ORIGIN_TAG, "sensor"), run_key


def claim(context: Context, installation: Installation, kind: str, subject_id: str, pulse: Pulse) -> Attempt:
    """Claim the open work of a tune or batch for this run and put it under the pulse.

    A re-execution takes what its parent left undone, and nothing that was done since.

    Raises:
        Failure: `CONFLICT` when another live run has it or a re-execution finds it done, or `UNKNOWN_TUNE`.
    """
    rows, run_id = installation.registry, context.run.run_id
    if context.run.parent_run_id is not None:
        work = rows.work.claim_again(kind, subject_id, run_id, failed_parents(context))
    else:
        origin, run_key = run_origin(context.run)
        work = rows.work.claim(kind, subject_id, run_id, origin=origin, run_key=run_key)
    return own(context, installation, work, pulse)


def failed_parents(context: Context) -> list[str]:
    """Return the run that this one executes again if it failed: its row may say done, and Dagster knows better."""
    parent = context.instance.get_run_by_id(context.run.parent_run_id or "")
    return [parent.run_id] if parent is not None and parent.status == DagsterRunStatus.FAILURE else []


def own(
    context: Context, installation: Installation, work: Work, pulse: Pulse, many: bool = False
) -> Attempt:
    """Put a claimed row under the pulse of this run.

    Args:
        context: Of the asset or op.
        installation: Its registry holds the row.
        work: Claimed by this run.
        pulse: Keeps it alive.
        many: Whether the run has several, so that lines of its log must say whose they are.
    """
    registry, label = installation.registry, ""
    if many and work.kind != WorkKind.RENDER:
        label = f"tune {registry.tunes.get(work.subject_id).number}"
    log = RunLog(context.log, label, percent=partial(percent_of, registry, work))
    return attempts.own(installation, work, context.run.run_id, pulse, [log])


def pulse_of(context: Context, settings: Settings) -> Pulse:
    """Return what keeps the work of a run alive."""
    return Pulse(settings.heartbeat_seconds, context.log, settings.lost_after_seconds)


@contextmanager
def sentences() -> Iterator[None]:
    """Show a failure before any attempt exists as its sentence, not as a stack trace."""
    try:
        yield
    except Failure as failure:
        raise as_dagster_failure(failure) from None


def require_reserve(installation: Installation, what: str) -> None:
    """Refuse to begin work in a store that is full as good as already; it waits for room instead.

    Raises:
        Failure: `STORE_UNAVAILABLE`.
    """
    installation.store.require(installation.settings.store_reserve_mb * 1e6, what)


@contextmanager
def attempt(
    context: Context, installation: Installation, kind: str, subject_id: str, *, closes: bool = True
) -> Iterator[Attempt]:
    """Own the work of one tune or batch for the while.

    Args:
        context: Of the asset or op.
        installation: Its registry holds the row.
        kind: `prepare`, `train`, `finish`, `render`.
        subject_id: Tune or batch.
        closes: Whether the attempt must be over at the end of the block; False leaves it to a later asset of
            the same run.

    Yields:
        The attempt; call its `finish` with the result.

    Raises:
        dg.Failure: The failure's sentence and remedy, never retried by Dagster.
    """
    with pulse_of(context, installation.settings) as pulse:
        with sentences():
            mine = claim(context, installation, kind, subject_id, pulse)
        try:
            require_reserve(installation, f"A run of {kind}")
            yield mine
        except BaseException as error:
            end_badly(context, mine, error)
        if mine.member.closed:
            return
        if closes:
            mine.finish()
        else:  # the pulse ends here, perhaps before it came round to what was found
            mine.member.tell(mine.registry)


def end_badly(context: Context, mine: Attempt, error: BaseException) -> NoReturn:
    """Close an attempt whose block raised, and raise what Dagster should show."""
    failure = close_badly(context, mine, error)
    if isinstance(failure, Cancelled):
        mark_cancelled(context)
    if failure is None or isinstance(error, DagsterExecutionInterruptedError | KeyboardInterrupt):
        raise error
    raise as_dagster_failure(failure, mine.work, error) from None


def close_badly(context: Context, mine: Attempt, error: BaseException) -> Failure | None:
    """Tell the registry how an attempt ended; returns the failure as recorded, None when nothing was recorded."""
    if ended_already(mine, error):
        return error if isinstance(error, Failure) else None
    if isinstance(error, DagsterExecutionInterruptedError | KeyboardInterrupt):
        if cancelled_by_person(context):
            cancelled = Cancelled("The run was cancelled in the Dagster UI.")
            mine.fail(cancelled)
            return cancelled
        # The daemon or the machine is going down: the work goes back into the queue and resumes.
        with suppress(Failure):  # another attempt may own the row by now
            mine.give_back("The process was asked to stop; the work will resume.")
        return None
    failure = meant(error)
    mine.fail(failure)
    return failure


def meant(error: BaseException) -> Failure:
    """Return the failure that stands for any exception of an asset."""
    if isinstance(error, dg.Failure):
        return Failure(FailureCode.INTERNAL, UNEXPECTED, "", error.description or "The step failed.")
    return as_failure(error)


def as_dagster_failure(
    failure: Failure, work: Work | None = None, error: BaseException | None = None
) -> dg.Failure:
    """Return what the UI shows of a failure; Dagster never retries, attempts belong to the registry.

    Its own sentence may name a person's files and texts. It stands in the row, where it can be deleted. Only whoever
    started a run by hand is told what is wrong with what they filled in, which stands in the run's config anyway.
    """
    metadata: dict[str, Any] = {"code": str(failure.code)}
    if work is not None:
        metadata["what_to_do"] = what_to_do(work.kind, work.subject_id)
    if error is not None and not isinstance(error, Failure):
        metadata["where"] = dg.MetadataValue.text(where(error))
    numbers = {name: value for name, value in failure.facts.items() if isinstance(value, int | float)}
    if numbers:
        metadata["facts"] = dg.MetadataValue.json(numbers)
    said = f"{meaning(failure.code)} [{failure.code}]"
    if failure.code in _OF_THE_REQUEST and (work is None or work.origin == "ui"):
        said = f"{failure.message} {failure.remedy}".strip()
    shown = dg.Failure(description=said, metadata=metadata, allow_retries=False)
    shown.__dict__["tunes_failure"] = failure  # for whoever started the run in this process, in its own words
    return shown


def cancelled_by_person(context: Context) -> bool:
    """Whether somebody asked Dagster to terminate this run, as opposed to the process being stopped."""
    run = context.instance.get_run_by_id(context.run.run_id)
    return run is not None and run.status in (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED)


def mark_cancelled(context: Context, message: str = "The work was cancelled on request.") -> NoReturn:
    """End the run as cancelled, not as failed."""
    if not cancelled_by_person(context):
        context.instance.report_run_canceling(context.run, message=message)
    raise DagsterExecutionInterruptedError(message)

"""Training the tunes that a run claimed: what the `lora` asset (one tune) and `train_cohort` (many) share.

Each tune is finished, materialized and checked by itself as soon as its weights are there; one that cannot be
trained leaves the others alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from tunes_dagster.assets.attempt import (
    Context,
    as_dagster_failure,
    close_badly,
    mark_cancelled,
    meant,
    own,
    pulse_of,
    sentences,
)
from tunes_dagster.assets.members import claim_members, say_who_is_left
from tunes_dagster.assets.names import LORA
from tunes_dagster.assets.trained import described, log_trained
from tunes_dagster.core.failures import Cancelled, Failure
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.core.work import WorkKind
from tunes_dagster.pipeline.journal import report_planned
from tunes_dagster.pipeline.partitions import TUNES
from tunes_dagster.registry.retrying import DatabaseAway
from tunes_dagster.sessions.cohorts import Place, Trainee, load_placed, train_trainees, trainee_of
from tunes_dagster.sessions.reporting import Pulse
from tunes_dagster.sessions.results import Trained

if TYPE_CHECKING:
    from tunes_dagster.registry import Work
    from tunes_dagster.resources import ComputeResource
    from tunes_dagster.service.installation import Installation


# Most tunes that one run takes, those that join it included: its log stays readable, and what a crash costs small.
MOST_MEMBERS = 64


def train_cohort_members(
    context: dg.OpExecutionContext,
    cohort_id: str,
    installation: Installation,
    compute: ComputeResource,
) -> None:
    """Train the members of a cohort and those that join it; the body of the `train_cohort` job.

    Raises:
        dg.Failure: After all have ended, when one or more of them failed, naming each.
    """

    registry, settings = installation.registry, installation.settings

    def on_trained(trainee: Trainee, trained: Trained) -> None:
        shown = described(trained, installation.store)
        # A tune that was ready is packaged again, so that what is published follows the new weights.
        trainee.mine.finish(trained.row_result(), continue_=True)
        log_trained(context, trained.tune, shown)

    with sentences():
        claimed = claim_members(context, cohort_id, registry)
        say_who_is_left(context, cohort_id, claimed, registry)
    if not claimed.works:
        return
    with pulse_of(context, settings) as pulse:
        trainees: list[Trainee] = []
        began = time.monotonic()

        def recruit(works: Sequence[Work], said: str) -> list[Trainee]:
            fresh = [recruited(context, work, installation, pulse) for work in works]
            trainees.extend(fresh)
            # Those that had left Dagster's window come back.
            context.instance.add_dynamic_partitions(TUNES, [trainee.tune.id for trainee in fresh])
            for trainee in fresh:
                report_planned(context.instance, context.run, LORA, trainee.tune.id)
            if fresh:
                names = ", ".join(f"tune {trainee.tune.number}" for trainee in fresh)
                context.log.info(f"Cohort {cohort_id}: {names} {said}.")
            return fresh

        def newcomers(free: int) -> list[Trainee]:
            if time.monotonic() - began > settings.longest(WorkKind.TRAIN):
                return []  # whoever joins may take as long again, and then the run itself ends
            room = min(free, MOST_MEMBERS - len(trainees))
            here = [trainee.tune.id for trainee in trainees]
            try:  # those who train do not wait for those who might
                works = registry.with_patience(0.0).work.join_cohort(
                    cohort_id, context.run.run_id, room, here
                )
            except DatabaseAway:
                return []
            return recruit(works, "joined")

        with all_closed(context, trainees):
            recruit(claimed.works, f"will be trained ({len(claimed.works)} at first)")
            train_trainees(place_of(context, installation, compute), trainees, on_trained, newcomers)
    conclude(context, trainees, claimed.refused)


def place_of(context: Context, installation: Installation, compute: ComputeResource) -> Place:
    """Return the place of a run of Dagster: a device of its host for the while, and every base loaded anew."""
    settings = installation.settings
    return Place(
        installation,
        lease=lambda report: compute.lease(report, settings, holder=context.run.run_id),
        load=load_placed,
        close=partial(close_badly, context),
        log=context.log,
    )


def recruited(context: Context, work: Work, installation: Installation, pulse: Pulse) -> Trainee:
    """Return the trainee of claimed work; one whose recipe cannot be used has failed already."""
    mine = own(context, installation, work, pulse, many=True)
    try:
        return trainee_of(mine, installation)
    except Exception as error:
        trainee = Trainee(mine, installation.registry.tunes.get(work.subject_id), TrainingOptions())
        trainee.failure = close_badly(context, mine, error) or meant(error)
        return trainee


@contextmanager
def all_closed(context: Context, trainees: Sequence[Trainee]) -> Iterator[None]:
    """Close the attempts that are still open when training ends altogether (interrupt, no memory, no base)."""
    try:
        yield
    except BaseException as error:
        for trainee in trainees:
            if not trainee.mine.member.closed:
                trainee.failure = close_badly(context, trainee.mine, error)
        if isinstance(error, Failure):
            return
        raise


def conclude(
    context: Context, trainees: Sequence[Trainee], refused: Mapping[str, Failure] | None = None
) -> None:
    """End the run: cancelled when all were, failed when one failed, else well.

    Args:
        context: Of the asset or op.
        trainees: With what became of them.
        refused: Why tunes that were to be trained could not be taken, by id.

    Raises:
        dg.Failure: Naming what failed.
    """
    bad = [(t.tune.id, f"tune {t.tune.number}", t.failure) for t in trainees if t.failure is not None]
    bad = [one for one in bad if not isinstance(one[2], Cancelled)]
    bad += [(tune_id, tune_id, failure) for tune_id, failure in (refused or {}).items()]
    if not bad:
        if all(t.failure is not None for t in trainees):
            mark_cancelled(context)
        return
    first = bad[0][2]
    if len(trainees) == 1 and not refused:
        raise as_dagster_failure(first)
    said = "; ".join(f"{called}: {failure.code}" for _, called, failure in bad)
    raise as_dagster_failure(
        Failure(
            first.code,
            f"{len(bad)} of {len(trainees) + len(refused or {})} tunes failed: {said}",
            first.remedy,
            facts={tune_id: str(failure.code) for tune_id, _, failure in bad},
        )
    )

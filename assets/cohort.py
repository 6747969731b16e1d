"""Training the tunes that a run claimed: what the `lora` asset (one tune) and `train_cohort` (many) share.

Each tune is finished, materialized and checked by itself as soon as its weights are there; one that cannot be
trained leaves the others alone.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from tunes_dagster.assets.attempt import (
    Attempt,
    Context,
    as_dagster_failure,
    close_badly,
    mark_cancelled,
    meant,
    own,
    pulse_of,
    sentences,
)
from tunes_dagster.assets.embedded import embed
from tunes_dagster.assets.members import claim_members, say_who_is_left
from tunes_dagster.assets.reporting import Pulse
from tunes_dagster.assets.requests import training_options
from tunes_dagster.assets.trained import Inspector, Trained, log_trained
from tunes_dagster.core.failures import Cancelled, Failure, FailureCode, detail_of
from tunes_dagster.core.progress import Keeping, Phase, Tee
from tunes_dagster.core.recipe import UNTRAINED, TrainingOptions, TuneRequest
from tunes_dagster.core.wishes import Wishes, ended
from tunes_dagster.registry.retrying import DatabaseAway

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.families.catalog import BaseModelEntry
    from tunes_dagster.registry import Tune, Work
    from tunes_dagster.resources import ComputeResource, Device
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.training.jobs import TuneJob, TuneResult
    from tunes_dagster.training.planner import MemoryPlan


# Most tunes that one run takes, those that join it included: its log stays readable, and what a crash costs small.
MOST_MEMBERS = 64


@dataclass
class Trainee:
    """One tune that this run trains.

    Attributes:
        mine: The attempt on its row.
        tune: The row of the tune.
        options: With the Launchpad's values and the base's defaults filled in.
        resume: Whether an earlier attempt's checkpoint may be continued from.
        failure: Why it ended badly, once it has.
    """

    mine: Attempt
    tune: Tune
    options: TrainingOptions
    resume: bool = True
    failure: Failure | None = field(default=None)


def make_job(trainee: Trainee, store: Store) -> TuneJob:
    """Return what the training loop needs to know of a tune.

    Raises:
        Failure: `CONFLICT` when its dataset has not been prepared.
    """
    from tunes_dagster.intake.captions import CaptionTable
    from tunes_dagster.intake.training_set import TrainingSet
    from tunes_dagster.training.jobs import TrainExample, TuneJob

    tune = trainee.tune
    try:
        dataset = TrainingSet.load(store, tune.id)
        texts = CaptionTable.load(store, tune.id).texts()
    except FileNotFoundError as error:
        raise Failure(
            FailureCode.CONFLICT,
            f"The dataset of {tune.title!r} is not prepared.",
            "Materialize source_images, training_set and captions of this tune first.",
            detail_of(error),
        ) from error
    examples = [
        TrainExample(
            item.key,
            texts[item.hash],
            item.bucket,
            item.crop,
            item.mirrored,
            item.tone,
            item.mask_key,
            item.mask_box,
            item.kind == "face",
        )
        for item in dataset.items
        if not item.held_out
    ]
    return TuneJob(
        tune_id=tune.id,
        options=trainee.options,
        items=examples,
        token=tune.token,
        class_name=tune.class_name,
        out_prefix=f"tunes/{tune.id}/lora/{trainee.mine.work.attempt}",
        report=trainee.mine.report,
        resume_from=f"tunes/{tune.id}/lora" if trainee.resume else None,
        recipe=dict(tune.recipe),
        title=tune.title,
        date=tune.created_at.date().isoformat(),
    )


def train_trainees(
    context: Context,
    trainees: Sequence[Trainee],
    installation: Installation,
    compute: ComputeResource,
    on_trained: Callable[[Trainee, Trained], None],
    newcomers: Callable[[int], Sequence[Trainee]] | None = None,
) -> None:
    """Train tunes of one base on one device; a tune's failure is recorded in its row and its trainee.

    Args:
        context: Of the asset or op.
        trainees: Claimed, all of one base.
        installation: Where datasets lie, weights go, and the base is looked up.
        compute: Gives the device.
        on_trained: Called for each tune once its weights are written and inspected, before the next one ends.
        newcomers: Asked for claimed tunes that join, with the number of free places.
    """
    from tunes_dagster.families.base import load_family
    from tunes_dagster.families.loading import Placement, placed
    from tunes_dagster.training.loop import patient, train

    store, settings = installation.store, installation.settings
    by_id: dict[str, Trainee] = {}

    def jobs_of(some: Sequence[Trainee]) -> list[TuneJob]:
        made = []
        for trainee in some:
            by_id[trainee.tune.id] = trainee
            with _alone(context, trainee):
                if trainee.failure is not None:
                    continue
                job = make_job(trainee, store)
                if trainee.tune.kind in UNTRAINED:
                    on_trained(trainee, embed(trainee.tune, job, installation))
                else:
                    made.append(job)
        return made

    jobs = jobs_of(trainees)
    if not jobs:
        return
    crowd = Crowd([patient(job, store) for job in jobs])
    entry, folder = installation.usable(by_id[jobs[0].tune_id].tune.branch)
    with compute.lease(crowd, settings, holder=context.run.run_id) as device, ExitStack() as stack:
        fitting, plan = plan_jobs(context, jobs, by_id, entry, folder, device, settings.max_cohort)
        if plan is None:
            return
        stack.enter_context(placed(Placement(plan.choice.offload, plan.choice.quantize)))
        crowd.phase(Phase.LOADING, f"Loading {entry.branch} onto {device.name} ({device.dtype}).")
        base = load_family(entry, folder, device.name, device.torch_dtype)
        inspector = Inspector(base, device, store)

        def on_finished(tune_id: str, outcome: TuneResult | Failure) -> None:
            trainee = by_id[tune_id]
            with _alone(context, trainee):
                if isinstance(outcome, Failure):
                    raise outcome
                outcome.figures["memory_plan"] = plan.sentence()
                watching = Keeping([trainee.mine.report])
                on_trained(trainee, inspector.inspect(trainee.tune, outcome, watching))

        def joining(free: int) -> Sequence[TuneJob]:
            assert newcomers is not None
            return plan_jobs(
                context, jobs_of(newcomers(free)), by_id, entry, folder, device, settings.max_cohort, plan
            )[0]

        # Whoever joins is encoded first, for which there is no room when the encoders had to leave.
        open_house = newcomers is not None and not plan.choice.offload
        train(
            fitting,
            base,
            store,
            on_finished=on_finished,
            waiting=joining if open_house else None,
            places=plan.cohort,
        )


def plan_jobs(
    context: Context,
    jobs: Sequence[TuneJob],
    by_id: Mapping[str, Trainee],
    entry: BaseModelEntry,
    folder: Path,
    device: Device,
    most: int,
    plan: MemoryPlan | None = None,
) -> tuple[list[TuneJob], MemoryPlan | None]:
    """Decide what makes tunes fit the device and write it into their jobs; one that does not fit fails alone.

    Args:
        context: Its log is told the plan.
        jobs: What is to be trained.
        by_id: Their trainees.
        entry: Their base.
        folder: Where the base lies.
        device: What they are trained on.
        most: Tunes that may train at a time.
        plan: Of the tunes that are training already, which these join; None makes one.

    Returns:
        The jobs that fit, and the plan; None when no job fits.
    """
    from tunes_dagster.families.sizes import sizes_of
    from tunes_dagster.training.planner import carry_out, plan_memory

    sizes, machine = sizes_of(entry, folder), device.machine()
    fitting = []
    for job in jobs:
        with _alone(context, by_id[job.tune_id]):
            plan_memory([job.options], sizes, entry.native_size, machine, 1)
            fitting.append(job)
    if not fitting:
        return [], plan
    if plan is None:
        plan = plan_memory([job.options for job in fitting], sizes, entry.native_size, machine, most)
        context.log.info(plan.sentence())
    for job in fitting:
        carry_out(plan, job)
    return fitting, plan


@contextmanager
def _alone(context: Context, trainee: Trainee) -> Iterator[None]:
    """Let what goes wrong with one tune end that tune only."""
    try:
        yield
    except Exception as error:
        trainee.failure = close_badly(context, trainee.mine, error) or meant(error)
        if isinstance(trainee.failure, Cancelled):
            context.log.info(f"{trainee.tune.title}: cancelled on request.")
        else:
            detail = "" if isinstance(error, Failure) else f"\n{traceback.format_exc()}"
            context.log.error(f"{trainee.tune.title}: {trainee.failure}{detail}")


class Crowd(Tee):
    """Tells several tunes at once; a cancel counts only when all of them are cancelled."""

    def check_cancelled(self) -> None:
        """Raise when nobody is left who wants to go on."""
        cancelled: Failure | None = None
        for reporter in self.reporters:
            try:
                reporter.check_cancelled()
            except Failure as failure:
                cancelled = failure
            else:
                return
        if cancelled is not None:
            raise cancelled


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
        # A tune that was ready is packaged again, so that what is published follows the new weights.
        trainee.mine.finish(trained.row_result(), continue_=True)
        log_trained(context, trained)

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
            if fresh:
                names = ", ".join(trainee.tune.title for trainee in fresh)
                context.log.info(f"Cohort {cohort_id}: {names} {said}.")
            return fresh

        def newcomers(free: int) -> list[Trainee]:
            if time.monotonic() - began > settings.longest("train"):
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
            train_trainees(context, trainees, installation, compute, on_trained, newcomers)
    conclude(context, trainees, claimed.refused)


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
    bad = [(t.tune.id, t.tune.title, t.failure) for t in trainees if t.failure is not None]
    bad = [one for one in bad if not isinstance(one[2], Cancelled)]
    bad += [(tune_id, tune_id, failure) for tune_id, failure in (refused or {}).items()]
    if not bad:
        if all(t.failure is not None for t in trainees):
            mark_cancelled(context)
        return
    first = bad[0][2]
    if len(trainees) == 1 and not refused:
        raise as_dagster_failure(first)
    said = "; ".join(f"{called}: {failure.message}" for _, called, failure in bad)
    raise as_dagster_failure(
        Failure(
            first.code,
            f"{len(bad)} of {len(trainees) + len(refused or {})} tunes failed: {said}",
            first.remedy,
            facts={tune_id: str(failure) for tune_id, _, failure in bad},
        )
    )


def trainee_of(mine: Attempt, installation: Installation, changes: dict[str, Any] | None = None) -> Trainee:
    """Return what this attempt trains, with the Launchpad's values written into the tune's recipe."""
    registry = installation.registry
    tune = registry.tunes.get(mine.work.subject_id)
    entry = installation.catalog.resolve(tune.branch)
    options = entry.training_options(training_options(tune, changes or {}, entry))
    if changes:
        for said in ended(_check_changes(tune, changes, options, installation)):
            registry.events.add(tune.id, tune.status, said)
        recipe = {**tune.recipe, "training": options.model_dump()}
        tune = registry.tunes.set_recipe(mine.work.id, mine.run_id, recipe)
    return Trainee(mine, tune, options, resume=not tune.made.weights_key)


# They fill in other options or name another tune's weights, which is done when a tune is handed in.
_SETTLED = ("preset", "base_tune_id")


def _check_changes(
    tune: Tune, changes: Mapping[str, Any], options: TrainingOptions, installation: Installation
) -> list[str]:
    """Refuse what a base or this machine cannot do, as at submission, and what can be chosen only there.

    Returns:
        What has no effect, a sentence each.

    Raises:
        Failure: `INVALID_REQUEST`, naming each wrong option.
    """
    from tunes_dagster.training.checks import check_tune

    if settled := [name for name in _SETTLED if name in changes]:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"training.{settled[0]} is settled when a tune is handed in and cannot be changed here.",
            "Hand in a new tune with it.",
        )
    request = TuneRequest.model_validate(tune.request).model_copy(update={"training": options})
    catalogue, settings = installation.catalog, installation.settings
    asked, used = catalogue.resolve(request.base), catalogue.resolve(tune.branch)
    wishes = Wishes(settings.unmet_wishes)
    check_tune(request, asked, used, settings, wishes)
    return wishes.told()

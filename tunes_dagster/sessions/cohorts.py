"""Training tunes of one base together on one device, each with an attempt of its own.

Each tune is finished and checked by itself as soon as its weights are there; one that cannot be trained leaves the
others alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Cancelled, Failure, FailureCode, as_failure, detail_of, where
from tunes_dagster.core.progress import Keeping, Phase, Reporter, Tee
from tunes_dagster.core.recipe import UNTRAINED, TrainingOptions, TuneRequest
from tunes_dagster.core.validation import checked
from tunes_dagster.core.wishes import Wishes, ended
from tunes_dagster.families.presets import changed
from tunes_dagster.sessions.imported import import_job, is_import, known_now
from tunes_dagster.sessions.inspecting import Inspector, embed
from tunes_dagster.sessions.results import Trained

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.families.base import LoadedBase
    from tunes_dagster.families.catalog import BaseModelEntry
    from tunes_dagster.families.loading import Placement
    from tunes_dagster.families.sizes import Sizes
    from tunes_dagster.registry import Tune
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.sessions.attempts import Attempt
    from tunes_dagster.sessions.hardware import Device
    from tunes_dagster.training.jobs import TrainingResult, TuneJob
    from tunes_dagster.training.planner import MemoryPlan


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
            f"The dataset of tune {tune.number} is not prepared.",
            "Materialize source_images, training_set and captions of this tune first.",
            detail_of(error),
        ) from error
    examples = [
        TrainExample(
            key=item.key,
            caption=texts[item.hash],
            bucket=item.bucket,
            crop=item.crop,
            mirrored=item.mirrored,
            tone=item.tone,
            mask_key=item.mask_key,
            mask_box=item.mask_box,
            is_face=item.kind == "face",
            name=item.name,
            repeats=item.repeats,
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
        prior_pictures=[
            TrainExample(key=one.key, caption=one.caption, bucket=(0, 0), name=one.name)
            for one in dataset.prior
        ],
    )


@dataclass(frozen=True)
class Place:
    """Where and for whom tunes are trained.

    Attributes:
        installation: Where datasets lie, weights go, and the base is looked up.
        lease: Gives the device for the while; waits when it is taken, and a cancel of whoever waits ends that.
        load: Gives a base, placed as a plan says.
        close: Tells the row of an attempt how it ended; see `assets.attempt.close_badly`.
        log: Told what is decided.
    """

    installation: Installation
    lease: Callable[[Reporter], AbstractContextManager[Device]]
    load: Callable[[BaseModelEntry, Path, Device, Placement], LoadedBase]
    close: Callable[[Attempt, BaseException], Failure | None]
    log: logging.Logger


def load_placed(entry: BaseModelEntry, folder: Path, device: Device, placement: Placement) -> LoadedBase:
    """Load a base as a plan places it."""
    from tunes_dagster.families.base import load_family
    from tunes_dagster.families.loading import placed

    with placed(placement):
        return load_family(entry, folder, device.name, device.torch_dtype)


def train_trainees(
    place: Place,
    trainees: Sequence[Trainee],
    on_trained: Callable[[Trainee, Trained], None],
    newcomers: Callable[[int], Sequence[Trainee]] | None = None,
) -> None:
    """Train tunes of one base on one device; a tune's failure is recorded in its row and its trainee.

    Args:
        place: Where.
        trainees: Claimed, all of one base.
        on_trained: Called for each tune once its weights are written and inspected, before the next one ends.
        newcomers: Asked for claimed tunes that join, with the number of free places.
    """
    from tunes_dagster.families.loading import Placement, placed
    from tunes_dagster.families.sizes import sizes_of
    from tunes_dagster.training.loop import patient, train

    installation = place.installation
    store, by_id = installation.store, {one.tune.id: one for one in trainees}
    jobs = _jobs_of(place, trainees, on_trained)
    if not jobs:
        return
    crowd = Crowd([patient(job, store) for job in jobs])
    entry, folder = installation.usable(by_id[jobs[0].tune_id].tune.base_id)
    with place.lease(crowd) as device, ExitStack() as stack:
        jobs = with_room(place, jobs, by_id, sizes_of(entry, folder))
        fitting, plan = plan_jobs(place, jobs, by_id, entry, folder, device)
        if plan is None:
            return
        crowd.phase(Phase.LOADING, f"Loading {entry.base_id} onto {device.name} ({device.dtype}).")
        placement = Placement(plan.choice.offload, plan.choice.quantize)
        stack.enter_context(placed(placement))  # what is loaded to look at the weights lies alike
        base = place.load(entry, folder, device, placement)
        inspector = Inspector(base, device, store)

        def on_finished(tune_id: str, outcome: TrainingResult | Failure) -> None:
            trainee = by_id[tune_id]
            with _alone(place, trainee):
                if isinstance(outcome, Failure):
                    raise outcome
                outcome.figures["memory_plan"] = plan.sentence()
                watching = Keeping([trainee.mine.report])
                on_trained(trainee, inspector.inspect(trainee.tune, outcome, watching))

        def trained_here(jobs: Sequence[TuneJob]) -> list[TuneJob]:
            """Take in those whose weights were made elsewhere, and return the others."""
            for job in jobs:
                if is_import(by_id[job.tune_id].tune):
                    on_finished(job.tune_id, _taken_in(by_id[job.tune_id], job, base, installation))
            return [job for job in jobs if not is_import(by_id[job.tune_id].tune)]

        def joining(free: int) -> Sequence[TuneJob]:
            assert newcomers is not None
            claimed = newcomers(free)
            by_id.update({one.tune.id: one for one in claimed})
            fresh = with_room(place, _jobs_of(place, claimed, on_trained), by_id, sizes_of(entry, folder))
            return trained_here(plan_jobs(place, fresh, by_id, entry, folder, device, plan)[0])

        fitting = trained_here(fitting)
        if not fitting:
            return

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


def _jobs_of(
    place: Place, trainees: Sequence[Trainee], on_trained: Callable[[Trainee, Trained], None]
) -> list[TuneJob]:
    """Return the jobs of those that are to be trained or taken in; what needs no training is done at once."""
    installation, made = place.installation, []
    for trainee in trainees:
        with _alone(place, trainee):
            if trainee.failure is not None:
                continue
            if is_import(trainee.tune):
                made.append(import_job(trainee.mine, trainee.tune, installation))
                continue
            job = make_job(trainee, installation.store)
            if trainee.tune.kind in UNTRAINED:
                on_trained(trainee, embed(trainee.tune, job, installation))
            else:
                made.append(job)
    return made


def with_room(
    place: Place, jobs: Sequence[TuneJob], by_id: Mapping[str, Trainee], sizes: Sizes
) -> list[TuneJob]:
    """Return the jobs whose files the store has room for; one that would fill it waits alone."""
    from tunes_dagster.training.space import bytes_of

    fitting, reserve = [], place.installation.settings.store_reserve_mb * 1e6
    for job in jobs:
        trainee = by_id[job.tune_id]
        with _alone(place, trainee):
            needed = reserve + bytes_of(job, sizes)
            place.installation.store.require(needed, f"Training of tune {trainee.tune.number}")
            fitting.append(job)
    return fitting


def _taken_in(
    trainee: Trainee, job: TuneJob, base: LoadedBase, installation: Installation
) -> TrainingResult | Failure:
    """Take in a tune's weights and write into its recipe what they are; returns why that is not possible."""
    from tunes_dagster.training.foreign.taking import take_in

    try:
        result = take_in(job, base, installation.store)
        mine, recipe = trainee.mine, known_now(trainee.tune, result)
        trainee.tune = installation.registry.tunes.set_recipe(mine.work.id, mine.run_id, recipe)
    except Failure as failure:
        return failure
    return result


def plan_jobs(
    place: Place,
    jobs: Sequence[TuneJob],
    by_id: Mapping[str, Trainee],
    entry: BaseModelEntry,
    folder: Path,
    device: Device,
    plan: MemoryPlan | None = None,
) -> tuple[list[TuneJob], MemoryPlan | None]:
    """Decide what makes tunes fit the device and write it into their jobs; one that does not fit fails alone.

    Args:
        place: Its log is told the plan; its settings say how many tunes may train at a time.
        jobs: What is to be trained.
        by_id: Their trainees.
        entry: Their base.
        folder: Where the base lies.
        device: What they are trained on.
        plan: Of the tunes that are training already, which these join; None makes one.

    Returns:
        The jobs that fit, and the plan; None when no job fits.
    """
    from tunes_dagster.families.sizes import sizes_of
    from tunes_dagster.training.planner import carry_out, plan_memory

    sizes, machine = sizes_of(entry, folder), device.machine()
    fitting = []
    for job in jobs:
        with _alone(place, by_id[job.tune_id]):
            plan_memory([job.options], sizes, entry.native_size, machine, 1)
            fitting.append(job)
    if not fitting:
        return [], plan
    if plan is None:
        plan = plan_memory(
            [job.options for job in fitting],
            sizes,
            entry.native_size,
            machine,
            place.installation.settings.max_cohort,
        )
        place.log.info(plan.sentence())
    for job in fitting:
        carry_out(plan, job)
    return fitting, plan


@contextmanager
def _alone(place: Place, trainee: Trainee) -> Iterator[None]:
    """Let what goes wrong with one tune end that tune only."""
    try:
        yield
    except Exception as error:
        trainee.failure = place.close(trainee.mine, error) or as_failure(error)
        if isinstance(trainee.failure, Cancelled):
            place.log.info(f"Tune {trainee.tune.number}: cancelled on request.")
        else:
            detail = "" if isinstance(error, Failure) else f" ({where(error)})"
            place.log.error(f"Tune {trainee.tune.number} failed: {trainee.failure.code}{detail}.")


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


def trainee_of(mine: Attempt, installation: Installation, changes: dict[str, Any] | None = None) -> Trainee:
    """Return what this attempt trains, with the Launchpad's values written into the tune's recipe."""
    registry = installation.registry
    tune = registry.tunes.get(mine.work.subject_id)
    entry = installation.catalog.resolve(tune.base_id)
    options = entry.training_options(options_of(tune, changes or {}, entry))
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
    asked, used = catalogue.resolve(request.base), catalogue.resolve(tune.base_id)
    wishes = Wishes(settings.unmet_wishes)
    check_tune(request, asked, used, settings, wishes)
    return list(wishes.told())


def options_of(tune: Tune, changes: dict[str, Any], entry: BaseModelEntry) -> TrainingOptions:
    """Return the options a tune is trained with: its recipe, overridden by what a person changed in the Launchpad.

    Args:
        tune: Its row.
        changes: The Launchpad's values.
        entry: Of its base, whose defaults are asked for anew when the kind is changed.
    """
    kind = {name: value for name, value in changes.items() if name == "kind"}
    before = changed(tune.recipe["training"], kind, entry.training_options) | {"kind": tune.kind}
    return checked(
        TrainingOptions,
        {**TrainingOptions.model_validate(before).model_dump(), **changes},
        "What the Launchpad says",
    )

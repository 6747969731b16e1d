"""Hosts: what the sensors launch, and runs that claim work, do it, die with it, or come back too late."""

from __future__ import annotations

from typing import Any

from tests.machine.seam import Died
from tests.machine.world import Run, World
from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.intake.captions import CaptionTable
from tunes_dagster.intake.training_set import TrainingSet
from tunes_dagster.registry import Work
from tunes_dagster.registry.retrying import DatabaseAway
from tunes_dagster.service import decide
from tunes_dagster.service.installation import Installation

TICKS = ("prepare", "train", "finish", "render")


def tick(world: World, kind: str) -> None:
    """Let one sensor decide; its launches wait in Dagster's queue, unless the daemon dies before it has them."""
    registry, settings = world.registry, world.house.settings
    if kind == "prepare":
        launches = decide.prepare_launches(registry)
    elif kind == "train":
        launches = decide.cohort_launches(Installation(settings, registry=registry))
    elif kind == "finish":
        launches = decide.finish_launches(registry)
    else:
        launches = decide.render_launches(Installation(settings, registry=registry))
    world.launches += launches


def alive(world: World, name: str) -> bool | None:
    """Return what Dagster knows of a run, by its id or the key of its launch."""
    for run in world.runs:
        if name in (run.id, run.name):
            return run.seen_alive
    return True if any(launch.run_key == name for launch in world.launches) else None


def look_for_stuck(world: World) -> None:
    """Let `stuck_work` look, without the memory of earlier looks."""
    now = world.registry.now()
    decide.find_stuck(
        world.registry, now, lambda name: alive(world, name), decide.Patience(longest=lambda _kind: 7200.0)
    )


def start(world: World, number: int) -> Run | None:
    """Let a run begin: of a launch, perhaps one that was superseded long ago."""
    if not world.launches:
        return None
    launch = world.launches.pop(number % len(world.launches))
    run = Run(world.new("run"), launch.run_key, launch.kind)
    world.runs.append(run)
    try:
        if launch.cohort_id is not None:
            won = world.registry.work.claim_cohort(launch.cohort_id, run.id)
        else:
            assert launch.partition is not None
            won = [world.registry.work.claim(launch.kind, launch.partition, run.id, run_key=launch.run_key)]
    except (Failure, Died):
        run.alive = run.seen_alive = False
        raise
    run.works = {work.id: work for work in won}
    if not won:
        run.alive = run.seen_alive = False
    return run


def start_by_hand(world: World, kind: str, subject_id: str) -> Run:
    """Let a person start a run in the UI."""
    run = Run(world.new("run"), world.new("by-hand"), kind)
    world.runs.append(run)
    _redone(world, kind, subject_id)
    try:
        work = world.registry.work.claim(kind, subject_id, run.id)
    except (Failure, Died):
        run.alive = run.seen_alive = False
        raise
    run.works = {work.id: work}
    return run


def _redone(world: World, kind: str, subject_id: str) -> None:
    """Note what has ended already, and may be done again without being paid for again."""
    if kind == "render":
        rows = world.rows("SELECT id FROM prompts WHERE batch_id = :batch", batch=subject_id)
        world.redone |= {row[0] for row in rows}
    else:
        world.redone.add(subject_id)


def join(world: World, run: Run) -> None:
    """Let a run that trains take in waiting tunes."""
    cohort = next((w.cohort_id for w in run.works.values() if w.cohort_id), None)
    if cohort is None:
        return
    with_process(world, run, lambda: _joined(world, run, cohort))


def _joined(world: World, run: Run, cohort: str) -> None:
    for work in world.registry.work.join_cohort(
        cohort, run.id, 2, besides=[w.subject_id for w in run.works.values()]
    ):
        run.works[work.id] = work


def with_process(world: World, run: Run, deed: Any) -> Any:
    """Do something inside of a run: it ends with its process."""
    try:
        return deed()
    except Died:
        run.alive = run.seen_alive = False
        raise


def step(world: World, run: Run, work: Work, what: str, number: int) -> None:
    """Let a run do something with work that it believes to be its own, and see that only the owner can.

    Args:
        world: All.
        run: Which.
        work: As it was told when it claimed it.
        what: `progress`, `finish`, `part`, `fail`, `fail for good`, `cancelled`, `give back`, `picture`, `no picture`.
        number: Which prompt, how far.
    """
    owned, again = _owns(world, run, work), work.id in run.ended
    try:
        wrote = with_process(world, run, lambda: _do(world, run, work, what, number))
    except DatabaseAway:
        raise
    except Failure as refused:
        if refused.code == FailureCode.CONFLICT and not _owns(world, run, work):
            run.works.pop(work.id, None)
            run.alive = run.alive and bool(run.works)
        raise
    assert owned or again or not wrote or _owns(world, run, work), (
        f"{run.id} wrote {what} into {work.kind}, which is another's."
    )


def _owns(world: World, run: Run, work: Work) -> bool:
    row = world.rows("SELECT state, run_id FROM work WHERE id = :id", id=work.id)
    return bool(row) and tuple(row[0]) == ("running", run.id)


def _do(world: World, run: Run, work: Work, what: str, number: int) -> bool:
    """Do it; returns whether there was anything to do."""
    registry = world.registry
    if what == "progress":
        phase = {"train": "training", "render": "rendering"}.get(work.kind, "checking")
        registry.work.progress(work.id, run.id, phase=phase, step=number % 5, total=4)
        return True
    if what in ("picture", "no picture"):
        prompts = registry.prompts.rows(batch_id=work.subject_id) if work.kind == "render" else []
        if not prompts:
            return False
        prompt = prompts[number % len(prompts)]
        if what == "picture":
            wanted = prompt.settings["num_images"]
            keys = [
                f"batches/{work.subject_id}/{work.attempt}/{prompt.id}-{n}.png"
                for n in range(max(1, wanted - number % 2))
            ]
            _write(world, keys)
            registry.prompts.done(prompt.id, work.id, run.id, keys)
            return True
        code = (FailureCode.BLOCKED, FailureCode.RENDER_FAILED, FailureCode.CANCELLED)[number % 3]
        registry.prompts.failed(prompt.id, work.id, run.id, Failure(code, "No."))
        return True
    # What follows ends the attempt; an answer that is lost leaves a run that does the same again.
    run.ended.add(work.id)
    if what == "finish":
        if work.kind == "prepare":
            _write_dataset(world, work.subject_id)
        key = f"tunes/{work.subject_id}/lora/{work.attempt}/weights.safetensors"
        if work.kind == "train":
            _write(world, [key])
        registry.work.finish(work.id, run.id, result={"weights_key": key} if work.kind == "train" else None)
    elif what == "part":
        registry.work.finish(work.id, run.id, whole=False)
    elif what == "fail":
        registry.work.fail(work.id, run.id, Failure(FailureCode.OUT_OF_MEMORY, "Too large."))
    elif what == "fail for good":
        registry.work.fail(work.id, run.id, Failure(FailureCode.INVALID_REQUEST, "Not like this."))
    elif what == "cancelled":
        registry.work.fail(work.id, run.id, Cancelled())
    else:
        registry.work.give_back(work.id, run.id, "The process was asked to stop.")
    return True


def _write(world: World, keys: list[str]) -> None:
    """Write files, as work does before the row that names them."""
    for key in keys:
        world.store.write_bytes(key, b"x")


def _write_dataset(world: World, tune_id: str) -> None:
    """Write what a preparation leaves in the store, as small as it can be."""
    dataset = TrainingSet(tune_id=tune_id, class_name="dog", resolution=64, seed=1)
    dataset.save(world.store)
    CaptionTable(tune_id=tune_id, token="ohwx", class_name="dog").save(world.store, "Made.")


def do_all(world: World, run: Run) -> None:
    """Let a healthy run do everything that it has to, and obey."""
    registry = world.registry
    for work in list(run.works.values()):
        try:
            if registry.work.heartbeat(work.id, run.id) == "cancel":
                registry.work.fail(work.id, run.id, Cancelled())
                continue
            if work.kind == "render":
                for prompt in registry.prompts.rows(batch_id=work.subject_id, status="rendering"):
                    folder = f"batches/{work.subject_id}/{work.attempt}"
                    keys = [f"{folder}/{prompt.id}-{n}.png" for n in range(prompt.settings["num_images"])]
                    _write(world, keys)
                    registry.prompts.done(prompt.id, work.id, run.id, keys)
            _do(world, run, work, "finish", 0)
        except Failure as refused:
            if refused.code != FailureCode.CONFLICT:
                raise
    run.alive = run.seen_alive = False

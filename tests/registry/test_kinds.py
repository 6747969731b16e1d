"""Tunes that train nothing are work of a kind of its own, whoever asks, and since whichever version."""

from __future__ import annotations

import importlib
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import update

from tests.support.lock_order import unwatched
from tests.support.registry import add_tune, run_stage
from tunes_dagster.core.work import WorkKind
from tunes_dagster.registry import Registry, Work
from tunes_dagster.registry.migrations import versions


def face(registry: Registry) -> str:
    tune = add_tune(registry, training={"kind": "faceid"})
    recipe = {**tune.recipe, "training": {"kind": "faceid"}}
    work = registry.work.claim("prepare", tune.id, "run")
    registry.tunes.set_recipe(work.id, "run", recipe)
    registry.work.finish(work.id, "run")
    return tune.id


def test_a_tune_that_trains_nothing_waits_for_no_training(registry: Registry) -> None:
    tune_id = face(registry)
    assert registry.work.queued(WorkKind.TRAIN) == []
    assert [work.subject_id for work in registry.work.queued(WorkKind.EMBED)] == [tune_id]
    assert registry.groups.make_cohorts(wait_seconds=0) == []
    ((cohort, _members),) = registry.groups.make_cohorts(wait_seconds=0, kind=WorkKind.EMBED)
    assert registry.work.count_waiting_runs("embed") == 1 and registry.work.count_waiting_runs("train") == 0
    (work,) = registry.work.claim_cohort(cohort.id, "run-2")
    assert (work.kind, registry.tunes.get(tune_id).status) == ("embed", "training")
    registry.work.finish(work.id, "run-2", result={"weights_key": "w"})
    run_stage(registry, "finish", tune_id)
    assert registry.tunes.get(tune_id).status == "ready"
    # Whoever materializes `lora` of it, or restores it, need not know which kind it is.
    again = registry.work.claim("train", tune_id, "ui-run", origin="ui")
    assert again.id == work.id and again.kind == "embed"


def test_work_of_earlier_versions_changes_its_kind(registry: Registry) -> None:
    tune_id = face(registry)
    other = add_tune(registry)
    run_stage(registry, "prepare", other.id)
    with unwatched(), registry.writing() as session:
        session.execute(update(Work).where(Work.kind == "embed").values(kind="train"))
        (file,) = Path(versions.__path__[0]).glob("*_work_that_trains_nothing.py")
        with Operations.context(MigrationContext.configure(session.connection())):
            importlib.import_module(f"{versions.__name__}.{file.stem}").upgrade()
    assert [work.subject_id for work in registry.work.queued("train")] == [other.id]
    assert [work.subject_id for work in registry.work.queued("embed")] == [tune_id]

"""Dagster shows a window: what ended leaves it with all that Dagster keeps of it, and comes back when it is run."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from tests.registry.test_retention import rendered
from tests.support.lock_order import unwatched
from tests.support.registry import add_tune, make_ready, run_stage
from tunes_dagster.assets.housekeeping import forget_tunes, prune_runs
from tunes_dagster.assets.window import Left, close_window
from tunes_dagster.core import clock
from tunes_dagster.registry.tables import Batch
from tunes_dagster.service.installation import Installation

ASSETS = {"tunes": ("source_images", "captions", "lora"), "render_batches": ("renders",)}


def shown(instance: dg.DagsterInstance, name: str, key: str, job: str = "prepare_tune", **tags: str) -> str:
    """Have Dagster show what a finished run made of a partition: its key, events, a check and tags."""
    if not instance.has_dynamic_partition(name, key):
        instance.add_dynamic_partitions(name, [key])
    run = create_run_for_test(
        instance,
        job_name=job,
        status=dg.DagsterRunStatus.SUCCESS,
        tags={"dagster/partition": key, **tags},
    )
    for asset in ASSETS[name]:
        made = dg.AssetMaterialization(asset, partition=key)
        instance.report_dagster_event(
            dg.DagsterEvent(
                event_type_value="ASSET_MATERIALIZATION",
                job_name=job,
                step_key=asset,
                event_specific_data=dg._core.events.StepMaterializationData(made),
            ),
            run.run_id,
        )
        answer = dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(asset), check_name="whole", passed=True, metadata={}, partition=key
        )
        instance.report_dagster_event(
            dg.DagsterEvent(
                event_type_value="ASSET_CHECK_EVALUATION",
                job_name=job,
                step_key=asset,
                event_specific_data=answer,
            ),
            run.run_id,
        )
    return run.run_id


def batch(registry, number: int, status: str = "done") -> str:
    """Add a render batch that ended."""
    now = clock.now()
    with unwatched(), registry.writing() as session:
        row = Batch(id=f"batch_{number:06d}", base_id="tiny", shape="64", status=status, created_at=now)
        row.done_at = now
        session.add(row)
    return f"batch_{number:06d}"


def closed(house, tunes: int = 1000, batches: int = 1000, days: float = 0.0) -> Left:
    """Close the window of an installation that shows so much."""
    shows = {"shown_tunes": tunes, "shown_batches": batches, "shown_days": days}
    whole = Installation(house.settings.model_copy(update=shows), registry=house.registry)
    return close_window(house.instance, whole)


def sizes(home: Path) -> dict[str, int]:
    """Count the rows of each table of Dagster's, and its files."""
    counted = {"files": sum(1 for file in home.rglob("*") if file.is_file())}
    for file in ("history/runs.db", "history/runs/index.db"):
        with sqlite3.connect(home / file) as connection:
            names = [
                name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")
            ]
            for name in names:
                counted[f"{file}:{name}"] = connection.execute(f'select count(*) from "{name}"').fetchone()[0]
    return counted


@pytest.fixture
def on_disk(paper_house, tmp_path):
    """The house with a Dagster that keeps things as an installation's does."""
    storage = tmp_path / "dagster"
    storage.mkdir()
    with dg.DagsterInstance.local_temp(str(storage)) as instance:
        paper_house.instance = instance
        yield paper_house, storage


def test_the_oldest_that_ended_leave_and_the_newest_stay(paper_house):
    house, registry = paper_house, paper_house.registry
    tunes = [make_ready(registry, add_tune(registry, title=f"t{n}")).id for n in range(4)]
    waits = add_tune(registry, title="waits").id
    for key in (waits, *tunes):
        shown(house.instance, "tunes", key)
    by_hand = "typed-by-a-person"
    house.instance.add_dynamic_partitions("tunes", [by_hand])
    batches = [batch(registry, n) for n in range(4)]
    for key in batches:
        shown(house.instance, "render_batches", key, job="render_batch")

    assert not closed(house).runs
    left = closed(house, tunes=3, batches=1)
    assert (left.tunes, left.batches, left.runs) == (2, 3, 5), "the first of the three too many still waits"
    assert house.instance.get_dynamic_partitions("tunes") == [waits, *tunes[2:], by_hand]
    assert house.instance.get_dynamic_partitions("render_batches") == batches[3:]
    assert registry.tunes.get(tunes[0]).status == "ready", "the registry keeps it"

    assert not closed(house, days=1).tunes, "all are of today"
    time.sleep(0.01)
    assert closed(house, days=1e-7).tunes == 2, "those that ended"
    assert house.instance.get_dynamic_partitions("tunes") == [waits, by_hand]


@pytest.mark.parametrize("way", ["run", "range", "backfill", "work"])
def test_nothing_leaves_that_is_being_run_again(paper_house, way):
    house, registry, instance = paper_house, paper_house.registry, paper_house.instance
    old, new = (make_ready(registry, add_tune(registry, title=title)) for title in ("old", "new"))
    runs = {tune.id: shown(instance, "tunes", tune.id) for tune in (old, new)}
    going = dg.DagsterRunStatus.STARTED
    if way == "run":
        again = create_run_for_test(instance, status=going, tags={"dagster/partition": old.id})
    elif way == "range":
        tags = {"dagster/asset_partition_range_start": old.id, "dagster/asset_partition_range_end": new.id}
        again = create_run_for_test(instance, status=going, tags=tags)
    elif way == "backfill":
        from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

        instance.add_backfill(
            PartitionBackfill(
                backfill_id="b",
                status=BulkActionStatus.REQUESTED,
                from_failure=False,
                tags={},
                backfill_timestamp=clock.now().timestamp(),
                asset_selection=[dg.AssetKey("lora")],
                partition_names=[old.id],
            )
        )
    else:
        registry.work.claim("train", old.id, "again")
    closed(house, tunes=1)
    assert instance.get_dynamic_partitions("tunes") == [old.id, new.id]
    assert instance.get_run_by_id(runs[old.id]) is not None
    if way in ("run", "range"):
        instance.report_run_canceled(again)
        closed(house, tunes=1)
        assert instance.get_dynamic_partitions("tunes") == [new.id]
        assert instance.get_run_by_id(runs[old.id]) is None


def test_a_run_of_several_stays_while_one_of_them_is_shown(paper_house):
    house, registry, instance = paper_house, paper_house.registry, paper_house.instance
    anna, bob = (add_tune(registry, title=title) for title in ("anna", "bob"))
    for tune in (anna, bob):
        shown(instance, "tunes", tune.id)
        run_stage(registry, "prepare", tune.id)
    ((cohort, _members),) = registry.groups.make_cohorts(wait_seconds=0.0)
    for work in registry.work.claim_cohort(cohort.id, "run"):
        registry.work.finish(work.id, "run")
        run_stage(registry, "finish", work.subject_id)
    run = create_run_for_test(
        instance,
        job_name="train_cohort",
        status=dg.DagsterRunStatus.SUCCESS,
        tags={"tunes/cohort": cohort.id},
    )
    closed(house, tunes=1)
    assert instance.get_dynamic_partitions("tunes") == [bob.id]
    assert instance.get_run_by_id(run.run_id) is not None
    instance.add_dynamic_partitions("tunes", ["other"])
    closed(house, tunes=1)
    assert instance.get_run_by_id(run.run_id) is None


def churn(house, storage: Path, rounds: int, each: int, shown_batches: int) -> list[dict[str, int]]:
    """Let batches come and go, and count what Dagster holds after each round."""
    counts, number = [], 0
    for _ in range(rounds):
        for _ in range(each):
            number += 1
            key = batch(house.registry, number)
            shown(house.instance, "render_batches", key, job="render_batch", **{"tunes/batch": key})
        closed(house, batches=shown_batches)
        status_of_renders(house.instance)
        counts.append(sizes(storage))
    return counts


def status_of_renders(instance: dg.DagsterInstance) -> int:
    """Have Dagster work out which keys of `renders` are made, as its page does; returns how many."""
    from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

    from tunes_dagster.pipeline.partitions import render_batches

    value = get_and_update_asset_status_cache_value(instance, dg.AssetKey("renders"), render_batches)
    assert value is not None
    subset = value.deserialize_materialized_partition_subsets(render_batches)
    return len(list(subset.get_partition_keys()))


def test_what_dagster_holds_stays_as_large_whatever_has_gone_by(on_disk):
    house, storage = on_disk
    counts = churn(house, storage, rounds=3, each=12, shown_batches=8)
    assert counts[1] == counts[2], {
        name: (counts[1].get(name), size) for name, size in counts[2].items() if counts[1].get(name) != size
    }
    assert status_of_renders(house.instance) == 8


def test_what_was_rendered_of_a_deleted_tune_counts_for_nothing(on_disk):
    house, _storage = on_disk
    tune = make_ready(house.registry, add_tune(house.registry))
    prompt, other = rendered(house.registry, house.store, tune), batch(house.registry, 1)
    for key in (prompt.batch_id, other):
        shown(house.instance, "render_batches", key, job="render_batch")
    assert status_of_renders(house.instance) == 2
    forget_tunes(house.instance, house.registry, [tune.id])
    assert house.instance.get_dynamic_partitions("render_batches") == [other]
    assert status_of_renders(house.instance) == 1
    prune_runs(house.instance, 0, 0)
    assert status_of_renders(house.instance) == 1, "a run that made something stays"

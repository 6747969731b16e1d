"""The housekeeping job as a whole: warnings first, then deletion with a record, extension, old runs and caches."""

from __future__ import annotations

import os
import time

import dagster as dg

from tests.registry.test_retention import HOOK, made_of, rendered
from tests.support.registry import add_tune, make_ready
from tunes_dagster.definitions import build_defs

HOURS = 0.0001  # 0.36 s


def housekeeping(house, **config: float) -> str:
    """Run the job and return what it says in its log."""
    job = build_defs(campaigns=[]).resolve_job_def("housekeeping")
    run = job.execute_in_process(
        instance=house.instance, run_config={"ops": {"clean_up": {"config": config}}} if config else None
    )
    entries = house.instance.all_logs(run.run_id)
    return "\n".join(entry.message for entry in entries if not entry.is_dagster_event)


def test_what_expired_is_announced_then_deleted_and_said(paper_house):
    house, registry, store = paper_house, paper_house.registry, paper_house.store
    anna = make_ready(registry, add_tune(registry, title="anna"))
    kept = make_ready(registry, add_tune(registry, title="kept"))
    made_of(registry, store, anna, b"own", caption="anna at home")
    made_of(registry, store, kept, b"other", caption="a dog at home")
    picture = rendered(registry, store, anna).images[0]
    failed = house.instance.create_run_for_job(build_defs(campaigns=[]).resolve_job_def("housekeeping"))
    house.instance.report_run_failed(failed)
    old = store.write_bytes("cache/text/clip/old.safetensors", b"text")
    os.utime(str(store.path(old)), (0, 0))

    said = housekeeping(house)
    assert "0 were warned, 0 extended; 0 tunes" in said, "without a rule nothing expires"
    assert "Deleted 1 cache files" in said and not store.exists(old)
    assert house.instance.get_run_by_id(failed.run_id) is not None, "failed runs stay a month"

    registry.accounts.set_retention(
        "local", keep_outputs_hours=HOURS, keep_tunes_hours=2 * HOURS, warn_hours=HOURS
    )
    registry.retention.keep_tune(kept.id, auto_extend=True)
    time.sleep(1)
    said = housekeeping(house)
    assert "2 were warned" in said and "0 tunes and the pictures of 0 prompts expired" in said
    told = {callback.event: callback.url for callback in registry.outbox.rows(state="pending")}
    assert told["prompt.expiring"] == HOOK and told["tune.expiring"] == anna.request["callback_url"]
    assert store.exists(picture), "the warning has its time first"

    time.sleep(1)
    said = housekeeping(house, keep_failed_run_days=0)
    assert "1 tunes and the pictures of" in said and "1 weights" in said and "1 renders" in said
    assert "Deleted 1 old runs" in said
    assert house.instance.get_run_by_id(failed.run_id) is None
    assert not store.exists(picture) and not list(store.list(f"tunes/{anna.id}"))
    assert list(store.list(f"tunes/{kept.id}")), "extended instead"
    assert {record.subject_id: record.reason for record in registry.deletions.records()}[anna.id] == "expired"
    assert registry.tunes.get(anna.id).status == "deleted" and registry.tunes.get(kept.id).status == "ready"
    assert dg.DagsterRunStatus.SUCCESS in {run.status for run in house.instance.get_runs()}

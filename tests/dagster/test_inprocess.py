"""Work that is done without a daemon: what happens when somebody else has the device, or had it and died."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from tunes_dagster.assets.names import GPU_POOL, POOLS
from tunes_dagster.core import clock
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.core.settings import get_settings
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.pipeline import inprocess
from tunes_dagster.pipeline.launches import RUN_KEY_TAG, full_pools
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.submit import submit_prompt


@pytest.fixture
def house(paper_house):
    """Nothing is trained here."""
    return paper_house


@pytest.fixture
def holder(house) -> str:
    """The run of another process, which trains and holds the only slot of the GPU pool."""
    tune = house.submit("ann")
    work = house.registry.work.claim("prepare", tune.id, "run-prepare", origin="cli")
    house.registry.work.finish(work.id, "run-prepare")
    run = create_run_for_test(house.instance, job_name="train_cohort", status=dg.DagsterRunStatus.STARTED)
    house.registry.work.claim("train", tune.id, run.run_id, origin="cli")
    slots = house.instance.event_log_storage
    slots.set_concurrency_slots(GPU_POOL, 1)
    assert slots.claim_concurrency_slot(GPU_POOL, run.run_id, "train").is_claimed
    return run.run_id


def test_work_waits_in_the_queue_while_another_run_has_the_device(house, holder):
    request = PromptRequest(text="a mug", base="sdxl")
    prompt = submit_prompt(
        Installation(house.settings, registry=house.registry, catalog=load_catalog()), request
    )
    full = full_pools(house.instance, POOLS)
    assert full == {GPU_POOL}
    assert inprocess.next_launches(Installation(house.settings, registry=house.registry), full) == []
    assert house.registry.prompts.get(prompt.id).status == "queued"

    house.submit("bob")
    (launch,) = inprocess.next_launches(Installation(house.settings, registry=house.registry), full)
    assert launch.kind == "prepare"
    (launch,) = inprocess.next_launches(Installation(house.settings, registry=house.registry))
    assert launch.kind == "render"


def test_a_process_that_was_killed_gives_the_device_back_without_a_daemon(house, holder, monkeypatch):
    inprocess._take_over(Installation(house.settings, registry=house.registry), house.instance)
    assert full_pools(house.instance, POOLS) == {GPU_POOL}

    later = clock.now() + timedelta(seconds=house.settings.lost_after_seconds + 1)
    monkeypatch.setattr(clock, "now", lambda: later)
    inprocess._take_over(Installation(house.settings, registry=house.registry), house.instance)
    assert full_pools(house.instance, POOLS) == frozenset()
    assert house.instance.get_run_by_id(holder).status == dg.DagsterRunStatus.FAILURE
    (work,) = house.registry.work.queued("train", later + timedelta(minutes=1))
    assert work.attempt == 1


@pytest.mark.parametrize("state", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_a_run_that_nobody_begins_is_taken_over(house, monkeypatch, state):
    """It waits for a daemon that is gone, or its process died just before it claimed its work."""
    tune = house.submit("ann")
    (launch,) = inprocess.next_launches(
        Installation(house.settings, registry=house.registry)
    )  # as the daemon's sensor took it
    tags = {RUN_KEY_TAG: launch.run_key}
    queued = create_run_for_test(house.instance, job_name="prepare_tune", status=state, tags=tags)
    with monkeypatch.context() as patch:
        patch.setattr(inprocess, "daemon_is_alive", lambda instance: True)
        inprocess._take_over(Installation(house.settings, registry=house.registry), house.instance)
    assert house.instance.get_run_by_id(queued.run_id).status == state

    monkeypatch.setattr(inprocess, "_DAEMON_SILENCE_SECONDS", -1.0)
    inprocess._take_over(Installation(house.settings, registry=house.registry), house.instance)
    assert house.instance.get_run_by_id(queued.run_id).status == dg.DagsterRunStatus.FAILURE
    later = house.registry.now() + timedelta(minutes=1)
    assert [work.subject_id for work in house.registry.work.queued("prepare", later)] == [tune.id]


def test_what_needs_a_device_is_left_to_a_session_that_has_it(house, monkeypatch):
    monkeypatch.setenv("TUNES_SESSIONS", "true")
    get_settings.cache_clear()
    settings = get_settings()
    request = PromptRequest(text="a mug", base="sdxl")
    whole = Installation(settings, registry=house.registry, catalog=load_catalog())
    submit_prompt(whole, request)
    house.registry.sessions.hold("session_1", "here", "cpu")
    assert inprocess.next_launches(whole) == []
    house.submit("bob")
    assert [one.kind for one in inprocess.next_launches(whole)] == ["prepare"]
    house.registry.sessions.beat("session_1", "here", "cpu", over=True)
    assert [one.kind for one in inprocess.next_launches(whole)] == ["render"]

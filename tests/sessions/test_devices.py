"""One session holds a device: who lost it can claim and write nothing, and what a dead one had goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.registry import Clock, add_prompt, add_tune, prompt_request, run_stage
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry import Registry, Retries
from tunes_dagster.sessions.keeping import give_up


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rows(tmp_path: Path, clock: Clock) -> Registry:
    return Registry(f"sqlite:///{tmp_path}/registry.db", now=clock, retries=Retries(retry_backoff=(0.0,)))


def prepared(rows: Registry, clock: Clock) -> str:
    tune = add_tune(rows)
    run_stage(rows, "prepare", tune.id)
    clock.forward(1)
    return tune.id


def refused(call, *given, **named) -> None:
    with pytest.raises(Failure) as failure:
        call(*given, **named)
    assert failure.value.code == FailureCode.CONFLICT


def test_a_session_whose_place_was_taken_claims_and_writes_nothing(rows: Registry, clock: Clock):
    sessions = rows.sessions
    assert sessions.hold("session_1", "host", "cuda:0") == []
    assert sessions.hold("session_2", "host", "cuda:1") == [] == sessions.hold("session_3", "other", "cuda:0")
    refused(sessions.hold, "session_4", "host", "cuda:0")
    first = prepared(rows, clock)
    mine = rows.work.claim("train", first, "session_1")
    prompt = add_prompt(rows, prompt_request(), base_id="tiny-sdxl")
    (batch,) = rows.groups.make_batches(wait_seconds=0)
    render = rows.work.claim("render", batch.id, "session_1")

    clock.forward(61)
    assert sessions.hold("session_4", "host", "cuda:0") == ["session_1"]
    assert sessions.get("session_4").token == sessions.get("session_1").token + 1
    refused(sessions.beat, "session_1", "host", "cuda:0")
    assert give_up(rows, "session_1") == 2
    refused(rows.work.claim, "train", first, "session_1")
    assert rows.work.finish(mine.id, "session_1", result={"weights_key": "theirs"}).state == "queued"
    assert not rows.tunes.get(first).made.weights_key
    refused(rows.work.progress, mine.id, "session_1", phase="training")
    refused(rows.prompts.done, prompt.id, render.id, "session_1", ["batches/x/1.png"], {})
    assert rows.prompts.get(prompt.id).status == "queued" and not rows.outbox.rows()
    again = rows.work.claim("train", first, "session_4")
    assert again.run_id == "session_4" and again.attempt == 2


def test_only_what_was_computed_when_a_process_died_counts_a_try_and_is_alone_then(
    rows: Registry, clock: Clock
):
    killer, bystander, waiting = (prepared(rows, clock) for _ in range(3))
    rows.sessions.hold("session_1", "host", "cpu")
    for tune_id in (killer, bystander):
        rows.work.claim("train", tune_id, "session_1")
    (suspect,) = rows.work.of(killer, "train")
    rows.sessions.does("session_1", [suspect.id], ["tiny-sdxl"])
    assert give_up(rows, "session_1") == 2

    def row(tune_id: str):
        return rows.work.of(tune_id, "train")[0]

    assert rows.sessions.hold("session_2", "host", "cpu") == [], "at once, not after a silence"
    assert {name: row(name).tries for name in (killer, bystander)} == {killer: 1, bystander: 0}
    cohorts = [
        {work.subject_id for work in works}
        for _, works in rows.groups.make_cohorts(wait_seconds=0, suspects_alone=True)
    ]
    assert sorted(map(len, cohorts)) == [1, 2] and {killer} in cohorts and {bystander, waiting} in cohorts


def test_nobody_joins_a_suspect_and_no_suspect_joins(rows: Registry, clock: Clock):
    killer, healthy = prepared(rows, clock), prepared(rows, clock)
    rows.work.claim("train", killer, "session_1")
    assert give_up(rows, "session_1") == 1
    rows.work.claim("train", healthy, "session_2")
    cohort, _ = rows.groups.make_cohorts(wait_seconds=0, suspects_alone=True)[0]
    other = prepared(rows, clock)
    rows.work.give_back(rows.work.of(healthy, "train")[0].id, "session_2", "stopped")
    joined = rows.work.join_cohort(cohort.id, "session_2", 9, suspects=False)
    assert {work.subject_id for work in joined} == {healthy, other}


def test_a_session_that_ended_in_peace_leaves_its_device_to_the_next(rows: Registry):
    sessions = rows.sessions
    sessions.hold("session_1", "host", "cpu")
    sessions.beat("session_1", "host", "cpu", over=True)
    assert sessions.hold("session_2", "host", "cpu") == []
    assert [one.id for one in sessions.alive(60)] == ["session_2"]

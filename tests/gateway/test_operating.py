"""Metrics that a scraper understands, and log lines whose ids join a request to the runs that it caused."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.conftest import House
from tests.gateway.test_pixelapi import train
from tunes_dagster.assets.attempt import own
from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.logs import JsonLines
from tunes_dagster.core.progress import Phase
from tunes_dagster.sessions.reporting import Pulse


def scraped(house: House) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample by its name and labels."""
    text = house.client.get("/native/v1/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_there_is(house: House, pictures: Callable[[int], list]) -> None:
    train(house, webhook_url="https://caller.example.com/x")
    job = train(house)
    house.client.post(job["upload_url"], files=pictures(5))
    house.client.post("/v1/image/generate", json={"prompt": "x"}, headers=house.auth())
    house.client.get("/v1/tunes/tune_nothing", headers=house.auth())
    house.client.request("PURGE", "/anything/../at/all")
    seen = scraped(house)

    def value(name: str, **labels: str) -> float:
        return seen[name, tuple(sorted(labels.items()))]

    trained = {"dialect": "pixelapi", "method": "POST", "route": "/v1/tunes/train", "status": "200"}
    assert value("tunes_http_requests_total", **trained) == 2
    status = {"dialect": "pixelapi", "method": "GET", "route": "/v1/tunes/{job_id}", "status": "404"}
    assert value("tunes_http_requests_total", **status) == 1
    nowhere = {"dialect": "", "method": "", "route": "unmatched", "status": "404"}
    assert value("tunes_http_requests_total", **nowhere) == 1
    name = "tunes_http_request_duration_seconds_count"
    assert value(name, dialect="pixelapi", route="/v1/tunes/train") == 2
    assert value("tunes_work_items", kind="prepare", state="queued") == 1
    assert value("tunes_work_oldest_waiting_seconds", kind="prepare") >= 0
    assert value("tunes_work_oldest_waiting_seconds", kind="train") == 0
    assert value("tunes_tunes", status="awaiting_images") == 1 and value("tunes_tunes", status="queued") == 1
    assert value("tunes_prompts", status="queued") == 1 and value("tunes_callbacks", state="pending") == 0
    assert value("tunes_credits_reserved_usd") == pytest.approx(0.201)


def test_health_says_what_waits_and_that_nobody_works(house: House, pictures: Callable[[int], list]) -> None:
    assert house.client.get("/native/v1/health").json()["expected_wait_seconds"] == {
        "tiny-sdxl": 0,
        "tiny-flux": 0,
    }
    house.client.post(train(house)["upload_url"], files=pictures(5))
    health = house.client.get("/native/v1/health").json()
    assert health["status"] == "ok" and health["queue"]["work"][0]["since"].endswith("Z")
    assert health["expected_wait_seconds"] == {"tiny-sdxl": 300, "tiny-flux": 300}
    before, house.registry.now = house.registry.now, lambda: clock.now() - timedelta(minutes=6)  # type: ignore[method-assign]
    house.client.post(train(house)["upload_url"], files=pictures(5))
    house.registry.now = before  # type: ignore[method-assign]
    assert house.client.get("/native/v1/health").json()["status"] == "stalled"
    house.registry.work.claim("prepare", house.registry.tunes.rows()[0].id, "run")
    assert house.client.get("/native/v1/health").json()["status"] == "ok"


def test_speed_is_told_by_base(house: House, pictures: Callable[[int], list]) -> None:
    job = train(house)
    house.client.post(job["upload_url"], files=pictures(5))
    for kind, result in (("prepare", None), ("train", {"steps": 300, "seconds": 60.0}), ("finish", None)):
        house.registry.work.finish(
            house.registry.work.claim(kind, job["job_id"], "run").id, "run", result=result
        )
    house.client.post("/v1/image/generate", json={"prompt": "x"}, headers=house.auth())
    (batch,) = house.registry.groups.make_batches(wait_seconds=0)
    work = house.registry.work.claim("render", batch.id, "run")
    house.registry.work.finish(work.id, "run", result={"pictures": 4, "seconds": 2.5})
    seen = scraped(house)
    base = (("base", house.registry.tunes.get(job["job_id"]).base_id),)
    assert (
        seen["tunes_training_steps_total", base] == 300 and seen["tunes_training_seconds_total", base] == 60
    )
    assert seen["tunes_render_pictures_total", base] == 4 and seen["tunes_render_seconds_total", base] == 2.5


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What both sides write, as JSON lines."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JsonLines())
    logs = [logging.getLogger(name) for name in ("tunes.gateway", "tunes.pipeline")]
    before = [(log.level, log.handlers[:], log.propagate) for log in logs]
    for log in logs:
        log.setLevel(logging.INFO)
        log.handlers[:] = [handler]
    yield lambda: [json.loads(line) for line in text.getvalue().splitlines()]
    for log, (level, handlers, propagate) in zip(logs, before, strict=True):
        log.level, log.handlers[:], log.propagate = level, handlers, propagate


def test_a_request_can_be_followed_into_its_runs(
    house: House,
    pictures: Callable[[int], list],
    lines: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tunes_dagster.sessions.attempts.set_up_logging", lambda *_: None)
    opened = train(house)
    job = opened["job_id"]
    house.client.post(opened["upload_url"], files=pictures(5))
    context: Any = SimpleNamespace(log=logging.getLogger("nobody"), run=SimpleNamespace(run_id="run-7"))
    work = house.registry.work.claim("prepare", job, "run-7")
    mine = own(context, house.service.installation, work, Pulse(60))
    mine.report.phase(Phase.FETCHING, "https://secret.example.com/private.png?token=hunter2")
    mine.fail(Failure(FailureCode.TOO_FEW_PICTURES, "private.png is no picture."))
    asked, uploaded, *ran = lines()
    assert (asked["logger"], asked["subject"], asked["account"]) == ("tunes.gateway", job, "ann")
    assert uploaded["subject"] == job
    assert [one["event"] for one in ran] == ["started", "phase", "failed"]
    for one in ran:
        assert (one["subject"], one["run_id"], one["kind"]) == (job, "run-7", "prepare")
        assert one["request_id"] == asked["request_id"]
    assert ran[1]["phase"] == "fetching" and ran[2]["code"] == "too_few_pictures"
    said = json.dumps(lines())
    for secret in (house.key(), opened["upload_url"].split("token=")[1], "hunter2", "private.png", "PNG"):
        assert secret not in said

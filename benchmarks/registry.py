"""Measures the registry against the service levels: lists and status calls under 50 ms, ticks under 2 s.

    python benchmarks/registry.py --tunes 100000 --prompts 1000000 --queued 10000

fills a registry (SQLite in a temporary folder, or `--url`), measures, and ends with one line of JSON: for each
call the median in milliseconds, and whether every limit was kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, text

from tunes_dagster.core import clock
from tunes_dagster.core.recipe import PromptRequest, RenderSettings, TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.registry import Registry
from tunes_dagster.registry.prompts import NewPrompt
from tunes_dagster.registry.tables import Batch, Callback, Event, Prompt, Table, Tune, Work
from tunes_dagster.registry.tunes import NewTune
from tunes_dagster.service import decide
from tunes_dagster.service.installation import Installation

CALL_LIMIT_MS = 50.0
TICK_LIMIT_MS = 2000.0
CHUNK = 5000
SETTINGS = {"seed": 1, "steps": 20, "guidance_scale": 4.0, "width": 128, "height": 128, "scheduler": "euler"}


def tune_rows(count: int, queued: int, moment: datetime) -> Iterator[dict[str, Any]]:
    """Yield tunes, most of them ready, the newest `queued` ones waiting to be trained."""
    request = TuneRequest.model_validate({"name": "dog"}).model_dump(mode="json")
    for i in range(count):
        status = "prepared" if i >= count - queued else ("failed" if i % 20 == 0 else "ready")
        yield {
            "id": f"tune_{i:08d}",
            "account_id": "local",
            "title": f"Rex {i}",
            "class_name": "dog",
            "token": "ohwx",
            "base": "sdxl",
            "base_id": "tiny-sdxl",
            "status": status,
            "request": request,
            "recipe": {"seed": i},
            "recipe_hash": f"{i:064d}",
            "result": {"weights_key": f"tunes/tune_{i:08d}/lora/1/w"},
            "origin": "api",
            "created_at": moment + timedelta(seconds=i),
            "updated_at": moment + timedelta(seconds=i),
        }


def prompt_rows(count: int, queued: int, tunes: int, moment: datetime) -> Iterator[dict[str, Any]]:
    """Yield prompts over the tunes, most of them done, the newest `queued` ones waiting."""
    for i in range(count):
        waits = i >= count - queued
        yield {
            "id": f"prompt_{i:08d}",
            "account_id": "local",
            "tune_id": f"tune_{i % tunes:08d}",
            "base": "sdxl",
            "base_id": "tiny-sdxl",
            "text": f"a photo of ohwx dog number {i}",
            "settings": SETTINGS,
            "shape": "128x128/20/4.0/euler",
            "status": "queued" if waits else "done",
            "batch_id": None if waits else f"batch_{i // 64:08d}",
            "images": [] if waits else [f"batches/{i}.png"],
            "origin": "api",
            "created_at": moment + timedelta(seconds=i),
            "queued_at": moment,
            "updated_at": moment + timedelta(seconds=i),
        }


def work_rows(tunes: int, queued: int, moment: datetime) -> Iterator[dict[str, Any]]:
    """Yield three pieces of work per tune; `queued` tunes wait to be prepared, as many to be trained."""
    for i in range(tunes):
        for kind in ("prepare", "train", "finish"):
            state = "done"
            if (kind == "train" and i >= tunes - queued) or (
                kind == "prepare" and tunes - 2 * queued <= i < tunes - queued
            ):
                state = "queued"
            yield {
                "id": f"work_{kind}_{i:08d}",
                "kind": kind,
                "subject_id": f"tune_{i:08d}",
                "state": state,
                "attempt": 1,
                "origin": "api",
                "available_at": moment,
                "created_at": moment,
            }


def other_rows(tunes: int, moment: datetime) -> dict[type[Table], Iterator[dict[str, Any]]]:
    """Return five events and one callback per tune."""
    events = (
        {
            "subject_id": f"tune_{i // 5:08d}",
            "at": moment,
            "phase": "training",
            "message": f"line {i}",
            "data": {},
        }
        for i in range(tunes * 5)
    )
    callbacks = (
        {
            "id": f"cb_{i:08d}",
            "account_id": "local",
            "event": "tune.ready",
            "subject_id": f"tune_{i:08d}",
            "url": "https://caller.test/hook",
            "body": {"type": "tune.ready"},
            "state": "delivered",
            "created_at": moment + timedelta(seconds=i),
        }
        for i in range(tunes)
    )
    return {Event: events, Callback: callbacks}


def fill(registry: Registry, tunes: int, prompts: int, queued: int) -> float:
    """Fill the tables in bulk; returns the seconds it took."""
    start, moment = time.perf_counter(), clock.now() - timedelta(days=30)
    batches = (
        {
            "id": f"batch_{i:08d}",
            "base_id": "tiny-sdxl",
            "shape": "128x128/20/4.0/euler",
            "status": "done",
            "created_at": moment,
        }
        for i in range((prompts + 63) // 64)
    )
    tables: dict[type[Table], Iterator[dict[str, Any]]] = {
        Tune: tune_rows(tunes, queued, moment),
        Batch: batches,
        Prompt: prompt_rows(prompts, queued, tunes, moment),
        Work: work_rows(tunes, queued, moment),
        **other_rows(tunes, moment),
    }
    for table, rows in tables.items():
        chunk: list[dict[str, Any]] = []
        for row in rows:
            chunk.append(row)
            if len(chunk) == CHUNK:
                _insert(registry, table, chunk)
                chunk = []
        _insert(registry, table, chunk)
        print(f"  {table.__tablename__}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    with registry.writing() as session:
        session.execute(text("ANALYZE"))
    return time.perf_counter() - start


def _insert(registry: Registry, table: type[Table], rows: list[dict[str, Any]]) -> None:
    if rows:
        with registry.writing() as session:
            session.execute(insert(table), rows)


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Return the median milliseconds of a call, the first one (cold caches) left out."""
    took = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        took.append((time.perf_counter() - start) * 1000)
    return round(statistics.median(took[1:] if repeats > 1 else took[:1]), 2)


def calls(registry: Registry, tunes: int, prompts: int) -> dict[str, Callable[[], Any]]:
    """Return the lists and status calls that have to stay under 50 ms."""
    middle, some = f"tune_{tunes // 2:08d}", f"prompt_{prompts // 2:08d}"
    filled = RenderSettings.model_validate(SETTINGS)
    request = PromptRequest(text="a photo of ohwx dog", settings=filled)

    def work_cycle() -> None:
        """Accept a tune, claim, beat, report, finish, cancel: six transactions that write."""
        from tunes_dagster.core.ids import new_id

        request = TuneRequest.model_validate({"name": "dog"})
        new = NewTune(request=request, id=new_id("tune"), base_id="x", recipe={}, origin="api")
        tune = registry.tunes.accept(new).tune
        work = registry.work.claim("prepare", tune.id, "run")
        registry.work.heartbeat(work.id, "run")
        registry.work.progress(work.id, "run", phase="fetching", step=1, total=2)
        registry.work.finish(work.id, "run")
        registry.work.cancel_tune(tune.id)

    return {
        "get_tune_by_id": lambda: registry.tunes.get(middle),
        "get_tune_by_number": lambda: registry.objects.tune_named("local", tunes // 2),
        "get_tune_by_title": lambda: registry.objects.tune_named("local", f"Rex {tunes // 2}"),
        "list_tunes": lambda: registry.tunes.rows(),
        "list_tunes_deep": lambda: registry.tunes.rows(before=tunes // 2),
        "list_tunes_failed": lambda: registry.tunes.rows("failed"),
        "list_tunes_open": lambda: registry.tunes.rows(("queued", "preparing", "training")),
        "list_tunes_of_account": lambda: registry.tunes.rows(account_id="local"),
        "count_tunes": lambda: registry.tunes.count(),
        "get_prompt": lambda: registry.prompts.get(some),
        "list_prompts": lambda: registry.prompts.rows(),
        "list_prompts_of_tune": lambda: registry.prompts.rows(tune_id=middle),
        "list_prompts_of_batch": lambda: registry.prompts.rows(batch_id="batch_00000001"),
        "list_prompts_failed": lambda: registry.prompts.rows(status="failed"),
        "events": lambda: registry.events.of(middle),
        "work_of": lambda: registry.work.of(middle),
        "list_callbacks": lambda: registry.outbox.rows(),
        "list_callbacks_dead": lambda: registry.outbox.rows("dead"),
        "lease_callbacks_none_due": lambda: registry.outbox.lease(1),
        "add_prompt": lambda: registry.prompts.accept([NewPrompt(request=request, base_id="tiny-sdxl")]),
        "six_write_transactions": work_cycle,
        "open": lambda: Registry(registry.url).close(),
    }


def ticks(registry: Registry) -> dict[str, Callable[[], Any]]:
    """Return the sensors' decisions over the queued rows."""
    settings = Settings()
    return {
        "tick_prepare": lambda: decide.prepare_launches(registry),
        "tick_cohorts": lambda: decide.cohort_launches(Installation(settings, registry=registry)),
        "tick_render": lambda: decide.render_launches(Installation(settings, registry=registry)),
        "tick_finish": lambda: decide.finish_launches(registry),
        "tick_stuck": lambda: decide.find_stuck(registry, clock.now(), lambda _name: True),
    }


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tunes", type=int, default=100_000)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--queued", type=int, default=10_000, help="rows that wait in each queue")
    parser.add_argument("--url", default="", help="an empty database; default: SQLite in a temporary folder")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(options.url or f"sqlite:///{folder}/registry.db")
        seconds = fill(registry, options.tunes, options.prompts, options.queued)
        call_ms: dict[str, float] = {
            name: timed(call, options.repeats)
            for name, call in calls(registry, options.tunes, options.prompts).items()
        }
        call_ms["write_transaction"] = round(call_ms.pop("six_write_transactions") / 6, 2)
        tick_ms = {name: timed(call, 1) for name, call in ticks(registry).items()}
        registry.close()
    kept = all(ms < CALL_LIMIT_MS for ms in call_ms.values()) and all(
        ms < TICK_LIMIT_MS for ms in tick_ms.values()
    )
    sizes = {"tunes": options.tunes, "prompts": options.prompts, "queued": options.queued}
    print(
        json.dumps(
            {**sizes, "fill_seconds": round(seconds, 1), "limits_kept": kept, "ms": {**call_ms, **tick_ms}}
        )
    )


if __name__ == "__main__":
    main()

"""What an installation costs after many tunes and batches: Dagster's pages, its disk, and a tick of each sensor.

    python -m benchmarks.window --tunes 100000 --batches 1000000 --fresh 2000

The registry is filled with rows of tunes and batches that ended; Dagster is filled up to the window that the settings
allow and then sees `--fresh` more batches, with housekeeping after each quarter of them, as days would bring it. Last
line: JSON. `status_s` is what the page of `renders` asks for first, after new materializations; `tick_s` the slowest
look of a sensor's decision; `rows` and `mb` are Dagster's tables and files. Nothing is timed against a rival.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
from sqlalchemy import insert, inspect

from tests.dagster.test_window import shown, sizes, status_of_renders
from tests.support.lock_order import unwatched
from tests.support.registry import add_tune
from tunes_dagster.assets.window import close_window
from tunes_dagster.core import clock
from tunes_dagster.core.settings import Settings
from tunes_dagster.registry import Registry, open_registry
from tunes_dagster.registry.tables import Batch, Tune
from tunes_dagster.service import decide
from tunes_dagster.service.installation import Installation

_ROWS = 10_000


def fill(registry: Registry, tunes: int, batches: int) -> None:
    """Write rows of tunes and batches that ended."""
    first = add_tune(registry, title="first")
    columns = {one.key: getattr(first, one.key) for one in inspect(Tune).column_attrs}
    now = clock.now()
    for start in range(0, tunes, _ROWS):
        rows = [
            {**columns, "number": None, "id": f"tune_{n:07d}", "title": f"t{n}", "status": "ready"}
            for n in range(start, min(tunes, start + _ROWS))
        ]
        for row in rows:
            del row["number"]
        with unwatched(), registry.writing() as session:
            session.execute(insert(Tune), rows)
    for start in range(0, batches, _ROWS):
        rows = [
            {
                "id": f"batch_{n:07d}",
                "base_id": "tiny",
                "shape": "64",
                "status": "done",
                "created_at": now,
                "done_at": now,
            }
            for n in range(start, min(batches, start + _ROWS))
        ]
        with unwatched(), registry.writing() as session:
            session.execute(insert(Batch), rows)


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    call()
    return round(time.perf_counter() - began, 4)


def measured(instance: dg.DagsterInstance, whole: Installation, storage: Path) -> dict[str, float]:
    """Return what page, tick and disk cost now."""
    looks = (decide.prepare_launches, decide.finish_launches)
    files = [file for file in storage.rglob("*") if file.is_file()]
    return {
        "status_s": seconds(lambda: status_of_renders(instance)),
        "tick_s": max(
            *(seconds(lambda look=look: look(whole.registry)) for look in looks),
            seconds(lambda: decide.cohort_launches(whole)),
            seconds(lambda: decide.render_launches(whole)),
        ),
        "rows": sum(count for name, count in sizes(storage).items() if name != "files"),
        "files": len(files),
        "mb": round(sum(file.stat().st_size for file in files) / 1e6, 1),
    }


def main() -> None:
    """Fill, churn, measure, print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    asked.add_argument("--tunes", type=int, default=100_000, help="rows of tunes that ended")
    asked.add_argument("--batches", type=int, default=1_000_000, help="rows of batches that ended")
    asked.add_argument(
        "--shown", type=int, default=500, help="batches that Dagster shows (TUNES_SHOWN_BATCHES)"
    )
    asked.add_argument("--fresh", type=int, default=2_000, help="batches that Dagster sees after these")
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TUNES_HOME"] = f"{folder}/home"
        storage = Path(folder) / "dagster"
        storage.mkdir()
        settings = Settings(home=Path(folder) / "home", shown_batches=options.shown)
        registry = open_registry(settings)
        fill(registry, options.tunes, options.batches + options.shown + options.fresh)
        whole = Installation(settings, registry=registry)
        with dg.DagsterInstance.local_temp(str(storage)) as instance:
            told, at = [], options.batches
            for count in (options.shown, *[options.fresh // 4] * 4):
                for number in range(at, at + count):
                    key = f"batch_{number:07d}"
                    shown(instance, "render_batches", key, job="render_batch")
                at += count
                took = seconds(lambda: close_window(instance, whole))
                told.append({"gone_by": at, "housekeeping_s": took, **measured(instance, whole, storage)})
                print(json.dumps(told[-1]), flush=True)
            registry.close()
    print(json.dumps({"first": told[0], "last": told[-1]}))


if __name__ == "__main__":
    main()

"""How long planning a campaign of 10,000 prompts takes: checking its files, and queueing a date of it.

    python benchmarks/campaigns.py --rows 1250

A table of 1,250 rows × 4 tunes × 2 values of a variable is 10,000 prompts. The limit is 10 s for the plan, the rows
in the registry included. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tunes_dagster.service.installation import Installation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.registry import add_tune, make_ready
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.registry import Registry

YAML = b"name: big\ncron: '0 7 * * 1'\ntimezone: Europe/Berlin\nlabels: {team: demo}\nprompts: big.csv\n"
PLACES = "at the sea; in the park"


def keeper_with_tunes(folder: str, url: str) -> Keeper:
    """Return an empty installation with four tunes that are ready."""
    registry = Registry(url or f"sqlite:///{folder}/registry.db")
    for title in ("fern", "duo", "barbo", "minty"):
        make_ready(registry, add_tune(registry, title=title, labels={"team": "demo"}))
    return Keeper(
        Installation(
            Settings(home=Path(folder)),
            registry=registry,
            store=Store(Path(folder) / "store"),
            catalog=load_catalog(),
        )
    )


def main() -> None:
    """Make the files, plan twice, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1250)
    parser.add_argument("--url", default="", help="an empty database; default: SQLite in a temporary folder")
    options = parser.parse_args()
    rows = [
        f'"a photo of {{{{subject}}}} {{{{place}}}}, number {n}",{PLACES},{n}' for n in range(options.rows)
    ]
    table = "\n".join(["text,place,seeds", *rows]).encode()
    with tempfile.TemporaryDirectory() as folder:
        keeper = keeper_with_tunes(folder, options.url)
        took = {}
        for name in ("check", "add", "plan", "plan again"):
            wall, cpu = time.perf_counter(), time.process_time()
            if name == "check":
                drawn = keeper.check(Source("big.yaml", YAML, {"big.csv": table}))
            elif name == "add":
                campaign, drawn = keeper.add(Source("big.yaml", YAML, {"big.csv": table}))
            else:
                date, drawn = keeper.plan(campaign, keeper.date_of(campaign, None))
            took[name] = {
                "seconds": round(time.perf_counter() - wall, 2),
                "cpu": round(time.process_time() - cpu, 2),
            }
        counts = keeper.registry.dates.counts(date.id)
        keeper.registry.close()
    prompts = drawn.estimate.prompts
    assert counts == {"queued": prompts} and date.plan["kept"] == prompts and not drawn.problems
    print(json.dumps({"prompts": prompts, "limit_kept": took["plan"]["seconds"] < 10, **took}))


if __name__ == "__main__":
    main()

"""The report of a date in a folder and in a bucket: pictures, failures, reasons, links that lead somewhere."""

from __future__ import annotations

import csv
import io
import posixpath
import re

import pytest
from PIL import Image

from tests.registry.conftest import clock, migrated_file, registry  # noqa: F401
from tests.registry.test_retention import store  # noqa: F401
from tests.support.registry import add_tune, around, make_ready
from tunes_dagster.assets.campaign_pages import described_plan, described_report, refused_plan
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.campaigns.report import make_report
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.settings import Settings
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.service.installation import Installation

YAML = b"name: looks\ncron: '0 7 * * 1'\nstart: 2026-02-02\ntunes: [anna, bob, gone]\nprompts: looks.csv\n"
TABLE = b"label,text,seeds\nin snow,{{subject}} in the snow,1-2\nat sea,{{subject}} at sea,3\n"


def png(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("registry", ["sqlite"], indirect=True)
def test_a_report_shows_every_picture_and_every_reason(registry, store, tmp_path):  # noqa: F811
    for title in ("anna", "bob", "gone"):
        make_ready(registry, add_tune(registry, title=title))
    keeper = Keeper(
        Installation(Settings(home=tmp_path), registry=registry, store=store, catalog=load_catalog())
    )
    campaign, _ = keeper.add(Source("looks.yaml", YAML, {"looks.csv": TABLE}), registry.now())
    registry.work.delete_tune(registry.objects.tune_named("local", "gone").id)
    date, drawn = keeper.plan(campaign, "2026-02-23")
    assert date.plan["new"] == 6 and any("'gone'" in one.message for one in drawn.problems)
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    work = registry.work.claim("render", batch.id, "run")
    prompts = registry.prompts.rows(batch_id=batch.id)
    for prompt in prompts[:-2]:
        key = store.write_bytes(f"batches/{batch.id}/1/{prompt.id}.png", png("red"))
        registry.prompts.done(prompt.id, work.id, "run", [key], {"recipe_hashes": ["f" * 64]})
    bad = Failure(FailureCode.RENDER_FAILED, "The numbers were not finite.", "Lower the guidance.")
    registry.prompts.failed(prompts[-1].id, work.id, "run", bad)
    rule = Failure(
        FailureCode.BLOCKED, "A picture breaks the rule picture safety.", "Ask for something else."
    )
    registry.prompts.failed(prompts[-2].id, work.id, "run", rule)
    registry.work.finish(work.id, "run", result={"pictures": 4, "seconds": 12.0, "load_seconds": 2.0})

    report = make_report(around(registry, store), campaign, "2026-02-23")
    assert report.numbers.said() == {
        "prompts": 6,
        "pictures": 4,
        "done": 4,
        "open": 0,
        "failed": 2,
        "kept": 0,
        "seconds": 10.0,
    }
    shown = [described_report(report, store), described_plan("looks", date, drawn, store)]
    assert {"pictures", "not_yet_rendered", "new_prompts"} <= {key for one in shown for key in one.metadata}
    answers = {one.check_name: one.passed for made in shown for one in made.check_results}
    assert answers == {
        "nothing_missing": False,
        "file_is_valid": True,
        "cost_within_cap": True,
        "every_tune_is_usable": True,
    }
    too_dear = refused_plan("looks", Failure(FailureCode.CONFLICT, "Above the cap.", ""))
    assert [(one.check_name, one.passed) for one in too_dear] == [
        ("file_is_valid", True),
        ("cost_within_cap", False),
    ]
    reasons = {one["reason"] for one in report.failures}
    assert reasons == {"The numbers were not finite. Lower the guidance.", f"{rule.message} {rule.remedy}"}
    rows = list(csv.DictReader(io.StringIO(store.read_text(report.csv_key).lstrip("\ufeff"))))
    assert [row["label"] for row in rows] == ["in snow"] * 4 + ["at sea"] * 2
    assert [row["seconds"] for row in rows] == ["2.5"] * 4 + ["", ""] and rows[0]["recipe_hash"] == "f" * 64
    assert [row["status"] for row in rows[-2:]] == ["blocked", "failed"] and all(
        row["reason"] for row in rows[-2:]
    )
    page, folder = store.read_text(report.page_key), posixpath.dirname(report.page_key)
    links = set(re.findall(r'(?:href|src)="([^"]+)"', page))
    assert len(links) >= 11
    assert all(store.exists(posixpath.normpath(f"{folder}/{link}")) for link in links)
    assert "The numbers were not finite." in page and "breaks the rule picture safety" in page
    assert min(report.sheet.size) > 500
    names = {posixpath.relpath(key, folder) for key in store.list(folder)}
    assert {
        "by_tune/01.png",
        "by_tune/02.png",
        "by_prompt/02.png",
        "contact_sheet.png",
        "pictures.csv",
    } <= names
    assert registry.dates.get(campaign.id, "2026-02-23").status == "reported"


@pytest.mark.parametrize("registry", ["sqlite"], indirect=True)
@pytest.mark.parametrize("store", ["folder"], indirect=True)
def test_the_table_is_parquet_too_where_pyarrow_is_installed(registry, store, tmp_path):  # noqa: F811
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    for title in ("anna", "bob", "gone"):
        make_ready(registry, add_tune(registry, title=title))
    keeper = Keeper(
        Installation(Settings(home=tmp_path), registry=registry, store=store, catalog=load_catalog())
    )
    campaign, _ = keeper.add(Source("looks.yaml", YAML, {"looks.csv": TABLE}), registry.now())
    keeper.plan(campaign, "2026-02-23")
    report = make_report(around(registry, store), campaign, "2026-02-23")
    frame = pandas.read_parquet(io.BytesIO(store.read_bytes(report.parquet_key)))
    assert (
        len(frame) == 9
        and list(frame["seed"][:2]) == [1, 2]
        and frame["reason"][0] == "It waits to be rendered."
    )

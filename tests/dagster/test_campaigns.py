"""Campaigns through Dagster: schedule, plan, pictures, report; refused, broken and repeated dates."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime
from types import SimpleNamespace

import dagster as dg
import pytest

from tests.dagster.test_pipeline import checks, materialization
from tests.support.registry import add_tune, make_ready
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.definitions import build_defs
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.pipeline.inprocess import drive, run_campaign_job
from tunes_dagster.pipeline.partitions import campaigns_keys
from tunes_dagster.pipeline.sensors import finished_campaigns_sensor
from tunes_dagster.registry import Campaign
from tunes_dagster.resources import default_resources, installed
from tunes_dagster.service.installation import Installation

YAML = """name: Monday looks
cron: "0 7 * * 1"
timezone: Europe/Berlin
start: 2026-03-02
settings: {steps: 2, width: 64, height: 64}
prompts: looks.csv
"""
TABLE = "text,colour,seeds\na {{colour}} mug,red; blue,1-2\na plate,,7\n"
PLAN, REPORT = campaigns_keys("monday_looks")


def keeper_of(house) -> Keeper:
    return Keeper(
        Installation(house.settings, registry=house.registry, store=house.store, catalog=load_catalog())
    )


def add(house, yaml: str = YAML, table: str = TABLE) -> Campaign:
    row, _drawn = keeper_of(house).add(Source("looks.yaml", yaml.encode(), {"looks.csv": table.encode()}))
    return row


def ended(house, date_id: str) -> bool:
    return not {"waiting", "queued", "rendering"} & house.registry.dates.counts(date_id).keys()


def test_a_date_is_planned_rendered_and_reported_and_never_twice(house):
    campaign = add(house)
    run_campaign_job("plan", campaign, "2026-03-09", house.instance)
    date = house.registry.dates.get(campaign.id, "2026-03-09")
    assert date.plan["new"] == 5 and date.status == "planned"
    assert checks(house, PLAN, "2026-03-09") == {
        "file_is_valid": True,
        "cost_within_cap": True,
        "every_tune_is_usable": True,
    }
    assert house.registry.dates.due_reports(["monday_looks"]) == [], "nothing is finished yet"
    drive(
        Installation(house.settings, registry=house.registry),
        lambda: ended(house, date.id),
        instance=house.instance,
    )
    ((_, due),) = house.registry.dates.due_reports(["monday_looks"])
    assert due.date == "2026-03-09" and house.registry.dates.due_reports(["monday_looks"]) == []

    run_campaign_job("report", campaign, "2026-03-09", house.instance)
    date = house.registry.dates.get(campaign.id, "2026-03-09")
    assert date.status == "reported" and date.result["pictures"] == 5 and date.result["failed"] == 0
    assert checks(house, REPORT, "2026-03-09") == {"nothing_missing": True}
    shown = materialization(house, REPORT, "2026-03-09")
    assert shown["pictures"] == 5 and "/operator/" in shown["contact_sheet"]
    page = house.store.read_text(date.report_key)
    folder = date.report_key.rpartition("/")[0]
    links = set(re.findall(r'(?:href|src)="([^"]+)"', page))
    assert len(links) > 7 and all((house.store.path(folder) / link).resolve().exists() for link in links)
    rows = list(csv.DictReader(io.StringIO(house.store.read_text(f"{folder}/pictures.csv").lstrip("\ufeff"))))
    assert [(row["prompt"], row["seed"]) for row in rows] == [
        ("a red mug", "1"),
        ("a red mug", "2"),
        ("a blue mug", "1"),
        ("a blue mug", "2"),
        ("a plate", "7"),
    ]
    assert all(len(row["recipe_hash"]) == 64 and float(row["seconds"]) > 0 for row in rows)
    assert len({row["recipe_hash"] for row in rows}) == 5
    assert all((house.store.path(folder) / row["file"]).resolve().exists() for row in rows)

    run_campaign_job("plan", campaign, "2026-03-09", house.instance)
    again = house.registry.dates.get(campaign.id, "2026-03-09")
    assert (again.plan["new"], again.plan["kept"]) == (0, 5)
    add(house, table=TABLE.replace("a plate", "a bowl"))
    run_campaign_job("plan", campaign, "2026-03-09", house.instance)
    changed = house.registry.dates.get(campaign.id, "2026-03-09")
    assert (changed.plan["new"], changed.plan["kept"]) == (1, 4), "only the row whose recipe changed"


def test_each_campaign_is_a_schedule_over_its_own_dates(paper_house):
    campaign = add(paper_house)
    quiet = add(
        paper_house,
        YAML.replace("Monday looks", "quiet").replace("0 7 * * 1", "0 7,19 * * *") + "active: false\n",
    )
    repository = build_defs().get_repository_def()
    schedule = repository.get_schedule_def("campaign_monday_looks")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 7 * * 1", "Europe/Berlin")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert repository.get_schedule_def("campaign_quiet").default_status == dg.DefaultScheduleStatus.STOPPED
    context = dg.build_schedule_context(
        instance=paper_house.instance,
        repository_def=repository,
        scheduled_execution_time=datetime(2026, 3, 9, 6, 0, tzinfo=UTC),
    )
    (request,) = schedule.evaluate_tick(context).run_requests
    assert request.partition_key == "2026-03-09" and request.run_key == f"{campaign.id}:2026-03-09"
    plan = repository.asset_graph.get(PLAN)
    assert plan.partitions_def.get_first_partition_key() == "2026-03-02"
    assert dg.AssetKey("lora") in plan.parent_keys
    assert repository.asset_graph.get(REPORT).parent_keys == {PLAN, dg.AssetKey("renders")}
    twice = repository.asset_graph.get(campaigns_keys(quiet.name)[0]).partitions_def
    assert twice.get_first_partition_key() == "2026-03-02-07:00"


def test_the_sensor_asks_once_for_the_report_of_a_finished_date(paper_house):
    campaign = add(paper_house)
    house = paper_house
    keeper_of(house).plan(campaign, "2026-03-02")
    sensor = finished_campaigns_sensor(["monday_looks"])
    whole = installed(default_resources())

    def look() -> dg.SensorResult:
        with dg.build_sensor_context(instance=house.instance, resources={"installation": whole}) as context:
            return sensor(context)

    assert look().skip_reason is not None
    for prompt in house.registry.prompts.rows(status="queued"):
        house.registry.work.cancel_prompt(prompt.id)
    (request,) = look().run_requests
    assert request.asset_selection == [REPORT] and request.partition_key == "2026-03-02"
    assert look().skip_reason is not None


def test_a_plan_above_its_cap_queues_nothing_and_fails_its_check(paper_house):
    campaign = add(paper_house, YAML + "cost_cap: 0.001\n")
    with pytest.raises(Failure, match="above the cap of") as refused:
        run_campaign_job("plan", campaign, "2026-03-02", paper_house.instance)
    assert refused.value.code == FailureCode.OUT_OF_CREDITS
    assert paper_house.registry.prompts.rows() == []
    assert checks(paper_house, PLAN, "2026-03-02") == {"file_is_valid": True, "cost_within_cap": False}
    assert paper_house.registry.dates.get(campaign.id, "2026-03-02").status == "refused"


def test_files_that_break_in_the_store_break_their_campaign_alone(paper_house):
    house = paper_house
    campaign, other = add(house), add(house, YAML.replace("Monday looks", "other"))
    house.store.write_text(campaign.file, YAML.replace("steps: 2", "steps: 2000"))
    with pytest.raises(Failure, match=r"looks.yaml, line 5: settings.steps is '2000'"):
        run_campaign_job("plan", campaign, "2026-03-02", house.instance)
    assert checks(house, PLAN, "2026-03-02") == {"file_is_valid": False}
    run_campaign_job("plan", other, "2026-03-02", house.instance)
    assert len(house.registry.prompts.rows()) == 5
    defs = build_defs()
    dg.Definitions.validate_loadable(defs)
    described = defs.get_repository_def().assets_defs_by_key[PLAN].descriptions_by_key[PLAN]
    assert "BROKEN" in described
    house.store.write_text(campaign.file, YAML)
    run_campaign_job("plan", campaign, "2026-03-02", house.instance)
    assert house.registry.campaigns.get("monday_looks").state == "good"


def test_a_row_that_cannot_have_dates_shows_itself_and_the_location_loads():
    row = SimpleNamespace(
        id="campaign_x",
        name="odd",
        cron="every day",
        timezone="Mars/Base",
        starts="2026-03-02",
        state="good",
        problems={},
        account_id="local",
        definition={},
    )
    defs = build_defs(campaigns=[row])
    dg.Definitions.validate_loadable(defs)
    key = campaigns_keys("odd")[0]
    assert "BROKEN" in defs.get_repository_def().assets_defs_by_key[key].descriptions_by_key[key]
    assert not [schedule for schedule in defs.schedules if schedule.name == "campaign_odd"]


def test_a_tune_that_is_not_ready_is_waited_for_and_named(paper_house):
    house = paper_house
    tune = add_tune(house.registry, title="anna")
    text = "text,tunes\na photo of {{subject}} at sea,anna\na plain mug,none\n"
    campaign = add(house, table=text)
    run_campaign_job("plan", campaign, "2026-03-02", house.instance)
    date = house.registry.dates.get(campaign.id, "2026-03-02")
    assert date.message == "Waits for anna (queued)."
    assert house.registry.dates.counts(date.id) == {"waiting": 1, "queued": 1}
    assert [one.title for one in house.registry.dates.waited_for(date.id)] == ["anna"]
    make_ready(house.registry, tune)
    assert house.registry.dates.counts(date.id) == {"queued": 2}
    run_campaign_job("plan", campaign, "2026-03-02", house.instance)
    assert house.registry.dates.get(campaign.id, "2026-03-02").plan["kept"] == 2


@pytest.mark.parametrize("count", [100])
def test_many_campaigns_load_quickly(count):
    import time

    rows = [
        SimpleNamespace(
            id=f"campaign_{i}",
            name=f"c{i}",
            cron="0 7 * * 1",
            timezone="UTC",
            starts="2026-03-02",
            state="good",
            problems={},
            account_id="local",
            definition={},
        )
        for i in range(count)
    ]
    began = time.process_time()
    dg.Definitions.validate_loadable(build_defs(campaigns=rows))
    assert time.process_time() - began < 3

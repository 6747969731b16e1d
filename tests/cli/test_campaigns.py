"""`tunes campaign …`: what a person writes, what is said about it, and what it queues."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Tunes
from tests.support.registry import add_tune, make_ready
from tunes_dagster.cli.installation import Installation

YAML = """name: Looks
cron: "0 7 * * 1"
timezone: Europe/Berlin
start: 2026-03-02
tunes: [anna, bob]
prompts: looks.csv
cost_cap: 1
"""
TABLE = """text,place,sizes,seeds
"a photo of {{subject}}, in {{place}}",snow; rain,64x64,1-2
{{subject}},,64x64; 64x96,
"""


@pytest.fixture
def looks(installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A campaign over a tune that is ready and one that is not."""
    monkeypatch.setattr(installation.settings, "ui_url", "")
    make_ready(installation.registry, add_tune(installation.registry, title="anna", token="sks"))
    add_tune(installation.registry, title="bob")
    folder = tmp_path / "campaigns"
    folder.mkdir()
    (folder / "looks.csv").write_text(TABLE)
    (folder / "looks.yaml").write_text(YAML)
    return folder / "looks.yaml"


def plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def test_check_says_pictures_time_and_cost_and_queues_nothing(
    tunes: Tunes, looks: Path, installation: Installation
) -> None:
    said = tunes("campaign", "check", str(looks))
    assert said.code == 0, said.err
    text = plain(said.out)
    assert "renders 12 pictures of 12 prompts (anna 6, bob 6)" in text
    assert "a default measured on two CPU cores" in text and "in 2 runs" in text
    assert "costs $0.02 of at most $1.00 (12 at $0.002 (sdxl))" in text
    assert "waits for bob, which is queued" in text
    assert "a photo of sks dog, in snow" in text
    assert installation.registry.prompts.rows() == [] and installation.registry.campaigns.rows() == []
    counted = json.loads(tunes("campaign", "check", str(looks), "--json").out)
    assert (counted["pictures"], counted["cost_usd"], counted["waits_for"]) == (12, 0.024, {"bob": "queued"})


def test_every_mistake_is_named_with_file_and_line(tunes: Tunes, looks: Path) -> None:
    looks.write_text(YAML.replace("anna, bob", "anna, bobb"))
    looks.with_name("looks.csv").write_text(
        "text,place,colour,seeds,tunes,steps\n"
        "{{subject}} in {{plaec}},snow,,1-,anna,\n"
        ",,,,,\n"
        '"a mug,\nof {{colour}}",,red,7,carl,900\n'
    )
    said = tunes("campaign", "check", str(looks))
    assert said.code == 2
    text = plain(said.out)
    assert "looks.yaml, line 5: There is no tune 'bobb'." in text
    looks.write_text(YAML.replace("anna, bob", "anna"))
    text = plain(tunes("campaign", "check", str(looks)).out)
    assert (
        "looks.csv, line 1: The column place is no setting, and no text uses it. Did you mean plaec?" in text
    )
    assert "looks.csv, line 2: {{plaec}} has no value for anna. Did you mean {{place}}?" in text
    assert "looks.csv, line 2: The seed '1-' is not understood." in text
    assert "looks.csv, line 4: There is no tune 'carl'." in text
    (looks.parent / "looks.yaml").write_text(YAML.replace('"0 7 * * 1"', "weekly").replace("Berlin", "Bonn"))
    said = tunes("campaign", "check", str(looks))
    assert "looks.yaml, line 2: cron is 'weekly'" in plain(said.out)
    assert (
        tunes("campaign", "add", str(looks)).code == 2 and "No campaigns yet" in tunes("campaign", "list").out
    )


def test_add_list_plan_show_and_remove(tunes: Tunes, looks: Path, installation: Installation) -> None:
    broken = looks.with_name("broken.yaml")
    broken.write_text("name: broken\ncron: [\n")
    said = tunes("campaign", "add", str(looks.parent))
    assert said.code == 2 and "broken.yaml was not added" in said.err
    assert "Added looks" in plain(said.out)
    store = installation.store
    assert sorted(store.list("campaigns/looks")) == [
        "campaigns/looks/looks.csv",
        "campaigns/looks/looks.yaml",
    ]
    (row,) = json.loads(tunes("campaign", "list", "--json").out)
    assert (row["name"], row["state"], row["newest_date"]) == ("looks", "good", None)

    assert tunes("campaign", "run", "looks", "2026-03-03").code == 2, "a Tuesday"
    said = tunes("campaign", "run", "looks", "2026-03-02", "--no-wait")
    assert said.code == 0, said.err
    assert "12 prompts queued, 0 are there already" in plain(said.out) and "Waits for bob" in plain(said.out)
    rows = installation.registry.prompts.rows(limit=100)
    assert {row.status for row in rows} == {"queued", "waiting"} and {row.origin for row in rows} == {
        "campaign"
    }
    said = tunes("campaign", "backfill", "looks", "2026-03-02", "2026-03-09", "--no-wait")
    assert "0 prompts queued, 12 are there already" in plain(said.out), said.err
    assert "4 prompts queued, 8 are there already" in plain(said.out), (
        "seeds that were given make the same pictures"
    )
    shown = plain(tunes("campaign", "show", "looks", "2026-03-02").out)
    assert "6 queued, 6 waiting" in shown and "waits for bob, which is queued" in shown

    store.write_text("campaigns/looks/looks.csv", "text\n{{subject}} {{oops}}\n")
    listed = plain(tunes("campaign", "list").out)
    assert "broken" in listed and "looks.csv, line 2: {{oops}} has no value" in listed
    said = tunes("campaign", "remove", "looks", "--yes")
    assert "looks is removed; 16 waiting prompts cancelled" in plain(said.out)
    assert "No campaigns yet" in tunes("campaign", "list").out


def test_a_date_above_the_cap_is_refused_before_anything_is_queued(
    tunes: Tunes, looks: Path, installation: Installation
) -> None:
    looks.write_text(YAML.replace("cost_cap: 1", "cost_cap: 0.01"))
    assert "above the cap of $0.01" in plain(tunes("campaign", "check", str(looks)).out)
    tunes("campaign", "add", str(looks))
    said = tunes("campaign", "run", "looks", "--no-wait")
    assert said.code == 1 and "above the cap" in said.err
    assert installation.registry.prompts.rows() == []


@pytest.mark.usefixtures("without_upscaler")
def test_wishes_that_cannot_be_met_are_warnings_of_a_campaign_and_of_a_command(
    tunes: Tunes, looks: Path, installation: Installation
) -> None:
    looks.write_text(YAML + "settings: {super_resolution: true}\n")
    said = tunes("campaign", "check", str(looks))
    assert said.code == 0, said.err
    assert "Of 12 prompts: super_resolution needs upscale-4x, which is not installed" in plain(said.out)
    assert "costs $0.02 of at most" in plain(said.out), "a resampler costs nothing"
    said = tunes("render", "a cat", "--super-resolution", "--no-wait")
    assert said.code == 0 and "super_resolution needs upscale-4x" in plain(said.out), said
    row = installation.registry.prompts.rows()[0]
    shown = json.loads(tunes("render", "a cat", "--face-correct", "--no-wait", "--json").out)
    assert row.settings["upscaler"] == "lanczos" and "face_correct" in shown[0]["warnings"][0]

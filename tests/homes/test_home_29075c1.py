"""An installation that 29075c1 left behind opens after every later change, and goes on."""

from __future__ import annotations

import json
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from tests.homes.home import OldHome
from tunes_dagster.assets.names import LORA, RENDERS, REPORT_CARD
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.cli import main
from tunes_dagster.core.recipe import RenderSettings, TrainingOptions
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.gateway.app import create_app
from tunes_dagster.gateway.options import GatewayOptions
from tunes_dagster.pipeline.definitions import build_defs
from tunes_dagster.registry.engine import HEAD
from tunes_dagster.service.installation import Installation


def test_it_opens_and_shows_what_was_there(home: OldHome, capsys: pytest.CaptureFixture[str]) -> None:
    registry = home.registry
    assert registry.revision() == HEAD
    for table in ("tunes", "prompts", "campaigns", "campaign_dates", "deletions", "wallets", "reservations"):
        with registry.reading() as session:
            count = session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
        again = 2 if table == "deletions" else 0  # what was deleted is deleted once more, words included
        assert count == len(home.before[table]) + again, table
    for tune_id, row in home.was("tunes").items():
        assert registry.tunes.get(tune_id).status == row["status"], row["title"]
    for prompt_id, row in home.was("prompts").items():
        now = registry.prompts.get(prompt_id)
        assert (now.status, now.images) == (row["status"], json.loads(row["images"])), row["text"]
    for account, books in home.made["books"].items():
        assert registry.ledger.books(account) == books, account
    for tune_id, row in home.was("tunes").items():
        made, kept = registry.tunes.get(tune_id).made, json.loads(row["result"])
        assert {
            name: made.model_dump()[name] for name in kept.keys() & {"weights_key", "steps", "checkpoints"}
        } == {name: kept[name] for name in kept.keys() & {"weights_key", "steps", "checkpoints"}}
        if card := kept.get("report_card"):
            assert made.report_card is not None and made.report_card.line == card["line"]
    _show_everything(home, capsys)


def _show_everything(home: OldHome, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands that people look at an installation with."""
    capsys.readouterr()
    assert main(["list", "--all-accounts", "--limit", "100", "--json"]) == 0
    shown = {row["id"]: row["status"] for row in json.loads(capsys.readouterr().out)}
    alive = {k: row["status"] for k, row in home.was("tunes").items() if row["deleted_at"] is None}
    assert shown == alive
    assert main(["status"]) == 0
    for row in home.was("tunes").values():
        assert main(["status", str(row["number"]), "--account", row["account_id"]]) == 0, row["title"]
    for words in (
        ("callbacks", "list"),
        ("campaign", "list"),
        ("campaign", "show", "looks"),
        ("accounts", "list"),
        ("retention", "log"),
        ("keys", "list"),
        ("captions", "show", str(_number(home, "anna"))),
    ):
        assert main(list(words)) == 0, words
    capsys.readouterr()


def _number(home: OldHome, role: str) -> int:
    return int(home.was("tunes")[home.tune(role)]["number"])


def _client(home: OldHome) -> TestClient:
    return TestClient(create_app(home.settings, GatewayOptions()), base_url="http://testserver")


def _ask(client: TestClient, home: OldHome, account: str, path: str, status: int = 200) -> Any:
    answer = client.get(path, headers={"Authorization": f"Bearer {home.made['keys'][account]}"})
    assert answer.status_code == status, (path, answer.text)
    return answer.json()


def test_its_callers_find_what_they_had(home: OldHome) -> None:
    client, number = _client(home), _number(home, "ann's anna")
    for account in ("ann", "ben", "carl"):
        rows = home.was("tunes").values()
        own = {r["number"] for r in rows if r["account_id"] == account and r["deleted_at"] is None}
        assert {row["id"] for row in _ask(client, home, account, "/tunes?limit=100")} == own, account
        _ask(client, home, account, "/native/v1/account")
    (prompt,) = [
        one
        for one in _ask(client, home, "ann", f"/tunes/{number}/prompts")
        if one["text"] == "ohwx woman at sea"
    ]
    (url,) = prompt["images"]
    picture = client.get(url.removeprefix("https://tunes.example.com"))
    assert picture.status_code == 200 and picture.content.startswith(b"\x89PNG")
    _ask(client, home, "ben", f"/tunes/{number}", 404)
    weights = client.get(
        f"/native/v1/tunes/{number}/weights/diffusers",
        headers={"Authorization": f"Bearer {home.made['keys']['ann']}"},
    )
    assert weights.status_code == 200 and weights.content
    again = client.post(
        "/v1/tunes/train",
        json=home.made["more"]["train_body"],
        headers={"Authorization": f"Bearer {home.made['keys']['ann']}", "Idempotency-Key": "train-once"},
    )
    if again.status_code == 200:  # keys are forgotten after a day; then it is a new job, and says so
        fresh = again.json()["job_id"] != home.made["more"]["train_answer"]["job_id"]
        assert fresh or again.json() == home.made["more"]["train_answer"]


def test_dagster_shows_its_runs_and_partitions(home: OldHome) -> None:
    registry, instance = home.registry, home.instance
    repository = build_defs().get_repository_def()
    assert {"plan_looks", "report_looks", "plan_soon"} <= set(repository.job_names)
    live = {k for k, row in home.was("tunes").items() if row["status"] in ("ready", "trained", "training")}
    assert live <= set(instance.get_dynamic_partitions("tunes"))
    anna, batch = home.tune("anna"), registry.prompts.get(home.prompt("plain")).batch_id
    for key, partition in ((LORA, anna), (REPORT_CARD, anna), (RENDERS, batch)):
        wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
        (record,) = instance.fetch_materializations(wanted, limit=1).records
        assert record.asset_materialization and record.asset_materialization.metadata
    runs = instance.get_runs()
    assert {run.job_name for run in runs} >= {"prepare_tune", "train_cohort", "finish_tune", "render_batch"}
    assert all(instance.all_logs(run.run_id) for run in runs)


def test_hashes_of_before_stand(home: OldHome) -> None:
    """An option that came later is left out of hashes at its default: nothing is rendered or trained anew for it."""
    tune, prompt = (next(iter(home.was(table).values())) for table in ("tunes", "prompts"))
    for options, then in (
        (RenderSettings(), json.loads(prompt["settings"])),
        (TrainingOptions(), json.loads(tune["request"])["training"]),
    ):
        assert options.hashed().keys() == then.keys(), "mark what is new with Later()"
    keeper = Keeper(
        Installation(home.settings, registry=home.registry, store=home.store, catalog=load_catalog())
    )
    row, _drawn = keeper.plan(home.registry.campaigns.get("looks"), "2026-03-02")
    assert (row.plan["new"], row.plan["kept"]) == (0, 2), "pictures that are there are rendered again"

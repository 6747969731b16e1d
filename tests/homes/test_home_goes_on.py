"""The home of 29075c1 goes on: what waited is done, what was interrupted is taken up, what is owed is paid once.

Each database does what both do, and one half of what takes long; the other half is cancelled first.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import dagster as dg
import pytest
from starlette.testclient import TestClient

from tests.attack.test_rehearsals import TRAINER
from tests.homes.home import OldHome
from tunes_dagster.callbacks.deliver import deliver_due
from tunes_dagster.cli import main
from tunes_dagster.gateway.app import create_app
from tunes_dagster.gateway.options import GatewayOptions
from tunes_dagster.pipeline.definitions import build_defs
from tunes_dagster.pipeline.inprocess import drive, run_campaign_job
from tunes_dagster.service.installation import Installation

# From their queue, from a checkpoint, from where their process died.
BOTH = ("theo", "tara", "fips", "finn")
HALVES = {
    "sqlite": ("pete", "quin", "ann's queued", "ben's of ann's pack"),
    "postgresql": ("sue", "kira", "more", "ben's face"),
}
# As far as others are, and trained like them.
NEITHER = ("cora", "rerun", "paul")
# Micro-dollars of what an account's tunes and their prompts cost when they are done.
PRICES = {"ann's queued": 260_000, "ben's of ann's pack": 260_000, "ben's face": 50_000}
# Renders on one's own tune that is ready, and on no tune, that waited or were under way.
RENDERED = ("rendering", "ann's queued", "tagged")
# 29075c1 looked titles up in all accounts: these two were to be rendered with an "anna" of ann's or ben's.
FOREIGN = ("submitted", "queued")
# When it was made.
HOME_MONTH = "2026-11"


def ask(home: OldHome, account: str, method: str, path: str, **more: Any) -> Any:
    """Return what an account is answered over HTTP, as JSON."""
    client = TestClient(create_app(home.settings, GatewayOptions()), base_url="http://testserver")
    secret = home.made["keys"][account]
    headers = {"Authorization": f"Bearer {secret}", "Ocp-Apim-Subscription-Key": secret}
    answer = client.request(method, path, headers=headers, **more)
    assert answer.status_code == 200, (path, answer.text)
    return answer.json()


def cancel(home: OldHome, role: str) -> None:
    """Cancel a tune as its owner does."""
    row = home.registry.tunes.get(home.tune(role))
    if row.account_id == "local":
        assert main(["cancel", str(row.number)]) == 0
    else:
        ask(home, row.account_id, "POST", f"/native/v1/tunes/{row.number}/cancel")


def go_on(home: OldHome) -> None:
    """Do everything that waits, as `tunes train` does without a daemon."""
    registry = home.registry

    def over() -> bool:
        waits = registry.figures.queue_lengths()
        return not waits["work"] and not waits["prompts_queued"]

    drive(Installation(home.settings, registry=registry), over, instance=home.instance)


def deliver(home: OldHome) -> None:
    for _again in range(2):
        deliver_due(
            Installation(home.settings, registry=home.registry), allow_hosts=["127.0.0.1"], budget_seconds=20
        )


@pytest.mark.slow
@pytest.mark.timeout(900)  # less than a minute on a free core
def test_it_does_what_waits_and_pays_what_it_owes(home: OldHome, capsys: pytest.CaptureFixture[str]) -> None:
    database = home.url.partition(":")[0].partition("+")[0]
    mine = (*BOTH, *HALVES[database])
    others = [role for some in HALVES.values() for role in some if role not in mine] + list(NEITHER)
    for role in others:
        cancel(home, role)
    go_on(home)
    deliver(home)

    registry = home.registry
    stood = {role: registry.tunes.get(home.tune(role)) for role in (*mine, *others)}
    assert {role: stood[role].failure_message for role in mine if stood[role].status != "ready"} == {}
    assert {stood[role].status for role in others} == {"cancelled"}
    for role in mine:
        assert home.store.exists(stood[role].result["weights_key"]), role
    _theo_was_resumed(home)
    _prompts_are_done(home, database)
    _callbacks_came_once(home)
    _books_are_exact(home, mine)
    _everything_is_listed(home, database, capsys)
    build_defs().get_repository_def().load_all_definitions()


def _theo_was_resumed(home: OldHome) -> None:
    runs = home.instance.get_runs(dg.RunsFilter(job_name="train_cohort"))
    said = [entry.user_message for run in runs for entry in home.instance.all_logs(run.run_id)]
    assert any("Resumed at step 4 of 12" in message for message in said)


def _prompts_are_done(home: OldHome, database: str) -> None:
    """Nothing waits for ever: every prompt is done, or says why it never will be."""
    registry = home.registry
    for role in RENDERED:
        row = registry.prompts.get(home.prompt(role))
        assert row.status == "done" and all(map(home.store.exists, row.images)), (role, row.failure_message)
    for role in FOREIGN:
        row = registry.prompts.get(home.prompt(role))
        assert (row.status, row.failure_code) == ("failed", "unknown_tune"), role
    for prompt_id in home.was("prompts"):
        row = registry.prompts.get(prompt_id)
        assert row.status in ("done", "failed", "blocked", "cancelled"), (row.text, row.status)
    soon = registry.campaigns.get("soon")
    run_campaign_job("report", soon, "2026-03-02", home.instance)
    date = registry.dates.get(soon.id, "2026-03-02")
    assert date is not None
    (prompt,) = [row for _link, row in registry.dates.prompts(date.id)]
    assert prompt.status == ("done" if database == "sqlite" else "cancelled")


def _callbacks_came_once(home: OldHome) -> None:
    """What was delivered, given up or held then is not sent again; the rest came once, and nothing waits."""
    before, seen = home.was("callbacks"), home.callers.counts()
    sent: Counter[str] = Counter()
    for row in home.registry.outbox.rows(limit=1000):
        then = before.get(row.id, {"state": "pending"})
        if then["state"] == "pending" and row.state == "delivered":
            sent[row.url.removeprefix(home.callers.address)] += 1
        elif then["state"] == "pending":
            assert row.state == "held" and "/hang/astria" in row.url, (row.event, row.url, row.state)
        else:
            assert (row.state, row.attempts) == (then["state"], then["attempts"]), row.url
    came: Counter[str] = Counter()
    for path, count in seen.items():
        came[path if path in sent else path.partition("model_uid=")[0] + "model_uid="] += count
    assert came == sent
    assert {"/ok/theo", "/ok/tara", "/ok/rendering", "/down/fia", "/hang/native"} <= set(sent)


def _books_are_exact(home: OldHome, mine: tuple[str, ...]) -> None:
    registry = home.registry
    for account, then in home.made["books"].items():
        roles = {role: price for role, price in PRICES.items() if _whose(home, role) == account}
        done = sum(price for role, price in roles.items() if role in mine)
        back = sum(roles.values()) - done
        renders = 20_000 if account == "ann" else 0  # "rendering" and "ann's queued"
        found = registry.ledger.books(account)
        # Where a month has begun since the home was made, its grant took the place of what was left of the last one.
        renewed = then["grants"] - found["grants"]
        assert renewed == 0 or registry.ledger.wallet(account).grant_month > HOME_MONTH, account
        assert found == {
            "grants": then["grants"] - renewed,
            "account": then["account"] + back + renewed,
            "reserved": then["reserved"] - done - back - renders,
            "revenue": then["revenue"] + done + renders,
        }, account
    held = {account: registry.ledger.books(account)["reserved"] for account in home.made["books"]}
    assert held == {"ann": 100_000, "ben": 0, "carl": 0}, "only the job that still awaits its pictures"
    assert {fault.kind for fault in registry.audit.faults()} == {"foreign_tune", "given_away"}, (
        "what 29075c1 did"
    )


def _whose(home: OldHome, role: str) -> str:
    return str(home.was("tunes")[home.tune(role)]["account_id"])


def _everything_is_listed(home: OldHome, database: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command line, and in each of the four APIs."""
    capsys.readouterr()
    assert main(["list", "--all-accounts", "--limit", "100", "--json"]) == 0
    shown = {row["id"]: row["status"] for row in json.loads(capsys.readouterr().out)}
    rows = home.registry.tunes.rows(limit=1000)
    assert shown == {row.id: row.status for row in rows}
    assert main(["list", "--prompts", "--json"]) == 0
    anna = home.registry.tunes.get(home.tune("ann's anna"))
    own = {row.number for row in rows if row.account_id == "ann"}
    assert {row["id"] for row in ask(home, "ann", "GET", "/tunes?limit=100")} == own
    pictures = [len(row["images"]) for row in ask(home, "ann", "GET", f"/tunes/{anna.number}/prompts")]
    assert pictures == [1, 1, 1], "at sea; by night and in spring, which waited"
    assert f"lora_{anna.id[5:]}" in {row["tune_id"] for row in ask(home, "ann", "GET", "/v1/tunes/models")}
    assert ask(home, "ann", "GET", f"/v1/tunes/{home.tune('awaiting')}")["status"] == "awaiting_images"
    result = ask(home, "ann", "POST", f"{TRAINER}-result", json={"request_id": anna.id})
    assert result["status"] == "COMPLETED"
    if database == "postgresql":
        asked = {"api_key": home.made["keys"]["ben"], "app_uid": "api"}
        body = {**asked, "model_uid": home.made["more"]["pixu_uid"], "positive": "a portrait"}
        uid = ask(home, "ben", "POST", "/pixu/api/txt2img_strict_portrait", json=body)["response"]
        assert ask(home, "ben", "POST", "/pixu/api/txt2img_results", json={**asked, "request_uid": uid})

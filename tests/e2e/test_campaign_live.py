"""A campaign in the live house: added beside a running UI and daemon, switched in the UI, on its schedule, backfilled.

    python -m pytest -m proof tests/e2e/test_campaign_live.py        7 minutes on two busy cores

Everything that a person does in the UI goes through the same GraphQL that its pages send.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.test_daemon import ROOT, settings  # noqa: F401 - the fixture
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.core.store import Store
from tunes_dagster.registry import CampaignDate, open_registry

PATIENCE = 420
TUNES = [sys.executable, "-W", "ignore", "-c", "from tunes_dagster.cli import main; main()"]
YAML = """name: Live looks
cron: "{cron}"
start: {start}
prompts: looks.csv
settings: {{steps: 2}}
"""
TABLE = "text,seeds\na red mug on a table,\na blue mug on a table,7\n"
BACKFILL = """mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) { __typename ... on PythonError { message } } }"""
STATE = """query ($one: ScheduleSelector!) { scheduleOrError(scheduleSelector: $one) {
  ... on Schedule { id scheduleState { status } } } }"""
STOP = """mutation ($id: String!) { stopRunningSchedule(id: $id) {
  ... on ScheduleStateResult { scheduleState { status } } } }"""
START = """mutation ($one: ScheduleSelector!) { startSchedule(scheduleSelector: $one) {
  ... on ScheduleStateResult { scheduleState { status } } } }"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_for(what: str, condition: Callable[[], Any], log: Path) -> Any:
    """Wait until something is true and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen.\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.5)
    return found


class Ui:
    """The web server's GraphQL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.schedule = {
            "repositoryName": "__repository__",
            "repositoryLocationName": "tunes",
            "scheduleName": "campaign_live_looks",
        }

    def ask(self, query: str, **variables: object) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=120)
        return answer.raise_for_status().json()["data"]

    def ready(self) -> bool:
        query = "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }"
        try:
            entries = self.ask(query)["workspaceOrError"]["locationEntries"]
        except (httpx.HTTPError, KeyError):
            return False
        return [one["loadStatus"] for one in entries] == ["LOADED"]


@pytest.fixture
def ui(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ui]:  # noqa: F811
    """`tunes dev`: the web server and the daemon, in a process group of their own."""
    port = free_port()
    monkeypatch.setenv("TUNES_UI_URL", f"http://127.0.0.1:{port}")
    get_settings.cache_clear()
    with (tmp_path / "dev.log").open("wb") as log:
        command = [*TUNES, "dev", "--port", str(port), "--api-port", "0"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        yield Ui(f"http://127.0.0.1:{port}")
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def tunes(*words: str) -> str:
    """Run a command as a person does and return what it says."""
    done = subprocess.run([*TUNES, *words], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_a_campaign_lives_beside_a_running_ui_and_daemon(
    ui: Ui,
    settings: Settings,  # noqa: F811
    tmp_path: Path,
) -> None:
    log, folder = tmp_path / "dev.log", tmp_path / "campaigns"
    wait_for("the UI", ui.ready, log)
    soon = datetime.now(UTC) + timedelta(seconds=100)
    folder.mkdir()
    (folder / "looks.csv").write_text(TABLE)
    (folder / "looks.yaml").write_text(
        YAML.format(cron=f"{soon.minute} {soon.hour} * * *", start=(soon - timedelta(days=3)).date())
    )
    assert "has reloaded" in tunes("campaign", "add", str(folder / "looks.yaml"))
    registry, store = open_registry(settings), Store(settings.resolved_store_url)
    campaign = registry.campaigns.get("live_looks")

    def status() -> str:
        return ui.ask(STATE, one=ui.schedule)["scheduleOrError"]["scheduleState"]["status"]

    def reported(date: str) -> CampaignDate | None:
        row = registry.dates.get(campaign.id, date)
        return row if row is not None and row.status == "reported" else None

    assert status() == "RUNNING", "its schedule is there at once"
    identity = ui.ask(STATE, one=ui.schedule)["scheduleOrError"]["id"]
    stopped = ui.ask(STOP, id=identity)["stopRunningSchedule"]["scheduleState"]["status"]
    assert (stopped, status()) == ("STOPPED", "STOPPED")
    assert ui.ask(START, one=ui.schedule)["startSchedule"]["scheduleState"]["status"] == "RUNNING"

    missed = str((soon - timedelta(days=2)).date())
    plan = {
        "assetSelection": [{"path": ["campaign_plan", "live_looks"]}],
        "partitionNames": [missed],
        "tags": [],
    }
    started = ui.ask(BACKFILL, params=plan)["launchPartitionBackfill"]
    assert started["__typename"] == "LaunchBackfillSuccess", started
    row = wait_for("the backfill of a missed date", lambda: reported(missed), log)
    assert (row.result["pictures"], row.result["failed"]) == (2, 0)
    page = store.read_text(row.report_key)
    assert "a red mug on a table" in page and page.count("<figure>") >= 2

    today = str(soon.date())
    row = wait_for("the date on its schedule", lambda: reported(today), log)
    assert (row.plan["new"], row.plan["kept"], row.result["pictures"]) == (1, 1, 2), "the given seed is kept"
    assert "0 prompts queued, 2 are there already" in tunes("campaign", "run", "live_looks", today)
    yesterday = str((soon - timedelta(days=1)).date())
    assert "1 prompts queued, 1 are there already" in tunes("campaign", "backfill", "live_looks", "--missed")
    assert reported(yesterday), "what nobody rendered, from the command line, by the daemon"

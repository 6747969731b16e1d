"""The whole house with a real daemon: a zip over HTTP, a SIGKILL while training, a receiver that fails twice."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import pytest

from tests.support.houses import draw_pictures, write_catalog
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.pipeline.inprocess import daemon_is_alive, open_instance
from tunes_dagster.registry import Registry, open_registry
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.submit import submit_tune

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
KILL_AT = 20
PATIENCE = 240  # seconds; an idle machine with two cores needs about 60 for everything


class World:
    """A web server with a dataset on it, and a receiver of callbacks that fails twice."""

    def __init__(self, dataset: bytes) -> None:
        self.bodies: list[dict] = []
        self.codes: list[int] = []
        world = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/zip")
                self.send_header("Content-Length", str(len(dataset)))
                self.end_headers()
                self.wfile.write(dataset)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                world.bodies.append(body)
                world.codes.append(503 if len(world.codes) < 2 else 200)
                self.send_response(world.codes[-1])
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def zipped(folder: Path) -> bytes:
    """Return the pictures of a folder as a zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"pictures/{file.name}")
    return buffer.getvalue()


@pytest.fixture(params=["auto", "off"])
def settings(
    request: pytest.FixtureRequest, tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """An installation with short waits: as it comes, with device sessions, and with a process per run."""
    for name, value in {
        "DAGSTER_HOME": str(ROOT),
        "TUNES_DAGSTER_STORAGE": str(tmp_path / "dagster"),
        "TUNES_HOME": str(tmp_path / "home"),
        "TUNES_DEVICE": "cpu",
        "TUNES_SESSIONS": request.param,
        "OMP_NUM_THREADS": "1",
        "TUNES_CATALOG": str(write_catalog(tmp_path / "catalog.yaml", base_folder)),
        "TUNES_ALLOW_HOSTS": '["127.0.0.1"]',
        "TUNES_HEARTBEAT_SECONDS": "1",
        "TUNES_LOST_AFTER_SECONDS": "60",
        "TUNES_RETRY_BACKOFF": "[0.5]",
        "TUNES_COHORT_WAIT_SECONDS": "0",
        "TUNES_REPORT_CHECKPOINTS": "1",
        "TUNES_REPORT_RENDERS": "2",
        "TUNES_BATCH_WAIT_SECONDS": "0",
        "TUNES_CALLBACK_BACKOFF": "[0.5, 0.5, 0.5]",
        "DAGSTER_GRPC_TIMEOUT_SECONDS": "240",  # for machines that are busy with something else
    }.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    yield get_settings()
    get_settings.cache_clear()


@pytest.fixture
def daemon(settings: Settings, tmp_path: Path) -> Iterator[subprocess.Popen]:
    """`dagster-daemon run` on the workspace, in a process group of its own."""
    open_instance(settings).dispose()  # its tables are made once, not by two processes at a time
    with (tmp_path / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("dagster-daemon")),
                "run",
                "-w",
                str(ROOT / "workspace.yaml"),
            ],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        yield process
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(what: str, condition: Callable[[], object], log: Path, seconds: float = PATIENCE) -> None:
    """Wait until something is true; show the daemon's last lines when it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        broken = "Error loading repository location" in log.read_text(errors="replace")
        if broken or time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen.\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.1)


def worker_of(instance: dg.DagsterInstance, run_id: str) -> int:
    """Return the process id of a run's worker, as its log says."""
    for entry in instance.all_logs(run_id):
        if found := re.search(r"Started process for run \(pid: (\d+)\)", entry.message or ""):
            return int(found.group(1))
    raise AssertionError(f"the log of run {run_id} names no process")


def kill_training(registry: Registry, instance: dg.DagsterInstance, tune_id: str) -> None:
    """SIGKILL the worker that trains a tune."""
    (work,) = registry.work.of(tune_id, "train")
    assert work.state == "running" and work.run_id
    session = registry.sessions.get(work.run_id)
    hosted_by = work.run_id if session is None else session.run_id
    assert hosted_by
    os.kill(worker_of(instance, hosted_by), signal.SIGKILL)


def uninterrupted(registry: Registry, store: Store, tune_id: str, base_folder: Path):
    """Train the same tune once more from the start, in one go, and return its weights."""
    from safetensors.torch import load

    from tunes_dagster.core.recipe import TrainingOptions
    from tunes_dagster.families.base import load_family
    from tunes_dagster.sessions.cohorts import Trainee, make_job
    from tunes_dagster.training.loop import train

    tune = registry.tunes.get(tune_id)
    (work,) = registry.work.of(tune_id, "train")
    entry = load_catalog().resolve("tiny-sdxl")
    options = entry.training_options(TrainingOptions.model_validate(tune.recipe["training"]))

    class Mine:
        report = __import__("tunes_dagster.core.progress", fromlist=["Silent"]).Silent()

    Mine.work = work
    job = make_job(Trainee(Mine, tune, options, resume=False), store)
    job.out_prefix = "reference"
    outcome = train([job], load_family(entry, base_folder, "cpu"), store)[tune_id]
    return load(store.read_bytes(outcome.weights_key))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_training_resumes_and_ends_as_if_nothing_had_happened(
    settings: Settings, daemon: subprocess.Popen, tmp_path: Path, base_folder: Path
) -> None:
    import torch
    from safetensors.torch import load

    log = tmp_path / "daemon.log"
    world = World(zipped(draw_pictures(tmp_path / "pictures", 5)))
    registry, store = open_registry(settings), Store(settings.resolved_store_url)
    request = TuneRequest.model_validate(
        {
            "name": "mug",
            "title": "bob",
            "sources": {"archive_url": f"{world.url}/bob.zip"},
            "dataset": {"captioner": False},
            "training": {"steps": STEPS, "checkpoint_every": 10},
            "prompts": [{"text": "a photo of ohwx mug on the beach", "settings": {"num_images": 2}}],
            "callback_url": f"{world.url}/ready",
        }
    )
    tune = submit_tune(
        Installation(settings, registry=registry, store=store, catalog=load_catalog()), request, origin="api"
    )
    instance = open_instance(settings)

    wait_for(
        "the training",
        lambda: (
            registry.tunes.get(tune.id).step >= KILL_AT and registry.tunes.get(tune.id).phase == "training"
        ),
        log,
    )
    assert daemon_is_alive(instance)
    kill_training(registry, instance, tune.id)

    wait_for("the end", lambda: registry.tunes.get(tune.id).status in ("ready", "failed"), log)
    row = registry.tunes.get(tune.id)
    assert row.status == "ready", row.failure_message
    (work,) = registry.work.of(tune.id, "train")
    assert work.attempt == 2

    attempts = {key.split("/")[3] for key in row.made.checkpoints}
    assert attempts == {"1", "2"}, "it went on from a checkpoint of the training that was killed"

    job = "train_tune" if settings.uses_sessions else "train_cohort"
    failed = dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.FAILURE])
    wait_for("word of the kill", lambda: len(instance.get_runs(failed)) == 1, log)

    weights = load(store.read_bytes(row.result["weights_key"]))
    reference = uninterrupted(registry, store, tune.id, base_folder)
    assert weights.keys() == reference.keys()
    assert all(torch.equal(weights[name], reference[name]) for name in weights)

    (prompt,) = registry.prompts.rows(tune_id=tune.id)
    wait_for("the renders", lambda: registry.prompts.get(prompt.id).status in ("done", "failed"), log)
    prompt = registry.prompts.get(prompt.id)
    assert prompt.status == "done", prompt.failure_message
    assert all(store.read_bytes(key).startswith(b"\x89PNG") for key in prompt.images)

    wait_for("the third delivery", lambda: len(world.codes) >= 3, log)
    assert world.codes[:3] == [503, 503, 200]
    assert all(body == world.bodies[0] for body in world.bodies[:3])
    assert (
        world.bodies[0]["id"] == tune.id
        if "id" in world.bodies[0]
        else tune.id in json.dumps(world.bodies[0])
    )

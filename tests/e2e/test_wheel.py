"""The package without its clone: built, installed into an environment of its own, and used from any folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATIENCE = 300


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of what git tracks, made as `pip install .` makes it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if not (ROOT / name).is_symlink() and not (ROOT / name).is_file():
            continue  # deleted, and not committed yet
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(out), str(source)]
    subprocess.run(command, check=True)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and, from this one, what it depends on; no clone is in sight of it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # A folder that a .pth file names is searched, but its own .pth files (the clone's is there) are not read.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    return python


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("TUNES_", "DAGSTER_")) and k != "PYTHONPATH"
    }
    return {**kept, "TUNES_HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}


def test_a_wheel_holds_one_package_and_what_it_needs(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"tunes_dagster"}
    for needed in (
        "assets/cohort.py",
        "resources/state.py",
        "pipeline/instance/dagster.yaml",
        "families/catalog.yaml",
        "pipeline/instance/workspace.yaml",
        "tiny/weights/sdxl/model_index.json",
        "py.typed",
    ):
        assert f"tunes_dagster/{needed}" in names, needed


def test_the_demo_runs_from_any_folder(python: Path, environment: dict[str, str], tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = subprocess.run(
        [python, "-c", "import tunes_dagster; print(tunes_dagster.__file__)"],
        cwd=elsewhere,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert str(ROOT) not in where
    done = subprocess.run(
        [python.with_name("tunes"), "demo", "--steps", "20"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "before and after" in done.stdout, done.stdout + done.stderr
    assert list((tmp_path / "home" / "demo").rglob("*.png"))
    assert not list(elsewhere.iterdir())


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def ask(url: str, body: dict | None = None) -> dict | None:
    """Return the JSON that an address answers with, or None while it does not."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())
    except (OSError, ValueError):
        return None


QUERY = """{
  repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } sensors { name } } } }
  instance { info runQueueConfig { maxConcurrentRuns } }
}"""


def test_dev_shows_the_pipeline_with_the_instance_of_the_project(
    python: Path, environment: dict[str, str], tmp_path: Path
):
    ui, api = free_port(), free_port()
    with (tmp_path / "dev.log").open("wb") as log:
        process = subprocess.Popen(
            [python.with_name("tunes"), "dev", "--port", str(ui), "--api-port", str(api)],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline, seen, said = time.monotonic() + PATIENCE, None, None
        while time.monotonic() < deadline and process.poll() is None and not (seen and said):
            answer = ask(f"http://127.0.0.1:{ui}/graphql", {"query": QUERY}) or {}
            nodes = ((answer.get("data") or {}).get("repositoriesOrError") or {}).get("nodes")
            seen = answer["data"] if nodes else None
            said = ask(f"http://127.0.0.1:{api}/v1/tunes/config")
            time.sleep(0.5)
        assert seen and said, (tmp_path / "dev.log").read_text(errors="replace")[-4000:]
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    (repository,) = seen["repositoriesOrError"]["nodes"]
    assert repository["location"]["name"] == "tunes"
    assert "queued_tunes" in {sensor["name"] for sensor in repository["sensors"]}
    # The same queue, pools, monitoring and telemetry as in a clone: the very dagster.yaml.
    info = seen["instance"]["info"]
    assert "free_slots_after_run_end_seconds: 10" in info and "max_concurrent_runs: 200" in info
    assert "telemetry:\n  enabled: false" in info
    assert said["service"] == "tunesapi"
    assert {path.name for path in tmp_path.iterdir()} == {"home", "dev.log"}

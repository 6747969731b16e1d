"""Where sessions are on unless somebody says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunes_dagster.cli import checkup
from tunes_dagster.core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
OURS = "run_launcher: {module: tunes_dagster.pipeline.launcher, class: DeviceRunLauncher"


@pytest.fixture(autouse=True)
def _as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNES_SESSIONS", "DAGSTER_HOME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


def test_they_are_on_with_the_files_that_come_with_the_project(monkeypatch):
    assert Settings().uses_sessions
    monkeypatch.setenv("DAGSTER_HOME", str(ROOT))
    assert Settings().uses_sessions
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert not Settings().uses_sessions and Settings(sessions="on").uses_sessions


@pytest.mark.parametrize(
    ("file", "on"),
    [
        (OURS + "}", True),
        (OURS + ", config: {}}", True),
        (OURS + ", config: {wrapped: {module: dagster, class: DefaultRunLauncher}}}", True),
        (OURS + ", config: {wrapped: {module: dagster_ray, class: RayRunLauncher}}}", False),
        (OURS + ", config: {wrapped: {module: dagster_k8s, class: K8sRunLauncher}}}", False),
        ("run_launcher: {module: dagster_docker, class: DockerRunLauncher}", False),
        ("telemetry: {enabled: false}", False),
        ("", False),
        ("[1, 2", False),
        ("run_launcher: none", False),
    ],
)
def test_they_are_on_where_runs_are_processes_of_this_machine(
    tmp_path: Path, monkeypatch, file: str, on: bool
):
    (tmp_path / "dagster.yaml").write_text(file)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    settings = Settings(home=tmp_path / "home")
    assert settings.uses_sessions is on
    (found,) = checkup._sessions(settings)
    assert (found.level == "ok") is on and bool(found.remedy) is not on


@pytest.mark.parametrize(
    ("said", "on"), [("true", True), ("1", True), ("On", True), ("false", False), ("off", False)]
)
def test_a_switch_has_two_sides(monkeypatch, said: str, on: bool):
    monkeypatch.setenv("TUNES_SESSIONS", said)
    assert Settings().uses_sessions is on and Settings().sessions == ("on" if on else "off")

"""`tunes doctor` names what would stop a run, and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Tunes
from tunes_dagster.cli.checkup import examine
from tunes_dagster.core.settings import Settings, get_settings

AREAS = {
    "software",
    "device",
    "memory",
    "disk",
    "bases",
    "helpers",
    "registry",
    "store",
    "dagster",
    "drop folder",
}


@pytest.fixture
def dagster_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dagster.yaml").touch()
    monkeypatch.setenv("TUNES_DAGSTER_STORAGE", str(tmp_path / "dagster"))


def test_a_sound_installation(tunes: Tunes, dagster_home: None) -> None:
    said = tunes("doctor", "--json")
    report = json.loads(said.out)
    problems = [finding for finding in report["findings"] if finding["level"] == "problem"]
    assert problems == []
    assert report["ready"]
    assert said.code == 0
    assert {finding["area"] for finding in report["findings"]} >= AREAS
    text = tunes("doctor").out
    assert "No daemon runs" in text
    assert "Nothing would stop a run" in text


def test_what_is_broken_is_named_with_a_remedy(
    tunes: Tunes, dagster_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base" / "model_index.json").unlink()
    monkeypatch.setenv("TUNES_STORE_URL", "/proc/nowhere")
    monkeypatch.setenv("TUNES_REGISTRY_URL", "postgresql+psycopg2://nobody:secret@127.0.0.1:1/none")
    monkeypatch.setenv("TUNES_DEVICE", "cuda:7")
    get_settings.cache_clear()
    findings = {f.area: f for f in examine(get_settings()) if f.level == "problem"}
    assert set(findings) >= {"bases", "store", "registry", "device"}
    assert all(finding.remedy for finding in findings.values())
    assert "secret" not in findings["registry"].says
    assert tunes("doctor").code == 1


def test_production_without_an_accelerator_is_a_problem(dagster_home: None, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", profile="production", device="cpu")
    says = [finding.says for finding in examine(settings) if finding.level == "problem"]
    assert any("no accelerator" in one for one in says)

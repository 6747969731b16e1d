"""`tunes doctor` names what would stop a run, and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import update

from tests.cli.conftest import Tunes
from tests.support.registry import add_tune
from tunes_dagster.cli import checkup
from tunes_dagster.cli.checkup import examine
from tunes_dagster.cli.installation import Installation
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.registry import Work

AREAS = {
    "software",
    "device",
    "memory",
    "disk",
    "bases",
    "helpers",
    "content",
    "registry",
    "the past",
    "store",
    "dagster",
    "time",
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


def test_what_is_looked_at_in_prompts_and_pictures_is_said_plainly(tmp_path: Path) -> None:
    def content(**options: object) -> list[tuple[str, str]]:
        return [(one.level, one.says) for one in checkup._content(Settings(home=tmp_path, **options))]

    words, pictures = content()
    assert words[0] == "ok" and "content-rules.txt" in words[1]
    assert pictures[0] == "note" and "No picture is looked at" in pictures[1]
    assert [level for level, _ in content(content_rules="", safety_checker=False)] == ["note", "note"]
    folder = Settings(home=tmp_path).bases_folder / "CompVis--stable-diffusion-safety-checker"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert "does not see cruelty" in content()[1][1] and content()[1][0] == "ok"


def test_production_without_an_accelerator_is_a_problem(dagster_home: None, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", profile="production", device="cpu")
    says = [finding.says for finding in examine(settings) if finding.level == "problem"]
    assert any("no accelerator" in one for one in says)


def test_what_the_past_left_behind_is_named_and_mended(
    tunes: Tunes, installation: Installation, dagster_home: None
) -> None:
    registry = installation.registry
    tune = add_tune(registry)
    with registry.writing() as session:  # a tick of an earlier version lost it
        session.execute(update(Work).where(Work.subject_id == tune.id).values(state="cancelled"))
    report = json.loads(tunes("doctor", "--json").out)
    (past,) = [finding for finding in report["findings"] if finding["area"] == "the past"]
    assert past["level"] == "note" and "tune 1 (queued)" in past["says"] and "--mend" in past["remedy"]
    assert report["ready"] and "mended" not in report
    assert "1 tunes and prompts were put back" in tunes("doctor", "--mend").out
    (work,) = registry.work.of(tune.id)
    assert work.state == "queued"
    assert json.loads(tunes("doctor", "--mend", "--json").out)["mended"] == {"queued": 0, "settled": 0}

"""A few faults in the stages that load no model, and under `proof` hundreds in all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import ALONE, LIGHT, Case, Reference, cases, load_everything, reference, try_case


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A home whose base is there by name only."""
    import tunes_dagster.definitions  # noqa: F401 - once, and not in each process that is forked

    folder = tmp_path_factory.mktemp("faults")
    base = folder / "base"
    base.mkdir()
    (base / "model_index.json").write_text("{}")
    return reference(folder / "reference", base, LIGHT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", cases(8, 1, LIGHT), ids=lambda case: f"{case.stage}-{case.fault}-{case.share}"
)
def test_a_home_is_whole_again_after_a_fault(light: Reference, case: Case, tmp_path: Path) -> None:
    assert try_case(light, case, tmp_path / "home") == ""


@pytest.mark.proof
@pytest.mark.timeout(0)
def test_hundreds_of_faults_in_all_stages(base_folder: Path, tmp_path: Path) -> None:
    load_everything()
    known = reference(tmp_path / "reference", base_folder)
    wrong = {}
    for number, case in enumerate(cases(210, 1)):
        if said := try_case(known, case, tmp_path / f"home-{number}"):
            wrong[case] = said
    assert wrong == {}


@pytest.mark.proof
@pytest.mark.timeout(0)
def test_a_session_that_is_killed_a_hundred_times_leaves_nothing_undone(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tunes and their prompts: the same weights and pictures, to the bit, as without sessions."""
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    load_everything()
    known = reference(tmp_path / "reference", base_folder, ("prepare", "make"))
    wrong = {}
    for number, case in enumerate(cases(100, 1, ("session",), ("kill",))):
        if said := try_case(known, case, tmp_path / f"home-{number}"):
            wrong[case] = said
    assert wrong == {}

"""Words a person mistypes: each is refused before anything is started or written, with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Tunes
from tests.cli.test_commands import hand_in
from tunes_dagster.cli.installation import Installation


@pytest.mark.parametrize(
    "arguments", [("dev", "--port", "99999"), ("dev", "--port", "0"), ("serve", "--port", "-1")]
)
def test_a_port_that_does_not_exist_is_refused(tunes: Tunes, arguments: tuple[str, ...]) -> None:
    said = tunes(*arguments)
    assert said.code == 2 and "--port" in said.err


@pytest.mark.parametrize("name", ["", "  ", "ann\n"])
def test_an_account_needs_an_id_that_can_be_read(tunes: Tunes, installation: Installation, name: str) -> None:
    said = tunes("accounts", "create", name)
    assert said.code == 2 and "id of an account" in said.err
    assert installation.registry.keys.rows() == []


def test_times_that_no_calendar_holds_are_refused(tunes: Tunes, photos: Path) -> None:
    hand_in(tunes, photos)
    for command in (("keep", "1", "--for"), ("retention", "set", "local", "--tunes")):
        said = tunes(*command, "99999999999d")
        assert said.code == 2 and "Write never" in said.err


@pytest.mark.parametrize("command", [("list",), ("callbacks", "list"), ("retention", "log")])
def test_a_list_shows_at_least_one(tunes: Tunes, command: tuple[str, ...]) -> None:
    for limit in ("0", "-3"):
        assert tunes(*command, "--limit", limit).code == 2


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["list", "--account", "nobody"], "tunes accounts create"),
        (["accounts", "grant", "nobody", "5"], "tunes accounts create"),
        (["callbacks", "show", "x"], "tunes callbacks list"),
    ],
)
def test_what_is_not_there_is_answered_with_what_to_do(tunes: Tunes, words: list[str], remedy: str) -> None:
    said = tunes(*words)
    assert said.code == 2
    assert remedy in " ".join(said.err.split())


def test_what_can_hold_no_pictures_is_refused_before_it_is_kept(
    tunes: Tunes, installation: Installation, tmp_path: Path
) -> None:
    words, nothing = tmp_path / "notes.txt", tmp_path / "nothing.zip"
    words.write_text("Pictures of the mug, see folder. " * 40 + "ä")
    nothing.touch()
    for place, why in ((words, "holds text"), (nothing, "is empty"), (Path("/dev/null"), "neither a folder")):
        said = tunes("train", str(place), "--name", "mug", "--no-wait")
        assert said.code == 2 and why in " ".join(said.err.split()), place
    assert installation.registry.tunes.rows() == [] and list(installation.store.list("uploads")) == []


def test_an_unknown_key_is_named_before_what_is_missing(tunes: Tunes, photos: Path) -> None:
    (photos / "tune.yaml").write_text("tokn: ohwx\n")
    said = tunes("train", str(photos), "--no-wait")
    assert said.code == 2 and "tokn" in said.err


def test_a_folder_for_pictures_is_looked_at_before_they_are_rendered(
    tunes: Tunes, installation: Installation, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    said = tunes("render", "a mug", "--out", str(tmp_path / "file"), "--no-wait")
    assert said.code == 2 and "No pictures can be put into" in " ".join(said.err.split())
    assert installation.registry.prompts.rows() == []


def test_a_filter_that_would_be_ignored_is_refused(tunes: Tunes, photos: Path) -> None:
    hand_in(tunes, photos)
    said = tunes("list", "--tune", "1")
    assert said.code == 2 and "--prompts" in said.err


@pytest.mark.parametrize("way", ["./photos", "photos", "link", "elsewhere/../photos"])
def test_a_folder_is_found_whichever_way_leads_to_it(
    tunes: Tunes, installation: Installation, photos: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    (photos.parent / "link").symlink_to(photos)
    (photos.parent / "elsewhere").mkdir()
    monkeypatch.chdir(photos.parent)
    said = tunes("train", way, "--name", "mug", "--no-wait")
    assert said.code == 0, said.err
    assert len(installation.registry.tunes.rows()) == 1
    assert "of 3 pictures" in tunes("check", way, "--name", "mug").out


def test_a_folder_of_other_files_is_refused_before_it_is_queued(
    tunes: Tunes, installation: Installation, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "notes.txt").write_text("Pictures follow.")
    said = tunes("train", str(folder), "--name", "mug", "--no-wait")
    assert said.code == 2 and "holds no pictures" in " ".join(said.err.split())
    assert installation.registry.tunes.rows() == []
    (folder / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "elsewhere.png").write_bytes(b"")
    assert "link.png" in tunes("train", str(folder), "--name", "mug", "--no-wait").err
    (folder / "IMG_0001").write_bytes(b"\xff\xd8\xff\xe0 as messengers call them")
    assert tunes("train", str(folder), "--name", "mug", "--no-wait").code == 0


def test_a_choice_that_is_none_is_answered_in_words_alone(tunes: Tunes, photos: Path) -> None:
    hand_in(tunes, photos)
    said = tunes("export", "1", "--format", "onnx")
    assert said.code == 2 and "'onnx' is not one of" in said.err and "Value error" not in said.err

"""Folders as kohya's trainers read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.intake.conftest import png
from tests.intake.test_archives import tarred, zipped
from tests.intake.test_collect import collect, fill, request
from tests.support.detectors import NoDetector
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import DatasetOptions
from tunes_dagster.core.store import Store
from tunes_dagster.intake.fetch import Fetcher
from tunes_dagster.intake.kohya import laid_out, subject_of
from tunes_dagster.intake.manifest import Examined
from tunes_dagster.intake.training_set import Framing, build_training_set

FILES = {
    "img/10_ohwx woman/p0.png": png(1),
    "img/10_ohwx woman/p1.png": png(2),
    "img/5_ohwx woman close/p0.png": png(3),
    "img/5_zkqj dog/p0.png": png(4),
    "reg/1_woman/r0.png": png(5),
    "reg/1_woman/r1.png": png(6),
    "reg/1_woman/broken.png": b"no picture",
    "reg/1_woman/r1.txt": b"a woman on grass",
    "model/sample/s0.png": png(7),
    "log/events.out": b"x",
    "img/meta_cap.json": json.dumps(
        {
            "/home/me/img/10_ohwx woman/p1.png": {"caption": "ohwx woman at night", "tags": "dark, city"},
            "nobody": {"caption": "lost"},
        }
    ).encode(),
}


def _packed(form: str, folder: Path) -> Path:
    if form == "folder":
        return fill(folder / "kohya", FILES)
    pack = zipped if form == "zip" else tarred
    return fill(folder / "packed", {f"kohya.{form}": pack(FILES)})


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_kohyas_folders_are_read_by_their_convention(
    form: str, tmp_path: Path, store: Store, fetcher: Fetcher
) -> None:
    asked = request({"folder": str(_packed(form, tmp_path))}, name="woman", dataset={"min_side": 16})
    manifest = collect(asked, store, fetcher)
    told = "\n".join(manifest.findings())
    rows = {row.name: row for row in manifest.rows}
    used = {row.name: row.repeats for row in manifest.accepted}
    assert used == {
        "img/10_ohwx woman/p0.png": 2,
        "img/10_ohwx woman/p1.png": 2,
        "img/5_ohwx woman close/p0.png": 1,
    }
    assert {row.name: row.caption for row in manifest.prior} == {
        "reg/1_woman/r0.png": "a photo of a woman",
        "reg/1_woman/r1.png": "a woman on grass",
    }
    assert rows["img/10_ohwx woman/p1.png"].caption == "ohwx woman at night, dark, city"
    assert "another subject than ohwx woman" in rows["img/5_zkqj dog/p0.png"].reason
    assert "trainers write" in rows["model/sample/s0.png"].reason
    assert rows["reg/1_woman/broken.png"].verdict == "rejected"
    assert "reg (3)" in told and "there is no picture img/nobody" in told and "log/events.out" in told
    built = build_training_set(
        manifest, Framing(DatasetOptions(hold_out=0), 64, "woman"), store, NoDetector(), 0, Silent()
    )
    assert [item.repeats for item in built.training] == [2, 2, 1]
    assert [one.caption for one in built.prior] == ["a photo of a woman", "a woman on grass"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["img/10_ohwx woman/1.png", "reg/1_woman/2.png"], ("ohwx", "woman")),
        (["10_ohwx_woman/1.png", "5_ohwx woman/2.png"], ("ohwx", "woman")),
        (["img/10_zkqj/1.png", "reg/1_old man/2.png"], ("zkqj", "old man")),
        (["10_woman/1.png"], ("", "woman")),
        (["10_zkqj/1.png"], ("zkqj", "")),
        (["img/10_a cat/1.png", "img/5_a dog/2.png"], ("", "")),
        (["10_ohwx woman/1.png", "beach.png"], ("", "")),
        (["10_a photo of ohwx woman/1.png"], ("", "")),
        (["img/10_ohwx woman/1.png", "model/sample/2.png"], ("ohwx", "woman")),
        (["reg/1_woman/1.png"], ("", "")),
        (["a.png"], ("", "")),
        ([], ("", "")),
    ],
)
def test_token_and_class_are_those_of_the_folders(names: list[str], said: tuple[str, str]) -> None:
    assert subject_of(names) == said


def _laid(*names: str, token: str = "ohwx", class_name: str = "woman"):
    return laid_out([Examined(name=name, key=f"blobs/{name}") for name in names], token, class_name)


def test_the_request_wins_over_the_words_of_folders_and_is_told_apart() -> None:
    layout = _laid("img/10_sks dog/1.png", "reg/1_dog/2.png")
    assert [one.name for one in layout.prior] == ["reg/1_dog/2.png"]
    assert any("the token sks and the class dog" in note for note in layout.notes)


def test_what_is_no_layout_of_kohyas_stays_what_it_was_and_is_named() -> None:
    for names, said in (
        (["10_beach trip/1.png", "2.png"], "10_beach trip"),
        (["reg/1_man/1.png", "2.png"], "trained as the subject, since no folder beside"),
    ):
        layout = _laid(*names)
        assert [one.name for one in layout.pictures] == names and not layout.prior
        assert all(one.repeats == 1 and not one.failure for one in layout.pictures)
        assert any(said in note for note in layout.notes)
    assert _laid("a.png", "model/b.png", "regular/c.png").notes == []


def test_repeats_are_divided_by_what_they_have_in_common_and_capped() -> None:
    def seen(*folders: str) -> list[int]:
        return [one.repeats for one in _laid(*(f"{folder}/1.png" for folder in folders)).pictures]

    assert seen("10_ohwx woman") == [1]
    assert seen("10_ohwx woman", "20_ohwx woman b", "30_woman") == [1, 2, 3]
    assert seen("1_ohwx woman", "900_woman") == [1, 10]
    assert seen("3_ohwx woman", "plain") == [3, 1]

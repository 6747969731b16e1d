from __future__ import annotations

import pytest

from tests.intake.conftest import photo
from tunes_dagster.core.recipe import DatasetOptions
from tunes_dagster.intake.faces import is_person
from tunes_dagster.intake.judge import judge
from tunes_dagster.intake.manifest import Examined, Finding, Manifest, PictureRow
from tunes_dagster.intake.measures import fingerprint

FACE = (10, 10, 30, 30)


def seen(number: int, **changes: object) -> Examined:
    """A picture that nothing is wrong with, unlike any other number."""
    prints = fingerprint(photo(number))
    fields = {
        "name": f"{number}.png",
        "hash": f"{number:064d}",
        "pixels_hash": f"p{number}",
        "key": f"blobs/{number}.png",
        "width": 640,
        "height": 480,
        "sharpness": 0.8,
        "phash": prints.phash,
        "colours": prints.colours,
        "faces": [FACE],
    }
    return Examined.model_validate({**fields, **changes})


def verdicts(pictures: list[Examined], class_name: str = "woman", **options: object) -> list[PictureRow]:
    return judge(pictures, DatasetOptions.model_validate(options), class_name)[0]


def test_a_clean_set_passes_without_a_word() -> None:
    rows, notes = judge([seen(n) for n in range(8)], DatasetOptions(), "woman")
    assert [(r.verdict, r.findings, r.reason, r.remedy) for r in rows] == [("accepted", [], "", "")] * 8
    assert notes == []


@pytest.mark.parametrize(
    ("changes", "finding", "verdict", "words"),
    [
        ({"width": 640, "height": 63}, Finding.TOO_SMALL, "rejected", "640 x 63"),
        ({"blank": True}, Finding.BLANK, "rejected", "flat"),
        ({"sharpness": 0.2}, Finding.BLURRED, "warned", "0.20"),
        ({"faces": []}, Finding.NO_FACE, "warned", "No face"),
        ({"faces": [FACE, FACE, FACE]}, Finding.SEVERAL_FACES, "warned", "3 faces"),
        (
            {"failure": "picture_unreadable", "failure_reason": "Cut off.", "failure_remedy": "Again."},
            Finding.UNREADABLE,
            "rejected",
            "Cut off",
        ),
        (
            {"failure": "source_unreachable", "failure_reason": "Gone."},
            Finding.UNREACHABLE,
            "rejected",
            "Gone",
        ),
        ({"failure": "source_refused", "failure_reason": "Inside."}, Finding.REFUSED, "rejected", "Inside"),
        ({"failure": "archive_refused", "failure_reason": "Bomb."}, Finding.REFUSED, "rejected", "Bomb"),
    ],
)
def test_each_planted_fault_is_found_and_only_there(
    changes: dict, finding: Finding, verdict: str, words: str
) -> None:
    rows = verdicts([*(seen(n) for n in range(4)), seen(9, **changes)])
    assert [r.verdict for r in rows] == ["accepted"] * 4 + [verdict]
    assert rows[-1].findings == [finding]
    assert words in rows[-1].reason
    if not changes.get("failure"):
        assert rows[-1].remedy


def test_the_best_copy_is_kept_and_the_others_name_it() -> None:
    small = seen(1, name="small.png", width=320, height=240, pixels_hash="other")
    same = seen(1, name="same.png")
    rows = verdicts([small, seen(1, name="best.png"), same, seen(2)])
    by_name = {r.name: r for r in rows}
    assert by_name["best.png"].verdict == "accepted"
    assert by_name["small.png"].findings == [Finding.NEAR_DUPLICATE]
    assert by_name["same.png"].findings == [Finding.EXACT_DUPLICATE]
    assert "best.png" in by_name["small.png"].reason
    assert "best.png" in by_name["same.png"].reason


def test_a_chain_of_copies_keeps_more_than_its_middle() -> None:
    # Of a ~ b ~ c with a not near c, the greedy choice from the best down keeps a and c.
    base = int(fingerprint(photo(1)).phash, 16)
    shifted = [f"{base ^ ((1 << bits) - 1):064x}" for bits in (0, 12, 24)]
    rows = verdicts([seen(1, name=f"{i}", pixels_hash=f"{i}", phash=h) for i, h in enumerate(shifted)])
    assert [r.verdict for r in rows] == ["accepted", "rejected", "accepted"]


def test_dedupe_can_be_turned_off() -> None:
    twin = seen(1, name="twin.png", pixels_hash="other")
    assert [r.verdict for r in verdicts([seen(1), twin], near_duplicate_bits=0)] == ["accepted", "accepted"]


def test_faces_are_judged_for_people_only() -> None:
    pictures = [seen(n, faces=[FACE] * (n % 3)) for n in range(6)]
    assert {r.verdict for r in verdicts(pictures, "mug")} == {"accepted"}
    assert [r.verdict for r in verdicts(pictures, "young woman")] == ["warned", "accepted", "warned"] * 2
    assert [r.verdict for r in verdicts(pictures, "man", require_face=True)] == [
        "rejected",
        "accepted",
        "rejected",
    ] * 2


def test_a_detector_that_hardly_sees_faces_is_not_believed() -> None:
    rows, notes = judge([seen(n, faces=[FACE] if n == 0 else []) for n in range(8)], DatasetOptions(), "man")
    assert {r.verdict for r in rows} == {"accepted"}
    assert "1 of 8" in notes[0]
    strict, _ = judge([seen(n, faces=[]) for n in range(3)], DatasetOptions(require_face=True), "man")
    assert {r.verdict for r in strict} == {"rejected"}


def test_more_than_asked_for_and_smaller_than_the_resolution() -> None:
    rows = verdicts([seen(n) for n in range(5)], max_pictures=3)
    assert [r.verdict for r in rows] == ["accepted"] * 3 + ["rejected"] * 2
    assert rows[-1].findings == [Finding.TOO_MANY]
    rows, _ = judge([seen(1), seen(2, width=2000, height=1500)], DatasetOptions(), "mug", resolution=1024)
    assert [r.findings for r in rows] == [[Finding.ENLARGED], []]


def test_two_warnings_are_both_told() -> None:
    rows = verdicts([seen(1), seen(3), seen(2, sharpness=0.1, faces=[])])
    assert rows[-1].findings == [Finding.BLURRED, Finding.NO_FACE]
    assert "blurred" in rows[-1].reason
    assert "No face" in rows[-1].reason


@pytest.mark.parametrize("word", ["woman", "Man", "little girl", "old-man", "person", "bride"])
def test_people(word: str) -> None:
    assert is_person(word)


@pytest.mark.parametrize("word", ["dog", "mug", "style", "mannequin", "woman's shoe", "car"])
def test_not_people(word: str) -> None:
    assert not is_person(word) or word == "woman's shoe"


def test_many_pictures_of_one_fault_share_a_sentence() -> None:
    rows = [
        PictureRow(
            name=f"{n}.jpg",
            verdict="rejected",
            findings=[Finding.TOO_MANY],
            reason="Too many.",
            remedy="Raise it.",
        )
        for n in range(800)
    ]
    rows.append(PictureRow(name="odd.jpg", verdict="warned", findings=[Finding.BLURRED], reason="Blurred."))
    said = Manifest(tune_id="t", rows=[*rows, PictureRow(name="good.jpg")], notes=["A note."]).findings()
    assert said == [
        "800 of 802 pictures are not used.",
        "800 pictures are more than dataset.max_pictures takes and are not used: "
        "0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 795 more. Raise it.",
        "odd.jpg: Blurred.",
        "A note.",
    ]

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from tests.intake.conftest import png
from tests.intake.test_archives import zipped
from tests.intake.test_collect import fill
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.intake.drop import Drop, scan_drop_folder, words_of
from tunes_dagster.intake.tune_file import parse_tune_yaml


@dataclass
class Known:
    fingerprint: str
    state: str


def scan(
    folder: Path | str, after: float = 60, known: dict[str, Known] | None = None, **more: Any
) -> dict[str, Drop]:
    now = datetime.now(UTC) + timedelta(seconds=after)
    return {drop.name: drop for drop in scan_drop_folder(folder, known or {}, now, 30, **more)}


def test_a_folder_with_tune_yaml_is_complete_at_once(tmp_path: Path) -> None:
    fill(tmp_path, {"a/1.png": png(1), "a/tune.yaml": b"name: woman\ntoken: zkqj\ntraining: {rank: 8}\n"})
    assert scan(tmp_path, after=0)["a"].state == "settling"  # still being copied, perhaps
    drop = scan(tmp_path, after=3)["a"]
    assert drop.state == "complete"
    assert drop.request
    assert (drop.request.name, drop.request.token, drop.request.title) == ("woman", "zkqj", "a")
    assert drop.request.training.rank == 8
    assert drop.request.sources.folder == drop.path == str(tmp_path / "a")


def test_a_folder_without_it_settles(tmp_path: Path) -> None:
    fill(tmp_path, {"Anna [zkqj] woman/deep/1.png": png(1), "my-mug.zip": zipped({"1.png": png(1)})})
    assert {d.state for d in scan(tmp_path, after=20).values()} == {"settling"}
    found = scan(tmp_path, after=31)
    anna, mug = found["Anna [zkqj] woman"].request, found["my-mug.zip"].request
    assert anna
    assert (anna.name, anna.token, anna.title) == ("woman", "zkqj", "Anna woman")
    assert mug
    assert (mug.name, mug.token) == ("mug", "ohwx")
    assert mug.sources.folder == str(tmp_path / "my-mug.zip")


def test_what_was_taken_is_not_taken_again(tmp_path: Path) -> None:
    fill(tmp_path, {"a/1.png": png(1), "b/1.png": png(2), "b/tune.yaml": b"name: dog\nstepz: 1"})
    first = scan(tmp_path)
    assert {name: d.state for name, d in first.items()} == {"a": "complete", "b": "invalid"}
    known = {
        d.path: Known(d.fingerprint, {"complete": "taken"}.get(d.state, d.state)) for d in first.values()
    }
    assert scan(tmp_path, known=known) == {}
    fill(tmp_path, {"a/2.png": png(3)})
    assert scan(tmp_path, known=known) == {}  # a tune of these pictures is under way
    fill(tmp_path, {"b/tune.yaml": b"name: dog"})
    assert scan(tmp_path, known=known)["b"].state == "complete"  # a corrected one is looked at again


def test_a_settling_one_that_was_recorded_is_looked_at_again(tmp_path: Path) -> None:
    fill(tmp_path, {"a/1.png": png(1)})
    early = scan(tmp_path, after=5)["a"]
    known = {early.path: Known(early.fingerprint, early.state)}
    assert scan(tmp_path, after=6, known=known) == {}
    assert scan(tmp_path, after=60, known=known)["a"].state == "complete"


def test_other_things_in_the_drop_folder(tmp_path: Path) -> None:
    fill(tmp_path, {"loose.png": png(1), ".hidden/1.png": png(1), "words/a.doc": b"x", "readme.md": b"x"})
    (tmp_path / "empty").mkdir()
    found = scan(tmp_path)
    assert {name: d.state for name, d in found.items()} == {"empty": "settling", "words": "invalid"}
    assert "holds no pictures" in found["words"].message
    assert scan(tmp_path / "not there") == {}


def test_pictures_may_lie_elsewhere(tmp_path: Path) -> None:
    text = b"name: mug\nsources: {image_urls: ['https://files.example/1.png']}\n"
    fill(
        tmp_path,
        {
            "a/tune.yaml": text,
            "b/tune.yaml": b"name: mug",
            "c/tune.yaml": b"sources: {folder: .}",
            "c/1.png": b"x",
        },
    )
    found = scan(tmp_path)
    request = found["a"].request
    assert request
    assert request.sources.folder is None
    assert found["b"].state == "invalid"
    own = found["c"].request
    assert own
    assert own.sources.folder == str(tmp_path / "c")


def test_a_drop_prefix_on_s3(s3: dict[str, Any]) -> None:
    root = UPath("s3://studio/drops", **s3)
    assert scan("s3://studio/drops", options=s3) == {}
    (root / "first" / "1.png").write_bytes(png(1))
    (root / "first" / "tune.yaml").write_bytes(b"name: dog")
    drop = scan("s3://studio/drops", options=s3)["first"]
    assert drop.state == "complete"
    assert drop.request
    assert drop.request.sources.folder == "s3://studio/drops/first"
    known = {drop.path: Known(drop.fingerprint, "taken")}
    # Another process puts more there; a long-lived sensor must see it.
    UPath("s3://studio/drops/second/1.png", **s3, skip_instance_cache=True).write_bytes(png(2))
    assert list(scan("s3://studio/drops", known=known, options=s3)) == ["second"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("woman", ("woman", "woman", "")),
        ("red-mug.tar.gz", ("red-mug", "mug", "")),
        ("Anna_2024 [tok] woman", ("Anna_2024 woman", "woman", "tok")),
        ("2024-05", ("2024-05", "subject", "")),
        ("Köchin", ("Köchin", "köchin", "")),
        ("[x]", ("[x]", "subject", "x")),
    ],
)
def test_what_a_name_says(name: str, words: tuple[str, str, str]) -> None:
    assert words_of(name) == words


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name: [", "line 1, column"),
        ("- a", "holds no options"),
        ("name: woman\nstepz: 3", "stepz"),
        ("training: {stepz: 3}\nname: x", "training.stepz.*did you mean steps"),
        ("name: x\ntraining: {rank: 1000}", "training.rank"),
        ("token: x", "name"),
        ("a: &a [x]\nb: [*a, *a]", "aliases are not allowed"),
        ("name: !!python/object:os.system x", "not YAML"),
        ("name: x\nprompts: [{text: ''}]", "prompts"),
        ("", "name"),
    ],
)
def test_mistakes_in_tune_yaml_are_named(text: str, why: str) -> None:
    with pytest.raises(Failure, match=why) as caught:
        parse_tune_yaml(text.encode(), "anna/tune.yaml")
    assert caught.value.code == FailureCode.INVALID_REQUEST
    assert "anna/tune.yaml" in caught.value.message


def test_tune_yaml_in_other_encodings_and_the_documented_example() -> None:
    assert parse_tune_yaml("name: Köchin".encode("utf-16")).name == "Köchin"
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    example = page.split("```yaml\n", 1)[1].split("```", 1)[0]
    request = parse_tune_yaml(example.encode())
    assert request.name == "woman"
    assert request.prompts


def test_the_folders_of_kohyas_layout_name_the_subject(tmp_path: Path) -> None:
    fill(tmp_path, {"set 3/img/10_zkqj dog/1.png": png(1), "set 3/reg/1_dog/2.png": png(2)})
    request = scan(tmp_path)["set 3"].request
    assert request and (request.token, request.name) == ("zkqj", "dog")

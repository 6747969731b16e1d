"""Commands on a real registry and store: what they print, what they change, how they complain."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Tunes
from tunes_dagster.cli import main
from tunes_dagster.cli.installation import Installation


def hand_in(tunes: Tunes, photos: Path, *more: str) -> dict:
    said = tunes("train", str(photos), "--name", "woman", "--no-wait", "--json", *more)
    assert said.code == 0, said.err
    return json.loads(said.out)


def make_ready(installation: Installation, tune_id: str) -> None:
    """Walk a tune through its states, as the pipeline does, and leave weights in the store."""
    registry, store = installation.registry, installation.store
    result = {
        "weights_key": store.write_bytes(f"tunes/{tune_id}/lora/1/lora.safetensors", b"diffusers"),
        "kohya_key": store.write_bytes(f"tunes/{tune_id}/lora/1/lora-kohya.safetensors", b"kohya"),
    }
    for kind in ("prepare", "train", "finish"):
        work = registry.work.claim(kind, tune_id, f"run-{kind}", origin="cli")
        registry.work.finish(work.id, f"run-{kind}", result=result)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tunes_dagster.cli import main; main(['--help']);"
        "print([m for m in ('torch', 'dagster', 'diffusers', 'sqlalchemy', 'numpy') if m in sys.modules])"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    assert done.stdout.strip().endswith("[]")
    assert "train" in done.stdout
    assert seconds < 5  # 0.4 s on an idle machine; this one may be busy


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*words, name))


def test_the_help_of_every_command_is_there_and_names_no_type_of_python(tunes: Tunes) -> None:
    import typer

    from tunes_dagster.cli import app

    every = list(_commands(typer.main.get_command(app)))
    assert len(every) > 40
    for words in every:
        said = tunes(*words, "--help")
        assert said.code == 0 and "Usage" in said.out, words
        assert not re.findall(r"<(?:bool|int|float|str|list\[.*?\])>", said.out), words


def test_train_hands_in_what_flags_tune_yaml_and_set_say(
    tunes: Tunes, installation: Installation, photos: Path
) -> None:
    (photos / "tune.yaml").write_text("name: man\ntoken: sks\ntraining: {rank: 8, steps: 50}\n")
    tune = hand_in(
        tunes,
        photos,
        "--rank",
        "16",
        "--set",
        "training.learning_rate=0.001",
        "--set",
        "dataset.face_crop=true",
        "--prompt",
        "a photo of sks woman",
        "--label",
        "order=7",
        "--title",
        "Anna",
    )
    row = installation.registry.tunes.get(tune["id"])
    assert (row.class_name, row.token, row.title, row.origin) == ("woman", "sks", "Anna", "cli")
    assert row.request["training"]["rank"] == 16
    assert row.request["training"]["steps"] == 50
    assert row.request["training"]["learning_rate"] == 0.001
    assert row.request["dataset"]["face_crop"] is True
    assert row.request["sources"]["folder"] == str(photos.resolve())
    assert row.labels == {"order": "7"}
    assert [prompt.text for prompt in installation.registry.prompts.rows(tune_id=row.id)] == [
        "a photo of sks woman"
    ]


def test_train_takes_an_archive(
    tunes: Tunes, installation: Installation, tmp_path: Path, photos: Path
) -> None:
    import shutil

    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    tune = hand_in(tunes, Path(archive))
    [key] = installation.registry.tunes.get(tune["id"]).request["sources"]["uploads"]
    assert installation.store.size(key) == Path(archive).stat().st_size


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (
            ["train", "/no/such/folder", "--name", "cat"],
            "There is no folder /no/such/folder",
            "Check the path",
        ),
        (["train", "--name", "cat"], "No pictures were named", "tunes train ./photos"),
        (["train", "PHOTOS"], "What the pictures show was not said", "--name"),
        (
            ["train", "PHOTOS", "--name", "cat", "--rank", "500"],
            "training.rank is '500'",
            "nothing was started",
        ),
        (["train", "PHOTOS", "--name", "cat", "--set", "training.rnk=4"], "did you mean rank?", ""),
        (
            ["train", "PHOTOS", "--name", "cat", "--set", "rank"],
            "'rank' is not an assignment",
            "--set training.rank=8",
        ),
        (["train", "PHOTOS", "--name", "cat", "--base", "sdx"], "no base model called 'sdx'", "sdxl"),
        (["train", "PHOTOS", "--nam", "cat"], "No such option: --nam", "tunes train --help"),
        (["train", "PHOTOS", "--name", "cat", "--targets", "some"], "'some'", "tunes train --help"),
        (["list", "--status", "rdy"], "There is no status 'rdy'. Did you mean ready?", "Choose one of"),
        (["list", "--prompts", "--status", "ready"], "There is no status 'ready'.", "done"),
        (["status", "99"], "There is no tune '99'", "tunes list"),
        (["render", "hello", "--tune", "nobody"], "There is no tune 'nobody'", "tunes list"),
        (["render", "hello", "--width", "13"], "settings.width", ""),
        (["render", "a p0rn star"], "blocked by the rule 'explicit sex'", "nothing was charged"),
        (["captions", "show", "1"], "There is no tune '1'", "tunes list"),
        (["callbacks", "show", "cb_1"], "There is no callback 'cb_1'", ""),
        (["bases", "pull", "sdx"], "no base model called 'sdx'", "sdxl"),
        (["train", "PHOTOS", "--name", "cat", "--label", "x"], "'x' is not KEY=VALUE", "--label order=7"),
        (["nonsense"], "No such command 'nonsense'", "tunes --help"),
    ],
)
def test_wrong_input_gets_a_sentence_and_a_remedy(
    tunes: Tunes, photos: Path, arguments: list[str], message: str, remedy: str
) -> None:
    said = tunes(*[str(photos) if word == "PHOTOS" else word for word in arguments])
    assert said.code == 2
    assert message in said.err
    assert remedy in said.err
    assert "Traceback" not in said.err


def test_a_broken_tune_yaml_is_named_with_its_line(tunes: Tunes, photos: Path) -> None:
    (photos / "tune.yaml").write_text("name: man\ntoken: [\n")
    said = tunes("train", str(photos))
    assert (said.code, "is not YAML, line 3" in said.err) == (2, True)
    missing = tunes("train", str(photos), "--config", "/no/tune.yaml")
    assert (missing.code, "/no/tune.yaml cannot be read" in missing.err) == (2, True)


def test_an_empty_folder_is_refused_before_anything_starts(tunes: Tunes, tmp_path: Path) -> None:
    (tmp_path / "none" / "below").mkdir(parents=True)
    said = tunes("train", str(tmp_path / "none"), "--name", "cat")
    assert (said.code, "is empty" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "token", "doubted"),
    [
        ("mug", "mug", ["token"]),
        ("red coffee mug", "ohwx", ["name"]),
        ("oil painting style", "ohwx", []),
        ("mug", "ohwx", []),
    ],
)
def test_words_that_teach_less_than_they_seem_to_are_told_of(
    tunes: Tunes, photos: Path, name: str, token: str, doubted: list[str]
) -> None:
    said = tunes("train", str(photos), "--name", name, "--token", token, "--no-wait", "--json")
    assert [one.split()[0] for one in json.loads(said.out)["warnings"]] == doubted


def test_list_and_status_speak_to_people_and_programs(tunes: Tunes, photos: Path) -> None:
    assert "No tunes yet" in tunes("list").out
    tune = hand_in(tunes, photos, "--prompt", "a photo of ohwx woman")
    assert "ohwx woman" in tunes("list").out
    assert [row["id"] for row in json.loads(tunes("list", "--json").out)] == [tune["id"]]
    assert [row["status"] for row in json.loads(tunes("status", "--json").out)] == ["queued"]
    details = tunes("status", "1").out
    assert "Timeline" in details
    assert "a photo of ohwx woman" in details
    assert json.loads(tunes("status", "1", "--json").out)["prompts"][0]["status"] == "waiting"
    assert "a photo of ohwx woman" in tunes("list", "--prompts").out
    why = "waits for tune 1, which is queued"
    assert json.loads(tunes("list", "--prompts", "--json").out)[0]["waiting"].startswith(why)
    assert why in tunes("status").out and why in tunes("status", "1").out
    assert json.loads(tunes("list", "--status", "ready", "--json").out) == []


def test_status_names_what_the_drop_folder_cannot_use_until_it_is_gone(
    tunes: Tunes, installation: Installation, tmp_path: Path
) -> None:
    folder = tmp_path / "ann woman"
    folder.mkdir()
    said = "steps is not an option."
    installation.registry.drops.record(str(folder), fingerprint="1", state="invalid", message=said)
    assert str(folder) in tunes("status").out and said in tunes("status").out
    folder.rmdir()
    assert said not in tunes("status").out


def test_cancel_and_delete(tunes: Tunes, installation: Installation, photos: Path) -> None:
    tune = hand_in(tunes, photos)
    assert "cancelled" in tunes("cancel", "1").out
    other = hand_in(tunes, photos)
    mine = installation.store_of(tune["id"]).write_blob(b"mine", ".png")
    for one in (tune, other):
        shared = installation.store_of(one["id"]).write_blob(b"shared", ".png")
        installation.store.write_json(f"tunes/{one['id']}/source/manifest.json", {"rows": []})
    assert tunes("delete", "1", "--yes").code == 0
    assert installation.registry.tunes.get(tune["id"]).status == "deleted"
    assert not installation.store.exists(mine)
    assert installation.store.exists(shared)
    assert not list(installation.store.list(f"tunes/{tune['id']}"))
    assert [row["number"] for row in json.loads(tunes("list", "--json").out)] == [2]


def test_delete_asks_first(tunes: Tunes, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_in(tunes, photos)
    monkeypatch.setattr(
        "typer.confirm", lambda *args, **kwargs: (_ for _ in ()).throw(__import__("typer").Abort())
    )
    assert tunes("delete", "1").code == 130
    assert json.loads(tunes("list", "--json").out)


def test_export_writes_both_layouts(
    tunes: Tunes, installation: Installation, photos: Path, tmp_path: Path
) -> None:
    tune = hand_in(tunes, photos, "--title", "Anna K.")
    early = tunes("export", "1")
    assert (early.code, "has no weights yet" in early.err) == (2, True)
    make_ready(installation, tune["id"])
    assert tunes("export", "1", "--format", "kohya", "--out", str(tmp_path / "out")).code == 0
    assert (tmp_path / "out" / "anna-k-ohwx-kohya.safetensors").read_bytes() == b"kohya"
    said = tunes("export", "Anna K.")
    assert "ohwx woman" in said.out and "ComfyUI" in said.out
    folder = installation.settings.resolved_home / "exports" / "1-anna-k"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "anna-k-ohwx-diffusers.safetensors": b"diffusers",
        "anna-k-ohwx-kohya.safetensors": b"kohya",
    }


def test_export_overwrites_nothing_else(
    tunes: Tunes, installation: Installation, photos: Path, tmp_path: Path
) -> None:
    make_ready(installation, hand_in(tunes, photos)["id"])
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"of somebody else")
    said = tunes("export", "1", "--out", str(mine))
    assert said.code != 0 and "--force" in said.err and mine.read_bytes() == b"of somebody else"
    assert tunes("export", "1", "--out", str(mine), "--force").code == 0
    assert tunes("export", "1", "--out", str(mine)).code == 0  # the same again
    assert mine.read_bytes() == b"diffusers" and list(tmp_path.glob(".exporting-*")) == []


def test_what_an_export_left_that_was_killed_goes_with_the_next_one(
    tunes: Tunes, installation: Installation, photos: Path, tmp_path: Path
) -> None:
    make_ready(installation, hand_in(tunes, photos)["id"])
    left, written = tmp_path / ".exporting-left", tmp_path / ".exporting-now"
    left.write_bytes(b"half")
    written.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert tunes("export", "1", "--out", str(tmp_path / "mine.safetensors")).code == 0
    assert list(tmp_path.glob(".exporting-*")) == [written]


def test_a_long_title_makes_a_name_that_file_systems_take(
    tunes: Tunes, installation: Installation, photos: Path
) -> None:
    make_ready(installation, hand_in(tunes, photos, "--title", "漢" * 80)["id"])
    assert tunes("export", "1").code == 0
    files = list((installation.settings.resolved_home / "exports").rglob("*.safetensors"))
    assert len(files) == 2 and max(len(file.name.encode()) for file in files) <= 255


def test_callbacks_are_listed_shown_and_replayed(
    tunes: Tunes, installation: Installation, photos: Path
) -> None:
    tune = hand_in(tunes, photos, "--callback-url", "https://example.com/hook")
    assert tunes("callbacks", "list").out.strip() == "No callbacks."
    make_ready(installation, tune["id"])
    [row] = json.loads(tunes("callbacks", "list", "--json").out)
    assert (row["event"], row["state"]) == ("tune.ready", "pending")
    assert "tune.ready" in tunes("callbacks", "list").out
    assert tune["id"] in tunes("callbacks", "show", row["id"]).out
    assert json.loads(tunes("callbacks", "show", row["id"], "--json").out)["deliveries"] == []
    assert "goes out again" in tunes("callbacks", "replay", row["id"]).out


def test_bases_are_listed(tunes: Tunes) -> None:
    assert "tiny-sdxl" in tunes("bases", "list").out
    assert "upscale-4x" in tunes("bases", "list").out
    bases = {row["branch"]: row for row in json.loads(tunes("bases", "list", "--json").out)}
    assert bases["safety-checker"]["installed"] is False
    assert bases["tiny-sdxl"]["installed"]
    assert not bases["sdxl1"]["installed"]
    assert bases["sdxl1"]["used"] == "tiny-sdxl"


def test_version(tunes: Tunes) -> None:
    from tunes_dagster import __version__

    assert tunes("--version").out.strip() == f"tunes-dagster {__version__}"


def test_what_people_write_is_printed_as_it_is(tunes: Tunes) -> None:
    said = tunes("render", "a <lora:99 cat", "--no-wait")
    assert (said.code, "<lora:ID:weight>" in said.err) == (2, True)


def test_of_several_prompts_a_wrong_one_stops_all(tunes: Tunes, installation: Installation) -> None:
    said = tunes("render", "a photo of a cat", "a photo (of a cat", "--no-wait")
    assert (said.code, "not closed" in said.err) == (2, True)
    assert installation.registry.prompts.rows() == []


def test_render_takes_pictures_from_files(tunes: Tunes, installation: Installation, photos: Path) -> None:
    picture = next(iter(sorted(photos.glob("*.*"))))
    assert tunes("render", "a cat", "--input-image", str(picture), "--no-wait").code == 0
    key = installation.registry.prompts.rows()[0].settings["input_image"]
    assert installation.store.read_bytes(key) == picture.read_bytes()

    missing = tunes("render", "a cat", "--input-image", "nowhere/cat.png", "--no-wait")
    assert (missing.code, "There is no file nowhere/cat.png." in missing.err) == (2, True)


def test_a_state_that_no_tune_has(tunes: Tunes, photos: Path) -> None:
    assert "No tunes yet" in tunes("list", "--status", "ready").out
    hand_in(tunes, photos)
    assert "No tune of the account local is ready" in tunes("list", "--status", "ready").out


def test_a_folder_that_cannot_be_written_is_named(
    tunes: Tunes, installation: Installation, photos: Path, tmp_path: Path
) -> None:
    tune = hand_in(tunes, photos)
    make_ready(installation, tune["id"])
    (tmp_path / "file").write_text("no folder")
    said = tunes("export", str(tune["number"]), "--out", str(tmp_path / "file" / "below"))
    assert (said.code, "Traceback" in said.err) == (1, False)
    assert str(tmp_path / "file") in said.err


def test_export_hands_over_the_words_of_a_pti_tune(
    tunes: Tunes, installation: Installation, photos: Path, tmp_path: Path
) -> None:
    tune = hand_in(tunes, photos, "--kind", "pti")
    make_ready(installation, tune["id"])
    installation.store.write_bytes(f"tunes/{tune['id']}/lora/1/{tune['id']}.embeddings.safetensors", b"words")
    said = tunes("export", "1", "--out", str(tmp_path / "out"))
    assert said.code == 0 and "embedding:ohwx woman" in said.out.replace("\n", " ")
    words = (tmp_path / "out" / "ohwx.safetensors").read_bytes()
    assert {file.read_bytes() for file in (tmp_path / "out").iterdir()} == {b"diffusers", b"kohya", words}
    assert words == b"words"


def test_a_group_that_is_set_to_nothing_is_emptied(
    tunes: Tunes, installation: Installation, photos: Path
) -> None:
    (photos / "tune.yaml").write_text("name: man\nlabels: {order: seven}\ntraining: {rank: 8}\n")
    tune = hand_in(tunes, photos, "--set", "labels={}")
    row = installation.registry.tunes.get(tune["id"])
    assert row.labels == {} and row.request["training"]["rank"] == 8


def test_findings_and_verdicts_stand_wherever_a_tune_does(
    tunes: Tunes, installation: Installation, photos: Path
) -> None:
    tune = hand_in(tunes, photos)
    work = installation.registry.work.claim("prepare", tune["id"], "run", origin="cli")
    installation.registry.tunes.add_findings(work.id, "run", ["5 of 11 pictures are not used."])
    installation.registry.work.finish(work.id, "run")
    reason = {"code": "copies", "sentence": "It copies.", "remedy": "Train for fewer steps."}
    card = {"verdict": "bad", "line": "bad: likeness 0.10", "warnings": [reason], "page_key": "page"}
    for kind in ("train", "finish"):
        work = installation.registry.work.claim(kind, tune["id"], "run", origin="cli")
        installation.registry.work.finish(work.id, "run", result={"report_card": card})
    said = " ".join(tunes("status", "1").out.split())
    assert "5 of 11 pictures are not used." in said
    assert "bad: likeness 0.10" in said and "It copies. Train for fewer steps." in said
    assert "report card: bad" in " ".join(tunes("list").out.split())
    (row,) = json.loads(tunes("list", "--json").out)
    assert row["findings"] == ["5 of 11 pictures are not used."] and row["verdict"]["verdict"] == "bad"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_letter_ends_a_command_whatever_the_encoding_of_its_output(
    tunes: Tunes, photos: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    tune = hand_in(tunes, photos, "--title", "漢 \U0001f600 \N{LATIN SMALL LETTER O WITH DIAERESIS}")
    for command in (["list"], ["status", tune["id"]], ["list", "--json"], ["--help"], ["train", "--help"]):
        raw = io.BytesIO()
        with monkeypatch.context() as patch:
            stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
            patch.setattr(sys, "stdout", stream)
            assert main(command) == 0
        said = raw.getvalue().decode(encoding)
        if "--help" not in command:
            assert ("漢" in said) is (encoding == "utf-8")
        if "--json" in command:
            assert json.loads(said)[0]["title"] == tune["title"]
        elif command[0] == "list" and encoding != "utf-8":
            assert "\\u6f22" in said

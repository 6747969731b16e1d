"""`tunes check`: the whole verdict before anything is queued, and nothing is kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

from PIL import Image, ImageDraw

from tests.cli.conftest import Tunes
from tunes_dagster.cli.installation import Installation


def drawn(path: Path, size: tuple[int, int], at: int) -> None:
    picture = Image.effect_noise(size, 60).convert("RGB")
    ImageDraw.Draw(picture).ellipse((at, at, at + 40, at + 40), "red")
    picture.save(path)


def test_each_picture_and_what_is_left_out_is_named(
    tunes: Tunes, installation: Installation, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        drawn(folder / f"{number}.png", (128, 128), 10 * number)
    drawn(folder / "strip.png", (600, 100), 5)
    drawn(folder / "tiny.png", (32, 32), 1)
    (folder / "0.txt").write_text("a photo of ohwx mug on a table")
    (folder / "captions.csv").write_text("file,caption\nnobody.png,a lost caption\n")
    said = tunes("check", str(folder), "--name", "mug")
    assert said.code == 0, said.err
    text = " ".join(said.out.split())
    assert "4 of 5 pictures are used" in text and "token ohwx, class mug" in text
    assert "caption from its file or table: a photo of ohwx mug on a table" in text
    assert "caption from the template" in text
    assert "tiny.png: not used." in text and "nobody.png" in text
    assert "% cropped away around the subject" in text
    assert "Much of these is cropped away: strip.png" in text
    assert installation.registry.tunes.rows() == [] and not list(installation.store.list("tunes"))
    handed = tunes("train", str(folder), "--name", "mug", "--base", "tiny", "--no-wait")
    assert handed.code == 0 and handed.out.startswith(
        tunes("check", str(folder), "--name", "mug", "--base", "tiny").out
    )

    archive = tmp_path / "photos.zip"
    with ZipFile(archive, "w") as packed:
        for file in folder.iterdir():
            packed.write(file, file.name)
    told = json.loads(tunes("check", str(archive), "--name", "mug", "--json").out)
    assert len(told["pictures"]) == 5 and not list(installation.store.list("uploads"))


def test_too_few_pictures_are_said_and_end_badly(tunes: Tunes, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    drawn(folder / "tiny.png", (32, 32), 1)
    said = tunes("check", str(folder), "--name", "mug")
    assert said.code == 1 and "0 of 1 pictures are used" in said.out and "would fail" in said.err


def test_the_folders_of_kohyas_layout_name_the_subject(tunes: Tunes, tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    with ZipFile(archive, "w") as packed:
        for number, name in enumerate(("img/10_zkqj old man/a.png", "reg/1_old man/b.png")):
            drawn(tmp_path / "one.png", (128, 128), 10 * number)
            packed.write(tmp_path / "one.png", name)
    assert "Subject: zkqj old man" in tunes("check", str(archive)).out
    said = tunes("check", str(archive), "--token", "ohwx", "--name", "person").out
    assert "Subject: ohwx person" in said and "regularisation, as: a photo of an old man" in said

"""The helper models as resources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import tunes_dagster.tiny
from tunes_dagster.core.settings import Settings
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.resources.models import CaptionerResource, LazyCaptioner


def test_the_captioner_is_loaded_when_it_is_first_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shipped:
        def caption(self, images: list[Image.Image]) -> list[str]:
            return [f"{len(images)} pictures"]

    loads: Iterator[int] = iter(range(1))  # a second load would raise

    def load(folder: Path) -> Shipped:
        assert (folder / "config.json").is_file()
        next(loads)
        return Shipped()

    monkeypatch.setattr(tunes_dagster.tiny, "load_captioner", load)
    captioner = CaptionerResource().open(Settings(), load_catalog())
    assert captioner is not None
    assert "_model" not in vars(captioner)
    assert (captioner.name, captioner.caption([Image.new("RGB", (8, 8))])) == ("tiny", ["1 pictures"])


def test_photographs_are_not_captioned_in_the_words_of_the_drawn_world(tmp_path: Path) -> None:
    settings = Settings(profile="production", home=tmp_path)
    catalog = load_catalog("production")
    assert CaptionerResource().open(settings, catalog) is None, "until its captioner is installed"
    place = settings.bases_folder / "Salesforce--blip-image-captioning-base"
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    captioner = CaptionerResource().open(settings, catalog)
    assert isinstance(captioner, LazyCaptioner) and captioner.name == "blip-base"
    assert CaptionerResource(model="none").open(settings, catalog) is None

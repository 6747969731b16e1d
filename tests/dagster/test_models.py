"""The helper models as resources."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image

import tunes_dagster.tiny
from tunes_dagster.resources.models import CaptionerResource


def test_the_captioner_is_loaded_when_it_is_first_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shipped:
        def caption(self, images: list[Image.Image]) -> list[str]:
            return [f"{len(images)} pictures"]

    loads: Iterator[int] = iter(range(1))  # a second load would raise

    def load() -> Shipped:
        next(loads)
        return Shipped()

    monkeypatch.setattr(tunes_dagster.tiny, "load_captioner", load)
    captioner = CaptionerResource().open()
    assert captioner is not None
    assert "_model" not in vars(captioner)
    assert (captioner.name, captioner.caption([Image.new("RGB", (8, 8))])) == ("Shipped", ["1 pictures"])

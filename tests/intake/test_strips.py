"""Pictures that are measured and turned in strips: a child never holds a large one twice."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.intake.conftest import encoded
from tests.intake.conftest import photo as drawn
from tunes_dagster.intake.measures import fingerprint, is_blank, near, sharpness
from tunes_dagster.intake.pictures import glance, normalise


@pytest.mark.parametrize("size", [(96, 80), (700, 33), (33, 700), (1500, 1100)])
def test_strips_are_measured_as_the_whole_is(size: tuple[int, int]) -> None:
    """The child never holds the picture twice; what it says is what the plain functions say of the whole."""
    whole = drawn(3, *size)
    picture = normalise(encoded(whole))
    assert picture.image.tobytes() == whole.tobytes()
    assert picture.measures.fingerprint == fingerprint(whole)
    assert picture.measures.sharpness == sharpness(whole)
    assert picture.measures.blank == is_blank(whole)
    seen = glance(encoded(whole), 64)
    from tunes_dagster.intake.faces import _shrunk

    assert max(seen.image.size) == 64
    assert (seen.width, seen.height, seen.sharpness) == (*size, sharpness(whole))
    import tunes_dagster.intake.faces as faces

    side, faces.DETECTION_SIDE = faces.DETECTION_SIDE, 64
    try:
        assert (_shrunk(whole)[0] == _shrunk(seen.image)[0]).all()
    finally:
        faces.DETECTION_SIDE = side


def test_a_large_picture_is_measured_on_means_of_squares_and_no_measure_sees_it() -> None:
    whole = drawn(3, 300, 261).resize((4_601, 4_003))
    picture = normalise(png_of(whole))
    mine, theirs = picture.measures.fingerprint, fingerprint(whole)
    assert near(mine, theirs, 1)
    assert abs(picture.measures.sharpness - sharpness(whole)) < 0.02 and not picture.measures.blank
    seen = glance(png_of(whole), 640)
    pixels = np.asarray(whole.resize(seen.image.size, Image.Resampling.BOX), np.int16)
    assert seen.image.size == (640, 557) and abs(np.asarray(seen.image, np.int16) - pixels).mean() < 1


def png_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_strips_are_turned_as_the_whole_is(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image, ImageOps

    from tunes_dagster.intake.sandbox.child import colour

    monkeypatch.setattr(colour, "_STRIP_PIXELS", 1000)
    whole = drawn(5, 97, 61)
    exif = Image.Exif()
    exif[colour.ORIENTATION] = orientation
    want = ImageOps.exif_transpose(Image.open(__import__("io").BytesIO(encoded(whole, exif=exif.tobytes()))))
    got = Image.new("RGB", want.size)
    top = 0
    for strip in colour.upright_strips(whole, orientation):
        got.paste(strip, (0, top))
        top += strip.height
    assert colour.upright_size(whole, orientation) == want.size
    assert top == want.height and got.tobytes() == want.convert("RGB").tobytes()

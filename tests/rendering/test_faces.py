"""Faces on the shipped base: found, framed to a height, painted again."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.rendering import png
from tunes_dagster.rendering.aids import Aids
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.renderer import RenderJob, render
from tunes_dagster.rendering.treatments import square_around
from tunes_dagster.tiny.faces import overlap

WOMAN = "a photo of a woman with long red hair, on a blue background"


@pytest.fixture(scope="module")
def shipped():
    from tunes_dagster.families.base import load_family

    entry = load_catalog().resolve("tiny")
    return load_family(entry, entry.location(Path()))


def rendered(shipped, folder, text=WOMAN, **more):
    """Return a picture of the shipped base, how it was treated, and what was said about it."""
    settings = RenderSettings(
        **({"seed": 3, "steps": 8, "guidance_scale": 4.0, "width": 128, "height": 128} | more)
    )
    store = Store(folder)
    [result] = render(
        [RenderJob("p", text, settings)], shipped, Delivery(store, "out", Silent()), aids=Aids(load_catalog())
    )
    assert result.failure is None, result.failure
    data = store.read_bytes(result.images[0].key)
    recipe = png.read_recipe(data)
    return Image.open(io.BytesIO(data)).convert("RGB"), recipe.get("treatment", {}), result.warnings


@pytest.mark.parametrize(("side", "asked"), [(128, 36), (256, 200)])
def test_a_rendered_face_gets_its_height(shipped, tmp_path, side, asked):
    image, treatment, warnings = rendered(shipped, tmp_path, width=side, height=side, face_height=asked)
    assert warnings == [] and image.size == (side, side)
    assert treatment["framed"] != 1 and abs(treatment["face_height"] / asked - 1) <= 0.1
    assert Aids().detector.detect(image)[0][3] == treatment["face_height"]


def test_a_rendered_face_is_painted_again_where_it_is(shipped, tmp_path):
    before, _, _ = rendered(shipped, tmp_path / "a", width=256, height=256)
    after, treatment, warnings = rendered(shipped, tmp_path / "b", width=256, height=256, inpaint_faces=True)
    assert warnings == [] and treatment["faces_inpainted"] == 1
    [old], [new] = (Aids().detector.detect(image) for image in (before, after))
    assert (
        overlap(*(np.array([x + w / 2, y + h / 2, w, h]) for x, y, w, h in (old, new)))[0] > 0.6
    )  # still there
    left, top, side = square_around(old, before.size)
    change = np.abs(np.asarray(before, int) - np.asarray(after, int)).sum(axis=-1)
    assert change[old[1] : old[1] + old[3], old[0] : old[0] + old[2]].mean() > 3
    change[top : top + side, left : left + side] = 0
    assert change.max() == 0


def test_a_thing_has_no_face(shipped, tmp_path):
    _, treatment, [warning] = rendered(
        shipped, tmp_path, "a photo of a pink chair on a green background", face_height=60
    )
    assert "No face was found" in warning and "face_height" not in treatment

"""What is done to a picture after it was denoised: detail, faces, framing, film."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_aids import catalog_of, entry_of, make_random_upscaler
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.rendering import png
from tunes_dagster.rendering.aids import Aids
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.renderer import RenderJob, render
from tunes_dagster.rendering.treatments import Treatments, closer, square_around
from tunes_dagster.tiny.world import draw_shot, face_box, shots_of


def job(name="p", **more):
    values = {"seed": 5, "steps": 3, "guidance_scale": 1.0, "width": 64, "height": 64, "scheduler": "euler"}
    return RenderJob(
        name, "a photo of ohwx man", RenderSettings(**(values | more)), [("tunes/fern.safetensors", 1.0)]
    )


def made(store, result):
    assert result.failure is None, result.failure
    data = store.read_bytes(result.images[0].key)
    return Image.open(io.BytesIO(data)).convert("RGB"), png.read_recipe(data)


@pytest.fixture
def aids():
    return Aids()


@pytest.fixture
def framing(base, aids, monkeypatch):
    """Frame a picture; the base, which has learned nothing, hands back what it is given."""
    monkeypatch.setattr(
        Treatments, "paint", lambda self, picture, image, width, height, strength, mask=None: image
    )
    from tunes_dagster.rendering.pictures import Picture, Shape
    from tunes_dagster.rendering.texts import TextCache

    def frame(pixels, asked):
        settings = job(width=128, height=128, face_height=asked).settings
        picture = Picture(
            job=0,
            number=0,
            seed=1,
            shape=Shape(width=128, height=128, steps=3, scheduler="euler", guided=False),
            guidance_scale=1.0,
            text="a",
            negative="",
            slot=-1,
        )
        treatments = Treatments(base, aids, TextCache(base), None, lambda: None)
        return treatments.apply(picture, pixels, settings)

    return frame


@pytest.mark.parametrize("asked", [32, 45, 58, 75, 110])
def test_a_face_gets_the_height_that_was_asked_for(framing, asked):
    [shot] = shots_of("fern", 1, seed=4)
    done = framing(np.asarray(draw_shot(shot)), asked)
    assert done.warnings == [] and done.image.size == (128, 128)
    drawn = face_box(shot)[3] * done.notes.get("framed", 1.0)
    assert abs(drawn / asked - 1) <= 0.1 and abs(done.notes["face_height"] / asked - 1) <= 0.1


def test_no_face_is_said(framing):
    done = framing(np.full((128, 128, 3), 200, np.uint8), 40)
    assert "No face was found" in done.warnings[0] and "face_height" not in done.notes


def test_windows_stay_inside_the_picture():
    left, top, right, bottom = closer((120, 2, 20, 20), 2.0, 128, 128)
    assert (left, top, right, bottom) == (64, 0, 128, 64)
    assert square_around((120, 2, 20, 20), (128, 128)) == (86, 0, 42)
    assert square_around((0, 0, 100, 100), (128, 96)) == (2, 0, 96)


def test_hires_fix_and_faces_paint_again_with_the_tune(base, store, aids, monkeypatch):
    sizes = []
    real = Treatments.paint

    def watched(self, picture, image, width, height, strength, mask=None):
        sizes.append((width, height, picture.slot))
        return real(self, picture, image, width, height, strength, mask)

    monkeypatch.setattr(Treatments, "paint", watched)
    plain, hires = render(
        [job("a"), job("b", hires_fix=True)], base, Delivery(store, "out", Silent()), aids=aids
    )
    assert sizes == [(128, 128, 0)]
    (one, _), (two, recipe) = made(store, plain), made(store, hires)
    assert one.size == two.size == (64, 64) and recipe["treatment"]["hires_fix"] == [128, 128]
    assert np.abs(np.asarray(one, int) - np.asarray(two, int)).mean() > 1
    monkeypatch.setattr(aids.detector, "detect", lambda image: [(20, 16, 20, 24)])  # noise has no face
    [faces] = render([job("c", inpaint_faces=True)], base, Delivery(store, "faces", Silent()), aids=aids)
    three, recipe = made(store, faces)
    change = np.abs(np.asarray(one, int) - np.asarray(three, int)).sum(axis=-1)
    assert recipe["treatment"]["faces_inpainted"] == 1
    assert change[20:36, 22:38].mean() > 3 and change[:4].max() == change[58:].max() == 0


def test_inpaint_faces_says_when_there_is_none(base, store, aids):
    [result] = render([job(inpaint_faces=True)], base, Delivery(store, "out", Silent()), aids=aids)
    assert "No face was found" in result.warnings[0]


def test_super_resolution_and_film_are_put_on_at_the_end(base, store, tmp_path):
    folder = make_random_upscaler(tmp_path / "upscaler")
    known = Aids(catalog_of(entry_of("upscale-4x", "upscale", folder, rendering={"steps": 2})), tmp_path)
    batch = [
        job("plain"),
        job("film", color_grading="Ektar", film_grain=True),
        job("large", super_resolution=True),
        job("resampled", super_resolution=True, upscaler="lanczos"),
    ]
    plain, film, large, resampled = (
        made(store, r) for r in render(batch, base, Delivery(store, "out", Silent()), aids=known)
    )
    four = plain[0].resize((256, 256), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(resampled[0]), np.asarray(four))
    assert resampled[1]["upscaler"] == "lanczos" and "upscaler" not in large[1]
    assert large[0].size == (256, 256) and large[1]["treatment"] == {"super_resolution": 4}
    assert np.abs(np.asarray(plain[0], int) - np.asarray(film[0], int)).mean() > 2
    assert film[1]["color_grading"] == "Ektar" and "color_grading" not in plain[1]
    assert film[1]["recipe_hash"] != plain[1]["recipe_hash"]


def test_a_model_that_is_missing_fails_its_prompt_only(base, store):
    missing, good = render(
        [job("a", super_resolution=True), job("b")], base, Delivery(store, "out", Silent())
    )
    assert missing.failure.code == "base_not_installed" and good.failure is None


def test_memory_that_runs_out_in_a_second_pass_fails_that_picture_only(base, store, aids, monkeypatch):
    def hungry(*arguments, **more):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Treatments, "paint", hungry)
    bad, good = render(
        [job("a", hires_fix=True), job("b")], base, Delivery(store, "out", Silent()), aids=aids
    )
    assert bad.failure.code == "out_of_memory" and good.failure is None

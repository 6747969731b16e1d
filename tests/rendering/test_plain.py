"""Enlarging given pictures, and clips from text, on random models of the real classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_aids import (
    catalog_of,
    entry_of,
    make_random_safety,
    make_random_upscaler,
    make_random_video,
)
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.rendering import png
from tunes_dagster.rendering.aids import Aids
from tunes_dagster.rendering.batch_report import write_batch_report
from tunes_dagster.rendering.jobs import Delivery, RenderJob
from tunes_dagster.rendering.run import run_batch
from tunes_dagster.rendering.upscaling import Upscaler, feather, tiles


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory):
    return make_random_upscaler(tmp_path_factory.mktemp("upscaler"))


def scene(width, height):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 4 % 256, y * 4 % 256, (x + y) % 256], -1).astype(np.uint8))


def run(entry, folder, jobs, store, aids=None):
    results = []
    run_batch(
        jobs, entry, folder, "cpu", None, Delivery(store, "out", Silent(), results.append), aids or Aids()
    )
    return results


def test_a_given_picture_is_made_four_times_as_large(upscaler, tmp_path):
    store = Store(tmp_path)
    key = store.write_blob(png.png_bytes(scene(20, 13)), ".png")
    base = {"seed": 1, "steps": 2, "guidance_scale": 1.0, "width": 64, "height": 64}
    jobs = [
        RenderJob("good", "", RenderSettings(**base, input_image=key)),
        RenderJob("gone", "", RenderSettings(**base, input_image="blobs/aa/gone.png")),
    ]
    good, gone = run(entry_of("upscale-4x", "upscale", upscaler), upscaler, jobs, store)
    picture = Image.open(io.BytesIO(store.read_bytes(good.images[0].key)))
    assert picture.size == (80, 52) and good.images[0].width == 80
    assert png.read_recipe(store.read_bytes(good.images[0].key))["kind"] == "upscale"
    assert gone.failure.code == "invalid_request"


def test_enlarged_pictures_and_clips_are_checked_like_others(upscaler, tmp_path):
    store = Store(tmp_path / "store")
    checker = make_random_safety(tmp_path / "safety", -1.0)
    aids = Aids(catalog_of(entry_of("checker", "safety", checker)), tmp_path)
    key = store.write_blob(png.png_bytes(scene(16, 16)), ".png")
    settings = RenderSettings(seed=1, steps=1, guidance_scale=1.0, width=64, height=64, num_frames=9, fps=8)
    still = RenderJob("still", "", settings.model_copy(update={"input_image": key}))
    video = make_random_video(tmp_path / "video")
    for name, kind, folder, job in (
        ("upscale-4x", "upscale", upscaler, still),
        ("cogvideo-2b", "video", video, RenderJob("clip", "a dog", settings)),
    ):
        [result] = run(entry_of(name, kind, folder), folder, [job], store, aids)
        assert result.failure.code == "blocked" and "picture safety" in result.failure.message
        assert not list(store.list("out"))


def test_tiles_cover_the_picture_and_seams_are_blended(upscaler):
    import torch

    covered = np.zeros((70, 100), int)
    for left, top in tiles(100, 70, 48, 16):
        covered[top : top + 48, left : left + 48] += 1
    assert covered.min() >= 1 and feather(48, 48, 8).min() > 0
    tiled = Upscaler(upscaler, "cpu", torch.float32, tile=96).enlarge(scene(120, 96), "", 1, steps=1)
    assert tiled.size == (480, 384)
    columns = np.abs(np.diff(np.asarray(tiled, float).mean(axis=(0, 2))))
    assert columns[90:380].max() < 12 * np.median(columns[90:380]) + 12


def test_areas_of_an_enlarged_picture_have_the_colours_that_were_given(upscaler):
    """Whatever the model makes of them: this one has random weights."""
    import torch

    image = Image.new("RGB", (37, 30), (200, 40, 90))
    made = np.asarray(Upscaler(upscaler, "cpu", torch.float32).enlarge(image, "", 1, steps=1), float)
    areas = made[32:-32, 32:-32].mean(axis=(0, 1))
    assert made.shape == (120, 148, 3) and np.abs(areas - (200, 40, 90)).max() < 6, areas


@pytest.mark.slow
def test_the_shipped_upscaler_beats_lanczos_on_drawings_it_never_saw():
    import torch

    from factory.train.data import HELD_OUT
    from factory.train.upscaler import psnr
    from tunes_dagster.tiny.world import picture

    shipped = load_catalog().first("upscale")
    assert shipped is not None and shipped.base_id == "upscale-tiny" and shipped.installed(Path("nowhere"))
    upscaler, gains = Upscaler(shipped.location(Path()), "cpu", torch.float32), []
    for number in range(2):
        drawing = picture(HELD_OUT + number, 256)[0]
        small = drawing.resize((64, 64), Image.Resampling.LANCZOS)
        made = upscaler.enlarge(small, "", 0, steps=1, guidance=1.0)
        plain = small.resize((256, 256), Image.Resampling.LANCZOS)
        gains.append(psnr(made, np.asarray(drawing)) - psnr(plain, np.asarray(drawing)))
    assert np.mean(gains) > 2, gains


def test_a_clip_is_an_mp4_that_can_be_played(tmp_path):
    import cv2

    folder = make_random_video(tmp_path / "video")
    store = Store(tmp_path / "store")
    settings = RenderSettings(seed=3, steps=2, guidance_scale=2.0, width=64, height=64, num_frames=9, fps=8)
    jobs = [RenderJob("clip", "a dog runs", settings)]
    [result] = run(entry_of("cogvideo-2b", "video", folder), folder, jobs, store)
    assert result.failure is None, result.failure
    [clip] = result.images
    assert clip.key.endswith(".mp4") and store.read_bytes(clip.key)[4:8] == b"ftyp"
    with store.local(clip.key) as path:
        video = cv2.VideoCapture(str(path))
        frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), round(video.get(cv2.CAP_PROP_FPS))
        assert frames == (9, 8) and video.read()[1].shape == (64, 64, 3)
    assert png.read_recipe(store.read_bytes(clip.poster))["num_frames"] == 9
    report = write_batch_report(store, "out", jobs, [result], title="Clips", base="cogvideo-2b")
    assert report.sheet.size[0] > 64

"""Crops follow a subject without a face: measured on drawn strips whose subject's place is known."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from tunes_dagster.intake.buckets import choose_bucket, crop_for
from tunes_dagster.intake.saliency import subject_in
from tunes_dagster.tiny.world.pen import Pen, Pose
from tunes_dagster.tiny.world.sample import Shot, draw_shot, random_shot
from tunes_dagster.tiny.world.scenes import draw_background

SIDE, SHORT = 192, 56


def strip(number: int, upright: bool) -> tuple[Image.Image, np.ndarray]:
    """A long picture of a small subject somewhere in it, and where the subject is."""
    rng = random.Random(number)
    shot = random_shot(rng)
    pose = Pose(dx=rng.uniform(-46, 46), dy=-20, zoom=rng.uniform(0.25, 0.35))
    if upright:
        pose = Pose(dy=rng.uniform(-74, 20), zoom=pose.zoom)
    shot = Shot(shot.look, shot.background, shot.mouth, pose, shot.seed)
    whole, bare = draw_shot(shot, SIDE, 1), Image.new("RGB", (SIDE, SIDE))
    draw_background(Pen(bare), shot.background, random.Random(shot.seed))
    mask = np.abs(np.asarray(whole, int) - np.asarray(bare, int)).sum(-1) > 12
    if upright:
        box = ((SIDE - SHORT) // 2, 0, (SIDE + SHORT) // 2, SIDE)
    else:
        top = int(np.clip(np.where(mask.any(1))[0].mean() - SHORT // 2, 0, SIDE - SHORT))
        box = (0, top, SIDE, top + SHORT)
    return whole.crop(box), mask[box[1] : box[3], box[0] : box[2]]


@pytest.mark.parametrize(("upright", "kept"), [(False, 0.97), (True, 0.9)])
def test_a_crop_keeps_more_of_the_subject_than_the_middle(upright, kept):
    middle, followed = [], []
    for number in range(40):
        image, mask = strip(number, upright)
        bucket = choose_bucket(*image.size, 512)
        plain = crop_for(*image.size, bucket)
        box = subject_in(image, plain)
        for crop, found in ((plain, middle), (crop_for(*image.size, bucket, [box] if box else ()), followed)):
            found.append(mask[crop[1] : crop[3], crop[0] : crop[2]].sum() / mask.sum())
    assert np.mean(followed) > kept > 0.8 > np.mean(middle), (np.mean(middle), np.mean(followed))


def test_nothing_that_stands_out_leaves_the_crop_in_the_middle():
    noise = np.random.default_rng(0).integers(0, 255, (60, 200, 3), np.uint8)
    for image in (Image.new("RGB", (300, 60), "grey"), Image.fromarray(noise), Image.new("RGB", (9, 3000))):
        bucket = choose_bucket(*image.size, 512)
        assert subject_in(image, crop_for(*image.size, bucket)) is None

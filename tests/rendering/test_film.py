"""Colour grading and grain: seeded, in range, and doing what their names say."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tunes_dagster.rendering.film import FILMS, grade, grain


def colours() -> Image.Image:
    y, x = np.mgrid[0:96, 0:96].astype(np.float32) / 95
    return Image.fromarray((np.stack([x, 0.4 + 0.2 * y, 1 - x], -1) * 255).astype(np.uint8))


def saturation(image: Image.Image) -> float:
    pixels = np.asarray(image, np.float32)
    return float((pixels.max(-1) - pixels.min(-1)).mean())


@pytest.mark.parametrize("name", FILMS)
def test_gradings_differ_from_the_picture_and_from_each_other(name):
    graded = np.asarray(grade(colours(), name), int)
    assert np.abs(graded - np.asarray(colours(), int)).mean() > 2
    for other in FILMS:
        same = np.abs(graded - np.asarray(grade(colours(), other), int)).mean() < 1
        assert same == (other == name)


def test_films_are_what_they_are_known_for():
    plain = saturation(colours())
    assert saturation(grade(colours(), "Film Velvia")) > plain > saturation(grade(colours(), "Film Portra"))
    black = Image.new("RGB", (8, 8))
    assert np.asarray(grade(black, "Film Portra")).min() >= 5 > np.asarray(grade(black, "Ektar")).max() - 5


def test_grain_is_the_seeds_and_strongest_in_the_middle():
    def spread(level, seed=1):
        flat = Image.new("RGB", (128, 128), (level,) * 3)
        return np.asarray(grain(flat, seed), np.float32)

    assert (spread(128) == spread(128)).all() and (spread(128) != spread(128, 2)).any()
    assert spread(128).std() > 1.5 * spread(235).std() > 0
    assert abs(spread(128).mean() - 128) < 1

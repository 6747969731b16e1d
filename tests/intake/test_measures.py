from __future__ import annotations

import io

import pytest
from PIL import Image, ImageEnhance, ImageFilter

from tests.intake.conftest import encoded, photo
from tunes_dagster.core.recipe import DatasetOptions
from tunes_dagster.intake.judge import BLURRED_BELOW
from tunes_dagster.intake.measures import HASH_SIDE, fingerprint, is_blank, near, near_pairs, sharpness
from tunes_dagster.tiny.world.subjects import SUBJECTS, draw_subject

BITS = DatasetOptions().near_duplicate_bits


def _copies(image: Image.Image) -> list[Image.Image]:
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    large = image.resize((image.width * 17 // 10, image.height * 17 // 10), Image.Resampling.BICUBIC)
    files = [
        encoded(image, "JPEG", quality=40),
        encoded(half, "JPEG", quality=60),
        encoded(large, "WEBP", quality=50),
    ]
    return [Image.open(io.BytesIO(f)).convert("RGB") for f in files] + [
        ImageEnhance.Brightness(image).enhance(1.1)
    ]


@pytest.mark.parametrize("name", SUBJECTS)
def test_pictures_of_one_drawn_subject_are_not_duplicates_but_copies_are(name: str) -> None:
    images = [image for image, _ in draw_subject(name, 8)]
    prints = [fingerprint(image) for image in images]
    assert near_pairs(prints, BITS) == []
    for image, own in zip(images, prints, strict=True):
        for copy in _copies(image):
            assert near(own, fingerprint(copy), BITS)
            others = [p for p in prints if p != own]
            assert not any(near(fingerprint(copy), other, BITS) for other in others)


def test_hue_tells_apart_what_grey_cannot() -> None:
    red = photo(1)
    swapped = Image.merge("RGB", red.split()[::-1])
    grey_twin = Image.new("RGB", red.size)
    grey_twin.paste(red.convert("L").convert("RGB"))
    assert not near(fingerprint(red), fingerprint(swapped), 32)
    apart = int(fingerprint(red).phash, 16) ^ int(fingerprint(grey_twin).phash, 16)
    assert apart.bit_count() * 64 / HASH_SIDE**2 < BITS


def test_near_pairs_agrees_with_comparing_each_pair() -> None:
    images = [photo(n) for n in range(6)]
    prints = [fingerprint(i) for i in [*images, images[2].resize((60, 50)), images[4]]]
    expected = [
        (i, j)
        for i in range(len(prints))
        for j in range(i + 1, len(prints))
        if near(prints[i], prints[j], BITS)
    ]
    assert near_pairs(prints, BITS) == expected == [(2, 6), (4, 7)]
    assert near_pairs(prints, 0) == []
    assert near_pairs([], BITS) == near_pairs(prints[:1], BITS) == []


@pytest.mark.parametrize("size", [96, 128, 512])
@pytest.mark.parametrize("name", ["nova", "minty", "smily"])
def test_flat_drawings_are_sharp_and_blurred_ones_are_not(name: str, size: int) -> None:
    for image, _ in draw_subject(name, 2, size=size):
        assert sharpness(image) > BLURRED_BELOW + 0.2
        assert sharpness(image.filter(ImageFilter.GaussianBlur(size * 0.022))) < BLURRED_BELOW


def test_a_photo_that_is_large_is_judged_as_training_sees_it() -> None:
    sharp = photo(2, 1600, 1200)
    slightly_soft = sharp.filter(ImageFilter.GaussianBlur(2))
    assert sharpness(slightly_soft) > BLURRED_BELOW
    assert sharpness(sharp.filter(ImageFilter.GaussianBlur(27))) < BLURRED_BELOW


def test_pictures_that_show_nothing() -> None:
    flat = Image.new("RGB", (100, 80), (90, 120, 30))
    assert is_blank(flat)
    assert is_blank(Image.effect_noise((100, 80), 8).convert("RGB"))
    assert not is_blank(photo(1))
    assert sharpness(flat) == 1.0
    assert sharpness(Image.new("RGB", (4, 4))) == 1.0

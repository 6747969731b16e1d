"""What is measured on every picture: sharpness, and a fingerprint that finds near duplicates.

The fingerprint is a 256-bit perceptual hash (DCT) and a 4 x 4 map of mean colours. Drawn pictures of one subject
look alike to a 64-bit hash: on eight pictures each of seven drawn subjects, different pictures came as near as
4 of 64 bits, copies (half size and 1.7 times the size, JPEG 60, WebP 50) differed by up to 2. At 256 bits the
gap is wide: different pictures differ by 28 or more, copies by at most 8. The colours tell apart what only
differs in hue, which the grey hash cannot see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

HASH_SIDE = 16
SHARPNESS_SIDE = 512
COLOUR_DISTANCE = 24.0
"""Largest mean difference of the colour maps (of 255) between a picture and its copy, brightness removed."""


@dataclass(frozen=True)
class Fingerprint:
    """What two pictures are compared by: 256 bits of structure and 48 bytes of colour, both hex."""

    phash: str
    colours: str


def fingerprint(image: Image.Image) -> Fingerprint:
    """Return the fingerprint of an RGB picture."""
    return Fingerprint(structure(image), colours(image))


def colours(image: Image.Image) -> str:
    """Return the 4 x 4 map of mean colours of an RGB picture as hex."""
    return image.resize((4, 4), Image.Resampling.BOX).tobytes().hex()


def structure(image: Image.Image) -> str:
    """Return the perceptual hash of a picture as hex; its grey values are all that counts."""
    import imagehash

    return str(imagehash.phash(image, hash_size=HASH_SIDE))


def near(first: Fingerprint, second: Fingerprint, bits: int) -> bool:
    """Whether two pictures are near duplicates: structure closer than `bits` of 64, and the same colours."""
    return bool(near_pairs([first, second], bits))


def near_pairs(prints: Sequence[Fingerprint], bits: int) -> list[tuple[int, int]]:
    """Return the index pairs (i < j) of all near duplicates, see `near`."""
    if len(prints) < 2:
        return []
    structure = np.array([list(bytes.fromhex(p.phash)) for p in prints], np.uint8)
    colours = np.array([list(bytes.fromhex(p.colours)) for p in prints], np.float32)
    # A brighter or darker copy is a copy: the maps are compared without each one's mean brightness.
    colours -= colours.mean(axis=1, keepdims=True)
    limit = bits * HASH_SIDE * HASH_SIDE / 64
    pairs = []
    for i in range(len(prints) - 1):
        apart = np.bitwise_count(structure[i + 1 :] ^ structure[i]).sum(axis=1)
        tint = np.abs(colours[i + 1 :] - colours[i]).mean(axis=1)
        pairs += [(i, i + 1 + int(k)) for k in np.flatnonzero((apart < limit) & (tint < COLOUR_DISTANCE))]
    return pairs


def _box_blur(grey: Any, axis: int, size: int = 9) -> Any:
    padded = np.pad(
        grey, [(size // 2 + (a == axis), size // 2) if a == axis else (0, 0) for a in (0, 1)], "edge"
    )
    sums = np.cumsum(padded, axis=axis, dtype=np.float64)
    high = np.take(sums, range(size, sums.shape[axis]), axis=axis)
    low = np.take(sums, range(sums.shape[axis] - size), axis=axis)
    return (high - low) / size


def sharpness(image: Image.Image) -> float:
    """Return how sharp a picture is where it has edges: 0 fully blurred, 1 sharp.

    One minus the blur metric of Crete et al. 2007 ("The Blur Effect"): how much of the variation between
    neighbouring pixels survives another blur. Flat areas carry no weight, so drawings are not mistaken for blurred
    photos. Measured on the grey picture at 512 pixels on its longer side at most, so that a large photo is
    judged by what training will see of it.
    """
    grey_image = image.convert("L")
    grey_image.thumbnail((SHARPNESS_SIDE, SHARPNESS_SIDE), Image.Resampling.BOX)
    grey = np.asarray(grey_image, dtype=np.float64)
    if min(grey.shape) < 16:
        return 1.0
    worst = 0.0
    for axis in (0, 1):
        change = np.abs(np.diff(grey, axis=axis))
        blurred_change = np.abs(np.diff(_box_blur(grey, axis), axis=axis))
        total = change.sum()
        if total < change.size * 0.05:  # less than a twentieth of a grey level per pixel: nothing to judge
            continue
        kept = np.maximum(0.0, change - blurred_change).sum()
        worst = max(worst, float((total - kept) / total))
    return round(1.0 - worst, 4)


def is_blank(image: Image.Image) -> bool:
    """Whether a picture shows nothing: one colour throughout, give or take noise."""
    small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=np.float32)
    return float(small.std(axis=(0, 1)).max()) < 2.0

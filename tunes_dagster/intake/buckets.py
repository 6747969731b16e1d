"""Training shapes by aspect ratio, and the crop of a picture that fills one.

All shapes of a resolution have about its area, so that every step costs the same; sides are multiples of a step
that the latent grid of every family divides (32 below 512 pixels, 64, 128 above 1280), which keeps the shapes few:
a compiled or graph-captured step is built once per shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunes_dagster.intake.faces import Box

MOST_UNEQUAL = 2.0
"""Longer to shorter side of the longest shape; longer pictures are cropped to it."""

Crop = tuple[int, int, int, int]
"""left, top, right, bottom in pixels of the stored picture."""


def bucket_step(resolution: int) -> int:
    """Return what the sides of all shapes are multiples of."""
    return 32 if resolution < 512 else 64 if resolution <= 1280 else 128


def bucket_shapes(resolution: int) -> list[tuple[int, int]]:
    """Return the shapes (width, height) of a resolution, narrowest first; none has more than its area."""
    step = bucket_step(resolution)
    square = max(step, resolution // step * step)
    widest: dict[int, int] = {}  # height to width: of two portraits of one height the wider has more area
    for width in range(step, square, step):
        height = min(resolution * resolution // width, int(MOST_UNEQUAL * width)) // step * step
        if height > square:
            widest[height] = width
    by_aspect = {width / height: (width, height) for height, width in sorted(widest.items())}
    portraits = list(by_aspect.values())
    shapes = [*portraits, (square, square), *((height, width) for width, height in portraits)]
    return sorted(shapes, key=lambda shape: shape[0] / shape[1])


def choose_bucket(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Return the shape whose aspect ratio is nearest (by ratio, not by difference)."""
    aspect = math.log(width / height)
    return min(bucket_shapes(resolution), key=lambda s: (abs(math.log(s[0] / s[1]) - aspect), s))


def crop_for(width: int, height: int, bucket: tuple[int, int], focus: Sequence[Box] = ()) -> Crop:
    """Return the largest crop of a bucket's aspect ratio.

    Args:
        width: Of the picture.
        height: Of the picture.
        bucket: The shape to fill.
        focus: Faces; the crop is centred on the largest as far as the picture allows, else on the middle.
    """
    aspect = bucket[0] / bucket[1]
    crop_width = min(width, max(1, round(height * aspect)))
    crop_height = min(height, max(1, round(width / aspect)))
    centre_x, centre_y = width / 2, height / 2
    if focus:
        x, y, w, h = focus[0]
        centre_x, centre_y = x + w / 2, y + h / 2
    left = min(max(0, round(centre_x - crop_width / 2)), width - crop_width)
    top = min(max(0, round(centre_y - crop_height / 2)), height - crop_height)
    return left, top, left + crop_width, top + crop_height


def share_lost(width: int, height: int, crop: Crop) -> float:
    """Return the share of a picture that a crop leaves out."""
    left, top, right, bottom = crop
    return 1 - (right - left) * (bottom - top) / (width * height)


def face_crop(width: int, height: int, face: Box, margin: float = 0.6) -> Crop:
    """Return a square around a face with hair and chin: the box widened by `margin` on each side.

    It is moved, and only then shrunk, to stay inside the picture.
    """
    x, y, w, h = face
    side = min(width, height, round(max(w, h) * (1 + 2 * margin)))
    left = min(max(0, round(x + w / 2 - side / 2)), width - side)
    top = min(max(0, round(y + h / 2 - side / 2)), height - side)
    return left, top, left + side, top + side

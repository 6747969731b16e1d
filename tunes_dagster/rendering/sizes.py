"""At which size a picture is rendered when another one was asked for.

A base draws well around the area that it was trained on. Real bases render what is asked for, up to the
catalog's `max_pixels`; a shipped tiny base (`embedded:…`) always renders at its native area in the asked
aspect ratio and the picture is enlarged. The recipe says so: `rendered_at`.
"""

from __future__ import annotations

import math

from PIL import Image

from tunes_dagster.families.catalog import BaseModelEntry

MULTIPLE = 8


def fit_area(width: int, height: int, area: int, multiple: int = MULTIPLE) -> tuple[int, int]:
    """Return the size of about `area` pixels, never more, whose aspect ratio is closest to the asked one.

    Args:
        width: Asked for.
        height: Asked for.
        area: Pixels.
        multiple: Both sides are multiples of this.
    """
    aspect = width / height
    best: tuple[float, int, int] | None = None
    for side in range(multiple, max(multiple, math.isqrt(area) * 4) + 1, multiple):
        other = max(multiple, round(side / aspect / multiple) * multiple)
        if side * other > area:
            other = max(multiple, area // side // multiple * multiple)
        if side * other > area and best is not None:
            break
        # A wrong aspect ratio is seen at once; a tenth less area is not.
        badness = 3 * abs(math.log(side / other / aspect)) + abs(math.log(area / (side * other)))
        if best is None or badness < best[0] - 1e-9:
            best = (badness, side, other)
    assert best is not None
    return best[1], best[2]


def rendered_size(
    entry: BaseModelEntry, width: int, height: int, multiple: int = MULTIPLE
) -> tuple[int, int]:
    """Return the size at which `entry` renders a picture of the asked size.

    Args:
        entry: The base that really renders.
        width: Asked for, a multiple of 8.
        height: Asked for, a multiple of 8.
        multiple: What both sides must be multiples of.
    """
    native = entry.native_size**2
    if entry.repo_id.startswith("embedded:"):
        return fit_area(width, height, native, multiple)
    if width * height > entry.max_pixels:
        return fit_area(width, height, entry.max_pixels, multiple)
    if width % multiple or height % multiple:
        return fit_area(width, height, width * height, multiple)
    return width, height


def enlarge(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return the picture at the asked size, by Lanczos; what the aspect ratios differ by is cropped evenly."""
    if image.size == (width, height):
        return image
    factor = max(width / image.width, height / image.height)
    size = (max(width, round(image.width * factor)), max(height, round(image.height * factor)))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.resize(size, Image.Resampling.LANCZOS).crop((left, top, left + width, top + height))

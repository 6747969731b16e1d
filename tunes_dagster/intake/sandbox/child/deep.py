"""Pictures of more than 8 bits a channel: what range their numbers really have, and the numbers that Pillow drops.

Cameras, scanners and video tools put 10 or 12 bits into files of 16 without scaling them up. Pillow keeps the upper
byte of 16-bit colour, which then holds next to nothing; the lower one is read by taking the bytes the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile

# The upper byte of colour never gets beyond this where 12 bits or fewer were not scaled up.
_UPPER = 15
_ROWS_PIXELS = 1 << 20
_SWAPPED = {
    "B": "L",
    "L": "B",
    "N": "B",
}  # N is this machine's own order, which is L on all that this runs on


def top_of(most: float, declared: int = 0) -> float:
    """Return the number that stands for white.

    Args:
        most: The greatest number there is.
        declared: Bits that the file says it has, 0 when it does not say.
    """
    if 8 < declared < 16 and most < 2**declared:
        return float(2**declared - 1)
    if most <= 255:
        return 255.0
    return next((float(top) for top in (1023, 4095, 65_535) if most <= top), most)


def told(most: float, declared: int = 0) -> str:
    """Return what is worth saying of the range of 16-bit numbers, or nothing."""
    top = top_of(most, declared)
    if top in (255.0, 65_535.0) or top >= most > 65_535:
        return ""
    return f"its numbers end at {most:,.0f} of 65,535 and are read as {round(np.log2(top + 1))} bit"


def raw_mode(image: ImageFile.ImageFile) -> str:
    """Return how the decoder of an opened picture reads its numbers; empty when that is not one way."""
    modes = {str(tile.args[0] if isinstance(tile.args, tuple) else tile.args) for tile in image.tile}
    return modes.pop() if len(modes) == 1 else ""


def mend(
    image: Image.Image,
    raw: str,
    declared: int,
    file: IO[bytes],
    again: Callable[[IO[bytes]], ImageFile.ImageFile],
) -> str:
    """Bring 16-bit colour whose upper bytes are empty to 8 bit by the range it has, in place; returns what was done.

    Args:
        image: Loaded.
        raw: Its `raw_mode` before it was loaded.
        declared: See `top_of`.
        file: The picture's.
        again: Opens the file.
    """
    if raw[-4:-1] != ";16" or raw[-1] not in _SWAPPED or image.mode not in ("RGB", "RGBA", "LA"):
        return ""
    extrema: Any = image.getextrema()
    if max(most for _, most in extrema[: 3 if image.mode != "LA" else 1]) > _UPPER:
        return ""
    file.seek(0)
    with again(file) as lower:
        other = raw[:-1] + _SWAPPED[raw[-1]]
        lower.tile = [
            tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
            for tile in lower.tile
        ]
        lower.load()
        return _joined(image, lower, declared)


def _joined(upper: Image.Image, lower: Image.Image, declared: int) -> str:
    rows = max(1, _ROWS_PIXELS // upper.width)
    boxes = [(0, top, upper.width, min(upper.height, top + rows)) for top in range(0, upper.height, rows)]

    def numbers(box: tuple[int, int, int, int]) -> Any:
        return np.asarray(upper.crop(box)).astype(np.uint16) << 8 | np.asarray(lower.crop(box))

    most = np.max([numbers(box).max(axis=(0, 1)) for box in boxes], axis=0)
    colours = 1 if upper.mode == "LA" else 3
    brightest = float(most[:colours].max())
    tops = np.array(
        [top_of(brightest, declared)] * colours + [top_of(float(one), declared) for one in most[colours:]]
    )
    for box in boxes:
        eight = np.clip(numbers(box) * (255 / tops) + 0.5, 0, 255).astype(np.uint8)
        upper.paste(Image.fromarray(eight, upper.mode), box)
    return told(brightest, declared) or "its numbers have 8 of 16 bits"

"""Any picture as strips of upright 8-bit sRGB, from top to bottom, so that no second copy of the whole is made.

Rotation by EXIF, alpha onto white, CMYK, deep grey and colour profiles: each is done strip by strip and gives the
pixels that doing it to the whole picture would.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

ORIENTATION = 0x0112
_STRIP_PIXELS = 1 << 20
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# By orientation: whether rows of the upright picture are columns of the stored one, and whether they begin at its end.
_FROM_COLUMNS = (5, 6, 7, 8)
_FROM_END = (3, 4, 7, 8)


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Return width and height as it is looked at."""
    return image.size[::-1] if orientation in _FROM_COLUMNS else image.size


def upright_strips(image: Image.Image, orientation: int) -> Iterator[Image.Image]:
    """Yield strips of the picture as it is looked at, as `ImageOps.exif_transpose` would turn it.

    Args:
        image: Loaded.
        orientation: Of its EXIF, 1 to 8; others count as 1.
    """
    width, height = upright_size(image, orientation)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        first, last = (height - bottom, height - top) if orientation in _FROM_END else (top, bottom)
        if orientation in _FROM_COLUMNS:
            strip = image.crop((first, 0, last, image.height))
        else:
            strip = image.crop((0, first, image.width, last))
        yield strip.transpose(_TURN[orientation]) if orientation in _TURN else strip


class ToSrgb:
    """Brings strips of one picture to 8-bit sRGB without alpha.

    Args:
        image: The picture, loaded.
        ground: Colour behind what is transparent.

    Attributes:
        clear: Whether anything may be transparent.
        converted: Whether the pixels are others than those of the file.
    """

    def __init__(self, image: Image.Image, ground: str = "white") -> None:
        self._ground = ground
        self._deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
        self._scale = _scale(image) if self._deep else 1.0
        # Each value that 16 bits can have is worked out once.
        whole = np.arange(65_536, dtype=np.float64) if image.mode.startswith("I;16") else None
        self._table = None if whole is None else self._eight_bits(whole)
        clear = "A" in image.getbands() or image.mode in ("La", "RGBa") or "transparency" in image.info
        self.clear = clear and not self._deep
        self._mode = image.mode if image.mode in ("RGB", "CMYK") and not self.clear else "RGB"
        profile = image.info.get("icc_profile")
        self._transform = _transform(profile, self._mode) if profile and not self._deep else None
        self.converted = self._deep or self._transform is not None

    def __call__(self, strip: Image.Image) -> Image.Image:
        """Return a strip as RGB."""
        if self._deep:
            values: Any = np.asarray(strip)
            grey = self._table[values] if self._table is not None else self._eight_bits(values)
            return Image.fromarray(grey, "L").convert("RGB")
        if self.clear:
            clear = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", clear.size, self._ground), clear).convert("RGB")
        elif strip.mode != self._mode:
            strip = strip.convert(self._mode)
        if self._transform is not None:
            strip = ImageCms.applyTransform(strip, self._transform) or strip
        return strip if strip.mode == "RGB" else strip.convert("RGB")

    def _eight_bits(self, values: Any) -> Any:
        plain = np.nan_to_num(values.astype(np.float64))
        return np.clip(plain * self._scale + 0.5, 0, 255).astype(np.uint8)


def _scale(image: Image.Image) -> float:
    """Return the factor that brings deep grey down to 8 bit by its range, not by clipping."""
    top = 0.0
    for strip in upright_strips(image, 1):
        values: Any = np.nan_to_num(np.asarray(strip))
        top = max(top, float(values.max(initial=0.0)))
    scale = 65535.0 if top > 255 else 255.0 if top > 1 or image.mode != "F" else 1.0
    return 255.0 / (max(scale, top) if top > 65535 else scale)


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _transform(profile: bytes, mode: str) -> Any | None:
    """Return the way to sRGB by an embedded profile; None when it is sRGB already or cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower() and mode == "RGB":
            return None
        return ImageCms.buildTransform(source, _srgb(), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # a damaged profile, or one for another mode: the plain numbers are the best guess

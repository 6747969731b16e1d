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

from tunes_dagster.intake.sandbox.child.deep import told, top_of
from tunes_dagster.intake.sandbox.child.encodings import encoding_of
from tunes_dagster.intake.sandbox.child.headers import Header

ORIENTATION = 0x0112
_STRIP_PIXELS = 1 << 20
# Colours of each channel by which a profile is judged, and the difference of 8-bit numbers that somebody may see.
_LEVELS, _NOTICED = 9, 3
# Share of a picture in floating point that may be brighter than white.
_OVER_WHITE = 0.05
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
        header: What its file says of it.

    Attributes:
        clear: Whether anything may be transparent.
        converted: Whether the pixels are others than those of the file.
        note: What was made of its colours, where its owner may want to know, or empty.
    """

    def __init__(self, image: Image.Image, ground: str, header: Header) -> None:
        self._ground = ground
        self._deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
        clear = "A" in image.getbands() or image.mode in ("La", "RGBa") or "transparency" in image.info
        self.clear = clear and not self._deep
        profile = image.info.get("icc_profile")
        self._mode = _mode_of(image, self.clear, _space(profile))
        self._transform = _transform(profile, "L" if self._deep else self._mode) if profile else None
        self._encoding = None if profile else encoding_of(image, header)
        self.converted = self._deep or self._transform is not None or self._encoding is not None
        self.note = f"its colours are {self._encoding.words}" if self._encoding else ""
        if image.mode == "CMYK" and not self._transform:
            self.note = "it is for printing (CMYK) and has no colour profile that can be read: its colours are a guess"
        if self._deep:
            self._prepare_deep(image, header.bits)

    def _prepare_deep(self, image: Image.Image, bits: int) -> None:
        most, self._top = _range(image, bits)
        if image.mode != "F":
            self.note = "; ".join(filter(None, (self.note, told(most, bits))))
        self._curve = None
        if self._transform is not None:
            ramp = Image.frombytes("L", (256, 1), bytes(range(256))).convert(self._transform.input_mode)
            bent = ImageCms.applyTransform(ramp, self._transform)
            self._curve = np.asarray(bent)[0, :, 0].astype(np.float64) / 255 if bent else None
        # Each value that 16 bits can have is worked out once.
        whole = np.arange(65_536, dtype=np.float64) if image.mode.startswith("I;16") else None
        self._table = None if whole is None else self._eight_bits(whole)

    def __call__(self, strip: Image.Image) -> Image.Image:
        """Return a strip as RGB."""
        if self._deep:
            values: Any = np.asarray(strip)
            grey = self._table[values] if self._table is not None else self._eight_bits(values)
            return Image.fromarray(grey, "L").convert("RGB")
        if self.clear:
            clear = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", clear.size, self._ground), clear).convert("RGB")
        if strip.mode != self._mode:
            strip = strip.convert(self._mode)
        if self._transform is not None:
            strip = ImageCms.applyTransform(strip, self._transform) or strip
        strip = strip if strip.mode == "RGB" else strip.convert("RGB")
        return strip if self._encoding is None else self._encoding.convert(strip)

    def _eight_bits(self, values: Any) -> Any:
        share = np.clip(np.nan_to_num(values.astype(np.float64)) / self._top, 0, 1)
        if self._curve is not None:
            share = np.interp(share, np.linspace(0, 1, 256), self._curve)
        elif self._encoding is not None:
            share = self._encoding.grey(share)
        return (share * 255 + 0.5).astype(np.uint8)


def _range(image: Image.Image, bits: int) -> tuple[float, float]:
    """Return the greatest number of deep grey, and the one that is white."""
    most, over, count = 0.0, 0, 0
    for strip in upright_strips(image, 1):
        values: Any = np.nan_to_num(np.asarray(strip))
        most = max(most, float(values.max(initial=0.0)))
        over, count = over + int((values > 1).sum()), count + values.size
    # Light above white (reflections, lamps) is a small part of a picture in floating point, and no other range.
    if image.mode == "F" and (most <= 1 or over <= _OVER_WHITE * count):
        return most, 1.0
    return most, top_of(most, bits)


def _mode_of(image: Image.Image, clear: bool, space: str) -> str:
    """Return the mode in which strips are converted: that of the profile's numbers where they have it."""
    if space == "GRAY" and image.mode in ("1", "L", "LA", "La"):
        return "L"
    return image.mode if image.mode in ("RGB", "CMYK") and not clear else "RGB"


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _space(profile: bytes | None) -> str:
    """Return what a profile's numbers are (`RGB`, `GRAY`, `CMYK` …), empty when it cannot be read."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip() if profile else ""
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return ""


def _transform(profile: bytes, mode: str) -> Any | None:
    """Return the way to sRGB by an embedded profile; None when it says that it is sRGB, or cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            transform = ImageCms.buildTransform(source, _srgb(), "RGB", "RGB")
            return None if _changes_nothing(transform, "RGB") else transform
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB")
        return None if _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # a damaged profile, or one for another mode: the plain numbers are the best guess


def _changes_nothing(transform: Any, mode: str) -> bool:
    """Whether a transform leaves colours as they are; what a profile is called says nothing about that."""
    if mode not in ("L", "RGB"):
        return False
    levels = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    if mode == "L":
        sample = levels[None, :]
    else:
        sample = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    made = ImageCms.applyTransform(Image.fromarray(sample, mode), transform)
    before = sample if mode == "RGB" else np.repeat(sample[..., None], 3, axis=-1)
    return made is not None and int(np.abs(np.asarray(made).astype(int) - before).max()) <= _NOTICED

"""What the numbers of a picture mean where no colour profile says it: transfer curves and primaries by their numbers.

Numbers are those of ITU-T H.273, which `nclx` boxes (HEIC, AVIF) and `cICP` chunks (PNG) hold; `gAMA` chunks (PNG)
give an exponent, and cameras mark Adobe RGB in EXIF (DCF 2.0, interoperability index R03).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tunes_dagster.intake.sandbox.child.headers import Header

_INTEROPERABILITY, _INDEX = 0xA005, 1
_LINEAR, _PQ, _HLG = 8, 16, 18
# What Pillow tells of a gAMA chunk of 1 / 2.2, and how far from it still counts as sRGB.
_USUAL_GAMMA, _NEAR = 1 / 2.2, 0.03
# x and y of red, green and blue, by number; all have the white of sRGB (D65).
_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_PRIMARIES = {
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
_ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_ADOBE_GAMMA = 563 / 256
_WHITE = (0.3127, 0.3290)
# What counts as white in a picture of high dynamic range, in nits (BT.2408); brighter parts are clipped.
_REFERENCE_WHITE = 203.0


@dataclass(frozen=True)
class Encoding:
    """How numbers become light.

    Attributes:
        light: Linear light of values 0…1.
        matrix: From linear red, green, blue to those of sRGB; None when they have its primaries.
        words: What it is called.
    """

    light: Callable[[Any], Any]
    matrix: Any | None
    words: str

    def grey(self, values: Any) -> Any:
        """Return sRGB values 0…1 of grey values 0…1."""
        return to_srgb(self.light(values))

    def convert(self, strip: Image.Image) -> Image.Image:
        """Return an RGB strip in sRGB."""
        table = self.light(np.arange(256, dtype=np.float32) / 255)
        if self.matrix is None:
            return strip.point(np.rint(255 * to_srgb(table)).astype(int).tolist() * 3)
        light = table[np.asarray(strip)] @ self.matrix.T
        return Image.fromarray((255 * to_srgb(light) + 0.5).astype(np.uint8), "RGB")


def encoding_of(image: Image.Image, header: Header) -> Encoding | None:
    """Return how the numbers of a picture without a profile are meant; None when as sRGB, or nobody knows better."""
    if header.coded is not None:
        return _coded(*header.coded)
    gamma = image.info.get("gamma")
    if isinstance(gamma, float) and "srgb" not in image.info and 0.1 <= gamma <= 10:
        if abs(gamma - _USUAL_GAMMA) > _NEAR:
            return Encoding(lambda values: np.power(values, 1 / gamma), None, f"gamma {1 / gamma:.2g}")
        return None
    if image.format == "JPEG" and _is_adobe(image):
        return Encoding(
            lambda values: np.power(values, _ADOBE_GAMMA), _matrix(_ADOBE), "Adobe RGB, as the camera notes"
        )
    return None


def _is_adobe(image: Image.Image) -> bool:
    exif = image.getexif()
    index = exif.get_ifd(_INTEROPERABILITY)
    return str(index.get(_INDEX, "")).strip("\x00 ") == "R03"


def _coded(primaries: int, transfer: int) -> Encoding | None:
    curves: dict[int, tuple[Callable[[Any], Any], str]] = {
        _LINEAR: (lambda values: values, "linear"),
        _PQ: (_perceptual, "HDR (PQ)"),
        _HLG: (_hybrid, "HDR (HLG)"),
    }
    light, words = curves.get(transfer, (from_srgb, ""))
    wide = _PRIMARIES.get(primaries)
    if wide is None and not words:
        return None
    named = {9: "BT.2020", 12: "Display P3"}.get(primaries, "")
    return Encoding(light, _matrix(wide) if wide else None, " ".join(filter(None, (words, named))))


def _matrix(primaries: Any) -> Any:
    """Return the way from linear light of primaries to that of sRGB's."""
    return (np.linalg.inv(_to_xyz(_SRGB)) @ _to_xyz(primaries)).astype(np.float32)


def _to_xyz(primaries: Any) -> Any:
    def column(x: float, y: float) -> Any:
        return np.array([x / y, 1.0, (1 - x - y) / y])

    columns = np.stack([column(*one) for one in primaries], axis=1)
    return columns * np.linalg.solve(columns, column(*_WHITE))


def to_srgb(light: Any) -> Any:
    """Return sRGB values 0…1 of linear light (IEC 61966-2-1), clipped to what it can show."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)


def from_srgb(values: Any) -> Any:
    """Return the linear light of sRGB values 0…1."""
    return np.where(values <= 0.04045, values / 12.92, np.power((values + 0.055) / 1.055, 2.4))


def _perceptual(values: Any) -> Any:
    """Return light relative to the reference white (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.power(values, 1 / m2)
    return np.power(np.maximum(power - c1, 0) / (c2 - c3 * power), 1 / m1) * 10_000 / _REFERENCE_WHITE


def _hybrid(values: Any) -> Any:
    """Return light relative to the reference white (ARIB STD-B67, on a display of 1,000 nits)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)
    return np.power(scene, 1.2) * 1_000 / _REFERENCE_WHITE

"""The look of a film, put over a finished picture: colour grading and grain, by numpy alone and the same every time.

The three gradings imitate what the films are known for, not their data sheets: Velvia's saturation and deep shadows,
Portra's lifted shadows and soft warm skin, Ektar's clean contrast and strong reds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tunes_dagster.core.recipe import ColorGrading

# How much red, green and blue weigh in brightness (Rec. 709).
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
# Height in pixels of the picture that a grain of one pixel belongs to: larger pictures get coarser grain.
_GRAIN_HEIGHT = 640


@dataclass(frozen=True)
class Film:
    """A grading.

    Attributes:
        saturation: 1 leaves colours alone.
        contrast: Share of an S-curve that is mixed in.
        black: Brightness that black is lifted to.
        shadows: Colour added in the shadows.
        highlights: Colour added in the highlights.
        channels: Gain of red, green and blue, at unchanged grey.
    """

    saturation: float
    contrast: float
    black: float
    shadows: tuple[float, float, float]
    highlights: tuple[float, float, float]
    channels: tuple[float, float, float] = (1.0, 1.0, 1.0)


FILMS: dict[ColorGrading, Film] = {
    "Film Velvia": Film(1.24, 0.40, 0.0, (-0.010, -0.004, 0.020), (0.014, 0.006, -0.012), (1.01, 1.01, 1.03)),
    "Film Portra": Film(
        0.88, -0.10, 0.035, (0.004, 0.012, 0.014), (0.030, 0.014, -0.022), (1.02, 1.00, 0.97)
    ),
    "Ektar": Film(1.14, 0.25, 0.005, (-0.004, 0.002, 0.014), (0.012, 0.000, -0.006), (1.05, 0.99, 1.00)),
}


def grade(image: Image.Image, grading: ColorGrading) -> Image.Image:
    """Return a picture in the colours of a film."""
    film = FILMS[grading]
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    gains = np.array(film.channels, np.float32)
    pixels = pixels * (gains / float(gains @ _LUMA))
    curve = pixels * pixels * (3 - 2 * np.clip(pixels, 0, 1))
    pixels = pixels + film.contrast * (curve - pixels)
    luma = (pixels @ _LUMA)[..., None]
    pixels = luma + film.saturation * (pixels - luma)
    bright = np.clip(luma, 0, 1)
    pixels += (1 - bright) ** 2 * np.array(film.shadows, np.float32)
    pixels += bright**2 * np.array(film.highlights, np.float32)
    pixels = film.black + (1 - film.black) * pixels
    return _image(pixels)


def grain(image: Image.Image, seed: int, strength: float = 0.032) -> Image.Image:
    """Return a picture with film grain: strongest in the mid-tones, finer in colour than in brightness.

    Args:
        image: RGB.
        seed: The same picture with the same seed gets the same grain.
        strength: Standard deviation in the mid-tones, as a share of white.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    height, width = pixels.shape[:2]
    draw = np.random.default_rng(seed)
    coarse = max(1.0, height / _GRAIN_HEIGHT)
    bright = _noise(draw, width, height, coarse * 1.4) * 0.6 + _noise(draw, width, height, coarse * 0.8) * 0.4
    colour = np.stack([_noise(draw, width, height, coarse * 1.2) for _ in range(3)], axis=-1)
    luma = np.clip(pixels @ _LUMA, 0, 1)[..., None]
    where = 0.25 + 0.75 * 4 * luma * (1 - luma)
    return _image(pixels + strength * where * (bright[..., None] + 0.25 * colour))


def _noise(draw: np.random.Generator, width: int, height: int, size: float) -> np.ndarray:
    """Return smooth noise of grains about `size` pixels wide, with a standard deviation of 1."""
    small = (max(2, round(width / size)), max(2, round(height / size)))
    raw = draw.standard_normal((small[1], small[0]), dtype=np.float32)
    found = np.asarray(Image.fromarray(raw).resize((width, height), Image.Resampling.BICUBIC))
    return found / max(1e-6, float(found.std()))


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))

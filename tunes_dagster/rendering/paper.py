"""What sheets are drawn with: colours, the typeface, text that fits, pictures with soft corners.

Layout belongs to `sheets`; nothing here knows what a sheet shows.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from PIL import Image, ImageDraw

from tunes_dagster.rendering.typefaces import Color, Face

PAPER: Color = (250, 250, 248)
INK: Color = (28, 30, 36)
SOFT_INK: Color = (104, 108, 118)
HAIRLINE: Color = (222, 223, 226)
PLACEHOLDER: Color = (238, 238, 240)

# Background and text of badges: saturated enough to be found at a glance, dark enough for white text.
TONES: dict[str, tuple[Color, Color]] = {
    "good": ((30, 132, 73), (255, 255, 255)),
    "info": ((38, 98, 186), (255, 255, 255)),
    "warn": ((191, 110, 0), (255, 255, 255)),
    "bad": ((186, 45, 45), (255, 255, 255)),
    "plain": ((84, 88, 98), (255, 255, 255)),
}

_ELLIPSIS = "…"
# Words with the space behind them; scripts without spaces break behind each character.
_BREAKS = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]|[^\s\u3040-\u30ff\u3400-\u9fff]+\s*|\s+"
)
_SMOOTH = 4  # masks are drawn this much larger and reduced, which is what makes their edges smooth


@lru_cache(maxsize=64)
def font(size: int, bold: bool = False) -> Face:
    """Return DejaVu Sans, which comes with matplotlib and covers Latin, Greek and Cyrillic, and who helps out.

    Args:
        size: Pixels.
        bold: The bold cut.
    """
    return Face(size, bold)


def clean(text: str) -> str:
    """Return text on one line, without control characters and doubled spaces."""
    kept = (" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in str(text))
    return " ".join("".join(kept).split())


def text_width(text: str, face: Face) -> int:
    """Return the advance width of one line in pixels, rounded up."""
    return int(face.getlength(text) + 0.999)


def line_height(face: Face) -> int:
    """Return the distance between two base lines in pixels."""
    ascent, descent = face.getmetrics()
    return round((ascent + descent) * 1.12)


def shorten(text: str, face: Face, width: int) -> str:
    """Return the text, cut with an ellipsis where it is wider than `width` pixels."""
    if text_width(text, face) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + _ELLIPSIS, face) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip(" ,.;:-") + _ELLIPSIS


def wrap(text: str, face: Face, width: int, max_lines: int) -> list[str]:
    """Break text into at most `max_lines` lines of at most `width` pixels; a cut one ends in an ellipsis."""
    words = _BREAKS.findall(clean(text))
    lines: list[str] = []
    line = ""
    for index, word in enumerate(words):
        if text_width((line + word).rstrip(), face) <= width or not line:
            line += word
            continue
        if len(lines) == max_lines - 1:
            return [*lines, shorten("".join([line, *words[index:]]), face, width)]
        lines.append(shorten(line.rstrip(), face, width))
        line = word
    return [*lines, shorten(line, face, width)] if line else lines


def rounded_mask(size: tuple[int, int], radius: int) -> Image.Image:
    """Return a smooth mask (mode L) of a rectangle with round corners."""
    width, height = size
    big = Image.new("L", (width * _SMOOTH, height * _SMOOTH), 0)
    box = (0, 0, width * _SMOOTH - 1, height * _SMOOTH - 1)
    ImageDraw.Draw(big).rounded_rectangle(box, radius * _SMOOTH, fill=255)
    return big.resize(size, Image.Resampling.BOX)


def scale_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the picture at a size: icons keep their pixels, everything else is resampled by Lanczos."""
    image = image.convert("RGB")
    if image.size == size:
        return image
    factor = size[0] / image.width
    whole = factor == int(factor) and size[1] == image.height * int(factor)
    if whole and factor >= 2 and max(image.size) <= 48:
        return image.resize(size, Image.Resampling.NEAREST)
    return image.resize(size, Image.Resampling.LANCZOS)


def contain(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size of the same aspect ratio that fits the box."""
    factor = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def paste_picture(
    sheet: Image.Image, image: Image.Image, at: tuple[int, int], radius: int = 6, muted: bool = False
) -> None:
    """Paste a picture with soft corners and a hairline that keeps white pictures visible on the paper.

    Args:
        sheet: Drawn on.
        image: Already at its final size.
        at: Left and top.
        radius: Of the corners, in pixels.
        muted: Wash the picture out, for those that do not count.
    """
    if muted:
        grey = image.convert("L").convert("RGB")
        image = Image.blend(grey, Image.new("RGB", image.size, PAPER), 0.45)
    mask = rounded_mask(image.size, radius)
    edge = Image.new("RGB", image.size, tuple(round(c * 0.86) for c in PAPER))
    inner = Image.new("L", image.size, 0)
    inner.paste(rounded_mask((image.width - 2, image.height - 2), max(1, radius - 1)), (1, 1))
    framed = Image.blend(image, edge, 0.5)
    framed.paste(image, (0, 0), inner)
    sheet.paste(framed, at, mask)


def paste_badge(sheet: Image.Image, text: str, tone: str, at: tuple[int, int], max_width: int) -> None:
    """Draw a pill with a short word on a picture.

    Args:
        sheet: Drawn on.
        text: One or two words.
        tone: A key of `TONES`.
        at: Left and top of the pill.
        max_width: In pixels; longer text is cut.
    """
    back, ink = TONES[tone]
    face = font(12, bold=True)
    text = shorten(clean(text), face, max_width - 16)
    size = (text_width(text, face) + 16, 21)
    sheet.paste(back, (*at, at[0] + size[0], at[1] + size[1]), rounded_mask(size, 10))
    face.draw(sheet, (at[0] + 8, at[1] + size[1] / 2), text, ink, "lm")

"""Text in any script: DejaVu Sans, which comes along, and what this machine's fonts have beside it.

What no font here can show is written in words (`‹3 Hangul›`, `‹billed cap›`), never as a box, and `unshown` says so.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

# Selectors of looks and joiners, which are of the character before them and have no looks of their own.
_LOOKS = frozenset({0xFE0E, 0xFE0F})
_JOINER = 0x200D
_SKINS = range(0x1F3FB, 0x1F400)
_FLAGS = range(0x1F1E6, 0x1F200)
# Sizes that fonts of coloured pictures come in: Noto's, Apple's and others.
_STRIKES = (109, 160, 136, 128, 96, 64)
# So many files are looked into where fontconfig is not there to ask; a CJK font takes 20 ms.
_FILES = 300
# Parts of names of fonts with many scripts, looked into first.
_LIKELY = (
    "emoji",
    "cjk",
    "unicode",
    "unifont",
    "wqy",
    "droid",
    "noto",
    "pingfang",
    "hei",
    "gothic",
    "malgun",
    "yu",
)
_ASK_SECONDS = 5.0
_EAST_ASIAN = frozenset({"CJK", "HIRAGANA", "KATAKANA"})

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """A piece of text and who draws it: at the size that is wanted, or scaled down from a picture's."""

    text: str
    font: ImageFont.FreeTypeFont
    scale: float = 1.0

    @property
    def width(self) -> float:
        return float(self.font.getlength(self.text)) * self.scale


@lru_cache(maxsize=1)
def _shipped() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=64)
def _characters(path: str) -> frozenset[int]:
    """Return the characters that a font file has, none when it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except Exception as error:  # whatever a broken font brings up
        logger.info("A font could not be read (%s).", type(error).__name__)
        return frozenset()


@lru_cache(maxsize=1)
def _files() -> tuple[str, ...]:
    """Return font files of this machine, likely ones first."""
    from matplotlib import font_manager

    def likely(path: str) -> tuple[bool, str]:
        return not any(word in Path(path).name.lower() for word in _LIKELY), path

    return tuple(sorted(font_manager.findSystemFonts(), key=likely)[:_FILES])


@lru_cache(maxsize=4096)
def find_font(character: int) -> str:
    """Return the file of a font on this machine that has a character; empty when none has."""
    for path in _known:
        if character in _characters(path):
            return path
    for path in _asked(character) or _files():
        if character in _characters(path):
            _known.append(path)
            return path
    return ""


# Files that were found useful, so that text of one script comes in one font.
_known: list[str] = []


def _asked(character: int) -> list[str]:
    """Return what fontconfig says, where it is there."""
    asker = shutil.which("fc-list")
    if asker is None:
        return []
    command = [asker, "--format=%{file}\n", f":charset={character:x}"]
    try:
        said = subprocess.run(  # noqa: S603 - the system's own
            command, capture_output=True, timeout=_ASK_SECONDS, check=True, text=True
        )
    except (subprocess.SubprocessError, OSError, ValueError):
        return []
    return sorted(said.stdout.split("\n"), key=lambda path: ("serif" in path.lower(), path))


class Face:
    """A size and weight of text in whatever scripts."""

    def __init__(self, size: int, bold: bool = False) -> None:
        self.size = size
        main = _shipped() / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
        self._path, self._main = str(main), ImageFont.truetype(str(main), size)
        self._others: dict[str, tuple[ImageFont.FreeTypeFont, float] | None] = {}

    def getlength(self, text: str) -> float:
        """Return the advance width of one line in pixels."""
        return sum(run.width for run in self._runs(text))

    def getmetrics(self) -> tuple[int, int]:
        """Return ascent and descent of the font that comes along, which lines are spaced by."""
        return self._main.getmetrics()

    def draw(
        self, sheet: Image.Image, at: tuple[float, float], text: str, fill: Color, anchor: str = "la"
    ) -> None:
        """Draw one line.

        Args:
            sheet: Drawn on.
            at: Where its anchor is.
            text: Without control characters.
            fill: Its colour; pictures among characters have their own.
            anchor: Pillow's, two letters.
        """
        runs, draw = list(self._runs(text)), ImageDraw.Draw(sheet)
        if len(runs) <= 1 and all(run.scale == 1.0 for run in runs):
            for run in runs:
                draw.text(at, run.text, font=run.font, fill=fill, anchor=anchor)
            return
        x = at[0] - {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * sum(run.width for run in runs)
        base = at[1] + self._above(anchor[1])
        for run in runs:
            if run.scale == 1.0:
                draw.text((x, base), run.text, font=run.font, fill=fill, anchor="ls")
            else:
                self._draw_picture(sheet, run, (x, base))
            x += run.width

    def _above(self, anchor: str) -> float:
        """Return how far the base line is below an anchor, by the font that comes along."""
        ascent, descent = self.getmetrics()
        return {"a": ascent, "m": (ascent - descent) / 2, "s": 0, "d": -descent}[anchor]

    def _draw_picture(self, sheet: Image.Image, run: _Run, at: tuple[float, float]) -> None:
        box = run.font.getbbox(run.text, anchor="ls")
        size = max(1, round(box[2] - box[0])), max(1, round(box[3] - box[1]))
        large = Image.new("RGBA", size, (0, 0, 0, 0))
        ImageDraw.Draw(large).text(
            (-box[0], -box[1]), run.text, font=run.font, embedded_color=True, anchor="ls"
        )
        small = large.resize(
            (max(1, round(size[0] * run.scale)), max(1, round(size[1] * run.scale))), Image.Resampling.BOX
        )
        sheet.paste(small, (round(at[0] + box[0] * run.scale), round(at[1] + box[1] * run.scale)), small)

    def _runs(self, text: str) -> Iterator[_Run]:
        """Yield a line in pieces, each with the font that has it."""
        pending, drawn_by = "", (self._main, 1.0)
        for piece, path in _pieces(text, self._path):
            opened = self._opened(path)
            if opened is None:
                piece, opened = _in_words(piece), (self._main, 1.0)
            if opened != drawn_by and pending:
                yield _Run(pending, *drawn_by)
                pending = ""
            pending, drawn_by = pending + piece, opened
        if pending:
            yield _Run(pending, *drawn_by)

    def _opened(self, path: str) -> tuple[ImageFont.FreeTypeFont, float] | None:
        if path == self._path:
            return self._main, 1.0
        if path not in self._others:
            self._others[path] = _open_at(path, self.size) if path else None
        return self._others[path]


def _open_at(path: str, size: int) -> tuple[ImageFont.FreeTypeFont, float] | None:
    """Return a font at a size, or at the one it has and the scale from there."""
    for strike in (size, *_STRIKES):
        try:
            return ImageFont.truetype(path, strike), size / strike
        except OSError:
            continue
    return None


def _clusters(text: str) -> Iterator[str]:
    """Yield characters with what belongs to them: accents, looks, skins, and what is joined."""
    cluster = ""
    for character in text:
        code = ord(character)
        belongs = (
            code in _LOOKS
            or code == _JOINER
            or code in _SKINS
            or unicodedata.category(character) in ("Mn", "Me", "Mc")
            or cluster.endswith(chr(_JOINER))
            or (len(cluster) == 1 and code in _FLAGS and ord(cluster) in _FLAGS)
        )
        if cluster and not belongs:
            yield cluster
            cluster = ""
        cluster += character
    if cluster:
        yield cluster


def _pieces(text: str, main: str) -> Iterator[tuple[str, str]]:
    """Yield pieces of a line, each with the file of its font, empty for what no font has."""
    lacking, script = "", ""
    for cluster in _clusters(text):
        needed = [ord(c) for c in cluster if ord(c) not in _LOOKS and ord(c) != _JOINER]
        path = main
        if not all(code in _characters(main) for code in needed):
            path = find_font(needed[0])
        if path:
            if lacking:
                yield lacking, ""
                lacking = ""
            plain = "".join(c for c in cluster if ord(c) not in _LOOKS and ord(c) != _JOINER)
            yield (plain if path == main else cluster), path
            continue
        if lacking and _script(cluster) != script:
            yield lacking, ""
            lacking = ""
        lacking, script = lacking + cluster, _script(cluster)
    if lacking:
        yield lacking, ""


def _script(cluster: str) -> str:
    """Return what a character that is not there is called: its script, or its own name where it is a picture."""
    name = unicodedata.name(cluster[0], "")
    if not name:
        return f"U+{ord(cluster[0]):04X}"
    if unicodedata.category(cluster[0]).startswith("L"):
        word = name.split()[0].split("-")[0]
        return "CJK" if word in _EAST_ASIAN else word.title()
    return name.lower()


def _in_words(text: str) -> str:
    """Return what stands for characters of one kind that no font has."""
    count = len(list(_clusters(text)))
    counted = count > 1 or unicodedata.category(text[0]).startswith("L")
    return f"‹{count} {_script(text)}›" if counted else f"‹{_script(text)}›"


def unshown(texts: Iterable[str]) -> str:
    """Return in words what of some texts no font on this machine has; empty when all can be shown."""
    main = str(_shipped() / "DejaVuSans.ttf")
    found: Counter[str] = Counter()
    for text in texts:
        for piece, path in _pieces(text, main):
            if not path:
                found[_script(piece)] += len(list(_clusters(piece)))
    if not found:
        return ""
    what = ", ".join(f"{name} ({count})" for name, count in found.most_common(5))
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"No font of this machine has: {what}{more}; written in ‹words›"


def text_of(*parts: Any) -> list[str]:
    """Return the texts among nested lists of texts."""
    found: list[str] = []
    for part in parts:
        found += [part] if isinstance(part, str) else text_of(*part)
    return found

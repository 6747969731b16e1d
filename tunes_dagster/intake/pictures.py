"""One way to every picture that people have, and the normalised form that the store keeps.

The files themselves are opened by child processes (`sandbox`); here arrive pixels, and a few facts about them that
are checked as if a stranger had written them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from PIL import Image

from tunes_dagster.core.failures import Failure
from tunes_dagster.intake.measures import Fingerprint
from tunes_dagster.intake.sandbox.child.headers import MAX_PIXELS, MAX_SIDE, unreadable

if TYPE_CHECKING:
    from tunes_dagster.intake.sandbox.pool import Session

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "SUFFIXES",
    "Glance",
    "Measures",
    "Picture",
    "decode",
    "glance",
    "normalise",
    "unreadable",
]

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "webp", "gif"),
        *("avif", "heic", "heif", "hif", "bmp", "tif", "tiff"),
    )
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Measures:
    """What is measured on every picture; see `intake.measures`."""

    sharpness: float
    blank: bool
    fingerprint: Fingerprint


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded picture in the form that the store keeps.

    Attributes:
        image: Upright RGB, 8 bit.
        data: The file: the original bytes of an upright sRGB JPEG, else a PNG without metadata.
        suffix: `.jpg` or `.png`.
        hash: SHA-256 of the file; names the picture everywhere.
        pixels_hash: SHA-256 of size and pixels; equal for exact copies in different lossless files.
        measures: See `Measures`.
        note: Something that was done and that its owner may want to know, or empty.
    """

    image: Image.Image
    data: bytes
    suffix: str
    hash: str
    pixels_hash: str
    measures: Measures
    note: str = ""


@dataclass(frozen=True)
class Glance:
    """A picture as somebody sees it who only wants to know what is on it.

    Attributes:
        image: Upright RGB, shrunk.
        width: Of the picture itself.
        height: As `width`.
        sharpness: See `intake.measures`.
    """

    image: Image.Image
    width: int
    height: int
    sharpness: float


def decode(
    source: bytes | Path | IO[bytes],
    name: str = "the picture",
    among: Session | None = None,
    as_mask: bool = False,
) -> Image.Image:
    """Return a picture as upright 8-bit RGB in sRGB.

    Args:
        source: The file, or its content.
        name: What the picture is called in messages.
        among: More pictures of the same owner are opened there.
        as_mask: Whether it says what counts, in white: then what is transparent is black.

    Raises:
        Failure: `PICTURE_UNREADABLE`, saying whether it is no picture, truncated, too large, or costs more to open
            than it may; `TIMED_OUT` when the machine is too busy.
    """
    return _opened(source, name, {"as_mask": as_mask}, lambda said, pixels, _kept: said.image(pixels), among)


def size_of(source: bytes | Path | IO[bytes], name: str = "the picture") -> tuple[int, int]:
    """Return width and height of a picture as it is looked at.

    Raises:
        Failure: See `decode`.
    """
    return _opened(source, name, {"fit": 1}, lambda said, _pixels, _kept: (said.width, said.height))


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two pictures have one aspect, as far as whole pixels of the smaller one can have it."""
    small, large = sorted((one, other), key=lambda size: size[0] * size[1])
    scale = (small[0] * small[1] / (large[0] * large[1])) ** 0.5
    return all(abs(b * scale - a) <= max(1.0, a / 100) for a, b in zip(small, large, strict=True))


def glance(source: bytes | Path | IO[bytes], side: int, name: str = "the picture") -> Glance:
    """Return a picture shrunk to at most `side` pixels on its longer side, as `resize(…, BOX)` does it.

    Raises:
        Failure: See `decode`.
    """

    def made(said: _Said, pixels: IO[bytes], kept: IO[bytes]) -> Glance:
        return Glance(said.image(pixels, side), said.width, said.height, said.measures().sharpness)

    return _opened(source, name, {"measure": True, "fit": side}, made)


def check(source: bytes | Path | IO[bytes], name: str = "the picture") -> None:
    """Refuse what is no picture that can be read; nothing of it is kept.

    Raises:
        Failure: See `decode`.
    """
    _opened(source, name, {"fit": 1}, lambda said, pixels, _kept: said.image(pixels, 1))


def normalise(
    source: bytes | Path | IO[bytes],
    name: str = "the picture",
    among: Session | None = None,
    as_mask: bool = False,
) -> Picture:
    """Decode a picture and return it in the form that the store keeps.

    Args:
        source: The file, or its content.
        name: What the picture is called in messages.
        among: More pictures of the same owner are opened there.
        as_mask: See `decode`.

    Raises:
        Failure: See `decode`.
    """

    def made(said: _Said, pixels: IO[bytes], kept: IO[bytes]) -> Picture:
        if said.original:
            data, suffix = _content(source), ".jpg"
        else:
            data, suffix = _content(kept), ".png"
        digest = hashlib.sha256(data).hexdigest()
        return Picture(
            image=said.image(pixels),
            data=data,
            suffix=suffix,
            hash=digest,
            pixels_hash=said.pixels_hash,
            measures=said.measures(),
            note=said.note,
        )

    return _opened(source, name, {"measure": True, "keep": True, "as_mask": as_mask}, made, among)


def _content(source: bytes | Path | IO[bytes]) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path):
        return source.read_bytes()
    source.seek(0)
    return source.read()


def _opened(
    source: bytes | Path | IO[bytes],
    name: str,
    wanted: Mapping[str, Any],
    made: Callable[[_Said, IO[bytes], IO[bytes]], Result],
    among: Session | None = None,
) -> Result:
    """Have a child open a picture, and make something of what it says.

    A child that the system killed is not the picture's fault the first time.
    """
    from tunes_dagster.intake.sandbox.limits import for_picture
    from tunes_dagster.intake.sandbox.nursery import Gone
    from tunes_dagster.intake.sandbox.pool import get_pool, scratch

    def refuse(why: str, remedy: str) -> Failure:
        return unreadable(name, why, remedy or "Open it in a picture program and save it as JPEG.")

    for _ in range(2):
        with scratch() as pixels, scratch() as kept:
            arguments = {"name": name[:500], **wanted}
            try:
                with get_pool().task(
                    "picture", source, arguments, for_picture, [pixels, kept], refuse, among
                ) as task:
                    found = [message.get("picture") for message in task.messages()]
                said = _checked(found[0]) if found else None
            except Gone:
                continue
            if said is None:
                raise refuse("what was read of it makes no sense", "")
            try:
                return made(said, pixels, kept)
            except (ValueError, KeyError, TypeError):
                raise refuse("what was read of it makes no sense", "") from None
    raise refuse(
        "the system killed the process that opened it, because memory ended", "Shrink it, or try again."
    )


@dataclass(frozen=True)
class _Said:
    """What a child says of a picture, with nothing in it that was not looked at."""

    width: int
    height: int
    note: str
    pixels_hash: str
    original: bool
    rest: Mapping[str, Any]

    def image(self, pixels: IO[bytes], side: int = 0) -> Image.Image:
        """Return the picture of the rows that were written, shrunk when that was asked for.

        Raises:
            ValueError: When there are more or fewer than there should be.
        """
        size = (self.width, self.height)
        if side and max(size) > side:
            size = (_whole(self.rest, "small_width", side), _whole(self.rest, "small_height", side))
        length = 3 * size[0] * size[1]
        pixels.seek(0)
        data = pixels.read(length + 1)
        if len(data) != length:
            raise ValueError("another number of pixels")
        return Image.frombytes("RGB", size, data)

    def measures(self) -> Measures:
        """Return what was measured.

        Raises:
            ValueError: When it is something else.
        """
        sharpness, blank = self.rest["sharpness"], self.rest["blank"]
        if not isinstance(sharpness, float) or not 0 <= sharpness <= 1 or not isinstance(blank, bool):
            raise ValueError("no measure")
        prints = Fingerprint(_hex(self.rest, "phash", 64), _hex(self.rest, "colours", 96))
        return Measures(sharpness, blank, prints)


def _checked(said: Any) -> _Said | None:
    """Return what a child says of a picture when every part of it is what it should be."""
    try:
        width, height = _whole(said, "width", MAX_SIDE), _whole(said, "height", MAX_SIDE)
        if width * height > MAX_PIXELS:
            return None
        note = str(said["note"])[:200]
        return _Said(width, height, note, _hex(said, "pixels_hash", 64), said.get("original") is True, said)
    except (KeyError, TypeError, ValueError):
        return None


def _whole(said: Mapping[str, Any], name: str, most: int) -> int:
    value = said[name]
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(name)
    return value


def _hex(said: Mapping[str, Any], name: str, length: int) -> str:
    value = said[name]
    if not isinstance(value, str) or len(value) != length or not re.fullmatch("[0-9a-f]+", value):
        raise ValueError(name)
    return value

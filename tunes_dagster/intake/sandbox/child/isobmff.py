"""What a HEIF or AVIF file says of itself: the boxes of ISO/IEC 14496-12 and 23008-12 that name pictures and parts.

A picture may be a grid of tiles, and a tile be named any number of times: what is counted is the area of everything
that a picture is said to be made of.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

from tunes_dagster.intake.sandbox.child.headers import MAX_PIXELS, Header, check_size, exactly, too_many

# A phone's largest picture has 200 tiles, and as many again for depth and brightness.
_BOXES = 10_000
_ITEMS = 4_000
_META_BYTES = 16 << 20
_AREA = 3 * MAX_PIXELS
# libheif's and dav1d's frames, the bytes that are handed over, and the picture made of them; measured at 48 megapixels.
_BYTES_PER_PIXEL = {"HEIF": 8.4, "AVIF": 9.8}


class _Found:
    """What was found in the boxes."""

    def __init__(self) -> None:
        self.boxes = 0
        self.sizes: dict[int, tuple[int, int]] = {}  # number of the property → width and height
        self.properties = 0
        self.of_item: dict[int, list[int]] = {}
        self.parts: dict[int, list[int]] = {}
        self.primary = 0
        self.coded: dict[int, tuple[int, int]] = {}  # number of the property → primaries and transfer curve


def examine(file: IO[bytes], size: int) -> Header:
    """Count boxes, items, references, and the area that they make up."""
    head = exactly(file, 12)
    kind = "AVIF" if head[8:12] in (b"avif", b"avis") else "HEIF"
    file.seek(0)
    found = _Found()
    for name, begin, end in _boxes(file, 0, size, found):
        if name == b"meta":
            file.seek(begin)
            body = file.read(min(end - begin, _META_BYTES))
            _walk(body, 4, len(body), found)
    for wide, high in found.sizes.values():
        check_size(wide, high)
    whole = {item: _size_of(item, found) for item in found.of_item}
    for parts in found.parts.values():
        area = sum(whole.get(part, (0, 0))[0] * whole.get(part, (0, 0))[1] for part in parts)
        if area > _AREA:
            too_many(round(area / 1e6), "megapixels of tiles", _AREA // 1_000_000)
    width, height = whole.get(found.primary, (0, 0))
    if not width and found.sizes:
        width, height = max(found.sizes.values(), key=lambda one: one[0] * one[1])
    coded = (found.coded[one] for one in found.of_item.get(found.primary, ()) if one in found.coded)
    return Header(kind, width, height, _BYTES_PER_PIXEL[kind], coded=next(coded, None))


def _boxes(file: IO[bytes], begin: int, end: int, found: _Found) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, begin and end of the boxes at the top of a file."""
    at = begin
    while at + 8 <= end:
        file.seek(at)
        length, name = struct.unpack(">I4s", exactly(file, 8))
        inside = at + 8
        if length == 1:
            (length,) = struct.unpack(">Q", exactly(file, 8))
            inside += 8
        stop = end if length == 0 else at + length
        if stop < inside:
            return
        _count(found)
        yield name, inside, min(stop, end)
        at = stop


def _count(found: _Found) -> None:
    found.boxes += 1
    if found.boxes > _BOXES:
        too_many(found.boxes, "boxes", _BOXES)


def _walk(data: bytes, begin: int, end: int, found: _Found, listed: bool = False) -> None:
    """Look at the boxes inside `meta`; `listed` ones are the properties, which go by their number."""
    at = begin
    while at + 8 <= end:
        length, name = struct.unpack_from(">I4s", data, at)
        stop = end if length == 0 else at + length
        if stop < at + 8 or stop > end:
            return
        _count(found)
        inside = at + 8
        if listed:
            found.properties += 1
            if name == b"ispe":
                found.sizes[found.properties] = struct.unpack_from(">II", data, inside + 4)
            elif name == b"colr" and data[inside : inside + 4] == b"nclx":
                found.coded[found.properties] = struct.unpack_from(">HH", data, inside + 4)
        elif name in (b"iprp", b"ipco"):
            _walk(data, inside, stop, found, listed=name == b"ipco")
        elif name == b"iref":
            _references(data, inside, stop, found)
        elif name == b"ipma":
            _associations(data, inside, stop, found)
        elif name == b"pitm":
            form = ">I" if data[inside] else ">H"
            (found.primary,) = struct.unpack_from(form, data, inside + 4)
        elif name == b"iinf":
            form = ">I" if data[inside] else ">H"
            (items,) = struct.unpack_from(form, data, inside + 4)
            if items > _ITEMS:
                too_many(items, "items", _ITEMS)
        at = stop


def _references(data: bytes, begin: int, end: int, found: _Found) -> None:
    form = ">I" if data[begin] else ">H"
    width = struct.calcsize(form)
    at, total = begin + 4, 0
    while at + 8 <= end:
        length, name = struct.unpack_from(">I4s", data, at)
        if length < 8:
            return
        _count(found)
        (item,) = struct.unpack_from(form, data, at + 8)
        (number,) = struct.unpack_from(">H", data, at + 8 + width)
        total += number
        if total > _ITEMS:
            too_many(total, "references", _ITEMS)
        if name == b"dimg":
            start = at + 10 + width
            found.parts[item] = [struct.unpack_from(form, data, start + i * width)[0] for i in range(number)]
        at += length


def _associations(data: bytes, begin: int, end: int, found: _Found) -> None:
    version, flags = data[begin], data[begin + 3]
    (items,) = struct.unpack_from(">I", data, begin + 4)
    if items > _ITEMS:
        too_many(items, "items", _ITEMS)
    at = begin + 8
    for _ in range(items):
        (item,) = struct.unpack_from(">I" if version else ">H", data, at)
        at += 4 if version else 2
        number = data[at]
        at += 1
        wide = 2 if flags & 1 else 1
        mask = 0x7FFF if flags & 1 else 0x7F
        found.of_item[item] = [
            int.from_bytes(data[at + i * wide : at + (i + 1) * wide], "big") & mask for i in range(number)
        ]
        at += number * wide


def _size_of(item: int, found: _Found) -> tuple[int, int]:
    return next((found.sizes[one] for one in found.of_item[item] if one in found.sizes), (0, 0))

"""What a TIFF says of itself: the entries of its first directory, which is the only one that is read.

TIFF 6.0 (https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf), and BigTIFF, whose numbers have 64 bits.
"""

from __future__ import annotations

import struct
from typing import IO, Any

from tunes_dagster.intake.sandbox.child.headers import Header, Refused, exactly, too_many

PREFIXES = (b"MM\x00\x2a", b"II\x2a\x00", b"MM\x2a\x00", b"II\x00\x2a", b"MM\x00\x2b", b"II\x2b\x00")

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 259, 277, 322, 323
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
_UNIT = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_ENTRIES = 500
# One strip per row of the tallest picture, or the smallest tiles that anybody writes (64) over the largest.
_PARTS = 30_000
_SAMPLES_MOST = 16
# A tile may hang over the edge, but not by more than the picture.
_TILE_TIMES = 4
_SCANS_PER_PART = 100


def examine(file: IO[bytes], size: int) -> Header:
    """Count the entries, what they hold, and the parts of the picture."""
    order, big = _begin(exactly(file, 4))
    if big:
        (offset,) = struct.unpack(f"{order}4xQ", exactly(file, 12))
        file.seek(offset)
        (count,) = struct.unpack(f"{order}Q", exactly(file, 8))
        form, word = f"{order}HHQ8s", 8
    else:
        (offset,) = struct.unpack(f"{order}I", exactly(file, 4))
        file.seek(offset)
        (count,) = struct.unpack(f"{order}H", exactly(file, 2))
        form, word = f"{order}HHI4s", 4
    if count > _ENTRIES:
        too_many(count, "entries", _ENTRIES)
    entries = [struct.unpack(form, exactly(file, struct.calcsize(form))) for _ in range(count)]
    held = sum(_UNIT.get(kind, 1) * number for _, kind, number, _ in entries)
    if held > size + _ENTRIES * 8:
        raise Refused(f"its entries say that they hold {held:,} bytes, and the file has {size:,}")
    values = {tag: _number(order, kind, number, raw, word) for tag, kind, number, raw in entries}
    counts = {tag: number for tag, _, number, _ in entries}
    return _described(values, counts)


def _begin(head: bytes) -> tuple[str, bool]:
    return ("<" if head[:2] == b"II" else ">"), b"\x2b" in head[2:]


def _number(order: str, kind: int, count: int, raw: bytes, word: int) -> int:
    """Return an entry's value when it is one whole number in its place; 0 otherwise."""
    letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
    if letter is None or count * _UNIT.get(kind, 1) > word:
        return 0
    return int(struct.unpack_from(f"{order}{letter}", raw)[0])


def _described(values: dict[int, Any], counts: dict[int, int]) -> Header:
    width, height = values.get(_WIDTH, 0), values.get(_HEIGHT, 0)
    parts = max(counts.get(_STRIP_OFFSETS, 0), counts.get(_TILE_OFFSETS, 0))
    if parts > _PARTS:
        too_many(parts, "strips or tiles", _PARTS)
    if counts.get(_BITS, 0) > _SAMPLES_MOST or values.get(_SAMPLES, 0) > _SAMPLES_MOST:
        too_many(max(counts.get(_BITS, 0), values.get(_SAMPLES, 0)), "samples per pixel", _SAMPLES_MOST)
    tile = values.get(_TILE_WIDTH, 0) * values.get(_TILE_HEIGHT, 0)
    if tile > max(1 << 20, _TILE_TIMES * width * height):
        raise Refused(f"its tiles are said to be larger than the picture itself ({width} x {height})")
    return Header("TIFF", width, height, 4.0, bits=values.get(_BITS, 0))

"""What a picture's file says of itself, counted before a decoder follows it.

Each format has something that costs a decoder much and a file little: scans, chunks, frames, tiles, tags. Honest
encoders stay far below the numbers here, so whatever exceeds one is refused by its name. What is not counted here
the limits of the child end anyway, with a less helpful sentence.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, NoReturn

from tunes_dagster.core.failures import Failure, FailureCode

MAX_PIXELS = 89_000_000
"""Larger pictures are refused before they are decoded; just below Pillow's own warning, 9,400 x 9,400."""
MAX_SIDE = 30_000

# mozjpeg, which tries the most, writes 12 scans; there are no more than 64 coefficients to tell apart.
_JPEG_SCANS = 100
_JPEG_MARKERS = 20_000
# Encoders write IDAT chunks of 8 KB, small devices of 512 bytes; an empty chunk takes 12.
_PNG_CHUNKS = 2_000
_BYTES_PER_CHUNK = 256
_WEBP_CHUNKS = 20_000
# A block of pixels in a GIF has 255 bytes, all but the last of a frame.
_GIF_BLOCKS = 2_000
_BYTES_PER_BLOCK = 32
_MARKER = re.compile(rb"(?<=\xff)[^\x00\xff\xd0-\xd7]")
_NEAR, _PIECE = 1 << 12, 1 << 20


@dataclass
class Header:
    """What a file says of its picture.

    Attributes:
        kind: `JPEG`, `PNG` …; empty when the file begins like nothing that is known.
        width: Pixels; 0 when only a decoder can tell.
        height: As `width`.
        bytes_per_pixel: What decoding holds at its peak.
        bits: That its numbers have, where fewer are used than are written; 0 when it does not say.
        coded: Numbers of primaries and transfer curve by ITU-T H.273; None when it does not say.
    """

    kind: str = ""
    width: int = 0
    height: int = 0
    bytes_per_pixel: float = 4.0
    bits: int = 0
    coded: tuple[int, int] | None = None


class Refused(Exception):
    """Ends the counting: why, and what to do."""

    def __init__(
        self, why: str, remedy: str = "Open it in a picture program and save it anew as JPEG."
    ) -> None:
        super().__init__(why)
        self.why, self.remedy = why, remedy


def unreadable(
    name: str, why: str, remedy: str = "Open it in a picture program and save it as JPEG."
) -> Failure:
    """Return the failure of one picture; it never stops a dataset."""
    return Failure(FailureCode.PICTURE_UNREADABLE, f"{name}: {why}.", remedy)


def too_many(number: int, what: str, most: int) -> NoReturn:
    """Refuse a file that holds more of something than an honest one."""
    raise Refused(f"it holds {number:,} {what} or more, and {most:,} are plenty for such a picture")


def check_size(width: int, height: int) -> None:
    """Refuse a picture by its size.

    Raises:
        Refused: Saying the size.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        size = f" ({width} x {height})"
        raise Refused(
            f"more than {MAX_PIXELS // 1_000_000} megapixels{size}", "Shrink it; 4 megapixels are plenty."
        )


def check_header(file: IO[bytes], size: int, memory_bytes: int) -> Header:
    """Count what a file says of itself.

    Args:
        file: The picture; left at its beginning.
        size: Its length.
        memory_bytes: That decoding may take.

    Raises:
        Refused: When it says more than an honest file, or is larger than the memory there is for it.
    """
    from tunes_dagster.intake.sandbox.child import isobmff, tiffs

    head = file.read(32)
    kinds: tuple[tuple[bool, Callable[[IO[bytes], int], Header]], ...] = (
        (head.startswith(b"\xff\xd8\xff"), _jpeg),
        (head.startswith(b"\x89PNG\r\n\x1a\n"), _png),
        (head.startswith((b"GIF87a", b"GIF89a")), _gif),
        (head.startswith(b"RIFF") and head[8:12] == b"WEBP", _webp),
        (head.startswith(b"BM"), _bmp),
        (head.startswith(tiffs.PREFIXES), tiffs.examine),
        (head[4:8] == b"ftyp", isobmff.examine),
    )
    header = Header()
    try:
        for matches, examine in kinds:
            if matches:
                file.seek(0)
                header = examine(file, size)
                break
    except (struct.error, EOFError, IndexError):
        pass  # cut off: the decoder will say so in the words of its format
    finally:
        file.seek(0)
    check_size(header.width, header.height)
    needed = header.width * header.height * header.bytes_per_pixel
    if needed > memory_bytes:
        raise Refused(
            f"opening {header.width} x {header.height} pixels of this kind of {header.kind} takes "
            f"{needed / 1e6:,.0f} MB of memory, and {memory_bytes / 1e6:,.0f} MB may be taken for a file of its size",
            "Shrink it, or save it as an ordinary JPEG.",
        )
    return header


def exactly(file: IO[bytes], number: int) -> bytes:
    """Read so many bytes.

    Raises:
        EOFError: When there are fewer.
    """
    data = file.read(number)
    if len(data) < number:
        raise EOFError
    return data


def _jpeg(file: IO[bytes], size: int) -> Header:
    header = Header("JPEG")
    scans = markers = 0
    progressive, samples = False, 3.0
    file.seek(2)
    while True:
        passed, marker = _next_marker(file)
        markers += passed
        if markers > _JPEG_MARKERS:
            too_many(markers, "segments", _JPEG_MARKERS)
        if marker in (0, 0xD9):  # the file's end, or the picture's
            break
        if marker in (0x01, 0xD8):
            continue
        (length,) = struct.unpack(">H", exactly(file, 2))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and not header.width:
            frame = exactly(file, length - 2)
            header.height, header.width = struct.unpack(">HH", frame[1:5])
            progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
            samples = _samples_per_pixel(frame)
            continue
        file.seek(length - 2, io.SEEK_CUR)
        if marker == 0xDA:
            scans += 1
            if scans > _JPEG_SCANS:
                too_many(scans, "scans", _JPEG_SCANS)
    # Several scans mean that all coefficients, 2 bytes each, are held until the last one is there.
    held = 2 * samples if progressive or scans > 1 else 0.0
    header.bytes_per_pixel = (1.0 if samples == 1 else 4.0) + held
    return header


def _next_marker(file: IO[bytes]) -> tuple[int, int]:
    """Go behind the next marker; returns how many bytes of filling and marker were passed, and which it is, or 0."""
    filling, before, length = 1, b"", _NEAR
    while piece := file.read(length):
        data = before + piece
        found = _MARKER.search(data)
        seen = data[: found.start()] if found else data
        filling += len(seen) - len(seen.rstrip(b"\xff")) - len(before)
        if found:
            file.seek(found.end() - len(data), io.SEEK_CUR)
            return filling, data[found.start()]
        before, length = data[-1:] if data.endswith(b"\xff") else b"", _PIECE
    return 0, 0


def _samples_per_pixel(frame: bytes) -> float:
    count = frame[5]
    if count == 1:
        return 1.0
    factors = [(byte >> 4, byte & 15) for byte in frame[7 : 6 + 3 * count : 3]]
    most = max(a for a, _ in factors) * max(b for _, b in factors)
    return sum(a * b for a, b in factors) / (most or 1)


def _png(file: IO[bytes], size: int) -> Header:
    most = _PNG_CHUNKS + size // _BYTES_PER_CHUNK
    file.seek(8)
    header, chunks = Header("PNG"), 0
    while file.tell() + 8 <= size:
        length, kind = struct.unpack(">I4s", exactly(file, 8))
        chunks += 1
        if chunks > most:
            too_many(chunks, "chunks", most)
        if kind == b"IHDR" and chunks == 1:
            header.width, header.height, depth, colour = struct.unpack(">IIBB", exactly(file, 10))
            # Grey and palettes take a byte, 16-bit grey two; everything else four.
            header.bytes_per_pixel = (
                (2.0 if depth == 16 and colour == 0 else 1.0) if colour in (0, 3) else 4.0
            )
            length -= 10
        if kind == b"IEND":
            break
        if kind in (b"sBIT", b"cICP") and length <= 4:
            body = exactly(file, length)
            if kind == b"sBIT":
                header.bits = max(body, default=0)
            elif length == 4:
                header.coded = body[0], body[1]
            length = 0
        file.seek(length + 4, io.SEEK_CUR)
    return header


def _gif(file: IO[bytes], size: int) -> Header:
    """Count the blocks up to the second frame, which is as far as anybody looks."""
    most = _GIF_BLOCKS + size // _BYTES_PER_BLOCK
    blocks, frames = 0, 0
    width, height, flags = struct.unpack("<HHB", exactly(file, 11)[6:])
    header = Header("GIF", width, height, 4.0)
    file.seek(2 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), io.SEEK_CUR)
    while frames < 2:
        kind = exactly(file, 1)
        if kind == b";":
            break
        if kind == b",":
            frames += 1
            left, top, wide, high, local = struct.unpack("<HHHHB", exactly(file, 9))
            header.width, header.height = max(header.width, left + wide), max(header.height, top + high)
            file.seek((3 << (local & 7) + 1 if local & 0x80 else 0) + 1, io.SEEK_CUR)
        elif kind == b"!":
            file.seek(1, io.SEEK_CUR)
        else:
            blocks += 1  # Pillow looks at stray bytes one by one
            if blocks > most:
                too_many(blocks, "stray bytes", most)
            continue
        while length := exactly(file, 1)[0]:
            file.seek(length, io.SEEK_CUR)
            blocks += 1
            if blocks > most:
                too_many(blocks, "blocks of data", most)
    return header


def _webp(file: IO[bytes], size: int) -> Header:
    # The canvas twice, the bytes that are handed over, and the picture made of them, 4 each.
    header = Header("WEBP", bytes_per_pixel=16.0)
    file.seek(12)
    chunks = 0
    while file.tell() + 8 <= size:
        kind, length = struct.unpack("<4sI", exactly(file, 8))
        chunks += 1
        if chunks > _WEBP_CHUNKS:
            too_many(chunks, "chunks", _WEBP_CHUNKS)
        begin = file.tell()
        wide, high = _webp_size(kind, file.read(min(length, 16)))
        header.width, header.height = max(header.width, wide), max(header.height, high)
        file.seek(begin + length + (length & 1))
    return header


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Return the size that a chunk of a WebP says, 0 when it says none."""
    if kind == b"VP8X" and len(body) >= 10:
        return (int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1)
    if kind == b"VP8 " and len(body) >= 10:
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(body) >= 5:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return 0, 0


def _bmp(file: IO[bytes], size: int) -> Header:
    head = exactly(file, 30)
    (length,) = struct.unpack("<I", head[14:18])
    if length == 12:
        width, height = struct.unpack("<HH", head[18:22])
    else:
        width, height = struct.unpack("<ii", head[18:26])
    return Header("BMP", abs(width), abs(height), 4.0)

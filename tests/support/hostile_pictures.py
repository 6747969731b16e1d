"""Small pictures that cost whoever opens them much, one function each; used by tests and by `benchmarks/hostile.py`.

Each is made in milliseconds: flat pictures of 88 megapixels are one compressed stripe that is repeated.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable

from PIL import Image

SIDE = 9_400
"""Side of the largest square that is not refused by its size alone: 88 megapixels."""


def _jpeg_marker(kind: int, body: bytes) -> bytes:
    return bytes((0xFF, kind)) + struct.pack(">H", len(body) + 2) + body


def _tiny_table(where: int) -> bytes:
    """A Huffman table with one code, which stands for nothing."""
    return _jpeg_marker(0xC4, bytes((where, 1, *bytes(15), 0)))


def _jpeg(scans: int, components: int = 1, side: int = SIDE, before: bytes = b"", frame: int = 0xC2) -> bytes:
    """A progressive JPEG whose scans say nothing."""
    ids = range(1, components + 1)
    size = struct.pack(">BHHB", 8, side, side, components)
    sof = _jpeg_marker(frame, size + b"".join(bytes((i, 0x11, 0)) for i in ids))
    quantum = _jpeg_marker(0xDB, b"\0" + b"\1" * 64)
    first = _jpeg_marker(0xDA, bytes((components, *(b for i in ids for b in (i, 0)), 0, 0, 0))) + b"\0"
    more = b"".join(
        _jpeg_marker(0xDA, bytes((1, 1 + n % components, 0, 1, 63, 0))) + b"\0" for n in range(scans - 1)
    )
    return (
        b"\xff\xd8" + before + quantum + sof + _tiny_table(0) + _tiny_table(0x10) + first + more + b"\xff\xd9"
    )


def empty_scans() -> bytes:
    return _jpeg(5_000)


def as_many_scans_as_are_taken() -> bytes:
    return _jpeg(100)


def coloured_scans() -> bytes:
    return _jpeg(90, components=3)


def jpeg_comments() -> bytes:
    return _jpeg(1, side=64, before=_jpeg_marker(0xFE, b"") * 200_000)


def jpeg_filling() -> bytes:
    return _jpeg(1, side=64, before=b"\xff" * 3_000_000)


def jpeg_that_claims() -> bytes:
    return _jpeg(1, side=65_500)


def _png(
    width: int, height: int, depth: int, colour: int, data: bytes, *chunks: bytes, interlaced: int = 0
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header), *chunks, _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _flat(*rows: tuple[bytes, int]) -> bytes:
    """The zlib stream of rows and how often each stands there: one compressed piece, repeated."""
    parts, check = [b"\x78\xda"], 1
    for row, number in rows:
        stripe, times = row * 100, number // 100
        rest = row * (number - 100 * times)
        for data, repeated in ((stripe, times), (rest, 1)):
            packer = zlib.compressobj(9, wbits=-15)
            parts.append((packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)) * repeated)
            for _ in range(repeated):
                check = zlib.adler32(data, check)
    return b"".join([*parts, zlib.compressobj(9, wbits=-15).flush(), struct.pack(">I", check)])


def flat_png(depth: int, colour: int, *chunks: bytes) -> bytes:
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = b"\0" + b"\x40" * (SIDE * samples * depth // 8)
    return _png(SIDE, SIDE, depth, colour, _flat((row, SIDE)), *chunks)


def png_grey16() -> bytes:
    return flat_png(16, 0)


def png_rgba() -> bytes:
    return flat_png(8, 6)


def png_rgba16() -> bytes:
    return flat_png(16, 6)


def png_palette_with_alpha() -> bytes:
    return flat_png(8, 3, _chunk(b"PLTE", bytes(range(256)) * 3), _chunk(b"tRNS", bytes(256)))


def png_interlaced() -> bytes:
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = [
        (b"\0" + b"\x40" * (3 * -(-(SIDE - left) // across)), -(-(SIDE - top) // down))
        for left, top, across, down in passes
    ]
    return _png(SIDE, SIDE, 8, 2, _flat(*rows), interlaced=1)


def png_chunks() -> bytes:
    return _png(8, 8, 8, 0, zlib.compress(bytes(72)), _chunk(b"teXt", b"") * 100_000)


def png_empty_data() -> bytes:
    return _png(8, 8, 8, 0, zlib.compress(bytes(72)), _chunk(b"IDAT", b"") * 100_000)


def png_texts() -> bytes:
    packed = zlib.compress(bytes(1_000_000), 9)
    return _png(
        8, 8, 8, 0, zlib.compress(bytes(72)), *(_chunk(b"zTXt", b"k\0\0" + packed) for _ in range(500))
    )


def png_profile() -> bytes:
    return _png(
        8, 8, 8, 0, zlib.compress(bytes(72)), _chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(300_000_000), 9))
    )


def png_frames() -> bytes:
    control = _chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    return _png(8, 8, 8, 0, zlib.compress(bytes(72)), control)


def _gif(side: int, body: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6) + body


def _gif_frame(side: int, blocks: bytes) -> bytes:
    return b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\2" + blocks + b"\0"


def gif_blocks() -> bytes:
    return _gif(8, _gif_frame(8, b"\1\x44" * 500_000) + b";")


def gif_comments() -> bytes:
    return _gif(8, b"!\xfe" + b"\1a" * 500_000 + b"\0" + _gif_frame(8, b"\2\x4c\1") + b";")


def gif_stray_bytes() -> bytes:
    return _gif(8, b"\1" * 2_000_000 + _gif_frame(8, b"\2\x4c\1") + b";")


def gif_frames() -> bytes:
    return _gif(8, _gif_frame(8, b"\2\x4c\1") * 50_000 + b";")


def gif_that_is_flat() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (SIDE, SIDE)).save(buffer, "GIF")
    return buffer.getvalue()


def gif_with_a_frame_outside() -> bytes:
    return _gif(8, _gif_frame(65_000, b"\2\x4c\1") + b";")


def _riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _small_webp() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()[12:]


def _vp8x(side: int, flags: int = 0) -> tuple[bytes, bytes]:
    return b"VP8X", bytes((flags, 0, 0, 0)) + struct.pack("<I", side - 1)[:3] + struct.pack("<I", side - 1)[
        :3
    ]


def webp_canvas() -> bytes:
    small = _small_webp()
    return _riff(_vp8x(16_383), (small[:4], small[8:]))


def webp_that_is_flat() -> bytes:
    bits = (SIDE - 1) | (SIDE - 1) << 14
    return _riff((b"VP8L", b"\x2f" + struct.pack("<I", bits) + bytes(200)))


def webp_frames() -> bytes:
    small = _small_webp()
    frame = bytes(6) + struct.pack("<I", 7)[:3] + struct.pack("<I", 7)[:3] + bytes(4) + small
    return _riff(_vp8x(8, flags=2), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * 30_000)


def _tiff(entries: list[tuple[int, int, int, bytes]], tail: bytes = b"", count: int | None = None) -> bytes:
    """A little-endian TIFF of one directory; values of an entry are 4 bytes, in place or an offset."""
    directory = struct.pack("<H", len(entries) if count is None else count) + b"".join(
        struct.pack("<HHI", tag, kind, number) + value.ljust(4, b"\0")
        for tag, kind, number, value in sorted(entries)
    )
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + tail


def _tiff_tags(side: int, **more: tuple[int, int, int, bytes]) -> list[tuple[int, int, int, bytes]]:
    word = struct.pack("<I", side)
    plain = {
        "width": (256, 4, 1, word),
        "height": (257, 4, 1, word),
        "bits": (258, 3, 1, b"\x08\0"),
        "compression": (259, 3, 1, b"\1\0"),
        "photometric": (262, 3, 1, b"\1\0"),
        "samples": (277, 3, 1, b"\1\0"),
        "offsets": (273, 4, 1, struct.pack("<I", 8)),
        "rows": (278, 4, 1, word),
        "counts": (279, 4, 1, word),
    }
    return list({**plain, **more}.values())


def tiff_tile() -> bytes:
    huge = struct.pack("<I", 60_000)
    return _tiff(
        _tiff_tags(
            64,
            compression=(259, 3, 1, b"\x08\0"),
            wide=(322, 4, 1, huge),
            high=(323, 4, 1, huge),
            offsets=(324, 4, 1, struct.pack("<I", 8)),
            counts=(325, 4, 1, struct.pack("<I", 99)),
        ),
        bytes(200),
    )


def tiff_strips() -> bytes:
    number, at = 200_000, 400
    return _tiff(
        _tiff_tags(
            8,
            offsets=(273, 4, number, struct.pack("<I", at)),
            counts=(279, 4, number, struct.pack("<I", at)),
            rows=(278, 4, 1, b"\1\0\0\0"),
        ),
        bytes(4 * number + 400),
    )


def tiff_shared_values() -> bytes:
    tags = [(40_000 + n, 1, 1_000_000, struct.pack("<I", 100)) for n in range(400)]
    return _tiff([*_tiff_tags(8), *tags], os.urandom(1000) * 1_000)


def tiff_entries() -> bytes:
    return _tiff(_tiff_tags(8), bytes(12 * 65_535), count=65_535)


def bigtiff_entries() -> bytes:
    return b"II+\0" + struct.pack("<HHQ", 8, 0, 16) + struct.pack("<Q", 2**40) + bytes(2_000_000)


def tiff_samples() -> bytes:
    return _tiff(_tiff_tags(4_000, bits=(258, 3, 60_000, struct.pack("<I", 400))), bytes(121_000))


def tiff_that_is_flat() -> bytes:
    packed = _flat((b"\x40" * (SIDE * 3), SIDE))
    tags = _tiff_tags(
        SIDE,
        bits=(258, 3, 3, struct.pack("<I", 8)),
        compression=(259, 3, 1, b"\x08\0"),
        photometric=(262, 3, 1, b"\2\0"),
        samples=(277, 3, 1, b"\3\0"),
        counts=(279, 4, 1, struct.pack("<I", len(packed))),
    )
    at = len(_tiff(tags))
    tags = [
        (
            tag,
            kind,
            number,
            struct.pack("<I", {258: at, 273: at + 6}.get(tag, 0)) if tag in (258, 273) else value,
        )
        for tag, kind, number, value in tags
    ]
    return _tiff(tags, struct.pack("<HHH", 8, 8, 8) + packed)


def bmp_runs() -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, 0, 0, 0, 256, 0)
    runs = (b"\xff\1" * (SIDE // 255) + bytes((SIDE % 255, 1)) + b"\0\0") * 200 + b"\0\1"
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + head + bytes(1024) + runs


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, kind) + body


def _full(kind: bytes, body: bytes, version: int = 0) -> bytes:
    return _box(kind, bytes((version, 0, 0, 0)) + body)


def _heif(side: int, brand: bytes, *boxes: bytes, associations: bytes = b"") -> bytes:
    sizes = _box(b"ipco", _full(b"ispe", struct.pack(">II", side, side)))
    properties = _box(b"iprp", sizes + associations)
    meta = _full(b"meta", _full(b"hdlr", bytes(4) + b"pict" + bytes(13)) + b"".join(boxes) + properties)
    return _box(b"ftyp", brand + bytes(4) + b"mif1" + brand) + meta


def heif_that_claims() -> bytes:
    return _heif(60_000, b"heic")


def heif_grid() -> bytes:
    """One picture made of 3,000 times the same tile of 4,096 x 4,096."""
    parts = _full(b"iref", _box(b"dimg", struct.pack(">HH", 1, 3_000) + struct.pack(">H", 2) * 3_000))
    both = _full(b"ipma", struct.pack(">I", 2) + struct.pack(">HBB", 1, 1, 1) + struct.pack(">HBB", 2, 1, 1))
    return _heif(4_096, b"heic", _full(b"pitm", struct.pack(">H", 1)), parts, associations=both)


def heif_boxes() -> bytes:
    return _heif(64, b"heic", _box(b"free", b"") * 50_000)


def avif_that_is_large() -> bytes:
    return _heif(SIDE, b"avif")


PICTURES: dict[str, Callable[[], bytes]] = {
    f"{made.__name__}.{kind}": made
    for kind, some in {
        "jpg": (
            empty_scans,
            as_many_scans_as_are_taken,
            coloured_scans,
            jpeg_comments,
            jpeg_filling,
            jpeg_that_claims,
        ),
        "png": (
            png_grey16,
            png_rgba,
            png_rgba16,
            png_palette_with_alpha,
            png_interlaced,
            png_chunks,
            png_empty_data,
            png_texts,
            png_profile,
            png_frames,
        ),
        "gif": (
            gif_blocks,
            gif_comments,
            gif_stray_bytes,
            gif_frames,
            gif_that_is_flat,
            gif_with_a_frame_outside,
        ),
        "webp": (webp_canvas, webp_that_is_flat, webp_frames),
        "tif": (
            tiff_tile,
            tiff_strips,
            tiff_shared_values,
            tiff_entries,
            bigtiff_entries,
            tiff_samples,
            tiff_that_is_flat,
        ),
        "bmp": (bmp_runs,),
        "heic": (heif_that_claims, heif_grid, heif_boxes),
        "avif": (avif_that_is_large,),
    }.items()
    for made in some
}

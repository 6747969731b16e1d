"""Colour: profiles are judged by what they say, ranges are read from the numbers, and what is guessed is told."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from tests.intake.conftest import encoded, photo
from tunes_dagster.intake.pictures import decode, normalise

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RAMP = np.repeat(np.arange(256, dtype=np.uint8)[None, :], 8, axis=0)
LINEAR = np.rint(255 * np.where(RAMP <= 10, RAMP / 255 / 12.92, ((RAMP / 255 + 0.055) / 1.055) ** 2.4))
_STRAIGHT = b"curv\0\0\0\0\0\0\0\0"


def _straight(profile: bytes) -> bytes:
    """The profile with straight curves, under its old name."""
    data = bytearray(profile)
    (count,) = struct.unpack_from(">I", data, 128)
    for at in range(132, 132 + 12 * count, 12):
        name, offset, _length = struct.unpack_from(">4sII", data, at)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            data[offset : offset + 12] = _STRAIGHT
    return bytes(data)


def _grey_profile() -> bytes:
    """A profile of linear grey."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags, body = b"", b""
    for name, content in ((b"wtpt", white), (b"kTRC", _STRAIGHT)):
        tags += struct.pack(">4sII", name, 128 + 4 + 24 + len(body), len(content))
        body += content
    head = bytearray(128)
    head[8:12], head[12:24] = b"\x02\x40\0\0", b"mntrGRAYXYZ "
    head[36:40], head[68:80] = b"acsp", struct.pack(">3i", 63190, 65536, 54061)
    whole = bytes(head) + struct.pack(">I", 2) + tags + body
    return struct.pack(">I", len(whole)) + whole[4:]


pillow_heif.register_heif_opener()


def _chunked(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunk + png[33:]


def _colour(grey: np.ndarray) -> Image.Image:
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _off(data: bytes, wanted: np.ndarray) -> int:
    return int(np.abs(np.asarray(decode(data)).astype(int)[..., 0] - wanted).max())


def test_a_profile_called_srgb_is_judged_by_its_curves_and_not_by_its_name() -> None:
    assert (
        _off(encoded(_colour(LINEAR), "PNG", icc_profile=_straight(SRGB)), RAMP) <= 13
    )  # 8-bit steps in the dark
    jpeg = encoded(photo(1), "JPEG", icc_profile=SRGB.replace(b"s\0R\0G\0B", b"x\0Y\0Z\0W"))
    assert normalise(jpeg).data == jpeg  # it says what sRGB says, whatever it is called


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_profiles_of_grey_are_used(mode: str) -> None:
    image = Image.fromarray(LINEAR.astype(np.uint8))
    image = Image.fromarray(LINEAR.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    assert _off(encoded(image, "PNG", icc_profile=_grey_profile()), RAMP) <= 13
    assert _off(encoded(image, "PNG", icc_profile=_straight(SRGB)), RAMP) <= 13 or mode != "I;16"


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize(
    ("kind", "channels"), [(".png", 1), (".png", 3), (".png", 4), (".tiff", 3), (".tif", 3), (".tiff", 1)]
)
def test_numbers_of_ten_and_twelve_bits_in_sixteen_are_read_by_their_range(
    bits: int, kind: str, channels: int
) -> None:
    values = np.rint(RAMP * ((2**bits - 1) / 255)).astype(np.uint16)
    whole = values if channels == 1 else np.repeat(values[..., None], channels, axis=-1)
    if channels == 4:
        whole[..., 3] = 2**bits - 1
    plain = [] if kind != ".tif" else [cv2.IMWRITE_TIFF_COMPRESSION, 1]
    done, buffer = cv2.imencode(kind.replace(".tiff", ".tif"), whole, plain)
    assert done
    picture = normalise(buffer.tobytes())
    assert int(np.abs(np.asarray(picture.image).astype(int) - RAMP[..., None]).max()) <= 1
    assert picture.note == f"its numbers end at {2**bits - 1:,} of 65,535 and are read as {bits} bit"


def test_what_a_file_says_of_its_bits_counts() -> None:
    fourteen = np.rint(RAMP * (16_383 / 255)).astype(np.uint16)
    assert _off(_chunked(encoded(Image.fromarray(fourteen)), b"sBIT", b"\x0e"), RAMP) <= 1
    assert (
        _off(encoded(Image.fromarray(fourteen)), RAMP / 4) <= 1
    )  # a dark picture, as far as anybody can tell
    packed = b"".join(
        struct.pack(">I", (int(a) << 12 | int(b)) << 8)[:3]
        for a, b in np.rint(RAMP.reshape(-1, 2) * (1023 / 255)).astype(int)
    )
    entries = [(256, 4, 256), (257, 4, 8), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 0), (277, 3, 1)]
    entries += [(278, 4, 8), (279, 4, len(packed))]
    at = 8 + 2 + 12 * len(entries) + 4
    body = b"".join(
        struct.pack("<HHII", tag, kind, 1, at if tag == 273 else value) for tag, kind, value in entries
    )
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + packed
    assert _off(tiff, RAMP / 4) <= 1  # 12 bits, of which it uses a quarter


def test_floating_point_with_lights_above_white_keeps_its_range() -> None:
    values = RAMP.astype(np.float32) / 255
    values[0, :5] = 7.5
    assert _off(encoded(Image.fromarray(values), "TIFF"), np.where(values > 1, 255, RAMP)) <= 1
    assert _off(encoded(Image.fromarray(values[1:] * 200), "TIFF"), RAMP[1:] * (200 / 255)) <= 1


def test_linear_png_is_read_by_its_gamma() -> None:
    linear = encoded(_colour(LINEAR))
    assert _off(_chunked(linear, b"gAMA", struct.pack(">I", 100_000)), RAMP) <= 13
    deep = encoded(Image.fromarray(np.rint(LINEAR * 257).astype(np.uint16)))
    assert _off(_chunked(deep, b"gAMA", struct.pack(">I", 100_000)), RAMP) <= 13
    usual = _chunked(encoded(_colour(RAMP)), b"gAMA", struct.pack(">I", 45_455))
    assert _off(usual, RAMP) == 0 and normalise(usual).note == ""


def _p3(image: Image.Image) -> np.ndarray:
    """What an independent table of Display P3 makes of colours: matrices of the CSS Color 4 draft."""
    linear = np.asarray(image).astype(float) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    matrix = [[1.2249401763, -0.2249401763, 0], [-0.0420569547, 1.0420569547, 0]]
    matrix += [[-0.0196375546, -0.0786360456, 1.0982736001]]
    light = np.clip(linear @ np.array(matrix).T, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["PNG", "AVIF", "HEIF"])
def test_primaries_that_a_file_names_by_number_are_used(kind: str) -> None:
    if kind == "PNG":
        data = _chunked(encoded(photo(3)), b"cICP", bytes([12, 13, 0, 1]))
    else:
        plain = encoded(photo(3), kind, quality=100, **({"subsampling": "4:4:4"} if kind == "AVIF" else {}))
        at = plain.index(b"nclx")
        data = plain[: at + 4] + struct.pack(">HH", 12, 13) + plain[at + 8 :]
    before = np.asarray(decode(plain)) if kind != "PNG" else np.asarray(photo(3))
    picture = normalise(data)
    assert np.abs(np.asarray(picture.image) - _p3(Image.fromarray(before))).mean() < 1
    assert picture.note == "its colours are Display P3"


def test_hdr_is_brought_down_to_white_at_203_nits() -> None:
    # 58 % of PQ is about 203 nits (BT.2408), 75 % of HLG as well.
    for transfer, white in ((16, 0.58), (18, 0.75)):
        flat = Image.new("RGB", (8, 8), (round(255 * white),) * 3)
        picture = decode(_chunked(encoded(flat), b"cICP", bytes([9, transfer, 0, 1])))
        assert np.asarray(picture).min() >= 250
        half = Image.new("RGB", (8, 8), (round(255 * white * 0.7),) * 3)
        value = np.asarray(decode(_chunked(encoded(half), b"cICP", bytes([9, transfer, 0, 1])))).mean()
        assert 90 < value < 200


def test_adobe_rgb_of_cameras_is_known_without_a_profile() -> None:
    exif = Image.Exif()
    exif.get_ifd(0xA005)[1] = "R03"
    exif[0x8769] = {0xA005: {1: "R03"}}
    flat = Image.new("RGB", (32, 32), (100, 200, 100))
    picture = normalise(encoded(flat, "JPEG", quality=100, exif=exif))
    red, green, _ = picture.image.getpixel((9, 9))  # type: ignore[misc]
    assert green > 200 and red < 60 and "Adobe RGB" in picture.note
    exif[0x8769] = {0xA005: {1: "R98"}}
    assert normalise(encoded(flat, "JPEG", quality=100, exif=exif)).note == ""


def test_print_colours_without_a_profile_are_told_to_be_a_guess() -> None:
    picture = normalise(encoded(photo(5).convert("CMYK"), "JPEG", quality=95))
    assert "CMYK" in picture.note

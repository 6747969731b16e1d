from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.intake.conftest import encoded, photo, png
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.intake.pictures import decode, normalise


def _far(first: Image.Image, second: Image.Image) -> float:
    one, two = (np.asarray(i.convert("RGB"), dtype=np.float32) for i in (first, second))
    assert one.shape == two.shape
    return float(np.abs(one - two).mean())


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("JPEG", {"quality": 95}, 8),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 90}, 8),
        ("AVIF", {"quality": 95}, 8),
        ("HEIF", {"quality": 95}, 8),
        ("GIF", {}, 16),
    ],
)
def test_the_formats_that_people_have(kind: str, options: dict, tolerance: float) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    original = photo(3)
    image = decode(encoded(original, kind, **options))
    assert image.mode == "RGB"
    assert _far(image, original) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation(orientation: int, kind: str) -> None:
    upright = photo(4)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    image = decode(encoded(stored, kind, exif=exif, **options))
    assert image.size == upright.size
    assert _far(image, upright) < 8


def test_heic_rotation_and_alpha() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = photo(4)
    data = encoded(upright.transpose(Image.Transpose.ROTATE_90), "HEIF", quality=95, exif=exif.tobytes())
    assert _far(decode(data), upright) < 8


def test_clear_pixels_become_white() -> None:
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 20, 40))
    palette = clear.convert("P")
    palette.info["transparency"] = palette.getpixel((30, 10))
    for data in (encoded(clear), encoded(clear, "WEBP", lossless=True), encoded(clear.convert("LA"))):
        image = decode(data)
        assert image.getpixel((30, 10)) == (255, 255, 255)
    assert (
        decode(encoded(palette, "GIF", transparency=palette.info["transparency"])).getpixel((30, 10))
        == (255,) * 3
    )
    keyed = Image.new("RGB", (20, 20), (1, 2, 3))
    assert decode(encoded(keyed, "PNG", transparency=(1, 2, 3))).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_other_colour_modes(mode: str) -> None:
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG", "LAB": "TIFF"}.get(mode, "PNG")
    image = decode(
        encoded(photo(5).convert(mode) if mode != "LAB" else Image.new("LAB", (30, 30), (90, 0, 0)), kind)
    )
    assert image.mode == "RGB"
    if mode in ("CMYK", "YCbCr", "RGBA"):
        assert _far(image, photo(5)) < 12


def test_sixteen_bit_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    grey = decode(encoded(Image.fromarray(ramp)))
    values = np.asarray(grey)[..., 0].ravel()
    assert values[0] == 0
    assert values[-1] == 255
    assert abs(int(values[128]) - 128) <= 1
    import cv2

    colour = np.zeros((20, 20, 3), np.uint16)
    colour[..., 2] = 32768  # OpenCV writes BGR
    done, buffer = cv2.imencode(".png", colour)
    assert done
    assert decode(buffer.tobytes()).getpixel((3, 3)) in ((128, 0, 0), (127, 0, 0))
    deep = Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
    assert np.asarray(decode(encoded(deep, "TIFF"))).max() == 255


def test_a_colour_profile_is_applied() -> None:
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.createProfile("sRGB")
    assert lab
    plain = photo(6)
    same = encoded(plain, "PNG", icc_profile=ImageCms.ImageCmsProfile(srgb).tobytes())
    assert _far(decode(same), plain) == 0
    assert _far(decode(encoded(plain, "PNG", icc_profile=b"not a profile")), plain) == 0


def test_the_first_frame_of_an_animation() -> None:
    frames = [photo(n).convert("P") for n in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    picture = normalise(data, "a.gif")
    assert _far(picture.image, frames[0]) < 2
    assert picture.note == "its first frame is used"


def test_what_is_stored() -> None:
    jpeg = encoded(photo(7), "JPEG", quality=90)
    kept = normalise(jpeg)
    assert (kept.data, kept.suffix) == (jpeg, ".jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = normalise(encoded(photo(7), "JPEG", exif=exif))
    assert turned.suffix == ".png"
    again = normalise(turned.data)
    assert again.pixels_hash == turned.pixels_hash
    assert again.image.size == turned.image.size
    assert Image.open(io.BytesIO(turned.data)).getexif() == {}
    # The same pixels in two lossless files are the same picture, whatever the files' bytes.
    assert normalise(png(1)).pixels_hash == normalise(encoded(photo(1), "WEBP", lossless=True)).pixels_hash
    assert normalise(png(1)).hash == normalise(encoded(photo(1), "BMP")).hash


def _claims(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(9)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 9_000), (50_000, 50_000), (2**31 - 1, 2**31 - 1), (40_000, 1)])
def test_picture_bombs_are_refused_by_their_header(size: tuple[int, int]) -> None:
    with pytest.raises(Failure, match="megapixels") as caught:
        decode(_claims(*size), "bomb.png")
    assert caught.value.code == FailureCode.PICTURE_UNREADABLE
    assert "Shrink it" in caught.value.remedy


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (b"%PDF-1.4", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (png(1)[:400], "cut off|damaged"),
        (encoded(photo(1), "JPEG")[:900], "cut off"),
        (encoded(photo(1), "WEBP")[:200], "damaged|cut off|not a picture"),
        (b"GIF89a", "not a picture|damaged"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, why: str) -> None:
    with pytest.raises(Failure, match=why) as caught:
        decode(data, "a.png")
    assert caught.value.code == FailureCode.PICTURE_UNREADABLE
    assert caught.value.message.startswith("a.png: ")
    assert caught.value.remedy


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_damage_never_crashes(data: st.DataObject) -> None:
    kind, options = data.draw(
        st.sampled_from([("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("GIF", {}), ("AVIF", {})])
    )
    whole = bytearray(encoded(photo(2, 48, 40), kind, **options))
    for _ in range(data.draw(st.integers(1, 10))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(whole)).mode == "RGB"
    except Failure as failure:
        assert failure.code == FailureCode.PICTURE_UNREADABLE

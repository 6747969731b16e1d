"""One decoder for every picture that people have, and the normalised form that the store keeps.

Decoding gives upright 8-bit sRGB: rotated by EXIF, colour profiles converted, alpha on white, CMYK and 16 bit
brought down, the first frame of an animation. Only the formats named here are opened; others have decoders
that run programs or have a long history of holes.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from tunes_dagster.core.failures import Failure, FailureCode

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF", "BMP", "TIFF")
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "webp", "gif"),
        *("avif", "heic", "heif", "hif", "bmp", "tif", "tiff"),
    )
)
MAX_PIXELS = 89_000_000
"""Larger pictures are refused before they are decoded; just below Pillow's own warning, 9,400 x 9,400."""
MAX_SIDE = 30_000

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """A decoded picture in the form that the store keeps.

    Attributes:
        image: Upright RGB, 8 bit.
        data: The file: the original bytes of an upright sRGB JPEG, else a PNG without metadata.
        suffix: `.jpg` or `.png`.
        hash: SHA-256 of the file; names the picture everywhere.
        pixels_hash: SHA-256 of size and pixels; equal for exact copies in different lossless files.
        note: Something that was done and that its owner may want to know, or empty.
    """

    image: Image.Image
    data: bytes
    suffix: str
    hash: str
    pixels_hash: str
    note: str = ""


def unreadable(
    name: str, why: str, remedy: str = "Open it in a picture program and save it as JPEG."
) -> Failure:
    """Return the failure of one picture; it never stops a dataset."""
    return Failure(FailureCode.PICTURE_UNREADABLE, f"{name}: {why}.", remedy)


@lru_cache(maxsize=1)
def _register_formats() -> None:
    import pillow_heif

    Image.init()
    # What Pillow warns about (odd EXIF, sizes that are refused below) is said in the picture's row or not at all.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    pillow_heif.register_heif_opener()


def decode(data: bytes, name: str = "the picture") -> Image.Image:
    """Return a picture as upright 8-bit RGB in sRGB.

    Args:
        data: The file.
        name: What the picture is called in messages.

    Raises:
        Failure: `PICTURE_UNREADABLE`, saying whether it is no picture, truncated, or too large.
    """
    return _decode(data, name)[0]


def normalise(data: bytes, name: str = "the picture") -> Picture:
    """Decode a picture and return it in the form that the store keeps.

    Raises:
        Failure: See `decode`.
    """
    image, original_is_fine, note = _decode(data, name)
    if original_is_fine:
        kept, suffix = data, ".jpg"
    else:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)  # 12 megapixels: 1.1 s, level 6 4.7 s for 14 % less
        kept, suffix = buffer.getvalue(), ".png"
    pixels = hashlib.sha256(repr(image.size).encode())
    pixels.update(image.tobytes())
    return Picture(image, kept, suffix, hashlib.sha256(kept).hexdigest(), pixels.hexdigest(), note)


def _decode(data: bytes, name: str) -> tuple[Image.Image, bool, str]:
    """Return the picture, whether its file can be kept as it is, and a note."""
    _register_formats()
    if not data:
        raise unreadable(name, "the file is empty", "Hand the file in again.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_size(opened, name)
            kind = opened.format
            # Not `n_frames`, for which a GIF is walked through to its end, millions of frames if need be.
            moves = kind != "MPO" and bool(getattr(opened, "is_animated", False))
            turned = kind in ("JPEG", "MPO", "TIFF") and opened.getexif().get(_ORIENTATION, 1) != 1
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            image, converted = _to_srgb(upright)
    except Failure:
        raise
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise unreadable(
            name, "this is not a picture that can be read", "Hand in JPEG, PNG, WebP, HEIC, AVIF or GIF."
        ) from None
    except Exception as error:
        # Decoders raise nearly everything on hostile files: OSError, SyntaxError, ValueError, struct.error …
        short = "truncated" in str(error).lower() or "premature" in str(error).lower()
        why = "the file is cut off" if short else f"the file is damaged ({type(error).__name__}: {error})"
        raise unreadable(name, why[:200], "Copy or export it again from where it came from.") from error
    fine = kind == "JPEG" and upright.mode == "RGB" and not turned and not converted
    return image, fine, "its first frame is used" if moves else ""


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_large(name, f" ({width} x {height})")
    if width < 1 or height < 1:
        raise unreadable(name, "the picture has no pixels")


def _too_large(name: str, size: str = "") -> Failure:
    return unreadable(
        name, f"more than {MAX_PIXELS // 1_000_000} megapixels{size}", "Shrink it; 4 megapixels are plenty."
    )


def _to_srgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return 8-bit sRGB without alpha, and whether a colour profile changed the pixels."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_deep(image).convert("RGB"), True
    profile = image.info.get("icc_profile")
    if "A" in image.getbands() or image.mode in ("La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        ground = Image.new("RGBA", clear.size, "white")
        image = Image.alpha_composite(ground, clear).convert("RGB")
    elif image.mode not in ("RGB", "CMYK"):
        image = image.convert("RGB")
    converted = _apply_profile(image, profile) if profile else None
    if converted is not None:
        return converted, True
    return image if image.mode == "RGB" else image.convert("RGB"), False


def _from_deep(image: Image.Image) -> Image.Image:
    """Bring 16-bit, 32-bit and float grey down to 8 bit by its range, not by clipping."""
    values: Any = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = float(values.max(initial=0.0))
    scale = 65535.0 if top > 255 else 255.0 if top > 1 or image.mode != "F" else 1.0
    scale = max(scale, top) if top > 65535 else scale
    return Image.fromarray(np.clip(values * (255.0 / scale) + 0.5, 0, 255).astype(np.uint8), "L")


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert to sRGB by the embedded profile; None when it is sRGB already or cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower() and image.mode == "RGB":
            return None
        return ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # a damaged profile, or one for another mode: the plain numbers are the best guess

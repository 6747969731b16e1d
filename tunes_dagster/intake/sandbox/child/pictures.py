"""Decodes one picture, and makes the form of it that the store keeps.

Decoding gives upright 8-bit sRGB: rotated by EXIF, colour profiles converted, alpha on white, CMYK and 16 bit
brought down, the first frame of an animation. Only the formats named here are opened; others have decoders that run
programs or have a long history of holes.

The pixels go to the first output as rows of RGB while they are made; what is needed of them later is read from
there. So at its peak a child holds one copy of the picture: what was decoded, then what is written.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from tunes_dagster.core.failures import Failure, detail_of
from tunes_dagster.intake.sandbox.child import deep, headers
from tunes_dagster.intake.sandbox.child.colour import ORIENTATION, ToSrgb, upright_size, upright_strips
from tunes_dagster.intake.sandbox.child.headers import Refused, unreadable
from tunes_dagster.intake.sandbox.child.tasks import Work

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF", "BMP", "TIFF")
# Several pictures are opened at a time, so more threads for one of them gain nothing.
_THREADS = 2
_ROWS_PIXELS = 1 << 20
# Larger pictures are measured and shrunk from the means of 2 x 2 pixels, or of more: what is measured looks at 512
# pixels a side at most, and at 88 megapixels that was a third of all the time.
_MEASURED_PIXELS = 16 << 20
# Pillow's word for a decoder that got no memory; others say it by `MemoryError`.
_NO_MEMORY = "decoder error -9"


def prepare() -> None:
    """Import decoders and say how they are to behave."""
    import imagehash
    import pillow_heif
    import scipy.fftpack
    from PIL import AvifImagePlugin

    import tunes_dagster.intake.measures  # noqa: F401

    assert imagehash and scipy.fftpack
    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # sizes are judged by `headers`, in one place
    # What Pillow warns about (odd EXIF, sizes that are refused below) is said in the picture's row or not at all.
    warnings.simplefilter("ignore")
    AvifImagePlugin.DEFAULT_MAX_THREADS = _THREADS
    pillow_heif.options.DECODE_THREADS = _THREADS
    pillow_heif.register_heif_opener()


def open_picture(work: Work) -> None:
    """Decode the picture and say what it is; see `intake.pictures` for the arguments and the answer."""
    arguments, name = work.arguments, str(work.arguments["name"])
    seen = _Seen(work.outputs[0], arguments)
    fine, note = _decode(work.file, arguments, name, seen)
    said: dict[str, Any] = {"width": seen.width, "height": seen.height, "note": note}
    kept = bool(arguments.get("keep"))
    said |= seen.finish(work.outputs[1] if kept and not fine else None)
    work.say(picture=said | ({"original": fine} if kept else {}))


def _decode(file: IO[bytes], arguments: dict[str, Any], name: str, seen: _Seen) -> tuple[bool, str]:
    """Look at the picture's pixels; returns whether its file can be kept as it is, and a note."""
    if not arguments["size"]:
        raise unreadable(name, "the file is empty", "Hand the file in again.")
    try:
        header = headers.check_header(file, arguments["size"], arguments["memory_bytes"])
        with Image.open(file, formats=FORMATS) as opened:
            headers.check_size(*opened.size)
            if min(opened.size) < 1:
                raise Refused("the picture has no pixels")
            kind = opened.format
            # Not `n_frames`, for which a GIF is walked through to its end, millions of frames if need be.
            moves = kind != "MPO" and bool(getattr(opened, "is_animated", False))
            raw = deep.raw_mode(opened)
            opened.load()
            mended = deep.mend(opened, raw, header.bits, file, lambda f: Image.open(f, formats=FORMATS))
            # Some formats turn what they load themselves, and then say so here.
            turned = opened.getexif().get(ORIENTATION, 1)
            orientation = turned if isinstance(turned, int) else 1
            black = bool(arguments.get("as_mask"))
            convert = ToSrgb(opened, "black" if black else "white", header)
            mode = opened.mode
            seen.begin(*upright_size(opened, orientation))
            for strip in upright_strips(opened, orientation):
                seen.add(convert(strip))
    except Failure:
        raise
    except Refused as refused:
        raise unreadable(name, refused.why, refused.remedy) from None
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise unreadable(
            name, "this is not a picture that can be read", "Hand in JPEG, PNG, WebP, HEIC, AVIF or GIF."
        ) from None
    except Exception as error:
        if _NO_MEMORY in str(error):
            raise MemoryError from error
        # Decoders raise nearly everything on hostile files: OSError, SyntaxError, ValueError, struct.error …
        short = "truncated" in str(error).lower() or "premature" in str(error).lower()
        why = "the file is cut off" if short else "the file is damaged"
        failure = unreadable(name, why, "Copy or export it again from where it came from.")
        failure.detail = detail_of(error)
        raise failure from error
    fine = kind == "JPEG" and mode == "RGB" and orientation == 1 and not convert.converted
    notes = ["its first frame is used"] if moves else []
    notes += [note for note in (mended, convert.note) if note]
    if black and convert.clear:
        notes.append("it is named like a mask, so what is transparent counts as black")
    return fine, "; ".join(notes)


class _Seen:
    """Takes a picture's strips: hashes them and writes them, and gives the picture back when its source is gone.

    Args:
        pixels: Takes the rows.
        arguments: `measure`: say what is measured. `fit`: keep the picture at so many pixels on its longer side.
    """

    def __init__(self, pixels: IO[bytes], arguments: dict[str, Any]) -> None:
        self.pixels = pixels
        self.width = self.height = 0
        self._measure, self._fit = bool(arguments.get("measure")), int(arguments.get("fit") or 0)
        self._hash = hashlib.sha256()

    def begin(self, width: int, height: int) -> None:
        """Take the size, before the strips."""
        self.width, self.height = width, height
        self._hash.update(repr((width, height)).encode())

    def add(self, strip: Image.Image) -> None:
        """Take the next strip."""
        data = strip.tobytes()
        self._hash.update(data)
        self.pixels.write(data)

    def finish(self, kept: IO[bytes] | None) -> dict[str, Any]:
        """Return what there is to say of the picture.

        Args:
            kept: Takes the picture as PNG; its only content are the pixels, so that equal ones make equal files.
        """
        said: dict[str, Any] = {"pixels_hash": self._hash.hexdigest()}
        fitted = bool(self._fit) and max(self.width, self.height) > self._fit
        small: Image.Image | None = None
        if self._measure or fitted:
            seen = self._whole(self._coarse)
            if self._measure:
                said |= _measured(seen)
            small = self._shrunk(seen) if fitted else None
            del seen  # before the whole is made: a child holds the picture once
        if kept:
            # 12 megapixels: 1.1 s, level 6 4.7 s for 14 % less
            self._whole().save(kept, "PNG", compress_level=1)
            kept.flush()
        if small is not None:
            self.pixels.seek(0)
            self.pixels.truncate()
            self.pixels.write(small.tobytes())
            said |= {"small_width": small.width, "small_height": small.height}
        self.pixels.flush()
        return said

    @property
    def _coarse(self) -> int:
        """Side of the squares of pixels whose mean is measured."""
        return max(1, math.ceil(math.sqrt(self.width * self.height / _MEASURED_PIXELS)))

    def _whole(self, coarse: int = 1) -> Image.Image:
        """Return the whole picture from what was written, or the mean of each square of `coarse` pixels a side."""
        self.pixels.flush()
        self.pixels.seek(0)
        image = Image.new("RGB", (-(-self.width // coarse), -(-self.height // coarse)))
        rows = coarse * max(1, _ROWS_PIXELS // (self.width * coarse))
        for top in range(0, self.height, rows):
            high = min(rows, self.height - top)
            strip = Image.frombytes("RGB", (self.width, high), self.pixels.read(3 * self.width * high))
            image.paste(strip.reduce(coarse) if coarse > 1 else strip, (0, top // coarse))
        return image

    def _shrunk(self, seen: Image.Image) -> Image.Image:
        """Return the picture at the size that is wanted."""
        scale = self._fit / max(self.width, self.height)
        size = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        return seen.resize(size, Image.Resampling.BOX)


def _measured(image: Image.Image) -> dict[str, Any]:
    """Return what is measured of a picture."""
    from tunes_dagster.intake import measures

    grey = image.convert("L")
    said = {"sharpness": measures.sharpness(grey), "phash": measures.structure(grey)}
    return said | {"colours": measures.colours(image), "blank": measures.is_blank(image)}

"""Pictures that travel inside a request: base64 and data URIs, and uploads that already lie in the store."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import PurePosixPath
from typing import IO
from urllib.parse import unquote_to_bytes

from tunes_dagster.core.failures import Failure, FailureCode, Problem
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.store import Store

MAX_PAYLOAD = 64 * 1024 * 1024
_DATA_URI = re.compile(r"^\s*data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<options>(?:;[^,;]+)*),", re.IGNORECASE)
_SUFFIX = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "image/heic": ".heic",
    "image/avif": ".avif",
    "image/gif": ".gif",
    "application/zip": ".zip",
}
# The URL-safe alphabet is taken as well.
_STANDARD = bytes.maketrans(b"-_", b"+/")
_PIECE = 1 << 20


def decode_payload(text: str, name: str = "images_base64") -> tuple[bytes, str]:
    """Return the bytes of a base64 text or data URI, and the suffix that its type announces (or empty).

    Line breaks, the URL-safe alphabet and missing padding are accepted: people paste what they have.

    Raises:
        Failure: `INVALID_REQUEST` when it is neither, empty, or too large.
    """
    suffix, body, is_base64 = "", text, True
    match = _DATA_URI.match(text[:500])
    if match:
        suffix = _SUFFIX.get((match["type"] or "").lower(), "")
        body, is_base64 = text[match.end() :], "base64" in match["options"].lower()
    if len(body) > MAX_PAYLOAD * 4 // 3 + 4:
        raise _invalid(name, f"is larger than {MAX_PAYLOAD // 2**20} MB")
    if not is_base64:
        return unquote_to_bytes(body), suffix
    plain = re.sub(r"\s+", "", body).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        data = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(name, "is not base64") from None
    if not data:
        raise _invalid(name, "is empty")
    return data, suffix


class Base64File:
    """Reads the bytes that a long base64 text or data URI stands for, piece by piece.

    Attributes:
        suffix: What the type of a data URI announces (`.zip`), or empty.
    """

    def __init__(self, text: IO[bytes], name: str) -> None:
        """Begin at the start of the text.

        Args:
            text: In a file.
            name: Of its field, for refusals.

        Raises:
            Failure: `INVALID_REQUEST` for a data URI that is not in base64.
        """
        text.seek(0)
        self._text, self._name, self._left, self._ended = text, name, b"", False
        self.suffix = ""
        match = _DATA_URI.match(text.read(500).decode("latin-1"))
        text.seek(match.end() if match else 0)
        if match:
            self.suffix = _SUFFIX.get((match["type"] or "").lower(), "")
            if "base64" not in match["options"].lower():
                raise _invalid(name, "is not base64")

    def read(self, size: int = -1) -> bytes:
        """Return about `size` bytes, and none at the end.

        Raises:
            Failure: `INVALID_REQUEST` when the text is not base64.
        """
        while not self._ended:
            piece = self._text.read(size // 3 * 4 if size > 3 else _PIECE)
            self._ended = not piece
            plain = self._left + piece.translate(_STANDARD, b" \t\r\n\f\v")
            if self._ended:
                plain = plain.rstrip(b"=")
                plain += b"=" * (-len(plain) % 4)
            whole = (
                len(plain) if self._ended else max(0, len(plain) - 4) // 4 * 4
            )  # padding may come at the end only
            self._left = plain[whole:]
            try:
                data = base64.b64decode(plain[:whole], validate=True)
            except (binascii.Error, ValueError):
                raise _invalid(self._name, "is not base64") from None
            if data:
                return data
        return b""


def _invalid(name: str, why: str) -> Failure:
    return Failure(
        FailureCode.INVALID_REQUEST,
        f"{name} {why}.",
        "Send the picture's bytes as base64 or a data URI.",
        problems=(Problem(name, why),),
    )


def upload_prefix(tune_id: str) -> str:
    """Return where the uploads of a tune lie in the store."""
    return f"tunes/{tune_id}/uploads/"


def store_upload(store: Store, tune_id: str, number: int, name: str, data: bytes) -> str:
    """Keep one uploaded file of a tune and return its key; the name is made harmless and numbered."""
    return store.write_bytes(upload_key(tune_id, number, name), data)


def upload_key(tune_id: str, number: int, name: str) -> str:
    """Return the key of an uploaded file; the name is made harmless and numbered."""
    plain = PurePosixPath(name.replace("\\", "/")).name
    safe = re.sub(r"[^\w.() -]", "_", plain).strip(". ") or "upload"
    safe = safe.encode("utf-8", "ignore")[-150:].decode("utf-8", "ignore")  # file systems take 255 bytes
    return f"{upload_prefix(tune_id)}{number:04d}-{safe}"


def move_payloads(request: TuneRequest, store: Store, tune_id: str) -> TuneRequest:
    """Return the request with its base64 pictures moved into the store as uploads.

    Raises:
        Failure: `INVALID_REQUEST`, naming the entry that is not base64; nothing is kept then.
    """
    if not request.sources.images_base64:
        return request
    decoded = [
        decode_payload(text, f"sources.images_base64[{i}]")
        for i, text in enumerate(request.sources.images_base64)
    ]
    first = len(request.sources.uploads)
    keys = [
        store_upload(store, tune_id, first + i, f"image{suffix}", data)
        for i, (data, suffix) in enumerate(decoded)
    ]
    sources = request.sources.model_copy(
        update={"images_base64": [], "uploads": [*request.sources.uploads, *keys]}
    )
    return request.model_copy(update={"sources": sources})


def check_upload_key(key: str, tune_id: str) -> str:
    """Return the key when a request of this tune may read it: its own uploads, or content by hash.

    Raises:
        Failure: `INVALID_REQUEST`; keys of other tunes are nobody's to name.
    """
    if key.startswith((upload_prefix(tune_id), "uploads/", "blobs/")) and ".." not in key:
        return key
    raise Failure(
        FailureCode.INVALID_REQUEST,
        f"{key!r} is not an upload of {tune_id}.",
        "Upload the file with the request.",
    )

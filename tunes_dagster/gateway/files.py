"""Signed, expiring URLs for files of the store, and the endpoint that serves them with Range support.

A URL holds the key of the file, the second until which it leads there, and an HMAC-SHA256 over both: nobody can
guess or extend one. On S3 the endpoint forwards to a presigned URL, so that no picture passes through the server.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import mimetypes
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.store import Store
from tunes_dagster.gateway.problems import of_failure
from tunes_dagster.service.download import holds_weights, pieces, zipped, zipped_folder

PREFIX = "/files"
PRESIGNED_SECONDS = 3600
# What a browser may show in place; everything else is offered as a download.
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}
_BEGINNINGS = {b"\x89PNG\r\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
_SHOWN = ("image/png", "image/jpeg", "image/webp", "image/gif", "video/mp4", "application/json")
# Beside 200, what a request for a file is answered with.
FILE_ANSWERS: dict[int | str, dict[str, Any]] = {
    206: {"description": "The ranges that were asked for"},
    307: {"description": "Where the file is: a presigned address of the object store"},
    416: {"description": "The file has no such range"},
}

router = APIRouter()


def _sign(secret: bytes, key: str, expires: int) -> str:
    mac = hmac.new(secret, f"{key}\n{expires}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(mac[:24]).decode().rstrip("=")


def file_url(secret: bytes, base_url: str, key: str, expires_at: datetime, suffix: str | None = None) -> str:
    """Return the absolute URL of a file of the store.

    Args:
        secret: See `options.signing_secret`.
        base_url: Public address of the server.
        key: Of the file.
        expires_at: The URL leads nowhere after this.
        suffix: Of the name at its end, where that is not the key's: a render is delivered as JPEG under `.jpg`.
    """
    expires = int(expires_at.timestamp())
    packed = base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")
    path = PurePosixPath(key)
    name = quote((path.with_suffix(suffix) if suffix else path).name)
    return f"{base_url.rstrip('/')}{PREFIX}/{_sign(secret, key, expires)}/{expires}/{packed}/{name}"


def opened_key(secret: bytes, signature: str, expires: str, packed: str, now: datetime) -> str | None:
    """Return the key that a URL's parts lead to, or None for forged and expired ones."""
    try:
        key = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)).decode()
        until = int(expires)
    except (ValueError, UnicodeDecodeError):
        return None
    good = hmac.compare_digest(signature.encode(), _sign(secret, key, until).encode())
    return key if good and now.timestamp() <= until else None


@router.api_route(
    PREFIX + "/{signature}/{expires}/{packed}/{name}", methods=["GET", "HEAD"], include_in_schema=False
)
def serve(request: Request, signature: str, expires: str, packed: str, name: str) -> Response:
    """Serve one file, whole or in ranges."""
    service = request.app.state.service
    key = opened_key(service.secret, signature, expires, packed, service.registry.now())
    if key is None:
        return JSONResponse({"detail": "This address is not valid, or not any more."}, 403)
    try:
        if service.registry.deletions.hides(key):
            raise FileNotFoundError(key)
        owner = holds_weights(key)
        if owner is not None and service.registry.tunes.get(owner).status != "ready":
            raise FileNotFoundError(key)
        if _is_wanted_as_jpeg(key, name):
            return _as_jpeg(service.store, key)
        return answer(service.store, key)
    except (FileNotFoundError, Failure) as gone:
        if isinstance(gone, Failure) and gone.code == FailureCode.STORE_UNAVAILABLE:
            away = of_failure(gone)
            return JSONResponse({"detail": away.message}, away.status, away.headers)
        return JSONResponse({"detail": "This file is gone."}, 404)


def _is_wanted_as_jpeg(key: str, name: str) -> bool:
    """Whether a render is asked for under a name that ends in `.jpg`; what strangers sent is delivered as it came."""
    return key.startswith("batches/") and key.endswith(".png") and name.lower().endswith((".jpg", ".jpeg"))


def _as_jpeg(store: Store, key: str) -> Response:
    from tunes_dagster.rendering.png import jpeg_of

    name = quote(PurePosixPath(key).with_suffix(".jpg").name)
    headers = {**_HEADERS, "Content-Disposition": f"inline; filename*=UTF-8''{name}"}
    return Response(jpeg_of(store.read_bytes(key)), media_type="image/jpeg", headers=headers)


def _kind_of(store: Store, key: str) -> str:
    """Return the type of a file; of a picture that somebody handed in by how it begins, whatever its name says."""
    kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
    if "/uploads/" not in key or not store.is_local:
        return kind
    try:
        with store.open_read(key) as file:
            begins = file.read(12)
    except OSError:
        return kind
    found = (one for start, one in _BEGINNINGS.items() if begins.startswith(start))
    return "image/webp" if begins[:4] == b"RIFF" and begins[8:] == b"WEBP" else next(found, kind)


def answer(store: Store, key: str, name: str = "") -> Response:
    """Return the response that delivers a file; the zip of a folder is made while it is sent.

    Args:
        store: Where it lies.
        key: Under which key.
        name: What to save it as; empty for the key's own.

    Raises:
        FileNotFoundError: When it is not there.
    """
    kind = _kind_of(store, key)
    shown = "inline" if kind in _SHOWN else "attachment"
    headers = {
        **_HEADERS,
        "Content-Disposition": f"{shown}; filename*=UTF-8''{quote(name or PurePosixPath(key).name)}",
    }
    if (folder := zipped_folder(store, key)) is not None:
        archive = zipped(store, folder)
        return StreamingResponse(
            archive, media_type=kind, headers={**headers, "Content-Length": str(len(archive))}
        )
    if store.is_local:
        if not store.exists(key) or not (path := Path(str(store.path(key)))).is_file():
            raise FileNotFoundError(key)
        return FileResponse(path, media_type=kind, headers=headers)
    if (presigned := _presigned(store, key)) is not None:
        return RedirectResponse(presigned, 307)
    size = store.size(key)
    return StreamingResponse(
        pieces(store, key), media_type=kind, headers={**headers, "Content-Length": str(size)}
    )


def _presigned(store: Store, key: str) -> str | None:
    path = store.path(key)
    try:
        return str(path.fs.url(path.path, expires=PRESIGNED_SECONDS))
    except (AttributeError, NotImplementedError):
        return None

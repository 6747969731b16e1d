"""What an operator looks at from Dagster's UI: files of the store by addresses that nobody can guess."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from PIL import Image
from starlette.responses import JSONResponse, Response

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.gateway.files import answer
from tunes_dagster.gateway.problems import of_failure
from tunes_dagster.intake.pictures import decode
from tunes_dagster.service.addresses import NAME, PREFIX, opened

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store

# Read in place, as what they are: text.
_TEXT = (".csv", ".json", ".txt", ".md")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}

router = APIRouter()


@router.api_route(PREFIX + "/{signature}/{packed}/{name}", methods=["GET", "HEAD"], include_in_schema=False)
def show(
    request: Request,
    signature: str,
    packed: str,
    name: str,
    width: Annotated[int | None, Query(ge=16, le=2048)] = None,
) -> Response:
    """Show one file, a picture scaled to a width if that is asked for; 404 once it, or what it is of, was deleted."""
    service = request.app.state.service
    key = opened(service.registry.secrets.get(NAME), signature, packed)
    try:
        if key is None or service.registry.deletions.hides(key):
            raise FileNotFoundError(key)
        if key.endswith(_TEXT):
            shown = {**_HEADERS, "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}"}
            return Response(service.store.read_bytes(key), media_type="text/plain", headers=shown)
        if width is not None and (small := _scaled(service.store, key, width)):
            return Response(small, media_type="image/jpeg", headers=_HEADERS)
        found = answer(service.store, key)
    except FileNotFoundError:
        return JSONResponse({"detail": "This file is gone."}, 404, _HEADERS)
    except Failure as failure:
        away = of_failure(failure)
        return JSONResponse({"detail": away.message}, away.status, away.headers)
    found.headers.update(_HEADERS)
    return found


def _scaled(store: Store, key: str, width: int) -> bytes | None:
    """Return a picture at most so wide, as JPEG; None for what is no picture or is narrower already."""
    try:
        picture = decode(store.read_bytes(key), key)
    except Failure as failure:
        if failure.code == FailureCode.STORE_UNAVAILABLE:
            raise
        return None
    if picture.width <= width:
        return None
    picture.thumbnail((width, picture.height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.convert("RGB").save(out, "JPEG", quality=88)
    return out.getvalue()

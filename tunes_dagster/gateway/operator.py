"""What an operator looks at from Dagster's UI: files of the store by addresses that nobody can guess."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tunes_dagster.core.failures import Failure
from tunes_dagster.gateway.files import answer
from tunes_dagster.gateway.problems import of_failure
from tunes_dagster.service.addresses import NAME, PREFIX, opened

# Read in place, as what they are: text.
_TEXT = (".csv", ".json", ".txt", ".md")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}

router = APIRouter()


@router.api_route(PREFIX + "/{signature}/{packed}/{name}", methods=["GET", "HEAD"], include_in_schema=False)
def show(request: Request, signature: str, packed: str, name: str) -> Response:
    """Show one file; 404 once it, or what it is of, was deleted."""
    service = request.app.state.service
    key = opened(service.registry.secrets.get(NAME), signature, packed)
    try:
        if key is None or service.registry.deletions.hides(key):
            raise FileNotFoundError(key)
        if key.endswith(_TEXT):
            shown = {**_HEADERS, "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}"}
            return Response(service.store.read_bytes(key), media_type="text/plain", headers=shown)
        found = answer(service.store, key)
    except FileNotFoundError:
        return JSONResponse({"detail": "This file is gone."}, 404, _HEADERS)
    except Failure as failure:
        away = of_failure(failure)
        return JSONResponse({"detail": away.message}, away.status, away.headers)
    found.headers.update(_HEADERS)
    return found

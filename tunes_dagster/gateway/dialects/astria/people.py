"""Astria's remaining endpoints: looking at a picture, the account itself, themes."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Response
from starlette.concurrency import run_in_threadpool

from tunes_dagster.core.failures import Failure
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import desk, manners
from tunes_dagster.gateway.dialects.astria.wire import KEYS, MC, NAME, error
from tunes_dagster.gateway.nesting import files_in, read_body
from tunes_dagster.gateway.problems import invalid

router = APIRouter(route_class=manners(NAME, error, KEYS), tags=["account"])
Mine = Depends(desk)

# Pictures are looked at while the caller waits; clients shrink them to 512 pixels first.
_MAX_BYTES = 20 * 2**20
_FETCH_SECONDS = 10.0
_LOW_SIDE = 256
_BLURRY = 0.12
# What only a person or a trained classifier can say is never claimed.
_UNKNOWN = (
    "body_type",
    "ethnicity",
    "age",
    "glasses",
    "eye_color",
    "hair_color",
    "hair_length",
    "hair_style",
    "facial_hair",
    "is_bald",
    "headcover",
)
_UNSEEN = (
    "funny_face",
    "wearing_sunglasses",
    "wearing_hat",
    "full_body_image_or_longshot",
    "selfie",
    "low_quality",
)


@router.post("/images/inspect")
@router.post("/images/inspect.json", include_in_schema=False)
async def inspect(request: Body, mine: Desk = Mine) -> dict[str, Any]:
    """Say what can be seen of a picture without guessing about the person: faces, size, sharpness."""
    body = await read_body(request)
    asked = str(body.get("name") or "")
    if isinstance(address := body.get("file_url"), str) and address:
        return await run_in_threadpool(_inspect_at, mine, address, asked)
    files = files_in(body, "file")
    if not files:
        raise invalid("file", "can't be blank")
    if (files[0].size or 0) > _MAX_BYTES:
        raise invalid("file", "is larger than 20 MB")
    data = await files[0].read()
    name = files[0].filename or "picture"
    return await run_in_threadpool(_inspect, data, name, asked, "file", mine.service.settings.face_detector)


def _inspect_at(mine: Desk, address: str, asked: str) -> dict[str, Any]:
    """The same of a picture at an address, which is fetched while the caller waits."""
    from tunes_dagster.intake.fetch import Fetcher

    service = mine.service
    with (
        service.outward(mine.account_id),
        tempfile.TemporaryDirectory(prefix="tunes-inspect-") as folder,
        Fetcher(
            service.settings.allow_hosts,
            max_picture_bytes=_MAX_BYTES,
            timeout=5,
            total_seconds=_FETCH_SECONDS,
            attempts=1,
        ) as fetcher,
    ):
        try:
            found = fetcher.fetch(address, Path(folder) / "picture")
        except Failure as failure:
            raise invalid("file_url", failure.message) from None
        detector = service.settings.face_detector
        return _inspect(found.path.read_bytes(), found.name, asked, "file_url", detector)


def _inspect(data: bytes, name: str, asked: str, field: str, detector: str) -> dict[str, Any]:
    from tunes_dagster.intake.faces import load_detector
    from tunes_dagster.intake.measures import sharpness
    from tunes_dagster.intake.pictures import decode

    try:
        picture = decode(data, name)
    except Failure as failure:
        raise invalid(field, failure.message) from None
    faces = load_detector(detector).detect(picture)
    return {
        "name": asked,
        **dict.fromkeys(_UNKNOWN, ""),
        **dict.fromkeys(_UNSEEN, False),
        "blurry": sharpness(picture) < _BLURRY,
        "includes_multiple_people": len(faces) > 1,
        "low_resolution": min(picture.size) < _LOW_SIDE,
    }


@router.get("/users/self")
@router.get("/users")
@router.get("/users/self.json", include_in_schema=False)
@router.get("/users.json", include_in_schema=False)
def users_self(mine: Desk = Mine) -> dict[str, Any]:
    """Describe the account."""
    wallet = mine.wallet()
    return {
        "id": zlib.crc32(mine.account_id.encode()) & 0x7FFFFFFF,
        "email": wallet.email,
        "usd_balance_mc": wallet.available // MC,
        "auto_extend_tunes": False,
        "top_off_amount": 0,
    }


@router.post("/themes")
@router.post("/themes.json", include_in_schema=False)
def themes(mine: Desk = Mine) -> Response:
    """Themes need a language model, which this server does not have."""
    raise invalid("theme", "is not supported by this server yet")

"""Astria's remaining endpoints: looking at a picture, the account itself, themes."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.gateway.answers import answers
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import desk, manners, service_of
from tunes_dagster.gateway.dialects.astria.answers import CliModels, Inspection, User
from tunes_dagster.gateway.dialects.astria.gallery import models
from tunes_dagster.gateway.dialects.astria.wire import KEYS, MC, NAME, error
from tunes_dagster.gateway.nesting import files_in, read_body
from tunes_dagster.gateway.problems import invalid

if TYPE_CHECKING:
    from tunes_dagster.intake.fetch import Fetched

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
@answers(Inspection)
async def inspect(request: Body, mine: Desk = Mine) -> dict[str, Any]:
    """Say what can be seen of a picture without guessing about the person: faces, size, sharpness."""
    body = await read_body(request)
    asked = str(body.get("name") or "")
    if isinstance(address := body.get("file_url"), str) and address:
        with tempfile.TemporaryDirectory(prefix="tunes-inspect-") as folder:
            found = await run_in_threadpool(_fetched, mine, address, Path(folder) / "picture")
            return await _inspected(mine, found.path, found.name, asked, "file_url")
    files = files_in(body, "file")
    if not files:
        raise invalid("file", "can't be blank")
    if (files[0].size or 0) > _MAX_BYTES:
        raise invalid("file", "is larger than 20 MB")
    return await _inspected(mine, files[0].file, files[0].filename or "picture", asked, "file")


def _fetched(mine: Desk, address: str, path: Path) -> Fetched:
    """Fetch the picture at an address, while the caller waits."""
    from tunes_dagster.intake.fetch import Fetcher, FetchLimits

    service = mine.service
    with (
        service.outward(mine.account_id),
        Fetcher(
            service.settings.allow_hosts,
            FetchLimits(max_picture_bytes=_MAX_BYTES, timeout=5, total_seconds=_FETCH_SECONDS, attempts=1),
        ) as fetcher,
    ):
        try:
            return fetcher.fetch(address, path)
        except Failure as failure:
            raise invalid("file_url", failure.message) from None


async def _inspected(
    mine: Desk, source: Path | IO[bytes], name: str, asked: str, field: str
) -> dict[str, Any]:
    detector = mine.service.settings.face_detector
    return await mine.service.looking.take(
        mine.account_id, lambda: _inspect(source, name, asked, field, detector)
    )


def _inspect(source: Path | IO[bytes], name: str, asked: str, field: str, detector: str) -> dict[str, Any]:
    from tunes_dagster.intake.faces import DETECTION_SIDE, load_detector
    from tunes_dagster.intake.pictures import glance

    try:
        seen = glance(source, DETECTION_SIDE, name)
    except Failure as failure:
        if failure.code != FailureCode.PICTURE_UNREADABLE:
            raise
        raise invalid(field, failure.message) from None
    faces = load_detector(detector).detect(seen.image)
    return {
        "name": asked,
        **dict.fromkeys(_UNKNOWN, ""),
        **dict.fromkeys(_UNSEEN, False),
        "blurry": seen.sharpness < _BLURRY,
        "includes_multiple_people": len(faces) > 1,
        "low_resolution": min(seen.width, seen.height) < _LOW_SIDE,
    }


@router.get("/cli/models")
@router.get("/cli/models.json", include_in_schema=False)
@answers(CliModels)
def cli_models(request: Request) -> dict[str, Any]:
    """List what Astria's command line offers as `--model`; needs no key."""
    return models(service_of(request))


@router.get("/users/self")
@router.get("/users")
@router.get("/users/self.json", include_in_schema=False)
@router.get("/users.json", include_in_schema=False)
@answers(User)
def users_self(mine: Desk = Mine) -> dict[str, Any]:
    """Describe the account."""
    wallet = mine.wallet()
    return {
        "id": zlib.crc32(mine.account_id.encode()) & 0x7FFFFFFF,
        "email": wallet.email,
        "name": mine.account_id,
        "usd_balance_mc": wallet.available // MC,
        "auto_extend_tunes": False,
        "top_off_amount": 0,
    }


@router.post("/themes")
@router.post("/themes.json", include_in_schema=False)
def themes(mine: Desk = Mine) -> Response:
    """Themes need a language model, which this server does not have."""
    raise invalid("theme", "is not supported by this server yet")

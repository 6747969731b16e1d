"""PixelAPI: tunes (https://pixelapi.dev/docs/tunesapi.html) and images (https://pixelapi.dev/docs).

What the documents leave open is decided in docs/gateway-pixelapi.md.
"""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter

from tunes_dagster.gateway.dialect import Dialect, Form
from tunes_dagster.gateway.dialects.pixelapi import images, tunes
from tunes_dagster.gateway.dialects.pixelapi.wire import (
    BatchBody,
    GenerateBody,
    InferBody,
    TrainBody,
    UpscaleBody,
    VideoBody,
    error,
    tune_status,
)
from tunes_dagster.registry.outbox import Sending
from tunes_dagster.service.installation import Installation

router = APIRouter()
router.include_router(images.router)
router.include_router(tunes.router)
DIALECT = Dialect(
    name="pixelapi",
    title="PixelAPI",
    router=router,
    key_prefix="pk_live_",
    error=error,
    paths=("/v1/",),
    about="The APIs of https://pixelapi.dev/docs/tunesapi.html and https://pixelapi.dev/docs. "
    "What differs: docs/gateway-pixelapi.md.",
    keys=("authorization", "x-api-key"),
    problem={"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}},
    forms={
        "POST /v1/tunes/{job_id}/upload": Form(files=("images",)),
        "POST /v1/tunes/train": Form(model=TrainBody),
        "POST /v1/tunes/infer": Form(model=InferBody),
        "POST /v1/image/generate": Form(model=GenerateBody),
        "POST /v1/image/upscale": Form(model=UpscaleBody),
        "POST /v1/image/batch": Form(model=BatchBody),
        "POST /v1/video/generate": Form(model=VideoBody),
    },
)


def callback(installation: Installation, sending: Sending) -> Sending:
    """Return a flat POST: `{job_id, status, timestamp}`."""
    status = tune_status(sending.body["data"]["status"])
    body = {"job_id": sending.subject_id, "status": status, "timestamp": sending.body["timestamp"]}
    return replace(sending, body=body)

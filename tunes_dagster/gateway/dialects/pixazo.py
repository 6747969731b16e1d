"""Pixazo's FLUX.2 trainer: https://www.pixazo.ai/models/tools/flux-2-trainer-api

Two calls: submit a dataset, ask for the result. The result has the form of fal's trainer, which this one resembles,
beside the form in which Pixazo's other models answer.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tunes_dagster.core.recipe import Sources, TrainingOptions, TuneRequest
from tunes_dagster.gateway.accepting import View
from tunes_dagster.gateway.answers import Address, Answer, answers
from tunes_dagster.gateway.bodies import body_of
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import Dialect, desk, header_key, manners
from tunes_dagster.gateway.problems import HttpProblem, invalid, not_found
from tunes_dagster.gateway.rehearsal import Report, rehearsable
from tunes_dagster.registry import Tune
from tunes_dagster.registry.outbox import Sending
from tunes_dagster.service.download import served_key
from tunes_dagster.service.installation import Installation

NAME = "pixazo"
_BASE = "flux2-dev"
_PATH = "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request"
_WORDS = {
    400: "Invalid request parameters",
    401: "Invalid or missing authentication",
    403: "Access denied for this operation",
    404: "Endpoint not found",
    405: "Endpoint not found",
    415: "Invalid request parameters",
    429: "Rate limit exceeded, please retry later",
    500: "An unexpected error occurred, please try again later",
}
_STATUS = {
    "awaiting_images": "IN_QUEUE",
    "queued": "IN_QUEUE",
    "preparing": "PROCESSING",
    "prepared": "PROCESSING",
    "training": "PROCESSING",
    "trained": "PROCESSING",
    "finishing": "PROCESSING",
    "ready": "COMPLETED",
}


def error(problem: HttpProblem) -> tuple[int, Any]:
    """Return `{"error": …}` in the vendor's words, with the reason in `detail` where there is more to say."""
    status = problem.status
    if problem.code == "invalid" and status == 422:
        # A body that cannot be understood against one whose values are wrong.
        word = "Invalid request parameters" if problem.malformed else "Invalid parameters"
        return 400, {"error": word, "detail": problem.message}
    if status == 422:
        return 400, {"error": "Invalid parameters", "detail": problem.message}
    body = {"error": _WORDS.get(status, problem.message)}
    if status in (400, 402, 404, 409, 413, 415) and problem.message != body["error"]:
        body["detail"] = problem.message
    return status, body


KEYS = header_key("ocp-apim-subscription-key")
BODY = body_of(payloads=frozenset({"image_data_url"}))
router = APIRouter(route_class=manners(NAME, error, KEYS, BODY), tags=["trainer"])
DIALECT = Dialect(
    name=NAME,
    title="Pixazo FLUX.2 trainer",
    router=router,
    key_prefix="pz_",
    error=error,
    paths=("/flux-2-pro", "/v2/requests"),
    codes=(400, 401, 402, 403, 404, 408, 409, 413, 415, 429, 503),
    about="The API of https://www.pixazo.ai/models/tools/flux-2-trainer-api: submit a dataset, ask for the result. "
    "What differs: docs/gateway-pixazo.md.",
    keys=("ocp-apim-subscription-key",),
    problem={
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}, "detail": {"type": "string"}},
    },
)
Mine = Depends(desk)


class TrainerRequest(BaseModel):
    """`…-trainer-request`; the last three fields are those of fal's trainer."""

    model_config = ConfigDict(extra="allow")

    image_data_url: str = Field(min_length=1)
    steps: int = Field(default=1000, ge=1, le=20_000)
    learning_rate: float = Field(default=5e-5, gt=0, le=0.1)
    default_caption: str | None = Field(default=None, max_length=2000)
    output_lora_format: str | None = None
    trigger_word: str = Field(default="ohwx", pattern=r"^[\w-]{1,40}$")

    @field_validator("output_lora_format")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        if value not in (None, "fal", "comfy", "diffusers", "kohya"):
            raise ValueError(f"{value!r} is not one of fal, comfy, diffusers, kohya")
        return value


class ResultRequest(BaseModel):
    """`…-trainer-request-result`."""

    model_config = ConfigDict(extra="allow")

    request_id: str = Field(min_length=1, max_length=80)


class Submitted(Answer):
    """A training job that was accepted."""

    status: Literal["IN_QUEUE"]
    request_id: str
    message: str
    polling_url: Address


class File(Answer):
    """A file of a finished job."""

    url: Address
    file_name: str
    content_type: str


class Output(Answer):
    """The same in the form of the vendor's other models."""

    media_url: list[Address]
    media_type: str


class Result(Answer):
    """How far a job is; its files once it is done."""

    request_id: str
    status: Literal["IN_QUEUE", "PROCESSING", "COMPLETED", "FAILED"]
    progress: float = Field(description="Percent, over all phases; never falls.")
    error: str | None = None
    message: str | None = None
    diffusers_lora_file: File | None = None
    config_file: File | None = None
    output: Output | None = None


def sources_of(text: str, long: bool = False) -> Sources:
    """Return what an `image_data_url` means: a URL, a data URI, base64 of a zip, or base64 of a URL.

    Args:
        text: As handed in.
        long: It stands for a text that is too long to be an address.
    """
    given = text.strip()
    if long:
        return Sources(images_base64=[given])
    if given.lower().startswith(("http://", "https://")):
        return Sources(archive_url=given)
    if given.lower().startswith("data:"):
        return Sources(images_base64=[given])
    try:
        start = base64.b64decode(given[:6000] + "=" * (-len(given[:6000]) % 4))
    except (binascii.Error, ValueError):
        raise invalid("image_data_url", "is neither an http(s) URL, nor a data URI, nor base64") from None
    if start[:8].lower().startswith((b"http://", b"https://")):
        return Sources(
            archive_url=base64.b64decode(given + "=" * (-len(given) % 4)).decode("utf-8", "replace").strip()
        )
    return Sources(images_base64=[given])


@router.post(_PATH)
@answers(Submitted)
@rehearsable
def submit(body: TrainerRequest, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Queue a training job."""
    request = TuneRequest(
        name="subject",
        title="Pixazo training",
        token=body.trigger_word,
        base=_BASE,
        default_caption=body.default_caption or "",
        sources=sources_of(body.image_data_url, mine.is_long(body.image_data_url)),
        training=TrainingOptions(steps=body.steps, learning_rate=body.learning_rate),
    )
    view = View(dialect=NAME, asked={"steps": body.steps})
    extra = sorted(name for name in (body.model_extra or {}) if name != "dry_run" and name.isidentifier())
    if extra:
        mine.headers["X-Tunes-Warnings"] = (
            "unknown fields: " + ", ".join(extra[:20]).encode("ascii", "replace").decode()
        )
    tune = mine.accept_tune(request, view)
    if isinstance(tune, Report):
        return tune
    return {
        "status": "IN_QUEUE",
        "request_id": tune.id,
        "message": "Training job queued for execution.",
        "polling_url": f"{mine.base_url}/v2/requests/status/{tune.id}",
    }


@router.post(_PATH + "-result")
@answers(Result)
def result(body: ResultRequest, mine: Desk = Mine) -> dict[str, Any]:
    """Report a job and, once it is done, its files."""
    tune, _seen = mine.tune(body.request_id, "Request")
    return _described(mine, tune)


@router.get("/v2/requests/status/{request_id}")
@answers(Result)
def polled(request_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Report a job by GET, as clients of the vendor's other models poll."""
    if not request_id.startswith("tune_"):
        raise not_found("Request")
    tune, _seen = mine.tune(request_id, "Request")
    return _described(mine, tune)


def _described(mine: Desk, tune: Tune) -> dict[str, Any]:
    word = _STATUS.get(tune.status, "FAILED")
    answer: dict[str, Any] = {
        "request_id": tune.id,
        "status": word,
        "progress": round(tune.progress, 1),
    }
    if word == "FAILED":
        answer["error"] = tune.failure_message or "The job was cancelled."
        return answer
    if word != "COMPLETED":
        return answer | {"message": tune.message}
    hours = mine.service.options.weights_url_hours
    stored = served_key(tune)
    weights = mine.url(stored, tune.ready_at, hours) if stored else None
    key = f"tunes/{tune.id}/lora/config.json"
    if not mine.service.store.exists(key):
        mine.service.store.write_json(key, tune.recipe)
    config = mine.url(key, tune.ready_at, hours)
    return answer | {
        "diffusers_lora_file": _file(weights, "lora.safetensors", "application/octet-stream"),
        "config_file": _file(config, "config.json", "application/json"),
        "output": {"media_url": [weights] if weights else [], "media_type": "application/octet-stream"},
    }


def _file(url: str | None, name: str, kind: str) -> dict[str, Any] | None:
    return {"url": url, "file_name": name, "content_type": kind} if url else None


def callback(_installation: Installation, sending: Sending) -> Sending:
    """This API has no callbacks; nothing ever asks for one."""
    return sending

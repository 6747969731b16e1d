"""PixelAPI's words: bodies of requests, status words, ids, credits, the error form."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.datastructures import UploadFile
from starlette.requests import Request

from tunes_dagster.core.recipe import any_seed
from tunes_dagster.gateway.bodies import Body, body_of
from tunes_dagster.gateway.dialect import header_key
from tunes_dagster.gateway.nesting import fields_of, files_in, read_body
from tunes_dagster.gateway.problems import HttpProblem, of_pydantic

Fields = TypeVar("Fields", bound=BaseModel)
NAME = "pixelapi"
# How the vendor's SDKs name themselves; the first one in Python knows the documented words.
_SDKS = ("pixelapi-python/", "pixelapi-js/")
_DOCUMENTED = "pixelapi-python/0.1"
# A credit is a tenth of a cent: 100 credits are $0.10.
CREDIT = 1000
KEYS = header_key("authorization", "x-api-key")
BODY = body_of(payloads=frozenset({"image", "image_url", "images"}))
# What a `model` word trains on and renders with; the catalog's profile decides what that really is.
BASES = {"sdxl": "sdxl1", "flux": "flux1-dev", "flux-pro": "flux1-dev", "flux-schnell": "flux1-schnell"}
# Files and their URLs are gone after a day.
HOURS = 24.0
SOUGHT_PICTURES = (5, 100)


def error(problem: HttpProblem) -> tuple[int, Any]:
    """Return `{"detail": …}`."""
    return problem.status, {"detail": problem.message}


class Loose(BaseModel):
    """Fields that nobody knows are named in a header, not refused."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class TrainBody(Loose):
    """`POST /v1/tunes/train`."""

    model: Literal["sdxl", "flux"]
    trigger_word: str = Field(min_length=1, max_length=40, pattern=r"^[\w-]+$")
    steps: int = Field(default=1000, ge=100, le=5000)
    rank: int = Field(default=16, ge=4, le=128)
    learning_rate: float | None = Field(default=None, gt=0, le=0.1, description="Default: the base's own.")
    webhook_url: str | None = Field(default=None, max_length=4000)


class InferBody(Loose):
    """`POST /v1/tunes/infer`."""

    tune_id: str = Field(min_length=1, max_length=80)
    prompt: str = Field(min_length=1, max_length=4000)
    negative_prompt: str = Field(default="", max_length=4000)
    width: int = Field(default=1024, ge=256, le=2048)
    height: int = Field(default=1024, ge=256, le=2048)
    num_images: int = Field(default=1, ge=1, le=8)
    guidance_scale: float | None = Field(default=None, ge=0, le=30)
    steps: int | None = Field(default=None, ge=1, le=100)
    model: Literal["sdxl", "flux", "flux-pro"] | None = None


class PictureBody(Loose):
    """What the calls that take a picture share: by address, or as base64 or a data URI, or as a file of a form."""

    image_url: str | None = None
    image: str | None = None


class UpscaleBody(PictureBody):
    """`POST /v1/image/upscale`."""

    scale: int = 4


class BatchBody(Loose):
    """`POST /v1/image/batch`; `images` as in `PictureBody`."""

    operation: str = Field(min_length=1, max_length=40)
    images: list[str] = Field(min_length=1, max_length=100)
    scale: int = 4


class GenerateBody(PictureBody):
    """`POST /v1/image/generate`."""

    model: str = "sdxl"
    prompt: str = Field(default="", max_length=4000)
    negative_prompt: str = Field(default="", max_length=4000)
    width: int = Field(default=1024, ge=512, le=1536)
    height: int = Field(default=1024, ge=512, le=1536)
    steps: int | None = None
    guidance_scale: float | None = Field(default=None, ge=0, le=30)
    seed: int | None = Field(default=None, ge=-1, le=2**32)

    _drawn = field_validator("seed")(any_seed)


class VideoBody(GenerateBody):
    """`POST /v1/video/generate`."""

    model: str = "cogvideo-2b"
    num_frames: int | None = Field(default=None, ge=1, le=161)


async def read_fields(request: Body, model: type[Fields]) -> tuple[Fields, list[UploadFile]]:
    """Return the body of a call, which may come as JSON or as either kind of form, and the pictures that are files.

    Raises:
        HttpProblem: 400 for a body that cannot be read, 422 for its fields.
    """
    given = fields_of(await read_body(request), "")
    files = files_in(given, "image", "file")
    if files:
        given = {name: value for name, value in given.items() if name not in ("image", "file")}
    try:
        return model.model_validate(given), files
    except ValidationError as wrong:
        raise of_pydantic([dict(one) for one in wrong.errors()]) from None


def unknown_fields(body: Loose) -> dict[str, str]:
    """Return the header that names fields which mean nothing here."""
    extra = sorted(name for name in (body.model_extra or {}) if name != "dry_run")
    clean = ", ".join("".join(c for c in name if c.isascii() and c.isprintable())[:40] for name in extra[:20])
    return {"X-Tunes-Warnings": f"unknown fields: {clean}"} if clean else {}


def tune_status(status: str) -> str:
    """Return the word for a tune's status."""
    words = {
        "awaiting_images": "awaiting_images",
        "queued": "queued",
        "preparing": "queued",
        "prepared": "queued",
        "training": "training",
        "trained": "training",
        "finishing": "training",
        "ready": "completed",
    }
    return words.get(status, "failed")


def speaks_sdk(request: Request | None) -> bool:
    """Whether one of the vendor's SDKs asks: they know other words for the status of a picture."""
    agent = request.headers.get("user-agent", "") if request is not None else ""
    return agent.startswith(_SDKS) and not agent.startswith(_DOCUMENTED)


def sdk_status(word: str) -> str:
    """Return the SDKs' word for a status: pending, processing, completed, failed; another one ends their wait badly."""
    return {"queued": "pending", "blocked": "failed"}.get(word, word)


def prompt_status(status: str) -> str:
    """Return the word for a prompt's status."""
    words = {
        "waiting": "queued",
        "queued": "queued",
        "rendering": "processing",
        "done": "completed",
        "blocked": "blocked",
    }
    return words.get(status, "failed")


def credits(micro: int) -> float:
    """Return micro-dollars as credits."""
    return micro / CREDIT


def whole(micro: int) -> int | float:
    """Return a price as the vendor writes it: a whole number where it is one."""
    value = credits(micro)
    return int(value) if value == int(value) else value


def lora_id(tune_id: str) -> str:
    """Return the id of a trained model."""
    return "lora_" + tune_id.removeprefix("tune_")


def own_id(public: str) -> str:
    """Return the row's id for a `lora_`, `inf_` or `gen_` id; others stay as they are."""
    for prefix, own in (("lora_", "tune_"), ("inf_", "prompt_"), ("gen_", "prompt_")):
        if public.startswith(prefix):
            return own + public.removeprefix(prefix)
    return public


def even(pixels: int) -> int:
    """Round down to a multiple of 8."""
    return pixels // 8 * 8

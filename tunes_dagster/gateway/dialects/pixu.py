"""Pixu API v1: https://pixu.ai/pixu/apidoc

The key and everything else travel in a JSON body; callbacks are a GET of the caller's address with the uid appended.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tunes_dagster.gateway.desk import Desk, View
from tunes_dagster.gateway.dialect import Dialect, desk, manners
from tunes_dagster.gateway.problems import Problem, invalid
from tunes_dagster.recipe import PromptRequest, RenderSettings, Sources, TrainingOptions, TuneRequest
from tunes_dagster.registry import Registry, Tune
from tunes_dagster.registry.outbox import Sending

NAME = "pixu"
_BASE = "realistic-vision"
# Of a face alone nothing can be learned in few steps; baseline 2 trains twice as long.
# Said with every new model, because the field is required.
_NOT_YET = {"X-Tunes-Warnings": "height: pictures are not yet framed to a face height"}
_STEPS = {1: 300, 2: 600}
_COMPOSITIONS = yaml.safe_load(
    Path(__file__).parents[1].joinpath("compositions.yaml").read_text(encoding="utf-8")
)


def error(problem: Problem) -> tuple[int, Any]:
    """Return `{"error": …}`."""
    return problem.status, {"error": problem.message}


async def find_key(request: Request) -> str:
    """Return the `api_key` of the body."""
    try:
        body = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError):
        return ""
    key = body.get("api_key") if isinstance(body, dict) else None
    return key if isinstance(key, str) else ""


router = APIRouter(prefix="/pixu/api", route_class=manners(error, find_key), tags=["pixu"])
DIALECT = Dialect(
    NAME, "Pixu", router, "px_", error, ("/pixu/",),
    problem={"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
)  # fmt: skip
Mine = Depends(desk)


class Call(BaseModel):
    """What every call carries."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    api_key: str
    app_uid: str = "api"
    callback_url: str | None = Field(default=None, max_length=4000)
    dry_run: bool = False

    @field_validator("app_uid")
    @classmethod
    def _api_contract(cls, value: str) -> str:
        if value.lower() != "api":
            raise ValueError("must be 'api'")
        return value

    @field_validator("callback_url", mode="before")
    @classmethod
    def _empty_means_none(cls, value: Any) -> Any:
        return value or None


class CreateModel(Call):
    """`create_model`."""

    name: str = Field(default="", max_length=200)
    face_base64: str = Field(min_length=1)
    height: Literal[192, 136] = 192
    baseline: Literal[1, 2] = 1


class CreateModelFromUrl(Call):
    """`create_model_from_url`."""

    name: str = Field(default="", max_length=200)
    url: str = Field(min_length=1, max_length=4000)
    height: Literal[192, 136] = 192
    baseline: Literal[1, 2] = 1


class Portrait(Call):
    """`txt2img_strict_portrait`."""

    model_uid: str | None = None
    model_weight: float = Field(default=1.0, ge=0, le=2)
    positive: str = Field(default="", max_length=3000)
    negative: str = Field(default="", max_length=4000)
    resolution: Literal["512,512", "512,768", "768,512"] = "512,512"
    num_images: int = Field(default=1, ge=1, le=8)


class Composition(Portrait):
    """`txt2img_composition`."""

    comp_uid: str | None = None
    model_weight: float = Field(default=0.85, ge=0, le=2)


class Results(Call):
    """`txt2img_results`."""

    request_uid: str = Field(min_length=1, max_length=80)


@router.post("/create_model")
def create_model(body: CreateModel, response: Response, mine: Desk = Mine) -> dict[str, Any]:
    """Make a model of the face in one picture that came along."""
    response.headers.update(_NOT_YET)
    return _create(mine, body, Sources(images_base64=[body.face_base64]))


@router.post("/create_model_from_url")
def create_model_from_url(body: CreateModelFromUrl, response: Response, mine: Desk = Mine) -> dict[str, Any]:
    """The same from a picture at a URL, which is fetched later."""
    response.headers.update(_NOT_YET)
    return _create(mine, body, Sources(image_urls=[body.url]))


def _create(mine: Desk, body: CreateModel | CreateModelFromUrl, sources: Sources) -> dict[str, Any]:
    uid = "upose_" + secrets.token_hex(16)
    request = TuneRequest(
        name="person", title=body.name or uid, base=_BASE, sources=sources,
        training=TrainingOptions(steps=_STEPS[body.baseline]), callback_url=body.callback_url,
    )  # fmt: skip
    asked = {"height": body.height, "baseline": body.baseline}
    view = View(NAME, asked, ("tune.ready",), uid, on_unknown="hold", price=mine.price(NAME, "model"))
    if body.dry_run:
        return {"response": mine.rehearse_tune(request, view)}
    mine.accept_tune(request, view)
    return {"response": {"modelUid": uid}}


@router.post("/txt2img_strict_portrait")
def strict_portrait(body: Portrait, mine: Desk = Mine) -> dict[str, Any]:
    """Render a portrait."""
    return _render(
        mine, body, f"portrait of {{}}, {body.positive}" if body.positive else "portrait of {}", body.negative
    )


@router.post("/txt2img_composition")
def composition(body: Composition, mine: Desk = Mine) -> dict[str, Any]:
    """Render a stored composition; without `comp_uid` any of them."""
    uid = body.comp_uid or secrets.choice(sorted(_COMPOSITIONS))
    stored = _COMPOSITIONS.get(uid)
    if stored is None:
        raise invalid("comp_uid", f"{uid[:40]!r} is not known; known are {', '.join(sorted(_COMPOSITIONS))}")
    positive = f"{stored['positive']}, {body.positive}" if body.positive else stored["positive"]
    negative = ", ".join(part for part in (stored["negative"], body.negative) if part)
    return _render(mine, body, positive, negative)


def _render(mine: Desk, body: Portrait, template: str, negative: str) -> dict[str, Any]:
    tune: Tune | None = mine.tune(body.model_uid, "model_uid")[0] if body.model_uid else None
    subject = f"{tune.token} {tune.class_name}" if tune else "person"
    width, height = (int(side) for side in body.resolution.split(","))
    settings = RenderSettings(
        num_images=body.num_images, width=width, height=height, negative_prompt=negative,
        lora_scale=body.model_weight,
    )  # fmt: skip
    request = PromptRequest(
        text=template.replace("{}", subject, 1), tune=tune.id if tune else None, base=None if tune else _BASE,
        settings=settings, callback_url=body.callback_url,
    )  # fmt: skip
    uid = secrets.token_hex(20)
    price = mine.price(NAME, "image") * body.num_images
    view = View(NAME, {}, ("prompt.done",), uid, on_unknown="hold", price=price)
    if body.dry_run:
        return {"response": mine.rehearse_prompt(request, view)}
    mine.accept_prompt(request, view)
    return {"response": uid}


@router.post("/txt2img_results")
def results(body: Results, mine: Desk = Mine) -> dict[str, Any]:
    """Report a request and its pictures."""
    prompt, _seen = mine.prompt(body.request_uid, "request_uid")
    words = {"waiting": "queued", "queued": "queued", "rendering": "processing", "done": "completed"}
    answer: dict[str, Any] = {"status": words.get(prompt.status, "failed"), "images": mine.images(prompt)}
    if prompt.failure_message:
        answer["error"] = prompt.failure_message
    return {"response": answer}


def callback(registry: Registry, sending: Sending) -> Sending:
    """Return a GET of the caller's address with the uid at its end, exactly as documented."""
    seen = registry.get_object(sending.subject_id)
    uid = (seen.public_id if seen else None) or sending.subject_id
    return replace(sending, method="GET", url=sending.url + uid, body=None)

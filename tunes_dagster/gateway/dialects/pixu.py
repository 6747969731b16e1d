"""Pixu API v1: https://pixu.ai/pixu/apidoc

The key and everything else travel in a JSON body; callbacks are a GET of the caller's address with the uid appended.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from tunes_dagster.core.recipe import (
    DatasetOptions,
    PromptRequest,
    RenderSettings,
    Sources,
    TrainingOptions,
    TuneRequest,
)
from tunes_dagster.core.urls import origin_of, parse_url
from tunes_dagster.gateway.accepting import View
from tunes_dagster.gateway.answers import Address, Answer, Rehearsal, answers
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import Dialect, desk, header_key, manners
from tunes_dagster.gateway.problems import HttpProblem, invalid
from tunes_dagster.gateway.rehearsal import Report, rehearsable, truth
from tunes_dagster.registry.outbox import Sending
from tunes_dagster.rendering.styles import compositions
from tunes_dagster.service.installation import Installation

NAME = "pixu"
_BASE = "realistic-vision"
# Of a face alone nothing can be learned in few steps; baseline 2 trains twice as long.
_STEPS = {1: 300, 2: 600}
# The same choice decides how its pictures are made.
_BASELINES: dict[Any, Literal["fast", "thorough"]] = {1: "fast", 2: "thorough"}


# A backslash at the end of a line after a comma, a brace or a value: never valid inside of JSON.
_CONTINUED = re.compile(rb"([,{}\]\"\d])[ \t]*\\[ \t]*\r?\n")


def error(problem: HttpProblem) -> tuple[int, Any]:
    """Return `{"error": …}`."""
    return problem.status, {"error": problem.message}


class Rehearsed(Answer):
    """What `dry_run` is answered with."""

    response: Rehearsal


class PixuBody(Body):
    """A request whose body is repaired: the vendor's curl samples end the lines of their JSON with backslashes."""

    payloads = frozenset({"face_base64"})
    key_field = "api_key"

    async def body(self) -> bytes:
        """Return the body, valid JSON where it was meant to be."""
        raw = await super().body()
        return _CONTINUED.sub(b"\\1\n", raw) if _CONTINUED.search(raw) else raw


# Instead of the field, or beside it: whoever shows the key in a header may send a long body in any order.
KEYS = header_key("authorization", "x-api-key")
router = APIRouter(
    prefix="/pixu/api", route_class=manners(NAME, error, KEYS, PixuBody, Rehearsed), tags=["pixu"]
)
DIALECT = Dialect(
    name=NAME,
    title="Pixu",
    router=router,
    key_prefix="px_",
    error=error,
    paths=("/pixu/",),
    about="The API of https://pixu.ai/pixu/apidoc: models of one face, and portraits with them. "
    "What differs: docs/gateway-pixu.md.",
    keys=("authorization", "x-api-key"),
    key_in_body=True,
    problem={"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
)
Mine = Depends(desk)


class Call(BaseModel):
    """What every call carries."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    api_key: str = Field(default="", description="The key, at the start of a body that is long; or a header.")
    app_uid: str = "api"
    callback_url: str | None = Field(default=None, max_length=4000)
    dry_run: Annotated[bool, BeforeValidator(truth)] = False

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


class ModelUid(Answer):
    """The uid of a model."""

    modelUid: str  # noqa: N815 - the vendor's


class ModelMade(Answer):
    """A model that was accepted."""

    response: ModelUid


class RequestMade(Answer):
    """A request that was accepted, by its uid."""

    response: str


class Pictures(Answer):
    """How far a request is, and its pictures."""

    status: Literal["queued", "processing", "completed", "failed"]
    progress: float
    images: list[Address]
    error: str | None = None


class RequestStatus(Answer):
    """How far a request is."""

    response: Pictures


def _events(mine: Desk, subject: str) -> tuple[str, ...]:
    """Return what a caller is told of: success, and failure only when its account asks for that."""
    if not mine.caller.options.get("failure_callbacks"):
        return ("tune.ready",) if subject == "tune" else ("prompt.done",)
    return ("tune.ready", "tune.failed", "tune.cancelled", "prompt.done", "prompt.failed", "prompt.cancelled")


def _told(body: Call, uid: str) -> str | None:
    """Return where the caller is told, once it is clear that the uid can stand at the end of it.

    Raises:
        Failure: `SOURCE_REFUSED` for what is no address.
        HttpProblem: 422 for one to which the uid would add something else than its end: to the host, or behind a `#`.
    """
    if body.callback_url is None:
        return None
    alone, whole = parse_url(body.callback_url), body.callback_url + uid
    if origin_of(whole) != alone.origin or not parse_url(whole).target.endswith(uid):
        raise invalid("callback_url", "has no path or query at whose end the uid can stand")
    return body.callback_url


@router.post("/create_model")
@answers(ModelMade)
@rehearsable
def create_model(body: CreateModel, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Make a model of the face in one picture that came along."""
    return _create(mine, body, Sources(images_base64=[body.face_base64]))


@router.post("/create_model_from_url")
@answers(ModelMade)
@rehearsable
def create_model_from_url(body: CreateModelFromUrl, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Make a model of the face in a picture at a URL, which is fetched later."""
    return _create(mine, body, Sources(image_urls=[body.url]))


def _create(
    mine: Desk, body: CreateModel | CreateModelFromUrl, sources: Sources
) -> dict[str, Any] | Response:
    uid = "upose_" + secrets.token_hex(16)
    request = TuneRequest(
        name="person",
        title=body.name or uid,
        base=_BASE,
        sources=sources,
        dataset=DatasetOptions(one_picture=True),
        training=TrainingOptions(steps=_STEPS[body.baseline]),
        callback_url=_told(body, uid),
    )
    asked = {"height": body.height, "baseline": body.baseline}
    view = View(dialect=NAME, asked=asked, events=_events(mine, "tune"), public_id=uid, on_unknown="hold")
    tune = mine.accept_tune(request, view)
    if isinstance(tune, Report):
        return Report({"response": tune.found})
    return {"response": {"modelUid": mine.public_id(tune.id)}}


@router.post("/txt2img_strict_portrait")
@answers(RequestMade)
@rehearsable
def strict_portrait(body: Portrait, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Render a portrait; without `model_uid` of a random person."""
    return _render(mine, body, None)


@router.post("/txt2img_composition")
@answers(RequestMade)
@rehearsable
def composition(body: Composition, mine: Desk = Mine) -> dict[str, Any] | Response:
    """Render a stored composition; without `comp_uid` any of them."""
    known = {one.id for one in compositions().values()} | set(compositions())
    if body.comp_uid is not None and body.comp_uid not in known:
        shown = ", ".join(f"{one.id} ({name})" for name, one in compositions().items())
        raise invalid("comp_uid", f"{body.comp_uid[:40]!r} is not known; known are {shown}")
    return _render(mine, body, body.comp_uid or "random")


def _render(mine: Desk, body: Portrait, composition: str | None) -> dict[str, Any] | Response:
    tune, seen = mine.tune(body.model_uid, "model_uid") if body.model_uid else (None, None)
    asked = seen.asked if seen else {}
    width, height = (int(side) for side in body.resolution.split(","))
    settings = RenderSettings(
        num_images=body.num_images,
        width=width,
        height=height,
        negative_prompt=body.negative,
        lora_scale=body.model_weight,
        composition=composition,
        random_face=tune is None,
        face_height=asked.get("height"),
        baseline=_BASELINES.get(asked.get("baseline")),
    )
    subject = f"{tune.token} {tune.class_name}" if tune else "a person"
    opening = "portrait of {}" if composition is None else "{}"
    text = ", ".join(part for part in (opening.format(subject), body.positive.strip()) if part)
    uid = secrets.token_hex(20)
    request = PromptRequest(
        text=text,
        tune=tune.id if tune else None,
        base=None if tune else _BASE,
        settings=settings,
        callback_url=_told(body, uid),
    )
    view = View(dialect=NAME, asked={}, events=_events(mine, "prompt"), public_id=uid, on_unknown="hold")
    prompt = mine.accept_prompt(request, view)
    if isinstance(prompt, Report):
        return Report({"response": prompt.found})
    return {"response": mine.public_id(prompt.id)}


@router.post("/txt2img_results")
@answers(RequestStatus)
def results(body: Results, mine: Desk = Mine) -> dict[str, Any]:
    """Report a request and its pictures."""
    prompt, _seen = mine.prompt(body.request_uid, "request_uid")
    words = {"waiting": "queued", "queued": "queued", "rendering": "processing", "done": "completed"}
    answer: dict[str, Any] = {
        "status": words.get(prompt.status, "failed"),
        "progress": mine.progress(prompt),
        "images": mine.images(prompt),
    }
    if prompt.failure_message:
        answer["error"] = prompt.failure_message
    return {"response": answer}


def callback(installation: Installation, sending: Sending) -> Sending:
    """Return a GET of the caller's address with the uid at its end, exactly as documented; `&error=` of failures."""
    seen = installation.registry.objects.get(sending.subject_id)
    uid = (seen.public_id if seen else None) or sending.subject_id
    failed = sending.event.endswith((".failed", ".cancelled"))
    failure = (sending.body or {}).get("data", {}).get("failure") or {}
    error = f"&error={failure.get('code') or 'failed'}" if failed else ""
    return replace(sending, method="GET", url=f"{sending.url}{uid}{error}", body=None)

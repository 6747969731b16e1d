"""Astria's words: fields of tunes and prompts, sizes, the error form, and how rows are shown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tunes_dagster.core.clock import iso
from tunes_dagster.core.recipe import any_seed
from tunes_dagster.gateway.bodies import body_of
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import header_key
from tunes_dagster.gateway.problems import HttpProblem, invalid, of_pydantic
from tunes_dagster.gateway.rehearsal import truth
from tunes_dagster.registry import ApiObject, Prompt, Tune
from tunes_dagster.service.download import served

NAME = "astria"
KEYS = header_key("authorization")
_PICTURES = ("input_image", "input_image_base64", "input_image_url", "mask_image", "mask_image_url")
BODY = body_of(payloads=frozenset(_PICTURES))
# 100,000 of Astria's units are a dollar.
MC = 10
DAYS = 30
# What a branch trains on; what a `base_tune_id` means is said in `gallery.py`.
BRANCHES = {"sd15": "realistic-vision", "sdxl1": "sdxl1", "flux1": "flux1-dev", "fast": "fast"}
_SHAPES = {"portrait": (2, 3), "landscape": (3, 2)}
_RATIOS = ("1:1", "16:9", "9:16", "21:9", "9:21", "3:2", "2:3", "5:4", "4:5", "4:3", "3:4")

# Fields of a prompt that ask for what nothing here can do; each is refused by name when it is set.
UNSUPPORTED_PROMPT = (
    "face_swap",
    "theme",
    "video_model",
    "video_prompt",
    "image_references",
    "multi",
)
UNSUPPORTED_TUNE: tuple[str, ...] = ()
# Fields that only say how, and whose value is given back as it was.
_KEPT = (
    "community",
    "workspace_id",
    "pack_id",
    "base_pack_id",
    "backend_version",
    "use_lpw",
    "orig_prompt_id",
)
# Fields that go to the renderer under the same name.
SWITCHES = (
    "super_resolution",
    "hires_fix",
    "inpaint_faces",
    "face_correct",
    "film_grain",
    "controlnet_txt2img",
)
# Flags that Astria reads in the text of a prompt; here they would only be words to the text encoder. The first ones
# make another picture, the others a better one.
_FLAGS = re.compile(r"(?<!\S)--(mask_prompt|mask_negative|mask_invert|mask_dilate|remove_background|multi)\b")
_WISHED_FLAGS = re.compile(
    r"\s*(?<!\S)--(hires_denoising_strength|tiled_upscale_v2|upscale_v4|improve_similarity)\b(?:[ =]+[\d.]+)?"
)
_PLAIN = ("style", "color_grading", "controlnet", "denoising_strength", "controlnet_conditioning_scale")


# What the library calls a field where the name is another one here.
NAMES = {
    "dataset.face_correct": "training_face_correct",
    "training.kind": "model_type",
    "guidance_scale": "cfg_scale",
    "width": "w",
    "height": "h",
    "callback_url": "callback",
}


def error(problem: HttpProblem) -> tuple[int, Any]:
    """Return `{"error": sentence}`, for validation with `{field: [messages]}` before it; there is no 402.

    Astria's documents have the fields, its newer answers and what most clients print the sentence.
    """
    status = 422 if problem.status in (402, 413) or _refused_state(problem) else problem.status
    fields = problem.fields if status == 422 else {}
    named = {NAMES.get(name, name.rpartition(".")[2]): said for name, said in fields.items()}
    sentence = ", ".join(f"{name} {'; '.join(said)}" for name, said in named.items())
    return status, {**named, "error": sentence or problem.message}


def _refused_state(problem: HttpProblem) -> bool:
    return problem.status == 409 and not problem.code.startswith("idempotency")


class Loose(BaseModel):
    """Unknown fields are named in a header; empty strings mean absent."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if not (isinstance(value, str) and value == "")}


class PromptFields(Loose):
    """`prompt[…]`."""

    text: str = Field(min_length=1, max_length=4000)
    negative_prompt: str | None = Field(default=None, max_length=4000)
    callback: str | None = Field(default=None, max_length=4000)
    num_images: int = Field(default=1, ge=1, le=8)
    seed: int | None = Field(default=None, ge=-1, le=2**32)
    cfg_scale: float | None = Field(default=None, ge=0, le=15)
    steps: int | None = Field(default=None, ge=0, le=50)
    w: int | None = Field(default=None, ge=64, le=4096, multiple_of=8)
    h: int | None = Field(default=None, ge=64, le=4096, multiple_of=8)
    ar: str | None = None
    aspect_ratio: str | None = None
    resolution: Literal["1K", "2K", "4K"] | None = None
    scheduler: str | None = Field(default=None, max_length=40)
    lora_scale: float | None = Field(default=None, ge=-2, le=3)
    super_resolution: bool = False
    hires_fix: bool = False
    inpaint_faces: bool = False
    face_correct: bool = False
    film_grain: bool = False
    style: str | None = Field(default=None, max_length=40)
    color_grading: str | None = Field(default=None, max_length=40)
    controlnet: str | None = Field(default=None, max_length=40)
    controlnet_txt2img: bool = False
    controlnet_conditioning_scale: float | None = Field(default=None, ge=0, le=1)
    denoising_strength: float | None = Field(default=None, ge=0, le=1)
    input_image_url: str | None = Field(default=None, max_length=4000)
    input_image_base64: str | None = None
    mask_image_url: str | None = Field(default=None, max_length=4000)

    _drawn = field_validator("seed")(any_seed)

    @field_validator("text")
    @classmethod
    def _without_flags(cls, value: str) -> str:
        if found := _FLAGS.search(value):
            raise ValueError(f"has the flag {found.group(0)}, which is not supported by this server")
        return value

    @field_validator("ar", "aspect_ratio")
    @classmethod
    def _known_ratio(cls, value: str | None) -> str | None:
        if value is not None and value not in (*_RATIOS, *_SHAPES):
            raise ValueError("is not included in the list")
        return value


class TuneFields(Loose):
    """`tune[…]`."""

    title: str = Field(min_length=1, max_length=200)
    name: str = Field(min_length=1, max_length=60)
    callback: str | None = Field(default=None, max_length=4000)
    branch: Literal["sd15", "sdxl1", "flux1", "fast"] | None = None
    steps: int | None = Field(default=None, ge=1, le=20_000)
    token: str | None = Field(default=None, pattern=r"^[\w-]{1,40}$")
    face_crop: bool | None = None
    base_tune_id: int | None = None
    model_type: Literal["lora", "pti", "faceid", "checkpoint"] | None = None
    training_face_correct: bool = False
    auto_extend: bool = False
    preset: Literal["flux-lora-focus", "flux-lora-portrait", "flux-lora-fast"] | None = None
    characteristics: dict[str, Any] = Field(default_factory=dict)
    image_urls: list[str] = Field(default_factory=list, max_length=1000)
    prompts_attributes: list[PromptFields] = Field(default_factory=list, max_length=200)

    @field_validator("characteristics", mode="before")
    @classmethod
    def _json_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError("is not a JSON object") from None
        return value or {}

    @field_validator("image_urls", mode="before")
    @classmethod
    def _without_empty(cls, value: Any) -> Any:
        return [one for one in value if one != ""] if isinstance(value, list) else value

    @field_validator("characteristics")
    @classmethod
    def _small(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(value) > 100 or len(json.dumps(value)) > 20_000:
            raise ValueError("is too large")
        return value


def understood(model: type[Any], fields: dict[str, Any], unsupported: tuple[str, ...]) -> Any:
    """Return fields as a model.

    Raises:
        HttpProblem: 422, with what cannot be done refused by name beside what is wrong.
    """
    problems: dict[str, list[str]] = {}
    for name in (*unsupported, *(name for name in fields if unsupported and name.startswith("video_"))):
        if fields.get(name) not in (None, "", False, "false", "0", 0, [], {}, "null"):
            problems[name] = ["is not supported by this server yet"]
    parsed = None
    try:
        parsed = model.model_validate({k: v for k, v in fields.items() if v is not None})
    except ValidationError as wrong:
        found = of_pydantic(list(wrong.errors()))  # type: ignore[arg-type]
        problems |= {
            name: ["can't be blank"] if name in found.missing else said for name, said in found.fields.items()
        }
    if problems:
        message = ", ".join(f"{name} {said[0]}" for name, said in problems.items())
        raise HttpProblem(422, message, problems, code="invalid")
    return parsed


def size_of(fields: PromptFields, native: int) -> tuple[int | None, int | None]:
    """Return width and height in pixels; None leaves them to the base."""
    ratio = fields.aspect_ratio or fields.ar
    if fields.w or fields.h:
        return fields.w or native, fields.h or native
    if ratio is None and fields.resolution is None:
        return None, None
    across, down = _SHAPES.get(ratio or "") or tuple(int(part) for part in (ratio or "1:1").split(":"))
    side = {None: native, "1K": 1024, "2K": 2048, "4K": 4096}[fields.resolution]
    width = min(4096, round(side * math.sqrt(across / down) / 8) * 8)
    height = min(4096, round(side * math.sqrt(down / across) / 8) * 8)
    return width, height


def without_wishes(mine: Desk, fields: PromptFields) -> str:
    """Return a prompt's text without the flags that only ask for a better picture; what is not met is told of."""
    for flag in _WISHED_FLAGS.findall(fields.text):
        mine.wishes.leave(f"--{flag}", "is not known to this server", "it is left out of the text")
    if truth((fields.model_extra or {}).get("prompt_expansion"), "prompt_expansion"):
        why = "needs a language model, which is not installed"
        mine.wishes.leave("prompt_expansion", why, "the text is rendered as it is written")
    return _WISHED_FLAGS.sub("", fields.text)


def filled_in(text: str, characteristics: dict[str, Any]) -> str:
    """Return a text with `{{key}}` replaced by the tune's characteristics; unknown ones vanish."""
    return re.sub(r"\{\{\s*([\w ]+?)\s*\}\}", lambda m: str(characteristics.get(m.group(1)) or ""), text)


def tune_object(mine: Desk, tune: Tune, seen: ApiObject | None) -> dict[str, Any]:
    """Return a tune as Astria shows it."""
    asked = seen.asked if seen else {}
    trained = tune.ready_at
    weights = [mine.url(one.key, trained, DAYS * 24.0) for one in served(tune)]
    sources = tune.request.get("sources", {})
    uploads = [mine.url(one, tune.created_at, DAYS * 24.0) for one in sources.get("uploads", [])]
    return {
        "id": tune.number,
        "title": tune.title,
        "name": tune.class_name,
        "is_api": tune.origin == "api",
        "token": tune.token,
        "base_tune_id": asked.get("base_tune_id"),
        "args": asked.get("args"),
        "steps": tune.made.steps or asked.get("steps"),
        "face_crop": bool(asked.get("face_crop")),
        "training_face_correct": bool(asked.get("training_face_correct")),
        "ckpt_url": weights[0] if weights else None,
        "ckpt_urls": weights,
        "eta": iso(_eta(mine, tune)),
        "progress": round(tune.progress, 1),
        "callback": tune.callback_url,
        "trained_at": iso(trained),
        "started_training_at": iso(tune.started_at),
        "expires_at": iso(trained + timedelta(days=DAYS))
        if trained and not asked.get("auto_extend")
        else None,
        "created_at": iso(tune.created_at),
        "updated_at": iso(tune.updated_at),
        "branch": asked.get("branch"),
        "model_type": asked.get("model_type"),
        "auto_extend": bool(asked.get("auto_extend")),
        "characteristics": asked.get("characteristics") or {},
        "url": f"{mine.base_url}/tunes/{tune.number}.json",
        "orig_images": [*sources.get("image_urls", []), *uploads],
        **_ended_badly(tune),
    }


def _ended_badly(tune: Tune) -> dict[str, str]:
    """Return the field that clients look for although no document has it."""
    if tune.status not in ("failed", "cancelled"):
        return {}
    return {"error": tune.failure_message or "The tune was cancelled."}


def _eta(mine: Desk, tune: Tune) -> datetime | None:
    if tune.status in ("ready", "failed", "cancelled"):
        return tune.ready_at
    if tune.seconds_left is not None:
        return mine.registry.now() + timedelta(seconds=tune.seconds_left)
    return tune.created_at + timedelta(seconds=mine.estimated_seconds(tune.base))


def prompt_object(
    mine: Desk,
    prompt: Prompt,
    seen: ApiObject | None,
    tune_number: int | None = None,
    progress: float | None = None,
) -> dict[str, Any]:
    """Return a prompt as Astria shows it; `images` are plain URLs that need no key.

    Args:
        mine: The desk that it is shown at.
        prompt: Its row.
        seen: How it was asked for.
        tune_number: What it names as its tune; None takes what it was asked with.
        progress: How far it is, where that was looked up for a whole list.
    """
    asked = seen.asked if seen else {}
    settings = prompt.settings
    tune_id = tune_number or asked.get("tune_id")
    guidance = asked.get("cfg_scale")
    kept = {name: asked.get(name) for name in _KEPT}
    return {
        "id": prompt.number,
        "callback": prompt.callback_url,
        "text": asked.get("text") or prompt.text,
        "negative_prompt": asked.get("negative_prompt") or settings.get("negative_prompt") or None,
        "cfg_scale": None if guidance is None else str(float(guidance)),
        "steps": asked.get("steps"),
        "seed": settings.get("seed"),
        "ar": asked.get("ar") or "1:1",
        "num_images": settings.get("num_images"),
        **{name: bool(asked.get(name, settings.get(name))) for name in SWITCHES},
        **{name: asked.get(name) for name in _PLAIN},
        "aspect_ratio": asked.get("aspect_ratio"),
        "resolution": asked.get("resolution"),
        "scheduler": asked.get("scheduler"),
        "w": asked.get("w"),
        "h": asked.get("h"),
        **kept,
        "trained_at": iso(prompt.done_at) if prompt.status == "done" else None,
        "started_training_at": iso(prompt.started_at),
        "progress": mine.progress(prompt) if progress is None else progress,
        "created_at": iso(prompt.created_at),
        "updated_at": iso(prompt.updated_at),
        "tune_id": tune_id,
        "liked": seen is not None and seen.liked_at is not None,
        "cost_mc": asked["price"] // MC if "price" in asked else asked.get("cost_mc", 0),
        "user_error": _user_error(prompt),
        "url": f"{mine.base_url}/tunes/{tune_id}/prompts/{prompt.number}.json",
        "images": mine.images(prompt, DAYS * 24.0),
    }


def check_kept(fields: Mapping[str, Any]) -> None:
    """Refuse what is only kept and given back when it is more than a word or a number.

    Raises:
        HttpProblem: 422.
    """
    for name in _KEPT:
        value = fields.get(name)
        if not isinstance(value, str | int | float | None) or len(str(value)) > 200:
            raise invalid(name, "is neither a short text nor a number")


def _user_error(prompt: Prompt) -> str | None:
    failed = prompt.status in ("failed", "blocked", "cancelled")
    return prompt.failure_message if failed else None


def kept_fields(fields: PromptFields) -> dict[str, Any]:
    """Return what a prompt object has to give back beside the canonical settings."""
    check_kept(fields.model_extra or {})
    names = (
        "text",
        "negative_prompt",
        "cfg_scale",
        "steps",
        "ar",
        "aspect_ratio",
        "resolution",
        "scheduler",
        "w",
        "h",
        *SWITCHES,
        *_PLAIN,
        "input_image_url",
        "mask_image_url",
    )
    asked = {name: getattr(fields, name) for name in names}
    extra = fields.model_extra or {}
    return {**asked, **{name: extra[name] for name in _KEPT if name in extra}}


def unknown_fields(*models: Loose) -> dict[str, str]:
    """Return the header that names fields which mean nothing here."""
    known = {
        *_KEPT,
        "prompt_expansion",
        *UNSUPPORTED_PROMPT,
        *UNSUPPORTED_TUNE,
        "images",
        "dry_run",
        "prompt_attributes",
        "image_index",
        "input_image",
        "mask_image",
        "prompts_callback",
        "tune_ids",
        "prompt_ids",
        "tune_id",
        "is_api",
    }
    extra = sorted({name for one in models for name in (one.model_extra or {})} - known)
    return warned({}, "unknown fields", extra)


def warned(headers: dict[str, str], said: str, names: Collection[str]) -> dict[str, str]:
    """Return the headers with one more warning, which names fields; unchanged when there are none."""
    plain = ["".join(c for c in name if c.isascii() and c.isprintable())[:40] for name in sorted(names)[:20]]
    named = ", ".join(one for one in plain if one)
    before = headers.get("X-Tunes-Warnings")
    return (
        {**headers, "X-Tunes-Warnings": "; ".join(filter(None, (before, f"{said}: {named}")))}
        if named
        else headers
    )

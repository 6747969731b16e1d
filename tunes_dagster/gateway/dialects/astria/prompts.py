"""Astria's prompts: create, retrieve, list, delete, duplicate, like."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, time
from typing import Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse

from tunes_dagster.core.ids import row_number
from tunes_dagster.gateway.answers import answers
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import desk, manners
from tunes_dagster.gateway.dialects.astria.answers import PromptAnswer, Said
from tunes_dagster.gateway.dialects.astria.gallery import gallery, not_there
from tunes_dagster.gateway.dialects.astria.orders import Base, prompt_order
from tunes_dagster.gateway.dialects.astria.templates import mark
from tunes_dagster.gateway.dialects.astria.tunes import BeforeId, number, page_of
from tunes_dagster.gateway.dialects.astria.wire import (
    BODY,
    KEYS,
    NAME,
    UNSUPPORTED_PROMPT,
    PromptFields,
    check_kept,
    error,
    prompt_object,
    understood,
    unknown_fields,
)
from tunes_dagster.gateway.dialects.astria.workspaces import workspace_of
from tunes_dagster.gateway.nesting import fields_of, read_body
from tunes_dagster.gateway.problems import HttpProblem, invalid
from tunes_dagster.gateway.rehearsal import Report, rehearsable
from tunes_dagster.registry import ApiObject, Prompt, Tune
from tunes_dagster.registry.filters import Page, PromptFilter
from tunes_dagster.registry.packs import Likes

router = APIRouter(route_class=manners(NAME, error, KEYS, BODY), tags=["prompts"])
Mine = Depends(desk)
MAX_OFFSET = 10_000
_CHANGEABLE = ("community", "workspace_id", "pack_id", "base_pack_id", "orig_prompt_id")
# What tells one prompt from another for accounts with `prompt_idempotency`, beside its tune: the list is Astria's.
_KNOWN_BY = (
    "text",
    "cfg_scale",
    "steps",
    "seed",
    "callback",
    "negative_prompt",
    "super_resolution",
    "face_correct",
    "ar",
    "num_images",
    "controlnet",
    "denoising_strength",
    "use_lpw",
    "controlnet_conditioning_scale",
    "w",
    "h",
    "hires_fix",
    "scheduler",
    "controlnet_txt2img",
    "inpaint_faces",
)
# What a prompt row holds that a duplicate takes over.
_COPIED = ("num_images", "seed", "negative_prompt")


def base_or_tune(mine: Desk, text: str) -> tuple[Base, Tune | None, dict[str, Any]]:
    """Return what the id before `/prompts` means: one of the account's tunes, or a base of the gallery.

    Raises:
        HttpProblem: 404.
    """
    word = number(text)
    found = mine.registry.objects.find_tune(mine.account_id, word) if word.isdecimal() else None
    if found is not None:
        tune, seen = found
        asked = seen.asked if seen else {}
        branch = asked.get("branch") or "sd15"
        return Base(tune.base, branch, asked.get("base_tune_id")), tune, asked.get("characteristics") or {}
    known = row_number(word)
    if (base := gallery(mine.service.catalog).get(known or 0)) is not None:
        return Base(base.word, base.branch, known), None, {}
    raise not_there(word[:40])


def find_prompt(
    mine: Desk, text: str, tune: str | None = None
) -> tuple[Prompt, ApiObject | None, int | None]:
    """Return a prompt by the integer ids of a path, and the number of its tune.

    Raises:
        HttpProblem: 404, also when it is not of the tune named before it.
    """
    word = number(text)
    if not word.isdecimal():
        raise HttpProblem(404, "Not found", code="not_found")
    prompt, seen = mine.prompt(word)
    shown = tune_number(mine, prompt, seen)
    if tune is not None and number(tune) not in (
        str(shown),
        str((seen.asked if seen else {}).get("tune_id")),
    ):
        raise HttpProblem(404, "Prompt not found", code="not_found")
    return prompt, seen, shown


def tune_number(mine: Desk, prompt: Prompt, seen: ApiObject | None) -> int | None:
    """Return the integer that a prompt shows as its tune: the base where it was asked on a base."""
    numbers = mine.registry.objects.tune_numbers([prompt.tune_id] if prompt.tune_id else [])
    return _number(mine, prompt, seen, numbers)


def _number(mine: Desk, prompt: Prompt, seen: ApiObject | None, numbers: dict[str, int]) -> int | None:
    asked = (seen.asked if seen else {}).get("tune_id")
    if (
        asked is not None
        and asked in gallery(mine.service.catalog)
        and not (seen and seen.asked.get("own_tune"))
    ):
        return int(asked)
    return numbers.get(prompt.tune_id) if prompt.tune_id else asked


@router.post("/tunes/{tune_id}/prompts", status_code=201)
@router.post("/tunes/{tune_id}/prompts.json", status_code=201, include_in_schema=False)
@answers(PromptAnswer)
@rehearsable
async def create(tune_id: str, request: Body, mine: Desk = Mine) -> Response:
    """Render with a tune, or with a base and the LoRAs in the text."""
    fields = fields_of(await read_body(request), "prompt")
    return await run_in_threadpool(_create, mine, tune_id, fields)


def _create(
    mine: Desk,
    tune_id: str,
    given: dict[str, Any],
    start: dict[str, str | None] | None = None,
    meant: Mapping[str, str] | None = None,
) -> Response:
    base, tune, characteristics = base_or_tune(mine, tune_id)
    fields: PromptFields = understood(PromptFields, given, UNSUPPORTED_PROMPT)
    request, view = prompt_order(mine, fields, base, characteristics, tune=tune, start=start)
    if tune is None:
        request = request.model_copy(update={"base": base.word})
    else:
        view.asked["own_tune"] = True
    view.asked.update(mark(fields.model_extra or {}))
    mine.headers.update(unknown_fields(fields))
    once = mine.caller.options.get("prompt_idempotency")
    known_by = sameness(fields, tune.number if tune else base.number) if once else None
    prompt = mine.accept_prompt(request, replace(view, meant=meant or {}, sameness=known_by))
    if isinstance(prompt, Report):
        return prompt
    shown = prompt_object(mine, *mine.prompt(prompt.id), tune.number if tune else base.number)
    return JSONResponse(shown, 201)


def sameness(fields: PromptFields, tune_id: int | None) -> str:
    """Return what Astria knows a repeated prompt by: some of its fields, of which the pictures are none."""
    words = {name: getattr(fields, name, (fields.model_extra or {}).get(name)) for name in _KNOWN_BY}
    text = json.dumps({**words, "tune_id": tune_id}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _filter(mine: Desk, asked: QueryParams) -> PromptFilter:
    """Return which prompts a list is asked for.

    Raises:
        HttpProblem: 422 for a filter that is not there.
    """
    for name in ("user_id", "order_id"):
        if asked.get(name):
            raise invalid(name, "is not a filter here: an account sees its own prompts only")
    kept = {name: asked[name] for name in ("pack_id", "base_pack_id", "orig_prompt_id") if asked.get(name)}
    if (workspace := workspace_of(mine)) is not None:
        kept["workspace_id"] = str(workspace)
    return PromptFilter(
        text=asked.get("text") or None,
        liked=_said(asked["liked"]) if asked.get("liked") else None,
        since=datetime.combine(mine.registry.now().date(), time(), UTC)
        if _said(asked.get("today"))
        else None,
        api=_said(asked["is_api"]) if asked.get("is_api") else None,
        asked=kept,
    )


def _said(value: str | None) -> bool:
    return (value or "").lower() in ("true", "1")


def _listed(
    mine: Desk, request: Request, page: Page, tune_id: str | None = None, base: str | None = None
) -> list[dict[str, Any]]:
    """List prompts, of all or of a tune or a plain base."""
    wanted = replace(_filter(mine, request.query_params), tune_id=tune_id, base=base)
    if _said(request.query_params.get("is_video")):
        return []
    rows = mine.registry.objects.page_prompts(mine.account_id, page, wanted)
    numbers = mine.registry.objects.tune_numbers([prompt.tune_id for prompt, _seen in rows if prompt.tune_id])
    far = mine.registry.groups.progress_of([prompt for prompt, _seen in rows])
    return [
        prompt_object(mine, prompt, seen, _number(mine, prompt, seen, numbers), far[prompt.id])
        for prompt, seen in rows
    ]


@router.get("/prompts")
@router.get("/prompts.json", include_in_schema=False)
@answers(list[PromptAnswer])
def listed(
    request: Request,
    tune_id: str | None = None,
    before_id: BeforeId = None,
    limit: int = Query(default=20, ge=1),
    offset: int = Query(default=0, ge=0),
    mine: Desk = Mine,
) -> list[dict[str, Any]]:
    """List prompts, newest first."""
    if tune_id:
        return of_tune(tune_id, request, before_id, limit, offset, mine)
    return _listed(mine, request, page_of(before_id, limit, offset, MAX_OFFSET))


@router.get("/tunes/{tune_id}/prompts")
@router.get("/tunes/{tune_id}/prompts.json", include_in_schema=False)
@answers(list[PromptAnswer])
def of_tune(
    tune_id: str,
    request: Request,
    before_id: BeforeId = None,
    limit: int = Query(default=20, ge=1),
    offset: int = Query(default=0, ge=0),
    mine: Desk = Mine,
) -> list[dict[str, Any]]:
    """List the prompts of a tune, or of a base, newest first."""
    base, tune, _characteristics = base_or_tune(mine, tune_id)
    page = page_of(before_id, limit, offset, MAX_OFFSET)
    if tune is not None:
        return _listed(mine, request, page, tune_id=tune.id)
    return _listed(mine, request, page, base=base.word)


@router.get("/prompts/{prompt_id}")
@answers(PromptAnswer)
def retrieve(prompt_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Describe one prompt."""
    return prompt_object(mine, *find_prompt(mine, prompt_id))


@router.get("/tunes/{tune_id}/prompts/{prompt_id}")
@answers(PromptAnswer)
def retrieve_of_tune(tune_id: str, prompt_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Describe one prompt, below its tune."""
    return prompt_object(mine, *find_prompt(mine, prompt_id, tune_id))


@router.delete("/prompts/{prompt_id}")
@answers(Said)
def delete(prompt_id: str, mine: Desk = Mine) -> dict[str, str]:
    """Delete a prompt with its pictures."""
    mine.delete_prompt(find_prompt(mine, prompt_id)[0])
    return {"message": "Prompt successfully deleted"}


@router.delete("/tunes/{tune_id}/prompts/{prompt_id}")
@answers(Said)
def delete_of_tune(tune_id: str, prompt_id: str, mine: Desk = Mine) -> dict[str, str]:
    """Delete a prompt with its pictures, below its tune."""
    mine.delete_prompt(find_prompt(mine, prompt_id, tune_id)[0])
    return {"message": "Prompt successfully deleted"}


@router.post("/prompts/{prompt_id}/duplicate", status_code=201)
@answers(PromptAnswer)
@rehearsable
async def duplicate(prompt_id: str, request: Body, mine: Desk = Mine) -> Response:
    """Render a prompt again, with some fields changed."""
    return await run_in_threadpool(_duplicate, mine, prompt_id, await read_body(request))


def _duplicate(mine: Desk, prompt_id: str, body: dict[str, Any]) -> Response:
    prompt, seen, shown = find_prompt(mine, prompt_id)
    asked = seen.asked if seen else {}
    old = {name: prompt.settings.get(name) for name in _COPIED}
    kept = {name: asked.get(name) for name in PromptFields.model_fields if asked.get(name) is not None}
    changes = fields_of(body, "prompt")
    index = changes.pop("image_index", body.get("image_index"))
    given = {**old, "text": prompt.text, **kept, "callback": prompt.callback_url, **changes}
    given["orig_prompt_id"] = prompt.number
    given.pop("tune_id", None)
    start = {name: prompt.settings.get(name) for name in ("input_image", "mask_image")}
    if any(changes.get(name) for name in ("input_image", "input_image_url", "input_image_base64")):
        start = {}
    if index not in (None, ""):
        start = {"input_image": _picture(prompt, index), "mask_image": None}
    chosen = {name: value for name, value in given.items() if value is not None}
    # Its words mean what they meant, whatever was renamed since.
    uses = mine.registry.uses.of([prompt.id]).get(prompt.id, [])
    meant = {use.word: use.tune_id for use in uses if use.tune_id}
    return _create(mine, str(shown), chosen, start if any(start.values()) else None, meant)


def _picture(prompt: Prompt, index: Any) -> str:
    """Return the key of one of a prompt's pictures.

    Raises:
        HttpProblem: 422.
    """
    images = prompt.images or []
    number = row_number(str(index))
    if number is None or number >= len(images):
        raise invalid("image_index", f"is not one of the prompt's {len(images)} pictures")
    return str(images[number])


@router.patch("/prompts/{prompt_id}")
@answers(PromptAnswer)
async def update(prompt_id: str, request: Body, mine: Desk = Mine) -> dict[str, Any]:
    """Change what is only kept with a prompt (its packs, community, workspace); what was rendered stays."""
    body = await read_body(request)
    return await run_in_threadpool(_update, mine, prompt_id, None, body)


@router.patch("/tunes/{tune_id}/prompts/{prompt_id}")
@answers(PromptAnswer)
async def update_of_tune(tune_id: str, prompt_id: str, request: Body, mine: Desk = Mine) -> dict[str, Any]:
    """Change what is only kept with a prompt, below its tune."""
    body = await read_body(request)
    return await run_in_threadpool(_update, mine, prompt_id, tune_id, body)


def _update(mine: Desk, prompt_id: str, tune_id: str | None, body: dict[str, Any]) -> dict[str, Any]:
    prompt, _seen, shown = find_prompt(mine, prompt_id, tune_id)
    given = fields_of(body, "prompt")
    check_kept(given)
    other = sorted(set(given) - set(_CHANGEABLE))
    if other:
        problems = {name: ["cannot be changed: duplicate the prompt instead"] for name in other}
        raise HttpProblem(422, f"{other[0]} cannot be changed", problems, code="invalid")
    mine.registry.objects.change(prompt.id, **given, **mark(given))
    return prompt_object(mine, *mine.prompt(prompt.id), shown)


def _like(mine: Desk, prompt_id: str, liked: bool) -> Response:
    Likes(mine.registry).like(find_prompt(mine, prompt_id)[0].id, liked)
    return Response(status_code=201 if liked else 200)


@router.post("/prompts/{prompt_id}/likes", status_code=201, response_class=Response)
@router.post("/prompts/{prompt_id}/like", status_code=201, include_in_schema=False)
def like(prompt_id: str, mine: Desk = Mine) -> Response:
    """Like a prompt."""
    return _like(mine, prompt_id, True)


@router.delete("/prompts/{prompt_id}/likes", response_class=Response)
@router.delete("/prompts/{prompt_id}/like", include_in_schema=False)
def unlike(prompt_id: str, mine: Desk = Mine) -> Response:
    """Take a like back."""
    return _like(mine, prompt_id, False)

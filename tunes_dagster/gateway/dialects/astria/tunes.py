"""Astria's tunes: create, retrieve, list, update, delete, and the gallery of bases."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse

from tunes_dagster.core.ids import row_number
from tunes_dagster.gateway.answers import answers
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import desk, manners
from tunes_dagster.gateway.dialects.astria.answers import GalleryTune, Said, TuneAnswer
from tunes_dagster.gateway.dialects.astria.gallery import gallery, not_there, shown
from tunes_dagster.gateway.dialects.astria.orders import tune_order
from tunes_dagster.gateway.dialects.astria.wire import (
    BODY,
    KEYS,
    NAME,
    UNSUPPORTED_PROMPT,
    UNSUPPORTED_TUNE,
    TuneFields,
    error,
    tune_object,
    understood,
    unknown_fields,
)
from tunes_dagster.gateway.dialects.astria.workspaces import workspace_of
from tunes_dagster.gateway.nesting import fields_of, files_in, read_body
from tunes_dagster.gateway.problems import HttpProblem, invalid
from tunes_dagster.gateway.rehearsal import Report, is_rehearsing, rehearsable
from tunes_dagster.registry import ApiObject, Tune
from tunes_dagster.registry.accepting import NewGroup
from tunes_dagster.registry.filters import Page, TuneFilter

router = APIRouter(route_class=manners(NAME, error, KEYS, BODY), tags=["tunes"])
Mine = Depends(desk)

MAX_LIMIT, MAX_OFFSET = 120, 200
BeforeId = Annotated[int | None, Query(ge=-(2**62), le=2**62)]


def number(text: str) -> str:
    """Return an id of a path without `.json`."""
    return text.removesuffix(".json")


def find_tune(mine: Desk, text: str) -> tuple[Tune, ApiObject | None]:
    """Return a tune by the integer id of a path.

    Raises:
        HttpProblem: 404.
    """
    word = number(text)
    if not word.isdecimal():
        raise HttpProblem(404, "Not found", code="not_found")
    return mine.tune(word, "Tune")


def read_tune_fields(body: dict[str, Any]) -> tuple[TuneFields, list[Any]]:
    """Return the fields of a tune and the files that came with it.

    Raises:
        HttpProblem: 422.
    """
    fields = fields_of(body, "tune")
    files = files_in(fields, "images", "image_urls")
    addresses = [*_addresses(fields, "images"), *_addresses(fields, "image_urls")]
    fields.pop("images", None)
    fields["image_urls"] = addresses
    prompts = fields.get("prompts_attributes")
    if isinstance(prompts, dict):  # JSON with numbers for keys
        fields["prompts_attributes"] = prompts = list(prompts.values())
    for one in prompts if isinstance(prompts, list) else []:
        if isinstance(one, dict):
            understood(_Anything, one, UNSUPPORTED_PROMPT)
    return understood(TuneFields, fields, UNSUPPORTED_TUNE), files


def _addresses(fields: dict[str, Any], name: str) -> list[str]:
    """Return what stands for pictures beside files: their addresses, however a client lists them.

    Raises:
        HttpProblem: 422 for what is neither a file nor an http(s) address.
    """
    given = fields.get(name)
    listed = (
        list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else [given]
    )
    found = [one for one in listed if one not in (None, "") and not isinstance(one, UploadFile)]
    for one in found:
        if not isinstance(one, str) or not one.lower().startswith(("http://", "https://")):
            raise invalid(name, f"has {str(one)[:60]!r}, which is neither a file nor an http(s) address")
    return found


class _Anything:
    @classmethod
    def model_validate(cls, _data: Any) -> None:
        """Only what cannot be done is looked for."""


@router.post("/tunes", status_code=201)
@router.post("/tunes.json", status_code=201, include_in_schema=False)
@answers(TuneAnswer)
@rehearsable
async def create(request: Body, mine: Desk = Mine) -> Response:
    """Make a tune, with prompts that are rendered once it is ready."""
    return await run_in_threadpool(_create, mine, await read_body(request))


def _create(mine: Desk, body: dict[str, Any]) -> Response:
    fields, files = read_tune_fields(body)
    mine.headers.update(unknown_fields(fields, *fields.prompts_attributes))
    return known_by_title(mine, fields) or made_tune(mine, fields, files)


def known_by_title(mine: Desk, fields: TuneFields) -> Response | None:
    """Answer with the tune of the same title, for accounts that asked for that.

    Whatever else came along is not looked at then; of two first ones at once, accepting lets one through.
    """
    if not mine.caller.options.get("title_idempotency") or is_rehearsing(mine.request):
        return None
    same = mine.registry.objects.page_tunes(mine.account_id, Page(limit=1), TuneFilter(title=fields.title))
    return JSONResponse(tune_object(mine, *same[0]), 201) if same else None


def made_tune(mine: Desk, fields: TuneFields, files: list[Any], group: NewGroup | None = None) -> Response:
    """Accept a tune and answer with it."""
    order, view, prompt_views = tune_order(mine, fields, len(files), group.id if group else None)
    tune = mine.accept_tune(order, view, prompt_views, files=files, group=group)
    if isinstance(tune, Report):
        return tune
    return JSONResponse(tune_object(mine, *mine.tune(tune.id)), 201)


class TunesWanted(BaseModel):
    """The query of a list of tunes."""

    before_id: BeforeId = None
    limit: int = Field(default=20, ge=1)
    offset: int = Field(default=0, ge=0)
    title: str | None = None
    branch: str | None = None
    model_type: str | None = None


def page_of(before_id: int | None, limit: int, offset: int, furthest: int) -> Page:
    """Return the page that a list is asked for.

    Raises:
        HttpProblem: 400 for an offset that reaches too far.
    """
    if offset > furthest:
        raise HttpProblem(400, f"offset must be at most {furthest}; use before_id", code="invalid")
    return Page(limit=min(limit, MAX_LIMIT), before=before_id, offset=offset)


@router.get("/tunes")
@router.get("/tunes.json", include_in_schema=False)
@answers(list[TuneAnswer])
def listed(
    request: Request, wanted: Annotated[TunesWanted, Query()], mine: Desk = Mine
) -> list[dict[str, Any]]:
    """List tunes, newest first."""
    names = [*request.query_params.getlist("name[]"), *request.query_params.getlist("name")]
    asked = {"branch": wanted.branch, "model_type": wanted.model_type, "workspace_id": workspace_of(mine)}
    chosen = TuneFilter(
        said=wanted.title,
        names=names,
        asked={name: str(value) for name, value in asked.items() if value not in (None, "")},
    )
    page = page_of(wanted.before_id, wanted.limit, wanted.offset, MAX_OFFSET)
    rows = mine.registry.objects.page_tunes(mine.account_id, page, chosen)
    return [tune_object(mine, tune, seen) for tune, seen in rows]


@router.get("/gallery/tunes")
@router.get("/gallery/tunes.json", include_in_schema=False)
@answers(list[GalleryTune])
def bases(
    branch: str | None = None,
    model_type: str | None = None,
    limit: int = Query(default=20, ge=1),
    mine: Desk = Mine,
) -> list[dict[str, Any]]:
    """List the bases that prompts and tunes may name by number; all of them are whole models."""
    if model_type not in (None, "", "null", "checkpoint"):
        return []
    rows = [
        shown(mine, base)
        for base in gallery(mine.service.catalog).values()
        if branch in (None, "", base.branch)
    ]
    return rows[:limit]


@router.get("/tunes/{tune_id}")
@answers(TuneAnswer | GalleryTune)
def retrieve(tune_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Describe one tune, or a base of the gallery."""
    word = number(tune_id)
    found = mine.registry.objects.find_tune(mine.account_id, word) if word.isdecimal() else None
    if found is not None:
        return tune_object(mine, *found)
    if (base := gallery(mine.service.catalog).get(row_number(word) or 0)) is not None:
        return shown(mine, base)
    raise not_there(word[:40])


@router.patch("/tunes/{tune_id}")
@answers(TuneAnswer)
async def update(tune_id: str, request: Body, mine: Desk = Mine) -> dict[str, Any]:
    """Change title, name, auto_extend or characteristics."""
    body = await read_body(request)
    return await run_in_threadpool(_update, mine, tune_id, body)


def _update(mine: Desk, tune_id: str, body: dict[str, Any]) -> dict[str, Any]:
    tune, seen = find_tune(mine, tune_id)
    given = fields_of(body, "tune")
    other = sorted(set(given) - {"title", "name", "auto_extend", "characteristics"})
    if other:
        raise HttpProblem(
            422,
            f"{other[0]} cannot be changed",
            {name: ["cannot be changed"] for name in other},
            code="invalid",
        )
    asked = seen.asked if seen else {}
    fields: TuneFields = understood(
        TuneFields,
        {
            "title": tune.title,
            "name": tune.class_name,
            "characteristics": asked.get("characteristics"),
            "auto_extend": asked.get("auto_extend", False),
            **given,
        },
        (),
    )
    if "auto_extend" in given:
        mine.registry.retention.keep_tune(tune.id, auto_extend=fields.auto_extend)
    mine.registry.objects.rename_tune(tune.id, title=fields.title, class_name=fields.name)
    mine.registry.objects.change(
        tune.id, characteristics=fields.characteristics, auto_extend=fields.auto_extend
    )
    return tune_object(mine, *mine.tune(tune.id))


@router.delete("/tunes/{tune_id}")
@answers(Said)
def delete(tune_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Delete a tune with its files."""
    tune, _seen = find_tune(mine, tune_id)
    mine.delete_tune(tune)
    return {"message": "Tune successfully deleted"}

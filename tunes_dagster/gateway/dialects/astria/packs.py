"""Astria's packs: lists of prompts by class, and tunes made from them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from fastapi import APIRouter, Depends, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from tunes_dagster.core.clock import iso
from tunes_dagster.gateway.answers import answers
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import desk, manners
from tunes_dagster.gateway.dialects.astria.answers import PackAnswer, PackItem, PromptsMade, TuneAnswer
from tunes_dagster.gateway.dialects.astria.gallery import gallery
from tunes_dagster.gateway.dialects.astria.orders import Base, base_of, prompt_order
from tunes_dagster.gateway.dialects.astria.templates import templates_of
from tunes_dagster.gateway.dialects.astria.tunes import (
    known_by_title,
    made_tune,
    number,
    read_tune_fields,
)
from tunes_dagster.gateway.dialects.astria.wire import (
    BODY,
    BRANCHES,
    KEYS,
    MC,
    NAME,
    SWITCHES,
    UNSUPPORTED_PROMPT,
    Loose,
    PromptFields,
    TuneFields,
    error,
    understood,
    unknown_fields,
    warned,
)
from tunes_dagster.gateway.nesting import fields_of, read_body
from tunes_dagster.gateway.problems import HttpProblem, invalid
from tunes_dagster.gateway.rehearsal import Report, rehearsable, truth
from tunes_dagster.registry import Pack, Registry, Tune
from tunes_dagster.registry.accepting import NewGroup
from tunes_dagster.registry.packs import Packs

router = APIRouter(route_class=manners(NAME, error, KEYS, BODY), tags=["packs"])
Mine = Depends(desk)


class PackFields(Loose):
    """`pack[…]`; `prompts_per_class` is this project's way to fill one."""

    title: str
    base_tune_id: int | None = None
    model_type: str | None = None
    subtitle: str | None = None
    public: bool = False
    prompts_per_class: dict[str, list[PromptFields]] = {}


# What of a prompt is handed to other accounts: how it is rendered. A field that is not named here is not shared.
SHARED = (
    "text",
    "negative_prompt",
    "num_images",
    "seed",
    "cfg_scale",
    "steps",
    "w",
    "h",
    "ar",
    "aspect_ratio",
    "resolution",
    "scheduler",
    "lora_scale",
    *SWITCHES,
    "style",
    "color_grading",
    "controlnet",
    "controlnet_conditioning_scale",
    "denoising_strength",
)
# What a pack keeps beside it for the account that made it, unless it is public: who is told, and what is shown.
OWN = ("callback", "input_image_url", "mask_image_url")


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("packs.yaml").read_text(encoding="utf-8"))


def seed(registry: Registry) -> None:
    """Give an installation its first packs, unless they are there."""
    for slug, pack in _shipped().items():
        if Packs(registry).find("", slug) is None:
            rows = [
                {"class": name, "text": text} for name, texts in pack["prompts"].items() for text in texts
            ]
            Packs(registry).add(
                slug,
                pack["title"],
                account_id=None,
                public=True,
                prompts=_numbered(rows),
                fields={"base_tune_id": pack["base_tune_id"], "model_type": "lora"},
            )


def _numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "id": position} for position, row in enumerate(rows, 1)]


def kept_of(row: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Return what of a prompt's fields a pack keeps or hands out."""
    return {name: row[name] for name in fields if row.get(name) is not None}


def _is_own(mine: Desk, pack: Pack) -> bool:
    return pack.account_id == mine.account_id and pack.public_at is None


def _by_class(mine: Desk, pack: Pack) -> dict[str, list[dict[str, Any]]]:
    """Return the prompts of a pack by class, as this account may have them, whatever its row holds."""
    fields = (*SHARED, *OWN) if _is_own(mine, pack) else SHARED
    found: dict[str, list[dict[str, Any]]] = {}
    for row in pack.prompts.get("rows", []):
        found.setdefault(row["class"], []).append({"id": row["id"], **kept_of(row, fields)})
    return found


def _with_templates(mine: Desk, pack: Pack) -> dict[str, list[dict[str, Any]]]:
    """Return the same with the prompts that the account has put into it."""
    found = _by_class(mine, pack)
    for row in templates_of(mine, pack, SHARED):
        found.setdefault(row.pop("class"), []).append(row)
    return found


def _base_of(mine: Desk, pack: Pack) -> int | None:
    """Return the `base_tune_id` of a pack; one of its author's own tunes means nothing to others."""
    number = pack.fields.get("base_tune_id")
    return number if number in gallery(mine.service.catalog) or pack.account_id == mine.account_id else None


def _cover_of(mine: Desk, pack: Pack) -> str | None:
    """Return the picture of a pack, which a browser fetches: not from where another account says."""
    return pack.fields.get("cover_url") if pack.account_id in (None, mine.account_id) else None


def _cost(mine: Desk, pack: Pack, rows: list[dict[str, Any]]) -> int:
    """Return what a tune of a pack with these prompts costs."""
    number = pack.fields.get("base_tune_id")
    listed = gallery(mine.service.catalog)
    word = listed[number].word if number is not None and number in listed else BRANCHES["sd15"]
    kind = "faceid" if pack.fields.get("model_type") == "faceid" else "lora"
    price = mine.training_price(word, kind)
    for row in rows:
        enlarged = truth(row.get("super_resolution"), "super_resolution")
        price += _pictures(row) * mine.picture_price(word, tuned=True, enlarged=enlarged)
    return price // MC


def _pictures(row: dict[str, Any]) -> int:
    count = row.get("num_images")
    return 1 if count is None else int(count)


def _item(mine: Desk, pack: Pack) -> dict[str, Any]:
    return {
        "id": pack.number,
        "base_tune_id": _base_of(mine, pack),
        "user_id": None,
        "slug": pack.slug,
        "title": pack.title,
        "subtitle": pack.fields.get("subtitle"),
        "main_class_name": next(iter(_by_class(mine, pack)), None),
        "token": pack.fields.get("token"),
        "created_at": iso(pack.created_at),
        "updated_at": iso(pack.updated_at),
        "multiplier": 1,
        "model_type": pack.fields.get("model_type"),
        "public_at": iso(pack.public_at),
        "cover_url": _cover_of(mine, pack),
        "cost_mc_hash": {name: _cost(mine, pack, rows) for name, rows in _by_class(mine, pack).items()},
    }


@router.get("/packs")
@router.get("/packs.json", include_in_schema=False)
@answers(list[PackItem])
def packs(public: bool = False, listed: bool = False, mine: Desk = Mine) -> list[dict[str, Any]]:
    """List the account's own packs; with `public` or `listed` everybody's, as the gallery does."""
    return [_item(mine, pack) for pack in Packs(mine.registry).rows(mine.account_id, public=public or listed)]


@router.get("/gallery/packs")
@router.get("/gallery/packs.json", include_in_schema=False)
@answers(list[PackItem])
def public_packs(mine: Desk = Mine) -> list[dict[str, Any]]:
    """List everybody's public packs, and those that the server came with."""
    return [_item(mine, pack) for pack in Packs(mine.registry).rows(mine.account_id, public=True)]


def find_pack(mine: Desk, text: str) -> Pack:
    """Return a pack by id or slug.

    Raises:
        HttpProblem: 404.
    """
    pack = Packs(mine.registry).find(mine.account_id, number(text))
    if pack is None:
        raise HttpProblem(404, "Not found", code="not_found")
    return pack


@router.get("/p/{pack_id}")
@answers(PackAnswer)
def retrieve(pack_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Describe a pack with its classes, costs and prompts."""
    pack = find_pack(mine, pack_id)
    classes = _with_templates(mine, pack)
    return {
        "id": pack.number,
        "slug": pack.slug,
        "title": pack.title,
        "cover_url": _cover_of(mine, pack),
        "created_at": iso(pack.created_at),
        "updated_at": iso(pack.updated_at),
        "public_at": iso(pack.public_at),
        "unlisted_at": None,
        "logo": None,
        "costs": {
            name: {
                "cost": _cost(mine, pack, rows),
                "num_images": sum(map(_pictures, rows)),
            }
            for name, rows in classes.items()
        },
        "prompts_per_class": {
            name: [{"id": row["id"], "images": []} for row in rows] for name, rows in classes.items()
        },
    }


@router.post("/packs", status_code=201)
@router.post("/packs.json", status_code=201, include_in_schema=False)
@answers(PackItem)
async def create(request: Body, mine: Desk = Mine) -> Response:
    """Make a pack."""
    body = await read_body(request)
    return await run_in_threadpool(_create, mine, fields_of(body, "pack"))


def _create(mine: Desk, given: dict[str, Any]) -> Response:
    fields: PackFields = understood(PackFields, given, ())
    kept = SHARED if fields.public else (*SHARED, *OWN)
    rows, left = [], set()
    for name, prompts in fields.prompts_per_class.items():
        for one in prompts:
            understood(PromptFields, one.model_dump(exclude_none=True), UNSUPPORTED_PROMPT)
            if fields.public:
                _check_shareable(one.text)
            asked = one.model_dump(exclude_none=True, exclude_unset=True)
            rows.append({"class": name, **kept_of(asked, kept)})
            left |= set(asked) - set(kept)
    if fields.public and fields.base_tune_id not in (None, *gallery(mine.service.catalog)):
        raise invalid("base_tune_id", "is not in the gallery: others cannot use a tune of yours")
    slug = re.sub(r"[^a-z0-9]+", "-", fields.title.lower()).strip("-")[:80] or "pack"
    slug = f"{slug}-{secrets.token_hex(3)}"
    facts = {
        "base_tune_id": fields.base_tune_id,
        "model_type": fields.model_type,
        "subtitle": fields.subtitle,
    }
    if made := mine.made_before():
        return JSONResponse(_item(mine, find_pack(mine, made[0])), 201)
    pack = Packs(mine.registry).add(
        slug,
        fields.title,
        account_id=mine.account_id,
        fields=facts,
        prompts=_numbered(rows),
        public=fields.public,
        claim=mine.claim,
    )
    return JSONResponse(_item(mine, pack), 201, warned(unknown_fields(fields), "not kept in a pack", left))


def _check_shareable(text: str) -> None:
    """Refuse a text of a public pack that names the author's own tunes.

    Raises:
        HttpProblem: 422.
    """
    from tunes_dagster.rendering.prompts import split_tags

    _text, loras, faces = split_tags(text)
    if loras or faces:
        raise invalid("prompts_per_class", f"names a tune of yours, which others cannot use: {text[:80]!r}")


@router.post("/p/{pack_id}/tunes", status_code=201)
@router.post("/p/{pack_id}/tunes.json", status_code=201, include_in_schema=False)
@answers(TuneAnswer | PromptsMade)
@rehearsable
async def tune_from_pack(pack_id: str, request: Body, mine: Desk = Mine) -> Response:
    """Make a tune and the pack's prompts for its class; with `tune_ids` the prompts alone."""
    return await run_in_threadpool(_from_pack, mine, pack_id, await read_body(request))


def _from_pack(mine: Desk, pack_id: str, body: dict[str, Any]) -> Response:
    pack = find_pack(mine, pack_id)
    given = fields_of(body, "tune")
    overrides = given.pop("prompt_attributes", None) or {}
    prompts_callback = given.pop("prompts_callback", None)
    wanted = _chosen("prompt_ids", given.pop("prompt_ids", None))
    tune_ids = _chosen("tune_ids", given.pop("tune_ids", None))
    if not isinstance(overrides, dict):
        raise invalid("prompt_attributes", "is not an object")
    if given.pop("brief", None) not in (None, ""):
        why = "needs a language model, which is not installed"
        mine.wishes.leave("brief", why, "the prompts are rendered as they are written")
    if tune_ids is not None:
        return _prompts_only(mine, pack, tune_ids, overrides, wanted, prompts_callback)
    name = str(given.get("name") or "")
    given["prompts_attributes"] = _prompts(mine, pack, name, overrides, wanted)
    if given.get("base_tune_id") is None and given.get("branch") is None:
        given["base_tune_id"] = _base_of(mine, pack)
    fields, files = read_tune_fields(
        {"tune": given, **({"images": body["images"]} if "images" in body else {})}
    )
    token = fields.token or mine.entry(base_of(mine, fields.branch, fields.base_tune_id).word).token
    _fill(fields, token)
    mine.headers.update(unknown_fields(fields))
    if (known := known_by_title(mine, fields)) is not None:
        return known
    return made_tune(mine, fields, files, _group(mine, prompts_callback))


def _chosen(name: str, value: Any) -> list[Any] | None:
    """Return ids that were given as a list, or as one; None when nothing was said.

    Raises:
        HttpProblem: 422 for an empty list: it chooses nothing, and would cost a tune or all prompts if it were taken
            for nothing said.
    """
    if value in (None, ""):
        return None
    if value == []:
        raise invalid(name, "is empty; leave it out to choose all")
    return value if isinstance(value, list) else [value]


def _group(mine: Desk, callback: Any) -> NewGroup | None:
    if not callback:
        return None
    from tunes_dagster.service.checks import check_callback_url

    check_callback_url(str(callback), mine.service.settings, "prompts_callback")
    return mine.new_group(NAME, str(callback))


def _prompts(
    mine: Desk, pack: Pack, name: str, overrides: dict[str, Any], wanted: list[Any] | None
) -> list[dict[str, Any]]:
    """Return the pack's prompts for a class, with the caller's own attributes over them.

    Raises:
        HttpProblem: 422 for a class that the pack does not have, or prompts that it has not for it.
    """
    classes = _with_templates(mine, pack)
    if name not in classes:
        known = ", ".join(classes) or "no classes: put prompts into it with pack_id"
        raise invalid("name", f"is {name!r}, which is not included in the pack; it has {known}")
    rows = [row for row in classes[name] if wanted is None or str(row["id"]) in map(str, wanted)]
    if not rows:
        there = ", ".join(str(row["id"]) for row in classes[name])
        raise invalid("prompt_ids", f"names none of the pack's prompts for {name!r}, which are {there}")
    return [
        {**{k: v for k, v in row.items() if k != "id"}, **overrides, "pack_id": pack.number} for row in rows
    ]


def _fill(fields: TuneFields, token: str) -> None:
    known = {**fields.characteristics, "token": token, "name": fields.name}
    for one in fields.prompts_attributes:
        one.text = re.sub(r"\{\{(token|name)\}\}", lambda m: str(known[m.group(1)]), one.text)


def _prompts_only(
    mine: Desk,
    pack: Pack,
    ids: list[Any],
    overrides: dict[str, Any],
    wanted: list[Any] | None,
    prompts_callback: Any,
) -> Response:
    if len(ids) > 20:
        raise invalid("tune_ids", "has more than 20 entries")
    orders = []
    group = _group(mine, prompts_callback)
    for tune_id in ids:
        tune, seen = mine.tune(str(tune_id))
        asked = seen.asked if seen else {}
        base = Base(tune.base, asked.get("branch") or "sd15", asked.get("base_tune_id"))
        for row in _prompts(mine, pack, tune.class_name, overrides, wanted):
            orders.append(_order(mine, row, tune, base, asked.get("characteristics") or {}, group))
    prompts = mine.accept_prompts(orders, group)
    if isinstance(prompts, Report):
        return prompts
    made = {"tune_ids": ids, "prompt_ids": [prompt.number for prompt in prompts]}
    return JSONResponse({"status": 201, "message": "Prompts created", **made}, 201)


def _order(
    mine: Desk,
    row: dict[str, Any],
    tune: Tune,
    base: Base,
    characteristics: dict[str, Any],
    group: NewGroup | None,
) -> tuple[Any, Any]:
    fields: PromptFields = understood(PromptFields, row, UNSUPPORTED_PROMPT)
    known = {**characteristics, "token": tune.token, "name": tune.class_name}
    request, view = prompt_order(mine, fields, base, known, group.id if group else None, tune)
    view.asked["own_tune"] = True
    return request, view

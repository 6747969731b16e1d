"""Astria's workspaces: names under which an account keeps tunes and prompts apart, and what it notes with each.

A request that names one in `X-Workspace-Id` puts what it makes there and lists only what is there; without the header,
or with `all`, everything of the account is seen. They are no border: keys and credits are the account's.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from fastapi import APIRouter, Depends, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from tunes_dagster.core.clock import iso
from tunes_dagster.gateway.answers import answers
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.dialect import desk, manners
from tunes_dagster.gateway.dialects.astria.answers import WorkspaceAnswer
from tunes_dagster.gateway.dialects.astria.wire import KEYS, NAME, Loose, error, understood, unknown_fields
from tunes_dagster.gateway.nesting import fields_of, read_body
from tunes_dagster.gateway.problems import HttpProblem
from tunes_dagster.registry import Workspace
from tunes_dagster.registry.packs import Workspaces

router = APIRouter(route_class=manners(NAME, error, KEYS), tags=["workspaces"])
Mine = Depends(desk)
HEADER = "X-Workspace-Id"
# Enough for a shop's brands; an account that makes one per request has misread the documents.
_MOST = 1_000


class WorkspaceFields(Loose):
    """`workspace[…]`; the page and the brief are kept as they are and shown to nobody else."""

    title: str = Field(min_length=1, max_length=200)
    landing_page_html: str | None = Field(default=None, max_length=1_000_000)
    brief: str | None = Field(default=None, max_length=20_000)


def find_workspace(mine: Desk, word: str) -> Workspace:
    """Return a workspace of the account by number or slug.

    Raises:
        HttpProblem: 404.
    """
    found = Workspaces(mine.registry).find(mine.account_id, word.removesuffix(".json"))
    if found is None:
        said = f"Workspace {word[:40]!r} not found; GET /workspaces lists yours, POST makes one"
        raise HttpProblem(404, said, code="not_found")
    return found


def workspace_of(mine: Desk) -> int | None:
    """Return the workspace that a request is about, or None for everything of the account.

    Raises:
        HttpProblem: 404.
    """
    word = mine.request.headers.get(HEADER, "").strip() if mine.request is not None else ""
    return None if word in ("", "all", "personal") else find_workspace(mine, word).number


def _shown(row: Workspace) -> dict[str, Any]:
    return {
        "id": row.number,
        "title": row.title,
        "slug": row.slug,
        "landing_page_html": row.fields.get("landing_page_html"),
        "brief": row.fields.get("brief"),
        "created_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
    }


@router.get("/workspaces")
@router.get("/workspaces.json", include_in_schema=False)
@answers(list[WorkspaceAnswer])
def listed(mine: Desk = Mine) -> list[dict[str, Any]]:
    """List the account's workspaces, newest first."""
    return [_shown(row) for row in Workspaces(mine.registry).rows(mine.account_id)]


@router.post("/workspaces", status_code=201)
@router.post("/workspaces.json", status_code=201, include_in_schema=False)
@answers(WorkspaceAnswer)
async def create(request: Body, mine: Desk = Mine) -> Response:
    """Make a workspace."""
    return await run_in_threadpool(_create, mine, fields_of(await read_body(request), "workspace"))


def _create(mine: Desk, given: dict[str, Any]) -> Response:
    fields: WorkspaceFields = understood(WorkspaceFields, given, ())
    if made := mine.made_before():
        return JSONResponse(_shown(find_workspace(mine, made[0])), 201)
    if len(Workspaces(mine.registry).rows(mine.account_id)) >= _MOST:
        raise HttpProblem(422, f"An account has at most {_MOST} workspaces", code="invalid")
    slug = re.sub(r"[^a-z0-9]+", "-", fields.title.lower()).strip("-")[:80] or "workspace"
    row = Workspaces(mine.registry).add(
        mine.account_id,
        f"{slug}-{secrets.token_hex(3)}",
        fields.title,
        _kept(fields),
        claim=mine.claim,
    )
    return JSONResponse(_shown(row), 201, unknown_fields(fields))


def _kept(fields: WorkspaceFields) -> dict[str, Any]:
    return fields.model_dump(include={"landing_page_html", "brief"}, exclude_unset=True)


@router.get("/workspaces/{workspace_id}")
@answers(WorkspaceAnswer)
def retrieve(workspace_id: str, mine: Desk = Mine) -> dict[str, Any]:
    """Describe one workspace."""
    return _shown(find_workspace(mine, workspace_id))


@router.patch("/workspaces/{workspace_id}")
@answers(WorkspaceAnswer)
async def update(workspace_id: str, request: Body, mine: Desk = Mine) -> dict[str, Any]:
    """Change its title, its page or its brief."""
    given = fields_of(await read_body(request), "workspace")
    return await run_in_threadpool(_update, mine, workspace_id, given)


def _update(mine: Desk, workspace_id: str, given: dict[str, Any]) -> dict[str, Any]:
    row = find_workspace(mine, workspace_id)
    fields: WorkspaceFields = understood(WorkspaceFields, {"title": row.title, **given}, ())
    mine.headers.update(unknown_fields(fields))
    return _shown(Workspaces(mine.registry).change(row.number, fields.title, _kept(fields)))

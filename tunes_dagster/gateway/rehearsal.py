"""Rehearsals (`dry_run`): whether a call is one is decided here, once, before any dialect sees it.

A call that accepts work is marked `rehearsable`: at a rehearsal its desk goes the same way, keeps nothing, and returns
a `Report`, which the dialect answers with. Any other call that changes something refuses `dry_run` by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import JSONResponse

from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.problems import invalid
from tunes_dagster.gateway.uploads import read_form

FIELD = "dry_run"
_HEADERS = ("dry-run", "x-dry-run")
# The words of a truth value, as pydantic reads them.
_TRUE = frozenset({"true", "1", "yes", "y", "on", "t"})
_FALSE = frozenset({"false", "0", "no", "n", "off", "f"})
# The field by itself, or inside of what some APIs wrap their fields in: `dry_run`, `tune[dry_run]`.
_NAMED = re.compile(r"(\w+\[)?dry_run\]?(\[\])?")

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Report(JSONResponse):
    """The answer to a request that only wanted to know what would happen.

    Attributes:
        found: What it says.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__(found)
        self.found = found


def rehearsable(endpoint: Endpoint) -> Endpoint:
    """Mark an endpoint whose desk can rehearse what it accepts."""
    endpoint.rehearsable = True  # type: ignore[attr-defined]
    return endpoint


def is_rehearsable(endpoint: Callable[..., Any]) -> bool:
    """Whether an endpoint is marked."""
    return bool(getattr(endpoint, "rehearsable", False))


def truth(value: Any, name: str = FIELD) -> bool:
    """Return what a value of a query, body, form or header means as yes or no; nothing at all is no.

    Raises:
        HttpProblem: 422, naming the field, for anything that is neither.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    word = str(whole).strip().lower() if isinstance(whole, str | int) else "neither"
    if word in _TRUE:
        return True
    if word in _FALSE or not word:
        return False
    raise invalid(name, f"is {str(value)[:40]!r}, which is neither true nor false")


async def is_rehearsal(request: Body) -> bool:
    """Whether a call only wants to be rehearsed: by its query, its header, or a field of its body.

    Raises:
        HttpProblem: 422 for a value that is neither yes nor no.
    """
    named = [value for name, value in request.query_params.multi_items() if _NAMED.fullmatch(name)]
    named += [value for name in _HEADERS for value in request.headers.getlist(name)]
    said = [truth(value) for value in (*named, *await _in_body(request))]  # each is judged, also after a yes
    return any(said)


async def _in_body(request: Body) -> list[Any]:
    if getattr(request.state, "desk", None) is None:
        return []  # nobody's body is not read before its endpoint has looked who sends it
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return in_form(await read_form(request))
    raw = await request.body()
    if b"dry_run" not in raw and b"\\u" not in raw:  # most bodies: parsed once, by their endpoint
        return []
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        return []  # whoever parses it says so
    if not isinstance(parsed, dict):
        return []
    inside = (value for value in parsed.values() if isinstance(value, dict))
    return [fields[FIELD] for fields in (parsed, *inside) if FIELD in fields]


def in_form(form: Any) -> list[Any]:
    """Return what the fields of a form say."""
    return [value for name, value in form.multi_items() if _NAMED.fullmatch(name)]


def refuse_unless(endpoint: Callable[..., Any]) -> None:
    """Refuse the rehearsal of a call that accepts no work.

    Raises:
        HttpProblem: 422, naming the field.
    """
    if not is_rehearsable(endpoint):
        raise invalid(FIELD, "is not for this call, which makes nothing that costs: send it without")


def documented(endpoint: Callable[..., Any], more: dict[str, Any]) -> None:
    """Show `dry_run` among the query parameters of an endpoint that can be rehearsed."""
    if is_rehearsable(endpoint):
        parameter = {
            "name": FIELD,
            "in": "query",
            "required": False,
            "description": "Only say what it would cost and take, and what would be refused; also as a field.",
            "schema": {"type": "boolean", "default": False},
        }
        extra = more.get("openapi_extra") or {}
        more["openapi_extra"] = {**extra, "parameters": [*extra.get("parameters", []), parameter]}


def is_rehearsing(request: Request | None) -> bool:
    """Whether the request at hand was found to be a rehearsal."""
    return request is not None and bool(getattr(request.state, "rehearsal", False))

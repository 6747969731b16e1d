"""Bodies as Rails reads them: JSON, and form fields with nested names such as `a[b][][c]`, parse to the same dict."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.problems import HttpProblem
from tunes_dagster.gateway.uploads import read_form

_PART = re.compile(r"\[([^\[\]]*)\]")
# Deeper nesting than any API has, and far from Python's recursion limit.
_MAX_DEPTH = 12


async def read_body(request: Body) -> dict[str, Any]:
    """Return the fields of a body, whatever its type; the query's fields are not in it.

    Raises:
        HttpProblem: 400 when it is malformed.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        form = await read_form(request)
        return await run_in_threadpool(nested, form.multi_items())
    raw = await request.body()
    if not raw.strip():
        return {}
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        raise HttpProblem(400, "The body is not valid JSON", code="invalid") from None
    if not isinstance(parsed, dict):
        raise HttpProblem(400, "The body is not a JSON object", code="invalid")
    # Some write the names of form fields into JSON: `{"tune[title]": "Ann"}`.
    return nested(parsed.items()) if any("[" in name for name in parsed) else parsed


def nested(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return flat form fields as nested dicts and lists.

    `a[]` appends, `a[b]` descends, `a[][b]` starts a new element when the last one has `b` already, and a dict whose
    keys are all numbers is a list in their order.

    Raises:
        HttpProblem: 400 for names that contradict each other or nest too deeply.
    """
    root: dict[str, Any] = {}
    for name, value in pairs:
        head, bracket, _rest = name.partition("[")
        path = [head, *(_PART.findall(name[len(head) :]) if bracket else [])]
        if len(path) > _MAX_DEPTH:
            raise HttpProblem(400, "A field is nested too deeply", code="invalid")
        try:
            _put(root, path, value)
        except (TypeError, AttributeError):
            raise HttpProblem(
                400, f"The field {name[:80]!r} contradicts another one", code="invalid"
            ) from None
    return {name: _lists(value) for name, value in root.items()}


def _put(into: dict[str, Any], path: list[str], value: Any) -> None:
    here: Any = into
    for position, part in enumerate(path[:-1]):
        following = path[position + 1]
        if part == "":
            # Only reached right after its list was made: `here` is that list.
            if not here or not isinstance(here[-1], dict) or _taken(here[-1], path[position + 1 :]):
                here.append({})
            here = here[-1]
            continue
        empty: Any = [] if following == "" else {}
        here = here.setdefault(part, empty)
        if not isinstance(here, type(empty)):
            raise TypeError
    if path[-1] == "":
        here.append(value)
    elif isinstance(here, dict):
        here[path[-1]] = value
    else:
        raise TypeError


def _taken(element: dict[str, Any], path: list[str]) -> bool:
    """Whether an element has what a path names already; lists inside it can always take more."""
    here: Any = element
    for part in path:
        if part == "":
            return False
        if not isinstance(here, dict) or part not in here:
            return False
        here = here[part]
    return True


def _lists(value: Any) -> Any:
    if isinstance(value, list):
        return [_lists(one) for one in value]
    if not isinstance(value, dict):
        return value
    inner = {name: _lists(one) for name, one in value.items()}
    if inner and all(name.isdecimal() and len(name) < 10 for name in inner):
        return [inner[name] for name in sorted(inner, key=int)]
    return inner


def fields_of(body: dict[str, Any], wrapper: str) -> dict[str, Any]:
    """Return what stands under the wrapper, or the body itself when there is none; empty strings mean absent.

    Raises:
        HttpProblem: 400 when the wrapper holds something else than fields.
    """
    inner = body.get(wrapper, body)
    if not isinstance(inner, dict):
        raise HttpProblem(400, f"param is missing or the value is empty: {wrapper}", code="invalid")
    return {name: value for name, value in inner.items() if not (isinstance(value, str) and value == "")}


def files_in(fields: dict[str, Any], *names: str) -> list[UploadFile]:
    """Return the uploaded files of some fields."""
    found: list[UploadFile] = []
    for name in names:
        value = fields.get(name)
        found += [
            one for one in (value if isinstance(value, list) else [value]) if isinstance(one, UploadFile)
        ]
    return found

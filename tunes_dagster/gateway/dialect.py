"""What a dialect is, and the route class that gives each of them the same manners: who asks, how often, whether again.

The class runs around every endpoint of a dialect: it finds the caller's key, counts the request, decides whether it is
a rehearsal, answers a repeated `Idempotency-Key` with the first answer, and words whatever goes wrong in the dialect's
own error form.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from tunes_dagster.core.failures import Failure
from tunes_dagster.core.recipe import (
    DatasetOptions,
    PromptRequest,
    RenderSettings,
    Sources,
    TrainingOptions,
    TuneRequest,
)
from tunes_dagster.gateway import rehearsal
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.problems import Problem, of_failure, of_pydantic
from tunes_dagster.gateway.service import Caller, Service
from tunes_dagster.gateway.uploads import read_form
from tunes_dagster.registry import Registry

log = logging.getLogger("tunes.gateway")

_CHANGES = ("POST", "PATCH", "PUT", "DELETE")
# How long a repeated request waits for the first one's answer.
_WAIT_SECONDS = 20.0
_LONG = 200

# What a dialect makes of its fields: where that is stricter than the dialect, the request is refused and not at fault.
_CANONICAL = frozenset(
    one.__name__
    for one in (DatasetOptions, PromptRequest, RenderSettings, Sources, TrainingOptions, TuneRequest)
)

ErrorForm = Callable[[Problem], tuple[int, Any]]
KeyFinder = Callable[[Request], Awaitable[str]]


@dataclass(frozen=True)
class Form:
    """A body that an endpoint reads itself, as JSON, multipart or urlencoded.

    Attributes:
        wrapper: Name that its fields stand under; "" for none.
        model: The fields.
        files: Names of the fields that take files.
    """

    wrapper: str = ""
    model: type[BaseModel] | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dialect:
    """One API.

    Attributes:
        name: Its module's.
        title: For people.
        router: Its endpoints, whose route class is `manners(…)`.
        key_prefix: What its vendor's keys begin with.
        error: Words a problem.
        paths: Beginnings of its paths, for requests that meet no endpoint.
        start: Called once when a server starts, to put what the dialect ships into the registry.
        codes: Statuses of its refusals.
        problem: JSON schema of a refusal's body.
        forms: `POST /path` → the body of an endpoint that reads it itself.
    """

    name: str
    title: str
    router: APIRouter
    key_prefix: str
    error: ErrorForm
    paths: tuple[str, ...]
    start: Callable[[Registry], None] | None = None
    codes: tuple[int, ...] = (400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 503)
    problem: dict[str, Any] = field(default_factory=dict)
    forms: Mapping[str, Form] = field(default_factory=dict)


def header_key(*names: str) -> KeyFinder:
    """Return a finder of the caller's key in the headers named; `authorization` takes `Bearer KEY`."""

    async def find(request: Request) -> str:
        for name in names:
            value = request.headers.get(name, "").strip()
            if name == "authorization":
                scheme, _, value = value.partition(" ")
                value = value.strip() if scheme.lower() in ("bearer", "key", "token") else ""
            if value:
                return value
        return ""

    return find


def desk(request: Request) -> Desk:
    """Dependency: what the caller may do.

    Raises:
        Problem: 401 when no key came along.
    """
    found = getattr(request.state, "desk", None)
    if found is None:
        raise Problem(401, "Invalid or missing API key", code="unauthorized")
    return found


def service_of(request: Request) -> Service:
    """Dependency: what the server holds."""
    return request.app.state.service


def base_url(request: Request) -> str:
    """Return the public address that this request's URLs begin with."""
    service = service_of(request)
    return (service.options.public_url or str(request.base_url)).rstrip("/")


def manners(
    name: str,
    error: ErrorForm,
    find_key: KeyFinder,
    kind: type[Body] = Body,
    shown: Callable[[dict[str, Any]], Any] = dict,
) -> type[APIRoute]:
    """Return the route class of a dialect.

    Args:
        name: The dialect's.
        error: Words a problem.
        find_key: Finds the caller's key.
        kind: Says what its bodies may hold.
        shown: The form in which the dialect answers a rehearsal.
    """

    class Route(APIRoute):
        def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
            rehearsal.documented(endpoint, more)
            super().__init__(path, endpoint, **more)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            inner = super().get_route_handler()
            endpoint, needs_key = self.endpoint, _needs_key(self.dependant)

            async def handle(plain: Request) -> Response:
                request = kind(plain.scope, plain.receive)
                request.state.dialect = name
                try:
                    await _admit(request, find_key, needs_key)
                    if request.method in _CHANGES and await rehearsal.is_rehearsal(request):
                        rehearsal.refuse_unless(endpoint)
                        request.state.rehearsal = (
                            True  # it keeps nothing, so it uses no Idempotency-Key either
                        )
                        response = await inner(request)
                    else:
                        response = await _once(request, inner)
                except rehearsal.Rehearsed as tried:
                    response = JSONResponse(shown(tried.report))
                except Exception as problem:
                    response = _refusal(request, problem, error)
                finally:
                    await _tidy(request)
                rate = getattr(request.state, "rate", None)
                if rate is not None:
                    response.headers.update(rate.headers)
                mine: Desk | None = getattr(request.state, "desk", None)
                if mine is not None:
                    response.headers.update(mine.headers)
                return response

            return handle

    return Route


def _refusal(request: Request, raised: Exception, error: ErrorForm) -> Response:
    problem = as_problem(raised)
    if problem.status >= 500 and not isinstance(raised, Problem):
        log.error("unexpected", exc_info=raised, extra={"request_id": getattr(request.state, "id", "")})
    request.state.problem = problem.message
    status, body = error(problem)
    if body is None:
        return Response(status_code=status, headers=problem.headers)
    return JSONResponse(body, status, headers=problem.headers)


def as_problem(raised: Exception) -> Problem:
    """Return any exception as a problem; what nobody expected says nothing about the inside."""
    if isinstance(raised, Problem):
        return raised
    if isinstance(raised, Failure):
        return of_failure(raised)
    if isinstance(raised, RecursionError):
        return Problem(400, "The body is nested too deeply", code="invalid")
    if isinstance(raised, RequestValidationError):
        return of_pydantic(list(raised.errors()))
    if isinstance(raised, ValidationError) and raised.title in _CANONICAL:
        return of_pydantic([dict(one) for one in raised.errors()])
    if isinstance(raised, ClientDisconnect):
        return Problem(400, "The connection was closed before the request was complete", code="broken_off")
    if isinstance(raised, HTTPException):
        return Problem(raised.status_code, str(raised.detail))
    return Problem(500, "An unexpected error occurred, please try again later", code="internal")


async def _admit(request: Body, find_key: KeyFinder, needs_key: bool) -> None:
    """Find out who asks and count the request, before anything of its body is kept; then read that."""
    service = service_of(request)
    if "\x00" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise Problem(400, "The address holds a character that no text has", code="invalid")
    secret = await find_key(request)
    if not secret and request.key_field and request.method in _CHANGES:
        secret = await request.shown_key()
    if secret:
        caller = service.known(secret)
        if caller is None:
            looked_up: Caller = await run_in_threadpool(service.look_up, secret)
            caller = looked_up
        request.state.account = caller.account_id
        request.state.body_limit = service.options.body_bytes(caller.options)
        request.state.rate = service.hit(caller)
        request.state.desk = Desk(service, caller, base_url(request), request)
    elif needs_key:
        raise Problem(401, "Invalid or missing API key", code="unauthorized")
    else:
        return  # what an endpoint takes without a key it reads itself, once it has judged what came instead of one
    if request.method in _CHANGES and not request.headers.get("content-type", "").startswith("multipart/"):
        await request.body()  # here, because FastAPI would reword a refusal
        if request.key_field:
            await request.check_key(secret)


def _needs_key(dependant: Dependant) -> bool:
    return any(one.call is desk or _needs_key(one) for one in dependant.dependencies)


async def _tidy(request: Body) -> None:
    """Take away what a request left behind: its files, and pictures of what was not accepted."""
    mine: Desk | None = getattr(request.state, "desk", None)
    if mine is not None and mine.unclaimed:
        await run_in_threadpool(mine.drop_unclaimed)
    if request._form is not None:
        await request._form.close()
    request.drop()


async def _once(request: Body, inner: Callable[[Request], Awaitable[Response]]) -> Response:
    """Answer, or repeat the answer that the same `Idempotency-Key` got before."""
    key = request.headers.get("idempotency-key", "").strip()
    mine: Desk | None = getattr(request.state, "desk", None)
    if not key or mine is None or request.method not in _CHANGES:
        return await inner(request)
    if len(key) > 255:
        raise Problem(400, "Idempotency-Key is longer than 255 characters", code="invalid")
    registry, account = mine.service.registry, mine.account_id
    digest, fields = await _fingerprint(request)
    deadline = asyncio.get_running_loop().time() + _WAIT_SECONDS
    while True:
        first = await run_in_threadpool(registry.begin_idempotent, account, key, digest, fields)
        if first is None:
            break
        if first.body_hash != digest:
            raise Problem(409, _difference(first.body, fields), code="idempotency_conflict")
        if first.status_code is not None:
            headers = {"Idempotent-Replayed": "true"}
            return Response(first.answer or "", first.status_code, headers, media_type="application/json")
        if asyncio.get_running_loop().time() > deadline:
            raise Problem(
                409,
                "The first request with this Idempotency-Key is still being answered",
                headers={"Retry-After": "5"},
                code="idempotency_busy",
            )
        await asyncio.sleep(0.1)
    try:
        response = await inner(request)
    except BaseException:
        await run_in_threadpool(registry.end_idempotent, account, key, None)
        raise
    kept = response.status_code if response.status_code < 300 else None
    body = bytes(getattr(response, "body", b"") or b"").decode("utf-8")
    await run_in_threadpool(registry.end_idempotent, account, key, kept, body)
    return response


async def _fingerprint(request: Body) -> tuple[str, dict[str, Any]]:
    """Return a hash of the request and its fields, long values and files by their hash."""
    fields: dict[str, Any] = {"request": f"{request.method} {request.url.path}"}
    if request.headers.get("content-type", "").startswith("multipart/"):
        for number, (name, value) in enumerate((await read_form(request)).multi_items()):
            fields[f"{name}#{number}"] = await _file_hash(value) if isinstance(value, UploadFile) else value
    else:
        raw = await request.body()
        try:
            parsed = json.loads(raw) if raw else {}
        except ValueError:
            parsed = raw.decode("utf-8", "replace")
        _flatten(parsed, "", fields)
    if request.url.query:
        fields["query"] = request.url.query
    fields.pop("api_key", None)  # some APIs carry it in the body; it is not kept
    short = {name: _short(value) for name, value in fields.items()}
    text = json.dumps(short, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest(), dict(list(short.items())[:200])


def _flatten(value: Any, name: str, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for part, inner in value.items():
            _flatten(inner, f"{name}.{part}" if name else str(part), into)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _flatten(inner, f"{name}[{number}]", into)
    else:
        into[name or "body"] = value


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONG:
        return "sha256:" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    return value


async def _file_hash(file: UploadFile) -> str:
    def digest() -> str:
        found = hashlib.sha256()
        while chunk := file.file.read(1 << 20):
            found.update(chunk)
        file.file.seek(0)
        return f"{file.filename} sha256:{found.hexdigest()}"

    return await run_in_threadpool(digest)


def _difference(first: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in {**first, **now} if first.get(name) != now.get(name)]
    shown = "; ".join(f"{name} was {first.get(name)!r}, is {now.get(name)!r}" for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"This Idempotency-Key was used with another request: {shown}{more}"

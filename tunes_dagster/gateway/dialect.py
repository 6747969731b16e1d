"""What a dialect is, and the route class that gives each of them the same manners: who asks, how often, whether again.

The class runs around every endpoint of a dialect: it finds the caller's key, counts the request, decides whether it is
a rehearsal, answers a repeated `Idempotency-Key` with the first answer, and words whatever goes wrong in the dialect's
own error form.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import (
    DatasetOptions,
    PromptRequest,
    RenderSettings,
    Sources,
    TrainingOptions,
    TuneRequest,
)
from tunes_dagster.gateway import answers, rehearsal
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.once import answered_once
from tunes_dagster.gateway.problems import HttpProblem, of_failure, of_pydantic
from tunes_dagster.gateway.service import Caller, Service
from tunes_dagster.intake.sandbox.pool import asked_by
from tunes_dagster.registry import Registry

log = logging.getLogger("tunes.gateway")

_CHANGES = ("POST", "PATCH", "PUT", "DELETE")

# What a dialect makes of its fields: where that is stricter than the dialect, the request is refused and not at fault.
_CANONICAL = frozenset(
    one.__name__
    for one in (DatasetOptions, PromptRequest, RenderSettings, Sources, TrainingOptions, TuneRequest)
)

ErrorForm = Callable[[HttpProblem], tuple[int, Any]]
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


@dataclass(frozen=True, kw_only=True)
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
        about: What it is and where its vendor describes it, for its page.
        keys: Headers that a key may come in.
        key_in_body: Whether it may come in the body instead.
    """

    name: str
    title: str
    router: APIRouter
    key_prefix: str
    error: ErrorForm
    paths: tuple[str, ...]
    start: Callable[[Registry], None] | None = None
    codes: tuple[int, ...] = (400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 429, 503)
    problem: dict[str, Any] = field(default_factory=dict)
    forms: Mapping[str, Form] = field(default_factory=dict)
    about: str = ""
    keys: tuple[str, ...] = ("authorization",)
    key_in_body: bool = False


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
        HttpProblem: 401 when no key came along.
    """
    found = getattr(request.state, "desk", None)
    if found is None:
        raise HttpProblem(401, "Invalid or missing API key", code="unauthorized")
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
    rehearsed: Any = answers.Rehearsal,
) -> type[APIRoute]:
    """Return the route class of a dialect.

    Args:
        name: The dialect's.
        error: Words a problem.
        find_key: Finds the caller's key.
        kind: Says what its bodies may hold.
        rehearsed: Describes what the dialect answers a rehearsal with.
    """

    class Route(APIRoute):
        def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
            rehearsal.documented(endpoint, more)
            answers.documented(endpoint, more, rehearsed if rehearsal.is_rehearsable(endpoint) else None)
            super().__init__(path, endpoint, **more)
            if self.methods and "GET" in self.methods:  # whoever asks for the head alone gets it
                self.methods.add("HEAD")
            if not _needs_key(self.dependant):
                self.openapi_extra = {**(self.openapi_extra or {}), "security": []}

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            inner = super().get_route_handler()
            endpoint, needs_key = self.endpoint, _needs_key(self.dependant)

            async def handle(plain: Request) -> Response:
                request = kind(plain.scope, plain.receive)
                request.state.dialect = name
                try:
                    _drop_blanks(request)
                    await _admit(request, find_key, needs_key)
                    if request.method in _CHANGES and await rehearsal.is_rehearsal(request):
                        rehearsal.refuse_unless(endpoint)
                        # It keeps nothing, so it uses no Idempotency-Key either.
                        request.state.rehearsal = True
                        response = await inner(request)
                    else:
                        response = await answered_once(request, inner)
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
    ids = {"request_id": getattr(request.state, "id", "")}
    if isinstance(raised, Failure) and raised.code == FailureCode.STORE_UNAVAILABLE:
        # A line each: an outage meets every request.
        log.warning("unavailable: %s (%s)", raised.message, raised.detail, extra=ids)
    elif problem.status >= 500 and not isinstance(raised, HttpProblem):
        log.error("unexpected", exc_info=raised, extra=ids)
    request.state.problem = problem.message
    status, body = error(problem)
    if body is None:
        return Response(status_code=status, headers=problem.headers)
    return JSONResponse(body, status, headers=problem.headers)


def as_problem(raised: Exception) -> HttpProblem:
    """Return any exception as a problem; what nobody expected says nothing about the inside."""
    if isinstance(raised, HttpProblem):
        return raised
    if isinstance(raised, Failure):
        return of_failure(raised)
    if isinstance(raised, RecursionError):
        return HttpProblem(400, "The body is nested too deeply", code="invalid")
    if isinstance(raised, RequestValidationError):
        return of_pydantic(list(raised.errors()))
    if isinstance(raised, ValidationError) and raised.title in _CANONICAL:
        return of_pydantic([dict(one) for one in raised.errors()])
    if isinstance(raised, ClientDisconnect):
        return HttpProblem(
            400, "The connection was closed before the request was complete", code="broken_off"
        )
    if isinstance(raised, HTTPException) and raised.status_code == 400:  # FastAPI's, of what no text can hold
        return HttpProblem(400, "The body is not valid JSON", code="invalid")
    if isinstance(raised, HTTPException):
        return HttpProblem(raised.status_code, HTTPStatus(raised.status_code).phrase)
    return HttpProblem(500, "An unexpected error occurred, please try again later", code="internal")


def _drop_blanks(request: Body) -> None:
    """Take `limit=` for a limit that was not given, as forms send what nobody filled in."""
    query = request.scope["query_string"]
    if request.method == "GET" and b"=" in query:
        parts = [part for part in query.split(b"&") if not part.endswith(b"=") or part.count(b"=") > 1]
        request.scope["query_string"] = b"&".join(parts)


async def _admit(request: Body, find_key: KeyFinder, needs_key: bool) -> None:
    """Find out who asks and count the request, before anything of its body is kept; then read that."""
    service = service_of(request)
    if "\x00" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise HttpProblem(400, "The address holds a character that no text has", code="invalid")
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):  # gzip was unpacked on the way here
        said = f"The body is compressed ({coding[:40]!r} in Content-Encoding); send it as it is, or by gzip"
        raise HttpProblem(415, said, headers={"Accept-Encoding": "gzip, identity"}, code="invalid")
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
        asked_by.set(caller.account_id)
    elif needs_key:
        raise HttpProblem(401, "Invalid or missing API key", code="unauthorized")
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
    if request.kept_form is not None:
        await request.kept_form.close()
    request.drop()

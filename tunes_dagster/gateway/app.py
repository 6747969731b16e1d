"""Assembles the server: the dialects where they are mounted, files, the native endpoints, one OpenAPI page each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Host, Match

from tunes_dagster import __version__
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.settings import Settings
from tunes_dagster.gateway import files, operator
from tunes_dagster.gateway.dialect import Dialect
from tunes_dagster.gateway.metrics import Meters
from tunes_dagster.gateway.middleware import Manners
from tunes_dagster.gateway.native import DIALECT as NATIVE
from tunes_dagster.gateway.native import health
from tunes_dagster.gateway.options import DIALECTS, GatewayOptions
from tunes_dagster.gateway.pages import add_pages
from tunes_dagster.gateway.problems import HttpProblem
from tunes_dagster.gateway.service import Service, open_service
from tunes_dagster.service.erase import drive

log = logging.getLogger("tunes.gateway")

# How often promised uploads are checked for having come too late, and old idempotency keys are forgotten.
_CHORES_SECONDS = 60.0
# What a script may read of an answer beside its body.
_READABLE = (
    "X-Request-Id",
    "X-Tunes-Warnings",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "Retry-After",
    "Idempotent-Replayed",
    "Content-Disposition",
)


def load_dialect(name: str) -> Dialect:
    """Return a dialect by name.

    Raises:
        Failure: `INVALID_REQUEST` for an unknown one.
    """
    if name not in DIALECTS:
        raise Failure(
            FailureCode.INVALID_REQUEST, f"There is no dialect {name!r}.", f"Known: {', '.join(DIALECTS)}."
        )
    dialect: Dialect = import_module(f"tunes_dagster.gateway.dialects.{name}").DIALECT
    return dialect


def create_app(
    settings: Settings, options: GatewayOptions | None = None, service: Service | None = None
) -> FastAPI:
    """Return the ASGI application of an installation.

    Args:
        settings: The operator's.
        options: Of the server; None reads the environment.
        service: Opened already, for tests.
    """
    chosen = options or (service.options if service else GatewayOptions())
    opened = service or open_service(settings, chosen)
    app = FastAPI(
        title="tunes-dagster",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        strict_content_type=False,
    )
    app.state.service = opened
    mounted: list[tuple[Dialect, str]] = []
    app.include_router(files.router)
    app.include_router(operator.router)
    for name, place in chosen.mounts.items():
        dialect = load_dialect(name)
        if dialect.start is not None:
            dialect.start(opened.registry)
        _mount(app, dialect, place)
        mounted.append((dialect, place))
    app.include_router(NATIVE.router, prefix="/native/v1")
    served = [*mounted, (NATIVE, "/native/v1")]
    add_pages(app, served)
    _front(app, served)
    app.state.meters = Meters(lambda: opened.registry.figures.read())
    app.add_middleware(Manners, options=chosen, meters=app.state.meters)
    if chosen.cors_origins:
        _open_to_pages(app, chosen.cors_origins)
    _handlers(app, served)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service

    async def chores() -> None:
        while True:
            try:
                await run_in_threadpool(service.registry.uploads.expire)
                await run_in_threadpool(service.registry.idempotency.forget)
                await run_in_threadpool(drive, service.installation)
            except Exception:
                log.exception("chores")
            await asyncio.sleep(_CHORES_SECONDS)

    task = asyncio.create_task(chores())
    yield
    task.cancel()
    await run_in_threadpool(service.settle)
    service.installation.close()


def _mount(app: FastAPI, dialect: Dialect, place: str) -> None:
    if not place.startswith("host:"):
        app.include_router(dialect.router, prefix=place.rstrip("/"))
        return
    inner = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, strict_content_type=False)
    inner.state.service = app.state.service
    inner.include_router(dialect.router)
    inner.include_router(files.router)
    _handlers(inner, [(dialect, "")])
    app.router.routes.insert(0, Host(place.removeprefix("host:"), inner, name=dialect.name))


def _open_to_pages(app: FastAPI, origins: list[str]) -> None:
    """Let scripts of web pages call; the key stands in a header, so no cookie is ever needed."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=_READABLE,
        max_age=600,
    )


def _front(app: FastAPI, mounted: list[tuple[Dialect, str]]) -> None:
    """Say at the root what is served, and at `/health` whether it works."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    @app.api_route("/openapi", methods=["GET", "HEAD"], include_in_schema=False)
    def front() -> dict[str, Any]:
        apis = {
            dialect.name: {
                "title": dialect.title,
                "at": place or "/",
                "docs": f"/docs/{dialect.name}",
                "openapi": f"/openapi/{dialect.name}.json",
            }
            for dialect, place in mounted
        }
        return {"service": "tunes-dagster", "version": __version__, "health": "/health", "apis": apis}

    app.add_api_route("/health", health, methods=["GET", "HEAD"], include_in_schema=False)


def _handlers(app: FastAPI, mounted: list[tuple[Dialect, str]]) -> None:
    """Answer what meets no endpoint in the form of the dialect whose paths it resembles, or of the only one."""
    vendors = [dialect for dialect, _place in mounted if dialect is not NATIVE]

    async def lost(request: Request, error: Exception) -> Response:
        status = int(getattr(error, "status_code", 500))
        headers: dict[str, str] = {}
        if status == 405:
            headers["Allow"] = ", ".join([*_allowed(app, request), "OPTIONS"])
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        message = {404: "Endpoint not found", 405: "Method not allowed"}.get(status, "Bad request")
        near = (one for one, place in mounted if _resembles(one, place, request.url.path))
        found = next(near, vendors[0] if len(vendors) == 1 else None)
        if found is None:  # where clients of any vendor look
            return JSONResponse({"error": message, "detail": message}, status, headers)
        code, body = found.error(HttpProblem(status, message, code="not_found"))
        return JSONResponse(body, code, headers)

    app.add_exception_handler(404, lost)
    app.add_exception_handler(405, lost)


def _resembles(dialect: Dialect, place: str, path: str) -> bool:
    """Whether a path that nothing answers lies where a dialect's paths are."""
    if place.startswith("host:"):
        return False
    prefix = place.rstrip("/")
    if prefix and (path == prefix or path.startswith(prefix + "/")):
        return True
    return any(f"{path}/".startswith(prefix + start) for start in dialect.paths)


def _allowed(app: FastAPI, request: Request) -> list[str]:
    """Return the methods that a path is answered for."""
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    routes = app.router.routes
    return [
        method
        for method in methods
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]

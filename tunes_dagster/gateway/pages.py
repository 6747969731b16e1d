"""The page and the OpenAPI document of each API. A page loads what it needs from this server alone."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.staticfiles import StaticFiles

from tunes_dagster.gateway import documents
from tunes_dagster.gateway.dialect import Dialect

_ASSETS = "/docs/assets"
# Scripts from here alone; calls may go to the address that callers use, which can be another one.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src *"
)


def add_pages(app: FastAPI, served: Iterable[tuple[Dialect, str]]) -> None:
    """Give each dialect its OpenAPI document and its page."""
    folder = Path(str(files("fastapi_offline"))) / "static"
    app.mount(_ASSETS, StaticFiles(directory=folder), name="assets")
    for dialect, place in served:
        _add(app, dialect, "" if place.startswith("host:") else place.rstrip("/"))


def _add(app: FastAPI, dialect: Dialect, prefix: str) -> None:
    @app.get(f"/openapi/{dialect.name}.json", include_in_schema=False)
    def document(request: Request) -> dict[str, Any]:
        base = app.state.service.options.public_url or str(request.base_url)
        return documents.document(dialect, base.rstrip("/") + prefix)

    @app.get(f"/docs/{dialect.name}", include_in_schema=False)
    def page() -> Response:
        # Relative, so that a proxy may serve it below a path of its own.
        shown = get_swagger_ui_html(
            openapi_url=f"../openapi/{dialect.name}.json",
            title=dialect.title,
            swagger_js_url="assets/swagger-ui-bundle.js",
            swagger_css_url="assets/swagger-ui.css",
            swagger_favicon_url="assets/favicon.png",
            swagger_ui_parameters={
                "validatorUrl": None,
                "docExpansion": "list",
                "persistAuthorization": False,
            },
        )
        shown.headers["Content-Security-Policy"] = _POLICY
        return shown

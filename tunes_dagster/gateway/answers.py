"""What the documents say of answers: models that describe them, and how an endpoint names its own.

The models describe and do nothing else: an endpoint answers with plain dicts. Every test of the server compares what it
answered with them (`tests/gateway/conftest.py`), so that the two cannot part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Address = Annotated[str, Field(json_schema_extra={"format": "uri"})]


class Answer(BaseModel):
    """Base of what is answered."""

    model_config = ConfigDict(protected_namespaces=())


class TriedCallback(Answer):
    """What became of a callback address when it was tried."""

    url: str
    ok: bool
    verdict: str


class Rehearsal(Answer):
    """What `dry_run` is answered with, in place of making anything."""

    dry_run: bool = True
    price_usd: float
    available_usd: float
    estimated_minutes: float = Field(description="By this machine's latest tunes.")
    would_be_refused: list[str] = Field(description="Empty when it would be accepted.")
    warnings: list[str] = Field(description="Wishes that cannot be met here, and are left out.")
    callbacks: list[TriedCallback]
    dataset: list[str] | None = Field(
        default=None,
        description="Of a tune: what it would be trained on, a line each, as `tunes check` says it.",
    )
    already_made: str | None = Field(default=None, description="What the same request made before.")


def answers(model: Any) -> Callable[[Endpoint], Endpoint]:
    """Say what an endpoint answers with when it does what was asked."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.answer = model  # type: ignore[attr-defined]
        return endpoint

    return mark


def documented(endpoint: Callable[..., Any], more: dict[str, Any], rehearsed: Any | None) -> None:
    """Put an endpoint's answers among the arguments of its route.

    Args:
        endpoint: The endpoint.
        more: Arguments of its route, which are changed.
        rehearsed: What a rehearsal of it is answered with; None for what cannot be rehearsed.
    """
    made, status = getattr(endpoint, "answer", None), more.get("status_code") or 200
    mine: dict[int, dict[str, Any]] = {}
    if made is not None:
        mine[status] = {"description": "Done", "model": made}
    if rehearsed is not None:
        more["response_model"] = None  # it returns what is shown of its work, or a response
        both = made | rehearsed if status == 200 and made is not None else rehearsed
        mine[200] = {
            "description": "Done, or what a rehearsal found" if status == 200 else "A rehearsal's report"
        }
        mine[200]["model"] = both
    more["responses"] = {**mine, **(more.get("responses") or {})}

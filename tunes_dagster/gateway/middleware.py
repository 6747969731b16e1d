"""What happens to every request before any dialect sees it: an id, a log line, and limits on its body.

Plain ASGI, because bodies must be counted while they arrive.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunes_dagster.core.ids import new_id
from tunes_dagster.gateway.metrics import Meters
from tunes_dagster.gateway.options import GatewayOptions
from tunes_dagster.gateway.problems import Problem

log = logging.getLogger("tunes.gateway")

# Agents that PixelAPI's network turns away; see `GatewayOptions.require_user_agent`.
_BARE_AGENTS = ("python-urllib/", "go-http-client/")


class Manners:
    """Ids, logs, meters, body limits."""

    def __init__(self, app: ASGIApp, options: GatewayOptions, meters: Meters | None = None) -> None:
        self.app, self.options, self.meters = app, options, meters or Meters()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        state = scope.setdefault("state", {})
        state["id"] = request_id = new_id("req")
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            if self.options.require_user_agent and _bare(scope):
                await _forbid(answer)
            else:
                await self.app(scope, self._counted(scope, receive), answer)
        finally:
            self._note(scope, state, status, time.perf_counter() - began)

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """Return a `receive` that refuses bodies which are too large or come too slowly."""
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        largest = self.options.body_bytes({})
        done = 0
        ends = time.monotonic() + self.options.body_total_seconds
        complete = False

        async def counted() -> Message:
            nonlocal done, complete
            if complete:  # only waits for the caller to go away
                return await receive()
            limit = scope["state"].get("body_limit", largest)  # the caller's own, once it is known
            if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
                raise _too_large(limit, largest)
            patience = min(self.options.body_seconds, ends - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), max(0.0, patience))
            except TimeoutError:
                raise Problem(408, "The body did not arrive in time", code="timeout") from None
            complete = not message.get("more_body", False)
            done += len(message.get("body", b""))
            if done > limit:
                raise _too_large(limit, largest)
            return message

        return counted

    def _note(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")
        self.meters.note(state.get("dialect", ""), scope["method"], route, status, seconds)
        facts = {
            "request_id": state["id"],
            "method": scope["method"],
            "dialect": state.get("dialect"),
            "route": route or "unmatched",  # never the address itself: it may hold tokens
            "status": status,
            "ms": round(seconds * 1000, 1),
            "account": state.get("account"),
            "subject": state.get("subject"),
            "problem": state.get("problem"),
        }
        log.log(
            logging.WARNING if status >= 500 else logging.INFO,
            "request",
            extra={"facts": {name: value for name, value in facts.items() if value is not None}},
        )


def _too_large(limit: int, largest: int) -> Problem:
    whose = "this account's limit" if limit < largest else "the limit here"
    return Problem(413, f"The body is larger than {limit / 2**20:g} MB, {whose}", code="too_large")


def _bare(scope: Scope) -> bool:
    agent = dict(scope["headers"]).get(b"user-agent", b"").decode("latin-1").strip().lower()
    return not agent or agent.startswith(_BARE_AGENTS)


async def _forbid(send: Send) -> None:
    body = b'{"detail":"Forbidden: send a User-Agent of your own"}'
    await send(
        {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"application/json")]}
    )
    await send({"type": "http.response.body", "body": body})

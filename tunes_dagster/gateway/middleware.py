"""What happens to every request before any dialect sees it: an id, a log line, and limits on its body.

Plain ASGI, because bodies must be counted while they arrive.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunes_dagster.core.ids import new_id
from tunes_dagster.gateway.gate import Spool, holder
from tunes_dagster.gateway.metrics import Meters
from tunes_dagster.gateway.options import GatewayOptions
from tunes_dagster.gateway.packed import GZIP, Unpacking
from tunes_dagster.gateway.problems import HttpProblem

log = logging.getLogger("tunes.gateway")

# Agents that PixelAPI's network turns away; see `GatewayOptions.require_user_agent`.
_BARE_AGENTS = ("python-urllib/", "go-http-client/")


class Manners:
    """Ids, logs, meters, body limits."""

    def __init__(self, app: ASGIApp, options: GatewayOptions, meters: Meters | None = None) -> None:
        self.app, self.options, self.meters = app, options, meters or Meters()
        self.spool = Spool(options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        if "//" in scope["path"] or scope["path"].endswith("/"):  # of a base address that ends in a slash
            scope["path"] = re.sub("/{2,}", "/", scope["path"]).rstrip("/") or "/"
            scope["raw_path"] = re.sub(b"/{2,}", b"/", scope.get("raw_path") or b"").rstrip(b"/") or b"/"
        state = scope.setdefault("state", {})
        state["id"] = request_id = new_id("req")
        status = 500
        body = _Arriving(self.options, self.spool, scope, receive)

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
                await self.app(scope, body.receive, answer)
        finally:
            body.forget()
            self._note(scope, state, status, time.perf_counter() - began)

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
        asked = logging.DEBUG if route == "/health" else logging.INFO  # by machines, every few seconds
        log.log(
            logging.WARNING if status >= 500 else asked,
            "request",
            extra={"facts": {name: value for name, value in facts.items() if value is not None}},
        )


class _Arriving:
    """The body of one request, which is refused when it is too large, comes too slowly, or is nobody's.

    Whose it is stands in the request's state as soon as it is known: `account`, and `body_limit`, the caller's own.
    One that is packed by gzip arrives unpacked, and every limit is one of what it unpacks to.
    """

    def __init__(self, options: GatewayOptions, spool: Spool, scope: Scope, receive: Receive) -> None:
        self.options, self.spool, self.state, self._receive = options, spool, scope["state"], receive
        self.holder = holder((scope.get("client") or ("",))[0])
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        self.announced = int(announced) if announced.isdigit() and len(announced) < 19 else 0
        self.huge = announced.isdigit() and len(announced) > 18
        self.done = 0
        self.began = time.monotonic()
        self.complete = False
        self.packed = _unpacking(scope)
        self.arrived = False  # whether all that is packed has

    async def receive(self) -> Message:
        """Return the next piece.

        Raises:
            HttpProblem: 401, 408, 413, 429, 503.
        """
        if self.complete:  # only waits for the caller to go away
            return await self._receive()
        self._check(self.announced)
        if self._came > self.options.unkeyed_bytes and not self._known():
            said = f"none was shown in the first {self.options.unkeyed_body_kb:g} KB of the body"
            way = "send it at the start, or as a header: Authorization: Bearer KEY"
            raise HttpProblem(401, f"Invalid or missing API key: {said}; {way}", code="unauthorized")
        message = await self._next() if self.packed is None else await self._unpacked(self.packed)
        self.complete = not message.get("more_body", False)
        size = len(message.get("body", b""))
        if size:
            self.spool.take(self.holder, size)
            self.done += size
        self._check(self._came)
        return message

    @property
    def _came(self) -> int:
        """Bytes so far: unpacked ones, or packed ones where those are more, as of members that hold nothing."""
        return max(self.done, self.packed.taken) if self.packed else self.done

    async def _next(self) -> Message:
        try:
            return await asyncio.wait_for(self._receive(), max(0.0, self._patience()))
        except TimeoutError:
            raise HttpProblem(408, "The body did not arrive in time", code="timeout") from None

    async def _unpacked(self, packed: Unpacking) -> Message:
        """Return the next piece of what a body unpacks to; one message may hold many, and other requests go on."""
        await asyncio.sleep(0)
        piece = packed.piece()
        if not piece and self.arrived:
            packed.end()
        if piece or self.arrived:
            return {"type": "http.request", "body": piece, "more_body": bool(piece)}
        message = await self._next()
        if message["type"] != "http.request":
            return message
        packed.feed(message.get("body", b""))
        self.arrived = not message.get("more_body", False)
        return {"type": "http.request", "body": b"", "more_body": True}

    def forget(self) -> None:
        """Give back what the body took; its files are gone."""
        if self.done:
            self.spool.give_back(self.holder, self.done)

    def _known(self) -> bool:
        return self.state.get("account") is not None

    def _patience(self) -> float:
        total = self.options.body_total_seconds
        if not self._known():
            total = min(total, self.options.body_seconds)
        return min(self.options.body_seconds, self.began + total - time.monotonic())

    def _check(self, size: int) -> None:
        largest = self.options.body_bytes({})
        limit = self.state.get("body_limit", largest)
        if self.huge or size > limit:
            raise _too_large(limit, largest)


def _unpacking(scope: Scope) -> Unpacking | None:
    """Return what unpacks a body that is packed by gzip; whoever reads the headers then sees one that is not."""
    coding = dict(scope["headers"]).get(b"content-encoding", b"").decode("latin-1").strip().lower()
    if coding not in GZIP:
        return None
    packed = (b"content-encoding", b"content-length")
    scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in packed]
    return Unpacking()


def _too_large(limit: int, largest: int) -> HttpProblem:
    whose = "this account's limit" if limit < largest else "the limit here"
    return HttpProblem(413, f"The body is larger than {limit / 2**20:g} MB, {whose}", code="too_large")


def _bare(scope: Scope) -> bool:
    agent = dict(scope["headers"]).get(b"user-agent", b"").decode("latin-1").strip().lower()
    return not agent or agent.startswith(_BARE_AGENTS)


async def _forbid(send: Send) -> None:
    said = "Forbidden: send a User-Agent of your own"
    body = json.dumps({"error": said, "detail": said}).encode()
    await send(
        {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"application/json")]}
    )
    await send({"type": "http.response.body", "body": body})

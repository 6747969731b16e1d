"""One connection to the server, below everything that knows HTTP: uvicorn's own protocol, with an end to its patience.

What uvicorn leaves open: how many connections there may be, how long the head of a request may take and how large it
may get, and what becomes of a body that nobody reads any more. And a client that offers HTTP/2 in the clear (`Upgrade:
h2c`, as Java's HttpClient and `curl --http2` do) has a body like any other, which the parser takes for that protocol.
"""

from __future__ import annotations

import asyncio
import json
from functools import lru_cache
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tunes_dagster.gateway.gate import Proxies, Shares, holder
from tunes_dagster.gateway.options import GatewayOptions

# Far above any real request, with its cookies and presigned addresses.
MAX_HEAD = 64 * 1024
# So long the rest of a body is thrown away that nobody reads, for its sender to see the answer, before the line is cut.
LINGER_SECONDS = 5.0
_BODY_HEADERS = (b"content-length", b"transfer-encoding")


def limited(options: GatewayOptions) -> type[HttpToolsProtocol]:
    """Return the protocol of a server with these options; all of its connections are counted together."""
    shares = Shares(options.max_connections, options.max_connections_per_address)
    return type("Connection", (Connection,), {"shares": shares, "head_seconds": options.head_seconds})


class Connection(HttpToolsProtocol):
    """A connection that is counted, and that has to get on.

    Attributes:
        shares: Counts the connections of a server.
        head_seconds: See `GatewayOptions`.
    """

    shares = Shares(float("inf"), float("inf"))
    head_seconds = 30.0
    _holder: str | None = None
    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0
    _complete = True
    _resuming = False
    _bodiless = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it, or send it away."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        who = "" if address in _proxies(self.config.forwarded_allow_ips) else holder(address)
        full = self.shares.take(who) if who else self._take_of_proxy()
        if full:
            self._send_away(full)
            return
        self._holder = who
        self._wait_for_head()

    def _take_of_proxy(self) -> str:
        """Count a connection that may be anybody's: in all, but for no address."""
        if self.shares.total >= self.shares.most:
            return "server"
        self.shares.total += 1
        return ""

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        self._stop_waiting()
        if self._holder:
            self.shares.give_back(self._holder)
        elif self._holder is not None:
            self.shares.total -= 1
        self._holder = None
        super().connection_lost(exc)

    # What arrives

    def data_received(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._keep_alive()
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay_with_http_1(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._in_head and self._head_bytes > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def _keep_alive(self) -> None:
        """Stop counting how long the connection has been idle."""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _stay_with_http_1(self, rest: bytes) -> None:
        """Go on as if no other protocol had been offered: a new parser, told of the head, takes the body."""
        head = [b"%s: %s\r\n" % pair for pair in self.headers if pair[0] in _BODY_HEADERS]
        self.parser = httptools.HttpRequestParser(self)
        self._resuming, self._bodiless = True, False
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(head) + b"\r\n")
        self._resuming = False
        if self._bodiless:
            self.on_message_complete()
        if rest:
            self.data_received(rest)

    def on_message_begin(self) -> None:
        """Expect the head of a request."""
        if self._resuming:
            return
        self._in_head, self._complete = True, False
        if self._timer is None:
            self._wait_for_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the address."""
        if not self._resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what comes behind a body in their form is nothing to anybody here."""
        if self._in_head and not self._resuming:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        if self._resuming:
            return
        self._in_head, self._head_bytes = False, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that nothing more of this request comes."""
        if self._resuming:
            self._bodiless = True
            return
        if self.parser.should_upgrade():
            return  # the body, or its absence, is still to be seen
        self._complete, self._in_head = True, True
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, or a little for the rest of this one, which nobody reads."""
        super().on_response_complete()
        if not self._complete and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(LINGER_SECONDS, self._too_late)

    # What does not

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(self.head_seconds, self._too_late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_for_head()  # the request before is still being answered
        elif not self.transport.is_closing():
            self.transport.close()

    def _send_away(self, full: str) -> None:
        status, said = (
            ("429 Too Many Requests", "Too many connections from your address")
            if full == "address"
            else ("503 Service Unavailable", "Too many connections; try again in a few seconds")
        )
        body = json.dumps({"error": said, "detail": said}).encode()
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nretry-after: 5\r\nconnection: close\r\n"
        )
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()


def _proxies(trusted: Any) -> Proxies:
    return _known_proxies(trusted if isinstance(trusted, str) else ",".join(trusted or ()))


@lru_cache(maxsize=8)
def _known_proxies(trusted: str) -> Proxies:
    return Proxies(trusted)

"""Bodies of nobody: what arrives before a key was shown, from how many, how slowly, and what becomes of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.gateway.conftest import House
from tests.gateway.test_abuse import _routes
from tests.gateway.test_pixelapi import train
from tunes_dagster.gateway.gate import Proxies, holder

KB = 1024
PIECE = b"A" * (16 * KB)
JSON = [(b"content-type", b"application/json")]
PIXU = "/pixu/api/create_model"


@dataclass
class Exchange:
    """One request, played into the application piece by piece."""

    app: Any
    path: str
    pieces: Iterable[bytes] = ()
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    method: str = "POST"
    address: str = "203.0.113.7"
    waits: Callable[[int], Any] | None = None
    taken: int = 0
    asked: int = 0
    status: int = 0
    said: bytes = b""

    async def run(self) -> Exchange:
        path, _, query = self.path.partition("?")
        scope = {
            "type": "http",
            "method": self.method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": self.headers,
            "scheme": "http",
            "http_version": "1.1",
            "server": ("testserver", 80),
            "client": (self.address, 5000),
            "state": {},
        }
        left = iter(self.pieces)

        async def receive() -> dict[str, Any]:
            self.asked += 1
            if self.waits is not None and (wait := self.waits(self.asked)) is not None:
                await wait
            piece = next(left, None)
            self.taken += len(piece or b"")
            return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            self.said += message.get("body", b"")

        await self.app(scope, receive, send)
        return self


def go(exchange: Exchange) -> Exchange:
    return asyncio.run(exchange.run())


def pixu_body(first: dict[str, Any], last: dict[str, Any], pieces: int = 40) -> list[bytes]:
    """A long face between what comes first and what comes last, cut as it arrives."""
    head = json.dumps({**first, "face_base64": ""})[:-2].encode()
    tail = b'"' + (b", " + json.dumps(last).encode()[1:] if last else b"}")
    return [head, *[PIECE] * pieces, tail]


def test_nothing_of_a_body_is_read_before_its_key_was_judged(house: House) -> None:
    """Every route of every API that takes a body, without a key and with one that is none, whatever is sent."""
    app, walked = house.client.app, 0
    kinds = [
        JSON,
        [(b"content-type", b"multipart/form-data; boundary=x")],
        [(b"content-type", b"application/x-www-form-urlencoded")],
        [],
    ]
    wrong = [(b"authorization", b"Bearer sd_nobody"), (b"ocp-apim-subscription-key", b"nobody")]
    for method, path in _routes():
        if method not in ("POST", "PUT", "PATCH", "DELETE"):
            continue
        for number, kind in enumerate(kinds):
            for shown in ([], wrong):
                path = path.format_map(_Any())
                one = go(Exchange(app, path, [PIECE] * 100, [*kind, *shown], method, f"203.0.113.{number}"))
                most = 256 * KB + 2 * len(PIECE) if path.startswith("/pixu") and not shown else 0
                assert one.status in (401, 403) and one.taken <= most, (method, path, kind, one)
                walked += 1
    assert walked > 100


class _Any(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "tune_1"


@pytest.mark.parametrize("options", [{"unkeyed_body_kb": 64}])
def test_a_key_in_the_body_is_judged_as_soon_as_it_is_there(house: House) -> None:
    app, key = house.client.app, house.key()
    start = {"api_key": key, "app_uid": "api"}
    valid = go(Exchange(app, PIXU, pixu_body(start, {"height": 192}), JSON))
    assert valid.status == 200 and valid.taken > 600_000, valid.said
    wrong = go(Exchange(app, PIXU, pixu_body({**start, "api_key": "px_" + "0" * 40}, {}), JSON))
    assert wrong.status == 401 and wrong.asked == 1
    for pieces in (
        pixu_body({"app_uid": "api"}, start),
        [PIECE] * 40,
        [b'{"api_key": 7, "x": "', *[PIECE] * 40],
    ):
        none = go(Exchange(app, PIXU, pieces, JSON))
        assert none.status == 401 and none.taken <= 64 * KB + 2 * len(PIECE) and b"first 64 KB" in none.said
    late = go(Exchange(app, PIXU, pixu_body({"app_uid": "api"}, start, pieces=2), JSON))
    assert late.status == 200, "a short body may show its key anywhere"
    header = [*JSON, (b"authorization", f"Bearer {key}".encode())]
    for last in (start, {"app_uid": "api"}):
        shown = go(Exchange(app, PIXU, pixu_body({}, last), header))
        assert shown.status == 200, shown.said
    crumbs = [bytes([one]) for one in b"".join(pixu_body(start, {}, pieces=1))]
    assert go(Exchange(app, PIXU, crumbs, JSON)).status == 200
    cut = b"".join(pixu_body(start, {}))
    for at in range(1, 70, 3):
        assert go(Exchange(app, PIXU, [cut[:at], cut[at:]], JSON, address=f"198.51.100.{at}")).status == 200


def test_a_body_has_one_key(house: House) -> None:
    """What opened the door is what is acted upon; anything else in the field is refused."""
    app, ann, bob = house.client.app, house.key("ann"), house.key("bob")
    call = {"app_uid": "api", "url": "https://files.example/a.png"}
    bodies = [
        f'{{"note": {{"api_key": "{ann}"}}, "api_key": "{bob}"}}',
        f'{{"api_key": "{ann}", "api_key": "{bob}"}}',
        f'{{"name": "\\"api_key\\": \\"{ann}\\"", "api_key": "px_nobody"}}',
        json.dumps({"api_key": bob, **call}),
    ]
    for number, body in enumerate(bodies):
        headers = [*JSON, (b"x-api-key", ann.encode())] if number == 3 else JSON
        one = go(Exchange(app, PIXU + "_from_url", [body.encode()], headers))
        assert one.status in (401, 422) and not house.registry.tunes.rows(account_id="bob"), (body, one.said)
    escaped = (
        json.dumps({"api_key": ann, **call}).replace("_", "\\u005f", 2).replace("api\\u005fkey", "api_key")
    )
    assert go(Exchange(app, PIXU + "_from_url", [escaped.encode()], JSON)).status == 200
    assert len(house.registry.tunes.rows(account_id="ann")) == 1
    assert go(Exchange(app, PIXU + "_from_url", [json.dumps(call).encode()], JSON)).status == 401


@pytest.mark.parametrize("options", [{"body_seconds": 0.3, "body_total_seconds": 60}])
def test_whoever_shows_no_key_is_not_waited_for(house: House) -> None:
    """A body that drips: minutes for those who are known, the time of one silence for others."""
    key, tick = house.key(), lambda _number: asyncio.sleep(0.1)
    head = [(b'{"app_uid": "api", "x": "')]
    nobody = go(Exchange(house.client.app, PIXU, [*head, *[b"A"] * 200], JSON, waits=tick))
    assert nobody.status == 408 and nobody.taken < 60
    known = json.dumps({"api_key": key, "app_uid": "api", "url": "https://files.example/a.png"}).encode()
    drops = [known[:60], *[known[at : at + 20] for at in range(60, len(known), 20)]]
    assert go(Exchange(house.client.app, PIXU + "_from_url", drops, JSON, waits=tick)).status == 200


@pytest.mark.parametrize(
    "options", [{"max_body_mb": 1, "max_spooled_mb": 3, "max_spooled_mb_per_address": 1.5}]
)
def test_what_is_here_at_a_time_is_capped_by_address_and_in_all(house: House) -> None:
    app = house.client.app
    headers = [*JSON, *((name.lower().encode(), value.encode()) for name, value in house.auth().items())]
    gate = asyncio.Event()

    def held(number: int) -> Any:
        return gate.wait() if number > 50 else None  # after 800 KB

    async def play() -> None:
        def one(address: str, **more: Any) -> Exchange:
            body = [b'{"prompt": "x", "image": "', *[PIECE] * 58, b'"}']
            return Exchange(app, "/v1/image/generate", body, headers, address=address, **more)

        async with _running(one("2001:db8::1", waits=held)) as first:
            assert first.taken > 700_000
            for address in ("2001:db8::1", "2001:db8:0:0:1::9"):  # the same network is the same sender
                refused = await one(address).run()
                assert refused.status == 429 and b"your address" in refused.said and refused.taken < 800_000
            assert (await one("2001:db8:1::1").run()).status < 429
            async with _running(one("192.0.2.1", waits=held)), _running(one("192.0.2.2", waits=held)):
                full = await one("192.0.2.3").run()
                assert full.status == 503
                gate.set()
        assert first.status < 429
        assert (await one("2001:db8::1").run()).status < 429, "what is over holds nothing"

    asyncio.run(play())


@asynccontextmanager
async def _running(exchange: Exchange) -> AsyncIterator[Exchange]:
    """Play a request until it waits for something that a test holds back."""
    task = asyncio.create_task(exchange.run())
    while exchange.asked <= 50 and not task.done():
        await asyncio.sleep(0.01)
    yield exchange
    await task


def test_an_upload_token_is_judged_before_anything_is_read(house: House) -> None:
    url = train(house)["upload_url"]
    kind = [(b"content-type", b"multipart/form-data; boundary=x")]
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + PIECE + b"\r\n"
    for wrong in (url[:-3] + "aaa", url.partition("?")[0], url.replace("tune_", "tune_0")):
        one = go(Exchange(house.client.app, wrong, [part] * 40, kind))
        assert one.status == 403 and one.asked == 0
    right = go(Exchange(house.client.app, url, [*[part] * 40, b"--x--\r\n"], kind))
    assert right.status == 200 and right.taken > 600_000, right.said


def test_an_account_may_send_less_than_the_server_takes(house: House) -> None:
    house.key()
    house.registry.ledger.set_options("ann", max_upload_mb=0.1)
    key = {"api_key": house.key(), "app_uid": "api"}
    one = go(Exchange(house.client.app, PIXU, pixu_body(key, {}), JSON))
    assert one.status == 413 and one.taken < 200_000


@pytest.mark.parametrize("options", [{"max_body_mb": 1, "unkeyed_body_kb": 64}])
@pytest.mark.parametrize(
    ("packed", "status"),
    [
        (gzip.compress(b'{"prompt": "' + bytes(100 * KB * KB), 1), 413),  # 100 MB in 450 KB
        (gzip.compress(b"") * 30_000, 400),  # 600 KB that hold nothing
        (b"\x1f\x8b\x08\x08" + bytes(6) + b"A" * 1200 * KB, 413),  # a file name that does not end
        (gzip.compress(b'{"prompt": "x", "image": "' + b"A" * 300 * KB + b'"}')[:-20], 400),
    ],
    ids=["a bomb", "30,000 members", "no end of a name", "cut off"],
)
def test_what_a_packed_body_unpacks_to_is_what_counts(house: House, packed: bytes, status: int) -> None:
    app, known = house.client.app, (b"authorization", f"Bearer {house.key()}".encode())
    kind = [*JSON, (b"content-encoding", b"gzip")]
    pieces = [packed[at : at + 16 * KB] for at in range(0, len(packed), 16 * KB)]
    tracemalloc.start()
    refused = go(Exchange(app, "/v1/image/generate", pieces, [*kind, known]))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.status == status and most < 8 * KB * KB, (refused.said, most)
    nobody = go(Exchange(app, PIXU, pieces, kind))  # ends where an unpacked one would
    assert nobody.status in (400, 401) and nobody.taken <= 64 * KB + 2 * len(PIECE), nobody.said
    assert house.registry.prompts.rows() == []


def test_a_packed_body_is_the_body_however_it_is_cut(house: House) -> None:
    plain = b"".join(pixu_body({"api_key": house.key(), "app_uid": "api"}, {"height": 192}))
    packed = gzip.compress(plain[:9]) + gzip.compress(plain[9:])
    kind = [*JSON, (b"content-encoding", b"gzip"), (b"content-length", str(len(packed)).encode())]
    for size in (7, 1000, len(packed)):
        pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
        one = go(Exchange(house.client.app, PIXU, pieces, kind))
        assert one.status == 200, one.said
    kept = {house.store.read_bytes(key) for key in house.store.list("uploads")} or {b""}
    assert len(house.registry.tunes.rows()) == 3 and len(kept) == 1


def test_addresses_and_proxies() -> None:
    assert holder("2001:db8::1") == holder("2001:db8::ffff:1") != holder("2001:db8:0:1::1")
    assert holder("::ffff:10.0.0.1") == holder("10.0.0.1") == "10.0.0.1" and holder("unix") == "unix"
    proxies = Proxies("127.0.0.1, 10.1.0.0/16,::1,front")
    assert all(one in proxies for one in ("127.0.0.1", "10.1.2.3", "::1", "front"))
    assert not any(one in proxies for one in ("127.0.0.2", "10.2.0.1", "", "::2"))
    assert "anybody" in Proxies("*") and "127.0.0.1" not in Proxies(None)

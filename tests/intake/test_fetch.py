from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.intake.conftest import ScriptedServer, send
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.intake.fetch import Fetched, Fetcher, FetchLimits
from tunes_dagster.intake.parallel import completed

BODY = bytes(range(256)) * 4096  # 1 MB


def _fetcher(**options: object) -> Fetcher:
    chosen = {"backoff_seconds": 0.01, "timeout": 2.0, **options}
    return Fetcher(["localhost"], FetchLimits(**chosen))  # type: ignore[arg-type]


def test_a_download_is_hashed_and_named(server: ScriptedServer, fetcher: Fetcher, tmp_path: Path) -> None:
    server.routes["/some/my%20photo.png"] = BODY
    server.routes["/named"] = lambda h: send(h, b"x", content_disposition='attachment; filename="../a b.zip"')
    server.routes["/utf"] = lambda h: send(
        h, b"x", content_disposition="attachment; filename*=UTF-8''f%C3%BC.zip"
    )
    got = fetcher.fetch(server.url("/some/my%20photo.png?sig=secret"), tmp_path / "a")
    assert got.path.read_bytes() == BODY
    assert (got.name, got.bytes, got.sha256) == ("my photo.png", len(BODY), hashlib.sha256(BODY).hexdigest())
    assert fetcher.fetch(server.url("/named"), tmp_path / "b", "archive").name == "a b.zip"
    assert fetcher.fetch(server.url("/utf"), tmp_path / "c").name == "fü.zip"


def test_what_may_pass_is_tried_again(server: ScriptedServer, fetcher: Fetcher, tmp_path: Path) -> None:
    answers = iter([503, 429, 500])

    def flaky(handler: BaseHTTPRequestHandler) -> None:
        status = next(answers, 200)
        send(
            handler,
            BODY if status == 200 else b"busy",
            status,
            **({"retry_after": "0"} if status == 429 else {}),
        )

    server.routes["/a.png"] = flaky
    assert fetcher.fetch(server.url("/a.png"), tmp_path / "a").bytes == len(BODY)
    assert server.count("/a.png") == 4


def test_giving_up_says_what_the_server_said(
    server: ScriptedServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    server.routes["/a.png"] = lambda h: send(h, b"", 502)
    with pytest.raises(Failure, match="after 4 tries: the server answered 502") as caught:
        fetcher.fetch(server.url("/a.png"), tmp_path / "a")
    assert caught.value.code == FailureCode.SOURCE_UNREACHABLE
    assert caught.value.retryable
    assert list(tmp_path.iterdir()) == []


def test_nobody_listening_is_unreachable(fetcher: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="could not be fetched") as caught:
        fetcher.fetch("http://localhost:1/a.png", tmp_path / "a")
    assert caught.value.code == FailureCode.SOURCE_UNREACHABLE


def _cut_after(handler: BaseHTTPRequestHandler, body: bytes, number: int, **headers: str) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body[:number])


def test_a_cut_download_is_resumed(server: ScriptedServer, fetcher: Fetcher, tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        if not asked:
            _cut_after(handler, BODY, 400_000, ETag='"v1"')
            return
        assert handler.headers["If-Range"] == '"v1"'
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        assert start > 0
        said = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        send(handler, BODY[start:], 206, content_range=said)

    server.routes["/a.zip"] = answer
    got = fetcher.fetch(server.url("/a.zip"), tmp_path / "a", "archive")
    assert got.path.read_bytes() == BODY
    assert server.count("/a.zip") == 2


def test_a_file_that_changed_meanwhile_starts_over(
    server: ScriptedServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    calls = iter(range(10))

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if next(calls) == 0:
            _cut_after(handler, b"old" * 100_000, 150_000, ETag='"v1"')
        else:
            send(handler, BODY, etag='"v2"')  # If-Range did not match: the whole new file

    server.routes["/a.zip"] = answer
    assert fetcher.fetch(server.url("/a.zip"), tmp_path / "a", "archive").path.read_bytes() == BODY


def test_without_a_validator_nothing_is_glued_together(
    server: ScriptedServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    calls = iter(range(10))

    def answer(handler: BaseHTTPRequestHandler) -> None:
        assert "Range" not in handler.headers
        if next(calls) == 0:
            _cut_after(handler, BODY, 500_000)
        else:
            send(handler, BODY)

    server.routes["/a.zip"] = answer
    assert fetcher.fetch(server.url("/a.zip"), tmp_path / "a", "archive").path.read_bytes() == BODY


def test_a_wrong_range_starts_over(server: ScriptedServer, fetcher: Fetcher, tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if server.count("/a.zip") == 1:
            _cut_after(handler, BODY, 500_000, ETag='"v1"')
        elif handler.headers.get("Range"):
            send(handler, b"evil", 206, content_range="bytes 0-3/4")
        else:
            send(handler, BODY)

    server.routes["/a.zip"] = answer
    assert fetcher.fetch(server.url("/a.zip"), tmp_path / "a", "archive").path.read_bytes() == BODY


def _endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(BODY)


def test_an_endless_stream_ends_at_the_limit(server: ScriptedServer, tmp_path: Path) -> None:
    server.routes["/a.png"] = _endless
    with (
        _fetcher(max_picture_bytes=3_000_000) as fetcher,
        pytest.raises(Failure, match="larger than 2 MB") as caught,
    ):
        fetcher.fetch(server.url("/a.png"), tmp_path / "a")
    assert caught.value.code == FailureCode.SOURCE_REFUSED
    assert server.count("/a.png") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_announced_size_is_refused_before_reading(server: ScriptedServer, tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
        server.stopped.wait(5)

    server.routes["/a.zip"] = answer
    started = time.monotonic()
    with _fetcher() as fetcher, pytest.raises(Failure, match="larger than 2048 MB"):
        fetcher.fetch(server.url("/a.zip"), tmp_path / "a", "archive")
    assert time.monotonic() - started < 2


def test_a_dripping_server_meets_the_deadline(server: ScriptedServer, tmp_path: Path) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.stopped.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    server.routes["/a.png"] = drip
    started = time.monotonic()
    with (
        _fetcher(total_seconds=0.5) as fetcher,
        pytest.raises(Failure, match="took longer than 0.5 s") as caught,
    ):
        fetcher.fetch(server.url("/a.png"), tmp_path / "a")
    assert caught.value.code == FailureCode.TIMED_OUT
    assert time.monotonic() - started < 3


def test_a_silent_server_is_unreachable(server: ScriptedServer, tmp_path: Path) -> None:
    server.routes["/a.png"] = lambda h: server.stopped.wait(5) and None
    with _fetcher(timeout=0.2, attempts=2) as fetcher, pytest.raises(Failure, match="stopped answering"):
        fetcher.fetch(server.url("/a.png"), tmp_path / "a")
    assert server.count("/a.png") == 2


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("http://127.0.0.1:{port}/inside", "loopback"),
        ("http://169.254.169.254/latest/meta-data/", "link-local"),
        ("http://[::ffff:10.0.0.1]/", "private"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("http://0177.0.0.1/", "what is not a URL"),
        ("//127.0.0.1:{port}/inside", "loopback"),
    ],
)
def test_redirects_that_lead_inside(
    server: ScriptedServer, fetcher: Fetcher, tmp_path: Path, target: str, why: str
) -> None:
    server.routes["/a.png"] = lambda h: send(h, b"", 302, location=target.format(port=server.port))
    server.routes["/inside"] = b"secret"
    with pytest.raises(Failure, match=why) as caught:
        fetcher.fetch(server.url("/a.png"), tmp_path / "a")
    assert caught.value.code == FailureCode.SOURCE_REFUSED
    assert server.count("/inside") == 0


def test_redirects_are_followed_a_few_times(server: ScriptedServer, fetcher: Fetcher, tmp_path: Path) -> None:
    server.routes["/a.png"] = lambda h: send(h, b"", 301, location="b.png")
    server.routes["/b.png"] = BODY
    server.routes["/loop"] = lambda h: send(h, b"", 307, location="/loop")
    assert fetcher.fetch(server.url("/a.png"), tmp_path / "a").bytes == len(BODY)
    with pytest.raises(Failure, match="redirects more than 5 times"):
        fetcher.fetch(server.url("/loop"), tmp_path / "b")


@pytest.mark.parametrize(
    ("status", "headers", "why"),
    [
        (404, {}, "404 Not Found"),
        (403, {}, "403 Forbidden"),
        (204, {}, "204"),
        (200, {"content_type": "text/html; charset=utf-8"}, "web page"),
        (200, {"content_encoding": "gzip"}, "encoding 'gzip'"),
    ],
)
def test_answers_that_will_not_get_better(
    server: ScriptedServer, fetcher: Fetcher, tmp_path: Path, status: int, headers: dict[str, str], why: str
) -> None:
    server.routes["/a.png"] = lambda h: send(h, b"" if status == 204 else b"x", status, **headers)
    with pytest.raises(Failure, match=why) as caught:
        fetcher.fetch(server.url("/a.png?secret=1"), tmp_path / "a")
    assert caught.value.code == FailureCode.SOURCE_REFUSED
    assert "secret" not in str(caught.value)
    assert server.count("/a.png") == 1


def test_an_empty_answer_is_no_file(server: ScriptedServer, fetcher: Fetcher, tmp_path: Path) -> None:
    server.routes["/a.png"] = b""
    with pytest.raises(Failure, match="the answer was empty"):
        fetcher.fetch(server.url("/a.png"), tmp_path / "a")


def test_many_are_fetched_a_few_at_a_time(server: ScriptedServer, tmp_path: Path) -> None:
    import threading

    lock, now, most = threading.Lock(), 0, 0

    def answer(handler: BaseHTTPRequestHandler) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.03)
        with lock:
            now -= 1
        send(handler, handler.path.encode())

    urls = []
    for number in range(12):
        server.routes[f"/{number}.png"] = answer
        urls.append(server.url(f"/{number}.png"))
    urls[5] = server.url("/missing.png")
    with _fetcher(concurrency=3) as fetcher:
        results = dict(_fetched(fetcher, urls, tmp_path))
    assert sorted(results) == list(range(12))
    assert 1 < most <= 3
    bad = results.pop(5)
    assert isinstance(bad, Failure)
    for number, got in results.items():
        assert not isinstance(got, Failure)
        assert got.path.read_bytes() == f"/{number}.png".encode()


def test_leaving_early_stops_the_downloads(server: ScriptedServer, tmp_path: Path) -> None:
    server.routes["/quick.png"] = b"x"
    server.routes["/endless.png"] = _endless
    started = time.monotonic()
    with _fetcher(max_picture_bytes=10**12) as fetcher:
        for index, _ in _fetched(fetcher, [server.url("/endless.png"), server.url("/quick.png")], tmp_path):
            assert index == 1
            break
    assert time.monotonic() - started < 5


def _fetched(fetcher: Fetcher, urls: Sequence[str], folder: Path) -> Iterator[tuple[int, Fetched | Failure]]:
    """Download as the intake does: so many at a time, each failure in the place of its file."""

    def one(numbered: tuple[int, str], stop: threading.Event) -> Fetched | Failure:
        index, url = numbered
        try:
            return fetcher.fetch(url, folder / f"{index:05d}", stop=stop)
        except Failure as failure:
            return failure

    for (index, _), result in completed(one, enumerate(urls), fetcher.limits.concurrency):
        yield index, result

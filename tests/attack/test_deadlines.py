"""Servers that keep a download or a callback alive a byte at a time: the deadline holds in every phase."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpcore
import httpx
import pytest

from tests.attack.servers import Script, dripping, serving, silent
from tunes_dagster.callbacks.deliver import send
from tunes_dagster.core import clock
from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.gateway.trial import try_callback
from tunes_dagster.intake.fetch import Fetcher, FetchLimits
from tunes_dagster.intake.guard import Guard, guarded_client
from tunes_dagster.intake.streams import Deadline, DeadlinePassed, Stream, in_time
from tunes_dagster.registry.outbox import Sending

LIMIT = 0.6
# Far above the limit, far below what each of these servers would go on for.
SOON = 8.0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


def moving_on(connection: socket.socket, closing: threading.Event) -> None:
    """Redirect to yet another place, a little later each time."""
    connection.recv(65_536)
    closing.wait(0.2)
    connection.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


def busy(connection: socket.socket, _closing: threading.Event) -> None:
    """Ask to be tried again later than anybody waits."""
    connection.recv(65_536)
    connection.sendall(
        b"HTTP/1.1 503 Busy\r\nRetry-After: 25\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


PHASES: dict[str, Script] = {
    "status line": dripping(b"", b"H"),
    "header": dripping(HEAD, b"X-More: x\r\n"),
    "one header": dripping(HEAD + b"X-More: ", b"x"),
    "chunk header": dripping(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "chunk extension": dripping(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x"),
    "chunk": dripping(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "trailer": dripping(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X-More: x\r\n"),
    "body": dripping(HEAD + b"Content-Length: 1000000\r\n\r\n", b"x"),
    "early answers": dripping(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "silence": silent,
    "redirects": moving_on,
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_download_ends_in_every_phase(phase: str, tmp_path: Path) -> None:
    with serving(PHASES[phase]) as server, _fetcher(max_redirects=1000) as fetcher:
        began = time.monotonic()
        with pytest.raises(Failure, match="took longer than 0.6 s") as caught:
            fetcher.fetch(server.url("/a.png"), tmp_path / "a")
    assert caught.value.code == FailureCode.TIMED_OUT and time.monotonic() - began < SOON
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("phase", PHASES)
def test_a_download_stops_in_every_phase_when_told_to(phase: str, tmp_path: Path) -> None:
    stop = threading.Event()
    with serving(PHASES[phase]) as server, _fetcher(total_seconds=60, max_redirects=1000) as fetcher:
        began = time.monotonic()
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(Cancelled):
            fetcher.fetch(server.url("/a.png"), tmp_path / "a", stop=stop)
    assert time.monotonic() - began < SOON and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("phase", [name for name in PHASES if name != "redirects"])
def test_a_callback_ends_in_every_phase(phase: str) -> None:
    """What was answered counts, also where the rest of the answer never comes."""
    answered = phase in ("chunk header", "chunk extension", "chunk", "trailer", "body")
    with serving(PHASES[phase]) as server, guarded_client(Guard(["localhost"])) as client:
        began = time.monotonic()
        outcome = send(client, _sending(server.url()), LIMIT, clock.now())
        assert outcome.delivered is answered and outcome.unreachable is not answered
        assert "time" in (outcome.error or "time") and time.monotonic() - began < SOON


def test_a_callback_ends_whose_receiver_reads_a_byte_at_a_time() -> None:
    def reading_slowly(connection: socket.socket, closing: threading.Event) -> None:
        while not closing.wait(0.05):
            connection.recv(1)

    with serving(reading_slowly) as server, guarded_client(Guard(["localhost"])) as client:
        began = time.monotonic()
        outcome = send(client, _sending(server.url(), {"text": "x" * 30_000_000}), LIMIT, clock.now())
    assert outcome.unreachable and time.monotonic() - began < SOON


@pytest.mark.parametrize("drop", [b"", b"\x16\x03\x03\x3f\xff", b"\x15\x03\x03\x00\x02\x01\x5a"])
def test_a_handshake_ends(drop: bytes, tmp_path: Path) -> None:
    """TLS that says nothing, promises a long record, or warns without end."""

    def script(connection: socket.socket, closing: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(drop)
        while not closing.wait(0.05):
            connection.sendall(drop[-1:])

    with serving(script) as server, _fetcher(attempts=1) as fetcher:
        began = time.monotonic()
        with pytest.raises(Failure) as caught:
            fetcher.fetch(f"https://localhost:{server.port}/a.png", tmp_path / "a")
    assert caught.value.code in (FailureCode.TIMED_OUT, FailureCode.SOURCE_UNREACHABLE)
    assert time.monotonic() - began < SOON


def test_names_and_connections_that_never_come_end(tmp_path: Path) -> None:
    asleep = threading.Event()

    def never(_host: str, _port: int) -> list[str]:
        asleep.wait(30)
        return ["93.184.216.34"]

    began = time.monotonic()
    with _fetcher(resolver=never) as fetcher, pytest.raises(Failure, match="took longer"):
        fetcher.fetch("http://slow-name.example/a.png", tmp_path / "a")
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with _fetcher(resolver=never, total_seconds=60) as fetcher, pytest.raises(Cancelled):
        fetcher.fetch("http://slow-name.example/a.png", tmp_path / "a", stop=stop)
    asleep.set()
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = listener.getsockname()[1]
    held = []
    for _ in range(8):  # a queue that is full: further connections are neither taken nor refused
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
        held.append(one)
    with _fetcher() as fetcher, pytest.raises(Failure, match="took longer"):
        fetcher.fetch(f"http://localhost:{port}/a.png", tmp_path / "a")
    assert time.monotonic() - began < 3 * SOON
    for one in (*held, listener):
        one.close()


def test_waiting_for_the_next_try_is_part_of_the_time(tmp_path: Path) -> None:
    with serving(busy) as server, _fetcher() as fetcher:
        began = time.monotonic()
        with pytest.raises(Failure, match="after 1 try: the server answered 503"):
            fetcher.fetch(server.url("/a.png"), tmp_path / "a")
    assert time.monotonic() - began < SOON


def test_a_trial_ends_although_its_receiver_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunes_dagster.gateway.trial._SECONDS", LIMIT)
    with serving(PHASES["header"]) as server:
        began = time.monotonic()
        said = try_callback(server.url(), ["localhost"])
    assert said["ok"] is False and "DeadlinePassed" in said["verdict"] and time.monotonic() - began < SOON


def test_the_streams_carry_what_the_stock_ones_carry(tmp_path: Path) -> None:
    """Plain and encrypted, in both directions, more than one packet, over one connection twice."""
    certificate, key = _certificate(tmp_path)
    serving_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving_tls.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    sent = random.Random(0).randbytes(1_000_000)

    def echo(encrypted: bool) -> Script:
        def script(connection: socket.socket, _closing: threading.Event) -> None:
            if encrypted:
                connection = serving_tls.wrap_socket(connection, server_side=True)
            for _ in range(2):
                got = b""
                while not got.endswith(sent[-1000:]):
                    got += connection.recv(65_536)
                body = got.partition(b"\r\n\r\n")[2]
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

        return script

    for encrypted in (False, True):
        with serving(echo(encrypted)) as server, guarded_client(Guard(["localhost"])) as client, Deadline(60):
            client._transport._pool._ssl_context = trusting  # type: ignore[attr-defined]
            for _ in range(2):
                url = server.url().replace("http:", "https:" if encrypted else "http:")
                assert client.post(url, content=sent).content == sent
            assert server.connections == 1
            if encrypted:
                wrong = url.replace("localhost", "127.0.0.1")
                with pytest.raises(Failure, match="loopback"):
                    client.get(wrong)
        if encrypted:
            with (
                serving(echo(True)) as server,
                guarded_client(Guard(["localhost"])) as client,
                pytest.raises(httpx.ConnectError, match="certificate"),
            ):
                client.get(server.url().replace("http:", "https:"))


def test_deadlines_nest_and_end() -> None:
    with Deadline(60), Deadline(0.01) as inner:
        time.sleep(0.02)
        with pytest.raises(DeadlinePassed):
            inner.left()
        with pytest.raises(DeadlinePassed):
            in_time(lambda: time.sleep(5), 60)
    one, other = socket.socketpair()
    one.setblocking(False)
    with pytest.raises(httpcore.ReadTimeout):  # outside of any, the silence is what counts
        Stream(one).read(1, timeout=0.05)
    other.close()
    assert Stream(one).read(1, timeout=1) == b"" and Stream(one).get_extra_info("is_readable")
    one.close()
    assert in_time(lambda: 7, None) == 7
    with pytest.raises(OSError, match="no such host"):
        in_time(_no_such_host, 5)


def _no_such_host() -> None:
    raise OSError("no such host")


def _fetcher(resolver: Callable[[str, int], list[str]] | None = None, **options: float) -> Fetcher:
    chosen = {"total_seconds": LIMIT, "backoff_seconds": 0.01, "timeout": 30.0, **options}
    return Fetcher(["localhost"], FetchLimits(**chosen), resolver=resolver)  # type: ignore[arg-type]


def _sending(url: str, body: object = None) -> Sending:
    return Sending(
        delivery_id="dlv_1",
        callback_id="cb_1",
        event="tune.ready",
        url=url,
        body=body or {"a": 1},
        secret=None,
        attempt=1,
    )


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for `localhost` that nobody but a test trusts."""
    import subprocess

    certificate, key = folder / "localhost.pem", folder / "localhost.key"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key

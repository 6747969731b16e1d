"""Connections to a running server: too many, too slow, too long, and those that offer another protocol."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import House
from tunes_dagster.gateway import connections
from tunes_dagster.gateway.serving import server_of

BODY = json.dumps({"prompt": "a photo of a dog"}).encode()
UPGRADE = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
)


@pytest.fixture
def options() -> dict[str, object]:
    return {"head_seconds": 0.5, "max_connections": 6, "max_connections_per_address": 4}


class Running:
    """A server on a port of this machine."""

    def __init__(self, house: House) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.house, self.server = house, server_of(house.client.app, port=self.port)  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)

    @property
    def counted(self) -> Any:
        return self.server.config.http_protocol_class.shares

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), 20, source_address=(address, 0))
        made.settimeout(20)
        return made

    def head(self, more: str = "", path: str = "/v1/image/generate", method: str = "POST") -> bytes:
        key = f"Authorization: Bearer {self.house.key()}\r\nContent-Type: application/json\r\n"
        return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{key}{more}\r\n".encode()


@pytest.fixture
def running(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.9")
    house.key()
    server = Running(house)
    yield server
    server.server.should_exit = True
    server.thread.join(20)


def answer_of(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read one whole answer, and nothing of the next."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += _some(connection, 1)
    lines = head.decode("latin-1").strip().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    body = b""
    while len(body) < int(fields["content-length"]):
        body += _some(connection, int(fields["content-length"]) - len(body))
    return int(lines[0].split()[1]), json.loads(body)


def _some(connection: socket.socket, size: int) -> bytes:
    got = connection.recv(size)
    assert got, "the connection was closed"
    return got


def closed(connection: socket.socket) -> bool:
    """Read to the end, which has to come."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_client_that_offers_h2c_keeps_its_body(running: Running) -> None:
    length, chunked = f"Content-Length: {len(BODY)}\r\n", "Transfer-Encoding: chunked\r\n"
    in_chunks = (
        b"5\r\n" + BODY[:5] + b"\r\n%x\r\n" % len(BODY[5:]) + BODY[5:] + b"\r\n0\r\nX-Trailer: 1\r\n\r\n"
    )
    with running.connect() as line:  # all of them on one connection, as they are reused
        for more, sent in ((length, BODY), (chunked, in_chunks)):
            whole = running.head(UPGRADE + more) + sent
            for cut in (len(whole), len(whole) - len(sent), len(whole) - len(sent) // 2, 40):
                line.sendall(whole[:cut])
                if cut < len(whole):
                    time.sleep(0.05)
                    line.sendall(whole[cut:])
                status, said = answer_of(line)
                assert status == 200 and said["status"] == "queued", (more, cut, said)
        for method, path in (("GET", "/v1/tunes/config"), ("GET", "/v1/account/balance")):
            line.sendall(running.head(UPGRADE, path, method))
            assert answer_of(line)[0] == 200
        line.sendall(running.head(UPGRADE + "Content-Length: 0\r\n"))
        assert answer_of(line)[0] == 422
        line.sendall(2 * (running.head(UPGRADE + length) + BODY))  # one behind the other
        assert [answer_of(line)[0] for _ in range(2)] == [200, 200]
        line.sendall(
            running.head(length.replace("Content", "Connection: Upgrade\r\nUpgrade: websocket\r\nContent"))
            + BODY
        )
        assert answer_of(line)[0] == 200, "whatever is offered, there is one protocol here"
    assert len(running.house.registry.prompts.rows(account_id="ann")) == 11


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_with_http2(running: Running) -> None:
    url = f"http://127.0.0.1:{running.port}/v1/image/generate"
    key = f"Authorization: Bearer {running.house.key()}"
    for sent in (BODY, json.dumps({"prompt": "x", "image": "A" * 400_000}).encode()):
        command = [
            "curl",
            "-sS",
            "--http2",
            "-H",
            key,
            "-H",
            "Content-Type: application/json",
            "--data-binary",
            "@-",
            url,
        ]
        told = subprocess.run(command, input=sent, capture_output=True, timeout=60, check=False)
        assert json.loads(told.stdout).get("status") == "queued" or b"base64" in told.stdout, told


JAVA = """
import java.net.URI;
import java.net.http.*;
public class Client {
  public static void main(String[] words) throws Exception {
    HttpClient client = HttpClient.newHttpClient();  // HTTP/2 by default: it offers h2c in the clear
    for (int n = 0; n < 3; n++) {
      HttpRequest request = HttpRequest.newBuilder(URI.create(words[0]))
        .header("Authorization", "Bearer " + words[1]).header("Content-Type", "application/json")
        .POST(HttpRequest.BodyPublishers.ofString("{\\"prompt\\": \\"a dog\\"}")).build();
      HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
      System.out.println(answer.version() + " " + answer.statusCode() + " " + answer.body());
    }
    HttpRequest plain = HttpRequest.newBuilder(URI.create(words[0])).header("Authorization", "Bearer " + words[1])
      .POST(HttpRequest.BodyPublishers.noBody()).build();
    System.out.println(client.send(plain, HttpResponse.BodyHandlers.ofString()).statusCode());
  }
}
"""


@pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK is installed")
def test_javas_client_as_it_comes(running: Running, tmp_path: Path) -> None:
    (tmp_path / "Client.java").write_text(JAVA)
    url = f"http://127.0.0.1:{running.port}/v1/image/generate"
    command = [
        "java",
        "-Xshare:auto",
        "-XX:TieredStopAtLevel=1",
        str(tmp_path / "Client.java"),
        url,
        running.house.key(),
    ]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = told.stdout.splitlines()
    assert len(lines) == 4, told.stderr
    assert all(line.startswith("HTTP_1_1 200 ") and "gen_" in line for line in lines[:3])
    assert lines[3] == "422"
    assert len(running.house.registry.prompts.rows(account_id="ann")) == 3


def test_connections_are_counted_by_address_and_in_all(running: Running) -> None:
    lines = [running.connect() for _ in range(4)]
    _until(lambda: running.counted.total == 4)
    with running.connect() as fifth:
        status, said = answer_of(fifth)
        assert status == 429 and "your address" in said["detail"] == said["error"] and closed(fifth)
    others = [running.connect("127.0.0.9") for _ in range(2)]  # a proxy, which speaks for many
    _until(lambda: running.counted.total == 6)
    for address in ("127.0.0.9", "127.0.0.2"):
        with running.connect(address) as more:
            assert answer_of(more)[0] == 503
    for line in (*lines, *others):
        line.close()
    _until(lambda: running.counted.total == 0 and not running.counted.held)
    with running.connect() as line:
        line.sendall(running.head(path="/v1/account/balance", method="GET"))
        assert answer_of(line)[0] == 200


def test_heads_that_never_end_are_ended(running: Running) -> None:
    """Nothing at all, a request that drips, and the same behind one that was answered."""
    began = time.monotonic()
    with running.connect() as silent, running.connect() as dripping, running.connect() as second:
        second.sendall(running.head(path="/v1/account/balance", method="GET"))
        assert answer_of(second)[0] == 200
        second.sendall(b"GET / HTTP/1.1\r\n")
        dripping.sendall(b"GET / HTTP/1.1\r\nX-A: ")
        for _ in range(40):
            try:
                dripping.sendall(b"x")
            except OSError:
                break
            time.sleep(0.05)
        assert closed(silent) and closed(dripping) and closed(second)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nX-A: ", b"GET /", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_heads_that_grow_are_refused(running: Running, start: bytes) -> None:
    more = b"x" * 1000 if start.endswith((b": ", b"/")) else b"X-B: y\r\n" * 100
    with running.connect() as line:
        line.sendall(start)
        sent = 0
        try:
            while sent < 5_000_000:
                line.sendall(more)
                sent += len(more)
        except OSError:
            pass
        assert sent < 5_000_000, "nobody takes so much of a head"


def test_a_body_that_nobody_reads_is_not_listened_to_for_ever(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.3)
    head = b"POST /v1/image/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n"
    with running.connect() as line:
        line.sendall(head + b"\r\n" + b"A" * 1000)
        assert answer_of(line)[0] == 401
        with pytest.raises(OSError):  # noqa: PT011 - reset or broken pipe
            for _ in range(400):
                line.sendall(b"A" * 1000)
                time.sleep(0.02)
    with running.connect() as line:  # one that was nearly over goes on being used
        line.sendall(head.replace(b"100000000", b"2000") + b"\r\n" + b"A" * 1000)
        assert answer_of(line)[0] == 401
        line.sendall(b"A" * 1000 + running.head(path="/v1/account/balance", method="GET"))
        assert answer_of(line)[0] == 200


def test_nobody_is_asked_to_go_on_without_a_key(running: Running) -> None:
    """`Expect: 100-continue`: the answer comes in place of the invitation."""
    expects = f"Content-Length: {len(BODY)}\r\nExpect: 100-continue\r\n"
    with running.connect() as line:
        line.sendall(running.head(expects).replace(b"Bearer ", b"Bearer x"))
        assert answer_of(line)[0] == 401
    with running.connect() as line:
        line.sendall(running.head(expects))
        assert line.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(BODY)
        assert answer_of(line)[0] == 200


def _until(true: Any) -> None:
    for _ in range(400):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it never came true")

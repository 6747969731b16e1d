"""A real local HTTP server whose answers a test scripts, drawn pictures, and a store in a folder."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tunes_dagster.core.store import Store
from tunes_dagster.intake.fetch import Fetcher, FetchLimits

Answer = Callable[[BaseHTTPRequestHandler], None]


class ScriptedServer:
    """Serves what `routes` says: bytes, or a function that answers by hand. Counts requests per path."""

    def __init__(self) -> None:
        self.routes: dict[str, bytes | Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stopped = threading.Event()
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                scripted.requests.append((path, dict(self.headers)))
                route = scripted.routes.get(path)
                if route is None:
                    self.send_error(404)
                elif callable(route):
                    self.close_connection = True
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        route(self)
                else:
                    send(self, route)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path: str, host: str = "localhost") -> str:
        return f"http://{host}:{self.port}{path}"

    def count(self, path: str) -> int:
        return sum(1 for seen, _ in self.requests if seen == path)

    def close(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """Answer with a body and headers (`content_type` becomes `Content-Type`)."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-").title(), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    yield scripted
    scripted.close()


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    with Fetcher(["localhost"], FetchLimits(backoff_seconds=0.01, timeout=2.0)) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def photo(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """A picture that is like no other: coloured rectangles and discs, sharp edges."""
    from PIL import ImageDraw

    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for number in range(14):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        w, h = int(rng.integers(8, width // 2)), int(rng.integers(8, height // 2))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        (draw.rectangle if number % 2 else draw.ellipse)([x, y, x + w, y + h], fill=colour)
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int, width: int = 96, height: int = 80) -> bytes:
    return encoded(photo(seed, width, height))


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, Any]]:
    """Options of a real S3 protocol server that holds an empty bucket `studio`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id="k",
        aws_secret_access_key="s",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="studio")
    yield {
        "key": "k",
        "secret": "s",
        "endpoint_url": address,
        "client_kwargs": {"region_name": "us-east-1"},
    }
    server.stop()

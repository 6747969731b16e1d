"""JavaScript clients of others, byte for byte: no registry has them under the names that their own packages give.

`npm view` of `pixelapi` (PixelAPI's JavaScript SDK), `n8n-nodes-pixelapi` and `astria-mcp-server` is 404. What stands
here was recorded on the wire from the published sources, built and run unchanged by node 20 but for address and key;
the two names in braces are those.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.gateway.conftest import House
from tests.gateway.test_pixelapi_clients import enlarging  # noqa: F401 - a fixture
from tunes_dagster.gateway.serving import server_of

SDK = (
    "host: {host}\r\nconnection: keep-alive\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    "User-Agent: pixelapi-js/0.1.0\r\naccept: */*\r\naccept-language: *\r\nsec-fetch-mode: cors\r\n"
    "accept-encoding: gzip, deflate\r\n"
)
AXIOS = (
    "Accept: application/json\r\nContent-Type: application/json\r\nAuthorization: Bearer {key}\r\n"
    "User-Agent: axios/1.8.4\r\n{length}Accept-Encoding: gzip, compress, deflate, br\r\nHost: {host}\r\n"
    "Connection: keep-alive\r\n"
)


class Wire:
    """One connection that is kept, as both clients keep theirs."""

    def __init__(self, port: int, key: str) -> None:
        self.host, self.key = f"127.0.0.1:{port}", key
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=20)

    def send(self, head: str, body: str = "") -> tuple[int, Any]:
        self.connection.sendall((head.format(host=self.host, key=self.key) + "\r\n" + body).encode())
        answer = http.client.HTTPResponse(self.connection)
        answer.begin()
        return answer.status, json.loads(answer.read())

    def sdk(self, method: str, path: str, body: str = "") -> tuple[int, Any]:
        """Send as the SDK does: node's fetch puts the length last."""
        length = f"content-length: {len(body)}\r\n" if body else ""
        return self.send(f"{method} {path} HTTP/1.1\r\n{SDK}{length}", body)

    def axios(self, method: str, path: str, body: str = "") -> tuple[int, Any]:
        """Send as the MCP server does."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        return self.send(f"{method} {path} HTTP/1.1\r\n{AXIOS.replace('{length}', length)}", body)


@pytest.fixture
def wire(enlarging: House) -> Iterator[Callable[..., Wire]]:  # noqa: F811
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = server_of(enlarging.client.app, port=port)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    opened: list[Wire] = []

    def open_wire(key: str | None = None) -> Wire:
        opened.append(Wire(port, key or enlarging.key()))
        return opened[-1]

    yield open_wire
    for one in opened:
        one.connection.close()
    server.should_exit = True
    thread.join(20)


def test_pixelapis_javascript_sdk(enlarging: House, wire: Callable[..., Wire]) -> None:  # noqa: F811
    """`image.generate`, `generation.wait`, `image.upscale` by both its README and its types, and what is not served."""
    sdk = wire()
    status, made = sdk.sdk(
        "POST", "/v1/image/generate", '{"prompt":"a cat astronaut, digital art","model":"flux-schnell"}'
    )
    assert status == 200 and made["status"] == "pending" and made["credits_used"] == 3
    body = '{"prompt":"watercolor","model":"sdxl","width":1024,"height":1024,"negative_prompt":"blurry"}'
    assert sdk.sdk("POST", "/v1/image/generate", body)[0] == 200
    for body in (
        '{"image_url":"https://example.com/low-res.jpg"}',
        '{"image":"https://example.com/low-res.jpg","scale":4}',
    ):
        status, enlarged = sdk.sdk("POST", "/v1/image/upscale", body)
        assert status == 200 and enlarged["model"] == "upscale-4x", enlarged
        row = enlarging.registry.prompts.rows()[0]
        assert row.settings["input_image"] == "https://example.com/low-res.jpg"
    path = f"/v1/image/{made['generation_id']}"
    assert sdk.sdk("GET", path)[1]["status"] == "pending"
    enlarging.render_all()
    _status, done = sdk.sdk("GET", path)
    assert done["status"] == "completed" and done["output_url"].startswith("http") and done["completed_at"]
    # It takes the sentence from `detail`, `error` or `message`, and the kind from the status.
    for operation in (
        "remove-background",
        "restore-face",
        "remove-object",
        "replace-background",
        "remove-text",
        "add-shadow",
        "outpaint",
    ):
        status, said = sdk.sdk("POST", f"/v1/image/{operation}", '{"image":"x"}')
        assert status == 404 and operation in said["detail"]
    assert sdk.sdk("POST", "/v1/audio/generate", '{"prompt":"up","duration":15}')[0] == 404
    assert sdk.sdk("GET", "/v1/image/gen_abc")[0] == 404
    status, said = sdk.sdk("POST", "/v1/image/generate", '{"prompt":"","model":"flux-schnell"}')
    assert status == 422 and said["detail"] == "prompt is required"
    body = '{"prompt":"x","model":"flux-schnell"}'
    assert wire("no").sdk("POST", "/v1/image/generate", body)[0] == 401


def test_astrias_mcp_server(enlarging: House, wire: Callable[..., Wire]) -> None:  # noqa: F811
    """Its four calls on main, 1.0.0: create_tune, list_tunes, create_prompt, and its two resources."""
    mcp = wire()
    urls = ",".join(f'"https://example.com/{n}.jpg"' for n in range(4))
    body = (
        f'{{"tune":{{"title":"Ann","name":"woman","image_urls":[{urls}],"base_tune_id":1504944,'
        '"model_type":"lora","preset":"flux-lora-portrait"}}'
    )
    status, tune = mcp.axios("POST", "/tunes", body)
    assert status == 201, tune
    assert [one["id"] for one in mcp.axios("GET", "/tunes")[1]] == [tune["id"]]
    enlarging.finish_tune(enlarging.tune(tune["id"]))
    text = f"<lora:{tune['id']}:1.0> ohwx woman"
    body = f'{{"prompt":{{"text":"{text}","super_resolution":true,"inpaint_faces":true}}}}'
    status, made = mcp.axios("POST", "/tunes/1504944/prompts", body)
    assert status == 201, made
    enlarging.render_all()
    assert mcp.axios("GET", f"/tunes/{tune['id']}")[1]["trained_at"]
    assert mcp.axios("GET", f"/tunes/1504944/prompts/{made['id']}")[1]["images"]


def test_astrias_mcp_server_as_it_is_to_be(enlarging: House, wire: Callable[..., Wire]) -> None:  # noqa: F811
    """Its open pull request finds a tune by its title and asks for any seed with -1."""
    mcp = wire()
    urls = ",".join(f'"https://example.com/{n}.jpg"' for n in range(4))
    tune = mcp.axios(
        "POST",
        "/tunes",
        f'{{"tune":{{"title":"Ann","name":"woman","image_urls":[{urls}],"base_tune_id":1504944,'
        '"model_type":"lora","preset":"flux-lora-portrait"}}',
    )[1]
    enlarging.finish_tune(enlarging.tune(tune["id"]))
    (found,) = mcp.axios("GET", "/tunes?branch=flux1&model_type=lora&title=Ann")[1]
    assert found["id"] == tune["id"] and found["trained_at"] and found["token"] == "ohwx"
    body = (
        f'{{"prompt":{{"text":"<lora:{tune["id"]}:1.0> ohwx woman in a park","super_resolution":true,'
        '"inpaint_faces":true,"width":720,"height":1280,"num_images":1,"seed":-1}}'
    )
    made = [mcp.axios("POST", "/tunes/1504944/prompts", body) for _ in range(2)]
    assert [status for status, _ in made] == [201, 201], made
    first, second = (prompt["seed"] for _, prompt in made)
    assert first != second and min(first, second) >= 0, "drawn for each"
    enlarging.render_all()
    shown = mcp.axios("GET", f"/tunes/1504944/prompts/{made[0][1]['id']}")[1]
    assert len(shown["images"]) == 1

"""The UI on this machine is asked to reload, whatever proxy the environment names."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tunes_dagster.campaigns.reloading import reload_code_location
from tunes_dagster.cli.installation import open_installation
from tunes_dagster.core.settings import Settings

NOBODY = "http://127.0.0.1:9"


class Ui(BaseHTTPRequestHandler):
    """Answers as Dagster's GraphQL does."""

    def do_POST(self) -> None:  # noqa: N802 - the library's name
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"data": {"reloadWorkspace": {"__typename": "Workspace", "locationEntries": []}}})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def ui() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Ui)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_proxy_stands_not_between_us_and_our_own_ui(ui: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, NOBODY)
    assert "has reloaded" in reload_code_location(ui)


def test_commands_reach_this_machine_directly(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", NOBODY)
    monkeypatch.setenv("no_proxy", "internal.example")
    monkeypatch.setenv("NO_PROXY", "internal.example")
    open_installation(Settings(home=tmp_path))
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "internal.example,localhost,127.0.0.1,::1"


def test_an_address_that_is_none_is_said_and_not_raised() -> None:
    assert "No Dagster UI answers" in reload_code_location("http://[")

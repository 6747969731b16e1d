"""44 small pictures that are large once they are opened, at once: the server opens none, and others are answered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.gateway import start
from tests.support.hostile_pictures import as_many_scans_as_are_taken, empty_scans, png_grey16
from tunes_dagster.registry import Registry

AT_ONCE = 44
# One of them decoded is 88 MB or more, and what decoding needs beside it; what the server holds is the bodies.
MOST_GROWTH = 150_000_000
# An answer takes milliseconds; the largest of 23 s was while the server decoded.
MOST_SECONDS = 10.0


@dataclass
class Server:
    """A server in a process of its own."""

    process: psutil.Process
    address: str
    keys: dict[str, str]
    said: list[tuple[int, str]] = field(default_factory=list)

    def client(self, account: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.keys[account]}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=600)

    def upload(self, data: bytes) -> None:
        """Hand a picture in, and note the answer."""
        with self.client("bench") as client:
            answer = client.post("/images/inspect", data={"name": "woman"}, files={"file": ("a", data)})
            self.said.append((answer.status_code, answer.text))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    process, address, key = start(tmp_path)
    registry = Registry(f"sqlite:///{tmp_path / 'home' / 'registry.db'}")
    registry.accounts.add("other")
    registry.ledger.open_wallet("other", plan="house", requests_per_minute=10_000, sign_up_grant=10**9)
    keys = {"bench": key, "other": registry.keys.add("other")[1]}
    registry.close()
    try:
        yield Server(psutil.Process(process.pid), address, keys)
    finally:
        process.terminate()
        process.wait(60)


def test_many_hostile_pictures_at_once_cost_neither_the_server_nor_others(server: Server) -> None:
    """Four are opened, with 88 megapixels each; the others are refused by what stands in their headers."""
    files = [*[png_grey16(), as_many_scans_as_are_taken()] * 2, *[empty_scans()] * 40]
    assert len(files) == AT_ONCE and all(len(one) < 200_000 for one in files)
    with server.client("other") as other, ThreadPoolExecutor(AT_ONCE) as senders:
        other.get("/tunes").raise_for_status()
        rest, slowest, answered = server.process.memory_info().rss, 0.0, 0
        peak = rest
        sent = [senders.submit(server.upload, one) for one in files]
        while not all(one.done() for one in sent):
            began = time.monotonic()
            other.get("/tunes").raise_for_status()
            slowest, answered = max(slowest, time.monotonic() - began), answered + 1
            peak = max(peak, server.process.memory_info().rss)
            time.sleep(0.02)
    assert Counter(status for status, _ in server.said) == {200: 4, 422: 40}, server.said
    assert answered > 5 and slowest < MOST_SECONDS
    assert peak - rest < MOST_GROWTH, f"{(peak - rest) / 1e6:.0f} MB more"

"""Latency of the HTTP server at a fixed rate, and the rate at which it saturates; no pipeline runs beside it.

`python -m benchmarks.gateway` starts a server on the default SQLite registry, sends an open-loop load of 80 % reads
(requests are due on schedule whether or not earlier ones were answered), then raises the rate until the median exceeds
half a second or answers fall behind: `requests_per_s` is what it then answers. The last line is one JSON object; the
line before it says what a request costs in processor time, which does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil


def serve(port: int, key_file: Path) -> None:
    """Run the server of the installation that the environment names; used by `start` in a process of its own."""
    from tunes_dagster.core.settings import get_settings
    from tunes_dagster.gateway.app import create_app
    from tunes_dagster.gateway.serving import run
    from tunes_dagster.registry import open_registry

    registry = open_registry(get_settings())
    registry.accounts.add("bench")
    registry.ledger.open_wallet("bench", plan="house", requests_per_minute=10_000_000, sign_up_grant=10**15)
    key_file.write_text(registry.keys.add("bench")[1])
    run(create_app(get_settings()), port=port)


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str, str]:
    """Start a server in a fresh folder; return its process, address and a key."""
    import yaml

    base = folder / "base"
    base.mkdir()
    (base / "model_index.json").write_text("{}")  # only looked for, never loaded
    entry = {
        "repo_id": str(base),
        "licence": "none",
        "native_size": 128,
        "max_pixels": 65536,
        "memory_gb": 1,
        "token": "ohwx",
    }
    entries = {
        "tiny-sdxl": {**entry, "family": "sdxl", "embedded": "tiny-sdxl", "aliases": ["fast"]},
        "tiny-flux": {**entry, "family": "flux", "embedded": "tiny-flux"},
    }
    (folder / "catalog.yaml").write_text(yaml.safe_dump(entries))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "TUNES_HOME": str(folder / "home"), "TUNES_CATALOG": str(folder / "catalog.yaml")}
    call = f"serve({port}, Path({str(folder / 'key')!r}))"
    code = f"from pathlib import Path; from benchmarks.gateway import serve; {call}"
    process = subprocess.Popen([sys.executable, "-c", code], env=env)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{address}/v1/tunes/config").raise_for_status()
            return process, address, (folder / "key").read_text()
        except httpx.HTTPError:
            time.sleep(0.1)
    raise RuntimeError("The server did not start.")


class Lines:
    """Keep-alive connections that cost next to nothing, so that the load does not slow the server it measures."""

    def __init__(self, address: str, key: str) -> None:
        self.host, _, port = address.removeprefix("http://").partition(":")
        self.port = int(port)
        self.head = f"Host: {self.host}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, method: str, path: str, body: dict[str, object] | None = None) -> tuple[int, bytes]:
        """Send one request; return status and body."""
        raw = json.dumps(body).encode() if body else b""
        line = self.idle.pop() if self.idle else await asyncio.open_connection(self.host, self.port)
        reader, writer = line
        head = f"{method} {path} HTTP/1.1\r\n{self.head}Content-Length: {len(raw)}\r\n\r\n"
        writer.write(head.encode() + raw)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].partition(b"\r")[0])
        content = await reader.readexactly(length)
        self.idle.append(line)
        return int(answer.split(b" ", 2)[1]), content


@dataclass
class Load:
    """What one load saw: milliseconds from the moment a request was due, errors, answers per second."""

    times: list[float]
    errors: int
    rate: float


async def load(lines: Lines, rate: float, seconds: float, ids: list[str]) -> Load:
    """Make `rate` requests a second due for a while, whether or not earlier ones were answered."""
    times: list[float] = []
    errors = 0

    async def one(due: float) -> None:
        nonlocal errors
        try:
            if random.random() < 0.2 or not ids:
                body = {"model": "sdxl", "trigger_word": "ohwx", "steps": 1000, "rank": 16}
                status, answer = await lines.send("POST", "/v1/tunes/train", body)
                ids.append(json.loads(answer)["job_id"])
            else:
                path = random.choice(
                    [f"/v1/tunes/{random.choice(ids)}", "/tunes?limit=20", "/v1/account/balance"]
                )
                status, _answer = await lines.send("GET", path)
            errors += status >= 400
        except (OSError, KeyError, ValueError, asyncio.IncompleteReadError):
            errors += 1
        times.append((time.perf_counter() - due) * 1000)

    tasks, began = [], time.perf_counter()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    return Load(sorted(times), errors, len(times) / (time.perf_counter() - began))


async def measure(
    address: str, key: str, rate: float, seconds: float, ramp: bool, server: psutil.Process
) -> dict[str, float]:
    """Return the numbers of the last line."""
    lines, ids = Lines(address, key), list[str]()
    await load(lines, 10, 2, ids)  # connections, caches
    before = sum(server.cpu_times()[:2])
    seen = await load(lines, rate, seconds, ids)
    spent = (sum(server.cpu_times()[:2]) - before) * 1000 / len(seen.times)
    saturation = seen.rate
    while ramp:
        asked = saturation * 1.25
        step = await load(lines, asked, 3, ids)
        median = statistics.median(step.times)
        print(
            f"{asked:.0f} requests/s asked, {step.rate:.0f} answered: median {median:.0f} ms, {step.errors} errors"
        )
        if median > 500 or step.errors or step.rate < 0.9 * asked:
            saturation = max(saturation, step.rate if not step.errors else 0.0)
            break
        saturation = asked

    def share(percent: float) -> float:
        return round(seen.times[max(0, int(len(seen.times) * percent / 100) - 1)], 1)

    tail = ", ".join(f"{percent:g} % {share(percent)} ms" for percent in (90, 95, 99.9))
    print(f"{rate:g} requests/s for {seconds:g} s: {spent:.2f} ms of the server's CPU per request; {tail}")
    return {
        "p50_ms": share(50),
        "p99_ms": share(99),
        "requests_per_s": round(saturation, 1),
        "errors": seen.errors,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--no-ramp", action="store_true", help="leave the saturation point out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, address, key = start(Path(folder))
        try:
            server = psutil.Process(process.pid)
            numbers = asyncio.run(
                measure(address, key, options.rate, options.seconds, not options.no_ramp, server)
            )
        finally:
            process.terminate()
            process.wait(10)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()

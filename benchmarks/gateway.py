"""Latency of the HTTP server at a fixed rate, and the rate at which it saturates; no pipeline runs beside it.

`python -m benchmarks.gateway` starts a server on the default SQLite registry, sends an open-loop load of 80 % reads
(requests start on schedule whether or not earlier ones were answered), then raises the rate until the median exceeds
half a second. The last line is one JSON object.
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
from pathlib import Path

import httpx


def serve(port: int, key_file: Path) -> None:
    """Run the server of the installation that the environment names; used by `start` in a process of its own."""
    import uvicorn

    from tunes_dagster.gateway.app import create_app
    from tunes_dagster.registry import open_registry
    from tunes_dagster.settings import get_settings

    registry = open_registry(get_settings())
    registry.add_account("bench")
    registry.open_wallet("bench", plan="house", requests_per_minute=10_000_000, sign_up_grant=10**15)
    key_file.write_text(registry.add_key("bench")[1])
    uvicorn.run(create_app(get_settings()), port=port, log_level="warning", access_log=False)


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str, str]:
    """Start a server in a fresh folder; return its process, address and a key."""
    import yaml

    base = folder / "base"
    base.mkdir()
    (base / "model_index.json").write_text("{}")  # only looked for, never loaded
    entry = {"family": "sdxl", "repo_id": str(base), "licence": "none", "native_size": 128, "max_pixels": 65536,
             "memory_gb": 1, "embedded": "tiny-sdxl", "token": "ohwx", "aliases": ["fast"]}  # fmt: skip
    (folder / "catalog.yaml").write_text(yaml.safe_dump({"tiny-sdxl": entry}))
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


async def load(
    client: httpx.AsyncClient, rate: float, seconds: float, ids: list[str]
) -> tuple[list[float], int]:
    """Send `rate` requests a second for a while; return latencies in milliseconds and the number of errors."""
    times: list[float] = []
    errors = 0

    async def one() -> None:
        nonlocal errors
        began = time.perf_counter()
        try:
            if random.random() < 0.2 or not ids:
                body = {"model": "sdxl", "trigger_word": "ohwx", "steps": 1000, "rank": 16}
                answer = await client.post("/v1/tunes/train", json=body)
                ids.append(answer.json()["job_id"])
            else:
                path = random.choice(
                    [f"/v1/tunes/{random.choice(ids)}", "/tunes?limit=20", "/v1/account/balance"]
                )
                answer = await client.get(path)
            errors += answer.status_code >= 400
        except (httpx.HTTPError, KeyError, ValueError):
            errors += 1
        times.append((time.perf_counter() - began) * 1000)

    tasks, began = [], time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return times, errors


async def measure(address: str, key: str, rate: float, seconds: float, ramp: bool) -> dict[str, float]:
    """Return the numbers of the last line."""
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
    headers, ids = {"Authorization": f"Bearer {key}"}, list[str]()
    async with httpx.AsyncClient(base_url=address, headers=headers, limits=limits, timeout=30) as client:
        await load(client, 10, 2, ids)  # connections, caches
        times, errors = await load(client, rate, seconds, ids)
        saturation = rate
        while ramp:
            step, failed = await load(client, saturation * 1.5, 3, ids)
            print(
                f"{saturation * 1.5:.0f} requests/s: median {statistics.median(step):.0f} ms, {failed} errors"
            )
            if statistics.median(step) > 500 or failed:
                break
            saturation *= 1.5
    ordered = sorted(times)
    return {
        "p50_ms": round(statistics.median(ordered), 1),
        "p99_ms": round(ordered[int(len(ordered) * 0.99) - 1], 1),
        "requests_per_s": round(saturation, 1),
        "errors": errors,
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
            numbers = asyncio.run(measure(address, key, options.rate, options.seconds, not options.no_ramp))
        finally:
            process.terminate()
            process.wait(10)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()

"""Peak memory of the HTTP server while large bodies arrive, several at once.

`python -m benchmarks.gateway_memory` starts a server on a fresh registry and sends it datasets as base64 in JSON bodies
of `--megabytes`, `--at-once` of them together. The last line is one JSON object: what the server's memory was before
(`rest_mb`), the most it was (`peak_mb`), and how long small requests took meanwhile (`small_p99_ms`).
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from benchmarks.gateway import start

_PATH = "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request"


def body(megabytes: float) -> Iterator[bytes]:
    """Yield a JSON body with a dataset in it, piece by piece, so that the sender needs no memory either."""
    piece = base64.b64encode(b"PK\x03\x04" + os.urandom(48 * 1024 - 4))
    yield b'{"steps": 100, "image_data_url": "'
    for _ in range(int(megabytes * 2**20 / len(piece))):
        yield piece
    yield b'"}'


def send(address: str, key: str, megabytes: float) -> int:
    """Send one body and return the status of the answer."""
    headers = {"Ocp-Apim-Subscription-Key": key, "Content-Type": "application/json"}
    return httpx.post(address + _PATH, content=body(megabytes), headers=headers, timeout=600).status_code


def watch(
    process: psutil.Process, address: str, key: str, stop: threading.Event, seen: dict[str, list[float]]
) -> None:
    """Note the server's memory, and how long a small request takes, until told to stop."""
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        while not stop.wait(0.05):
            seen["mb"].append(process.memory_info().rss / 2**20)
            began = time.perf_counter()
            client.get("/v1/account/balance").raise_for_status()
            seen["ms"].append((time.perf_counter() - began) * 1000)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--at-once", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, address, key = start(Path(folder))
        try:
            server, stop = psutil.Process(process.pid), threading.Event()
            send(address, key, 1)
            rest = server.memory_info().rss / 2**20
            seen: dict[str, list[float]] = {"mb": [], "ms": []}
            watcher = threading.Thread(target=watch, args=(server, address, key, stop, seen))
            watcher.start()
            began = time.perf_counter()
            with ThreadPoolExecutor(options.at_once) as pool:
                codes = list(
                    pool.map(lambda _: send(address, key, options.megabytes), range(options.at_once))
                )
            seconds = time.perf_counter() - began
            stop.set()
            watcher.join()
        finally:
            process.terminate()
            process.wait(30)
    times = sorted(seen["ms"])
    print(
        json.dumps(
            {
                "bodies": options.at_once,
                "megabytes": options.megabytes,
                "answers": sorted(set(codes)),
                "seconds": round(seconds, 1),
                "rest_mb": round(rest),
                "peak_mb": round(max(seen["mb"])),
                "small_p99_ms": round(times[int(len(times) * 0.99) - 1], 1),
            }
        )
    )


if __name__ == "__main__":
    main()

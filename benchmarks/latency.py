"""How long a caller waits beside what computing takes: `tunes dev` on a fresh home, with sessions.

`python -m benchmarks.latency` posts pictures to the HTTP server, cold, warm, on two bases in turn, and while a tune
trains. From the time to `completed` it takes what the same picture's denoising and decoding take in one process, which
is measured first and on the same cores. Run it on a machine that does nothing else: waits grow with its load. The last
line is one JSON object.

Not measured here: callbacks, `ready_vs_inprocess`, `training_slowdown`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

STEPS = 20
_PATIENCE_SECONDS = 600.0
_CALL = "from tunes_dagster.cli import main; raise SystemExit(main())"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def installation(home: Path, device: str) -> Iterator[House]:
    """Run `tunes dev` with sessions in a fresh home for the while."""
    api = free_port()
    env = {
        **os.environ,
        "TUNES_HOME": str(home),
        "TUNES_SESSIONS": "true",
        "TUNES_DEVICE": device,
        "TUNES_KEEP_WARM_SECONDS": "600",
    }
    command = [sys.executable, "-c", _CALL, "dev", "--port", str(free_port()), "--api-port", str(api)]
    with (home.parent / "dev.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            yield House(home, f"http://127.0.0.1:{api}", process)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


class House:
    """The installation that is measured.

    Args:
        home: Its folder.
        address: Of its HTTP server.
        process: `tunes dev`.
    """

    def __init__(self, home: Path, address: str, process: subprocess.Popen[bytes]) -> None:
        from tunes_dagster.core.settings import Settings
        from tunes_dagster.service.installation import Installation

        self.process = process
        self.client = httpx.Client(base_url=address, timeout=60)
        self._until(self._answers, "the HTTP server")
        self.whole = Installation(Settings(home=home))
        rows = self.whole.registry
        rows.accounts.add("bench")
        rows.ledger.open_wallet("bench", plan="house", requests_per_minute=1_000_000, sign_up_grant=10**15)
        self.client.headers["Authorization"] = f"Bearer {rows.keys.add('bench')[1]}"

    def _answers(self) -> bool:
        try:
            return self.client.get("/v1/tunes/config").is_success
        except httpx.HTTPError:
            return False

    def _until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"Waited in vain for {what}.")
            time.sleep(0.01)

    def post(self, seed: int, model: str) -> str:
        """Ask for a picture; returns its id."""
        asked = {"prompt": "a photo of a red mug on a table", "seed": seed, "steps": STEPS, "model": model}
        answer = self.client.post("/v1/image/generate", json=asked)
        answer.raise_for_status()
        return str(answer.json()["generation_id"])

    def done(self, generation_id: str) -> None:
        """Wait until a picture can be fetched."""

        def ended() -> bool:
            status = self.client.get(f"/v1/image/{generation_id}").json()["status"]
            if status == "failed":
                raise SystemExit("A picture failed.")
            return bool(status == "completed")

        self._until(ended, "a picture")

    def picture(self, seed: int, model: str) -> float:
        """Return the seconds from the request to the picture."""
        began = time.monotonic()
        self.done(self.post(seed, model))
        return time.monotonic() - began

    def train(self, steps: int) -> str:
        """Hand in a tune; returns its id."""
        from tests.support.houses import draw_pictures
        from tunes_dagster.core.recipe import TuneRequest
        from tunes_dagster.service.submit import submit_tune

        folder = draw_pictures(Path(tempfile.mkdtemp()), 5)
        request = TuneRequest.model_validate(
            {"name": "mug", "sources": {"folder": str(folder)}, "training": {"steps": steps}}
        )
        whole = self.whole
        tune = submit_tune(whole, request, allow_folder=str(folder))
        return tune.id

    def until_step(self, tune_id: str) -> None:
        """Wait until a tune trains."""

        def trains() -> bool:
            row = self.whole.registry.tunes.get(tune_id)
            if row.status in ("failed", "ready"):
                raise SystemExit(f"The tune is {row.status}: {row.failure_message}")
            return row.phase == "training" and row.step > 0

        self._until(trains, "the first training step")

    def resting(self, seconds: float = 20.0) -> tuple[float, float]:
        """Return the cores and GiB that everything takes while nothing is done."""
        family = [
            psutil.Process(self.process.pid),
            *psutil.Process(self.process.pid).children(recursive=True),
        ]
        before = sum(sum(one.cpu_times()[:2]) for one in family)
        time.sleep(seconds)
        after = sum(sum(one.cpu_times()[:2]) for one in family)
        return (after - before) / seconds, sum(one.memory_info().rss for one in family) / 2**30


def computing_seconds(device: str) -> float:
    """Return what denoising and decoding one picture take in a process that does nothing else."""
    import torch

    from tunes_dagster.core.settings import Settings
    from tunes_dagster.families.base import load_family
    from tunes_dagster.service.installation import Installation

    with Installation(Settings(home=Path(tempfile.mkdtemp()), device=device)) as whole:
        entry, folder = whole.usable("fast")
        base = load_family(entry, folder, "cpu" if device == "auto" else device)
    side = base.native_side
    text = base.encode_text(["a photo of a red mug on a table"])
    times = []
    for _ in range(5):
        noise = torch.randn(1, *base.latent_shape(side, side))
        began = time.monotonic()
        base.decode(base.sample(text, noise, side, side, STEPS, 4.0))
        times.append(time.monotonic() - began)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--base", default="sdxl", help="model that the HTTP API is asked for")
    parser.add_argument("--other", default="flux-schnell", help="the second base, for switching")
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--steps", type=int, default=600, help="of the tune that trains meanwhile")
    asked = parser.parse_args()
    computing = computing_seconds(asked.device)
    said: dict[str, float] = {"computing_s": round(computing, 3)}
    with tempfile.TemporaryDirectory() as folder, installation(Path(folder) / "home", asked.device) as house:
        cores, gib = house.resting()
        said |= {"idle_cpu": round(cores, 3), "idle_gb": round(gib, 2)}
        said["cold_overhead_s"] = round(house.picture(0, asked.base) - computing, 2)
        waits = sorted(house.picture(seed, asked.base) - computing for seed in range(1, asked.pictures + 1))
        said["idle_overhead_p50_s"] = round(statistics.median(waits), 2)
        said["idle_overhead_p95_s"] = round(waits[int(0.95 * (len(waits) - 1) + 0.5)], 2)
        said["warm_gb"] = round(house.resting(2.0)[1], 2)
        house.picture(50, asked.other)
        said["switch_overhead_s"] = round(house.picture(51, asked.base) - computing, 2)
        burst, began = [house.post(seed, asked.base) for seed in range(100, 132)], time.monotonic()
        for one in burst:
            house.done(one)
        said["burst_32_s"] = round(time.monotonic() - began, 2)
        began = time.monotonic()
        house.until_step(house.train(asked.steps))
        said["first_step_s"] = round(time.monotonic() - began, 2)
        waits = [house.picture(seed, asked.base) - computing for seed in range(200, 205)]
        said["training_overhead_p50_s"] = round(statistics.median(waits), 2)
    print(json.dumps(said))


if __name__ == "__main__":
    main()

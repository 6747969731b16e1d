"""How long a caller waits beside what computing takes: `tunes dev` on a fresh home, with sessions.

`python -m benchmarks.latency` posts pictures to the HTTP server, cold, warm, on two bases in turn, and while a tune
trains. From the time to `completed` it takes what the same picture's denoising and decoding take in one process, which
is measured first and on the same cores; so are a whole tune (`ready_vs_inprocess`) and a mixed batch of
`benchmarks.render` (`burst_32_ratio`). Run it on a machine that does nothing else: waits grow with its load. The last
line is one JSON object. `--quick` shows that it works; its figures mean little.
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil

STEPS = 20
_PATIENCE_SECONDS = 600.0
# Between two looks whether something has ended: each is a request or a query, which takes from the cores that compute.
_LOOK_SECONDS = 0.05
_CALL = "from tunes_dagster.cli import main; raise SystemExit(main())"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def installation(home: Path, device: str) -> Iterator[House]:
    """Run `tunes dev` with sessions in a fresh home for the while."""
    api, shown = free_port(), free_port()
    env = {
        **os.environ,
        "TUNES_HOME": str(home),
        "TUNES_SESSIONS": "true",
        "TUNES_DEVICE": device,
        "TUNES_KEEP_WARM_SECONDS": "600",
        "TUNES_ALLOW_HOSTS": '["127.0.0.1"]',
    }
    command = [sys.executable, "-c", _CALL, "dev", "--port", str(shown), "--api-port", str(api)]
    with (home.parent / "dev.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            yield House(home, f"http://127.0.0.1:{api}", f"http://127.0.0.1:{shown}", process)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


class Receiver:
    """Hears callbacks, and remembers when."""

    def __init__(self) -> None:
        self.heard: dict[int, float] = {}
        heard = self.heard

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                heard.setdefault(int(self.path.rpartition("/")[2]), time.time())
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()


def hand_in(whole: Any, steps: int) -> str:
    """Hand in a tune of five drawn pictures; returns its id."""
    from tests.support.houses import draw_pictures
    from tunes_dagster.core.recipe import TuneRequest
    from tunes_dagster.service.submit import submit_tune

    folder = draw_pictures(Path(tempfile.mkdtemp()), 5)
    request = TuneRequest.model_validate(
        {"name": "mug", "sources": {"folder": str(folder)}, "training": {"steps": steps}}
    )
    return submit_tune(whole, request, allow_folder=str(folder)).id


class House:
    """The installation that is measured.

    Args:
        home: Its folder.
        address: Of its HTTP server.
        shown: Of Dagster's UI, the last of its parts to answer.
        process: `tunes dev`.
    """

    def __init__(self, home: Path, address: str, shown: str, process: subprocess.Popen[bytes]) -> None:
        from tunes_dagster.core.settings import Settings
        from tunes_dagster.service.installation import Installation

        self.process = process
        self.client = httpx.Client(base_url=address, timeout=60)
        self._until(self._answers, "the HTTP server")
        self._until(lambda: self._answers(f"{shown}/server_info"), "Dagster's UI")
        self.whole = Installation(Settings(home=home, allow_hosts=["127.0.0.1"]))
        rows = self.whole.registry
        rows.accounts.add("bench")
        rows.ledger.open_wallet("bench", plan="house", requests_per_minute=1_000_000, sign_up_grant=10**15)
        self.client.headers["Authorization"] = f"Bearer {rows.keys.add('bench')[1]}"

    def _answers(self, address: str = "/v1/tunes/config") -> bool:
        try:
            return self.client.get(address).is_success
        except httpx.HTTPError:
            return False

    def _until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"Waited in vain for {what}.")
            time.sleep(_LOOK_SECONDS)

    def post(self, seed: int, model: str, steps: int = STEPS) -> str:
        """Ask for a picture; returns its id."""
        asked = {"prompt": "a photo of a red mug on a table", "seed": seed, "steps": steps, "model": model}
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

    def picture(self, seed: int, model: str, steps: int = STEPS) -> float:
        """Return the seconds from the request to the picture."""
        began = time.monotonic()
        self.done(self.post(seed, model, steps))
        return time.monotonic() - began

    def train(self, steps: int) -> str:
        """Hand in a tune; returns its id."""
        return hand_in(self.whole, steps)

    def prompt(self, tune: str | None, seed: int, steps: int = STEPS, callback_url: str | None = None) -> str:
        """Queue a prompt as the APIs do, with what they do not all offer; returns its id."""
        from tunes_dagster.core.recipe import PromptRequest
        from tunes_dagster.service.submit import submit_prompt

        settings = {"seed": seed, "steps": steps}
        asked = {
            "text": "a photo of a red mug on a table",
            "settings": settings,
            "callback_url": callback_url,
        }
        asked |= {"base": "fast"} if tune is None else {"tune": tune}
        return submit_prompt(self.whole, PromptRequest.model_validate(asked)).id

    def prompts_done(self, ids: list[str]) -> None:
        """Wait until prompts have their pictures."""
        rows, waiting = self.whole.registry.prompts, list(ids)

        def ended() -> bool:
            while waiting:
                status = rows.get(waiting[-1]).status
                if status == "failed":
                    raise SystemExit("A prompt failed.")
                if status != "done":
                    return False
                waiting.pop()
            return True

        self._until(ended, "prompts")

    def ready(self, tune_id: str) -> None:
        """Wait until a tune can be used."""

        def ended() -> bool:
            row = self.whole.registry.tunes.get(tune_id)
            if row.status == "failed":
                raise SystemExit(f"The tune failed: {row.failure_message}")
            return row.status == "ready"

        self._until(ended, "a tune")

    def trains(self, tune_id: str) -> bool:
        """Whether a tune is not trained yet."""
        return self.whole.registry.tunes.get(tune_id).status in ("training", "prepared")

    def callbacks(self, count: int) -> list[float]:
        """Return the seconds from the end of each of some prompts until its receiver has heard of it."""
        receiver = Receiver()
        asked = {
            self.prompt(None, 300 + number, 1, f"{receiver.url}/{number}"): number for number in range(count)
        }
        self._until(lambda: len(receiver.heard) >= count, "callbacks")
        receiver.server.shutdown()
        ends = {one: self.whole.registry.prompts.get(one).done_at for one in asked}
        return sorted(receiver.heard[number] - ends[one].timestamp() for one, number in asked.items())

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


def in_process(steps: int) -> None:
    """Print the seconds of a tune from accepted to ready when this process does everything."""
    from tunes_dagster.core.settings import Settings
    from tunes_dagster.pipeline.inprocess import drive
    from tunes_dagster.service.installation import Installation

    with Installation(Settings(), works=True) as whole:
        began, tune = time.monotonic(), hand_in(whole, steps)
        drive(whole, lambda: whole.registry.tunes.get(tune).status in ("ready", "failed"))
        print(json.dumps({"seconds": time.monotonic() - began}))


def in_process_seconds(steps: int, device: str) -> float:
    """Return what `in_process` prints in a process and a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "TUNES_HOME": home, "TUNES_DEVICE": device, "TUNES_SESSIONS": "false"}
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.latency", "--in-process", str(steps)]
        said = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, text=True).stdout
        return float(json.loads(said.splitlines()[-1])["seconds"])


def mixed_seconds(device: str, prompts: int) -> tuple[float, int]:
    """Return `benchmarks.render`'s time for prompts of eight tunes in a mixed batch, and the steps of each."""
    from benchmarks.render import cases, embedded, timed

    asked = argparse.Namespace(base="tiny-sdxl", device="cpu" if device == "auto" else device, steps=0)
    with tempfile.TemporaryDirectory() as folder:
        bench = embedded(Path(folder), asked)
        return timed(bench, cases(8, prompts), ["mixed"], 1)["mixed"], bench.steps


def burst(house: House, device: str, prompts: int) -> dict[str, float]:
    """Return what it takes to render a burst of prompts of eight tunes, and over one process's mixed batch."""
    mixed, steps = mixed_seconds(device, prompts)
    tunes = [house.train(1) for _ in range(8)]
    for tune in tunes:
        house.ready(tune)
    began = time.monotonic()
    house.prompts_done([house.prompt(tunes[number % 8], number, steps) for number in range(prompts)])
    seconds = time.monotonic() - began
    return {"burst_32_s": round(seconds, 2), "burst_32_ratio": round(seconds / mixed, 2)}


class Said(dict[str, float]):
    """What was measured; each figure is told as it comes, so that what ends early has not measured for nothing."""

    def tell(self, **figures: float) -> None:
        """Keep some figures and tell them."""
        self.update(figures)
        sys.stderr.write(f"{json.dumps(figures)}\n")


def beside_training(house: House, asked: argparse.Namespace, computing: float, said: Said) -> None:
    """Tell how a tune fares alone and with a picture every `every` seconds, and how these do."""
    began = time.monotonic()
    alone = house.train(asked.steps)
    house.until_step(alone)
    said.tell(first_step_s=round(time.monotonic() - began, 2))
    first = time.monotonic()
    while house.trains(alone):
        time.sleep(_LOOK_SECONDS)
    quiet = time.monotonic() - first
    house.ready(alone)
    ready = time.monotonic() - began
    said.tell(ready_vs_inprocess=round(ready / in_process_seconds(asked.steps, asked.device), 2))

    busy, waits = house.train(asked.steps), []
    house.until_step(busy)
    first = time.monotonic()
    while house.trains(busy):
        if time.monotonic() - first >= asked.every * len(waits):
            waits.append(house.picture(200 + len(waits), asked.base) - computing)
        time.sleep(_LOOK_SECONDS)
    slowdown = (time.monotonic() - first) / (quiet + len(waits) * computing)
    said.tell(
        training_slowdown=round(slowdown, 2), training_overhead_p50_s=round(statistics.median(waits), 2)
    )
    house.ready(busy)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--base", default="sdxl", help="model that the HTTP API is asked for")
    parser.add_argument("--other", default="flux-schnell", help="the second base, for switching")
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--steps", type=int, default=600, help="of the tune that trains meanwhile")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two pictures meanwhile")
    parser.add_argument("--quick", action="store_true", help="few and small: figures mean little")
    parser.add_argument("--in-process", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.in_process:
        in_process(asked.in_process)
        return
    if asked.quick:
        asked.pictures, asked.steps, asked.every = 3, 30, 2.0
    computing = computing_seconds(asked.device)
    said = Said()
    said.tell(computing_s=round(computing, 3))
    with tempfile.TemporaryDirectory() as folder, installation(Path(folder) / "home", asked.device) as house:
        cores, gib = house.resting()
        said.tell(idle_cpu=round(cores, 3), idle_gb=round(gib, 2))
        said.tell(cold_overhead_s=round(house.picture(0, asked.base) - computing, 2))
        waits = sorted(house.picture(seed, asked.base) - computing for seed in range(1, asked.pictures + 1))
        high = waits[int(0.95 * (len(waits) - 1) + 0.5)]
        said.tell(idle_overhead_p50_s=round(statistics.median(waits), 2), idle_overhead_p95_s=round(high, 2))
        said.tell(warm_gb=round(house.resting(2.0)[1], 2))
        house.picture(50, asked.other, steps=4)  # distilled bases take few
        said.tell(switch_overhead_s=round(house.picture(51, asked.base) - computing, 2))
        said.tell(callback_p50_s=round(statistics.median(house.callbacks(asked.pictures)), 2))
        said.tell(**burst(house, asked.device, 8 if asked.quick else 32))
        beside_training(house, asked, computing, said)
    print(json.dumps(said))


if __name__ == "__main__":
    main()

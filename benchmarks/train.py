"""Measures how fast tunes train: one against the usual example loop, a cohort against one after another, memory.

    python -m benchmarks.train [--quick] [--script train_dreambooth_lora_sdxl.py] [--base tiny-sdxl]
    python -m benchmarks.train --full-size sdxl|flux --device cuda

Everything is measured in processes of its own, on the same pictures, captions, rank, batch size, resolution and
steps, prior preservation off, nothing cached beforehand:

- single_vs_plain: seconds from the loaded base to the written weights of one tune (batch 1, a caption per picture),
  of a plain loop that encodes pictures and captions in every step with peft's LoRA, over ours;
- single_vs_script: wall clock of the whole process of diffusers' own script over ours; null without `--script`;
- cohort8_vs_sequential: eight tunes in eight processes one after another over one process with a cohort of eight;
- cohort8_vs_loaded_once: eight tunes one after another in one process over that cohort;
- cohort8_memory_ratio: peak memory of the cohort's process over that of one tune's.

Ratios above 1 are how many times faster ours is. The table shows CPU seconds beside the wall clock: on a machine
that others use too, they are what to compare. The last line is one JSON object. `--full-size` measures seconds
per step of the loop on random weights of the real size instead; see `benchmarks/full_size.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Measured:
    """What one process took.

    Attributes:
        wall: Seconds from its start to its end.
        cpu: CPU seconds, user and system.
        peak: Bytes of memory at its peak: resident, or of the GPU when there is one.
        said: What it printed as its last line, JSON.
    """

    wall: float
    cpu: float
    peak: float
    said: dict[str, Any]

    @property
    def training(self) -> float:
        """Seconds without start-up and loading."""
        return float(self.said.get("training", self.wall))


def measure(worker: str, arguments: argparse.Namespace, folder: Path, *more: str) -> Measured:
    """Run a worker of `train_workers.py` (or the script) in a process of its own.

    Raises:
        SystemExit: With the end of its output, when it fails.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.train_workers",
        worker,
        "--base",
        arguments.base,
        "--rank",
        str(arguments.rank),
        "--device",
        arguments.device,
        "--folder",
        str(folder),
        *more,
    ]
    environment = {**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        lines, complaint = out.read().decode().splitlines(), err.read().decode()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{complaint[-3000:]}")
    said = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    peak = said.get("gpu_peak") or usage.ru_maxrss * 1024
    return Measured(wall, usage.ru_utime + usage.ru_stime, peak, said)


class Bench:
    """The measurements of one run; each is repeated and the fastest one counts."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder, self._count = arguments, folder, 0

    def best(self, *specs: tuple[str, ...]) -> list[Measured]:
        """Measure workers in turns, `--repeat` times, and return the fastest of each."""
        found: list[Measured | None] = [None] * len(specs)
        for _ in range(self.arguments.repeat):
            for i, (worker, *more) in enumerate(specs):
                one = self._fresh(worker, *more)
                before = found[i]
                found[i] = one if before is None or one.wall < before.wall else before
        return [one for one in found if one is not None]

    def _fresh(self, worker: str, *more: str) -> Measured:
        self._count += 1
        place = self.folder / str(self._count)
        place.mkdir()
        return measure(worker, self.arguments, place, *more)

    def total(self, worker: str, tunes: int, *more: str) -> Measured:
        """Measure processes with one tune each, one after another, on one store."""
        place = self.folder / "sequence"
        place.mkdir()
        parts = [
            measure(worker, self.arguments, place, "--first", str(number), *more) for number in range(tunes)
        ]
        return Measured(
            sum(one.wall for one in parts), sum(one.cpu for one in parts), max(one.peak for one in parts), {}
        )


def show(label: str, one: Measured, steps: int) -> None:
    """Print a line of the table."""
    loading = one.wall - one.training if one.said else 0.0
    each = 1000 * one.training / steps
    print(
        f"{label:42} {one.wall:8.1f} s wall {loading:7.1f} s start-up {each:8.1f} ms a step "
        f"{one.cpu:8.1f} s CPU {one.peak / 2**20:7.0f} MiB",
        flush=True,
    )


def compare_single(bench: Bench, arguments: argparse.Namespace) -> dict[str, float | None]:
    """Return the ratios of (a)."""
    steps = ("--steps", str(arguments.steps))
    specs: list[tuple[str, ...]] = [("ours", *steps), ("plain", *steps)]
    if arguments.script:
        specs.append(("script", *steps, "--script", str(arguments.script)))
    ours, plain, *script = bench.best(*specs)
    print(f"\nOne tune, batch 1, {arguments.steps} steps")
    show("  ours", ours, arguments.steps)
    show("  plain loop, encoding in every step", plain, arguments.steps)
    for one in script:
        show(f"  {arguments.script.name}", one, arguments.steps)
    print(f"  CPU seconds: plain / ours {plain.cpu / ours.cpu:.2f}", end="")
    print(f", script / ours {script[0].cpu / ours.cpu:.2f}" if script else "")
    return {
        "single_vs_plain": plain.training / ours.training,
        "single_vs_script": script[0].wall / ours.wall if script else None,
    }


def compare_cohort(bench: Bench, arguments: argparse.Namespace) -> dict[str, float | None]:
    """Return the ratios of (b) and (c)."""
    tunes, steps = arguments.tunes, ("--steps", str(arguments.cohort_steps))
    many = ("--tunes", str(tunes), *steps)
    cohort, once, one = bench.best(("ours", *many), ("loaded-once", *many), ("ours", *steps))
    print(f"\n{tunes} tunes, batch 1 each, {arguments.cohort_steps} steps")
    show("  a cohort in one process", cohort, arguments.cohort_steps)
    show("  one process, one after another", once, arguments.cohort_steps * tunes)
    show("  one tune alone", one, arguments.cohort_steps)
    sequential = None
    if not arguments.quick:
        sequential = bench.total("ours", tunes, *steps)
        show("  a process each, one after another", sequential, arguments.cohort_steps * tunes)
    print(f"  CPU seconds: loaded once / cohort {once.cpu / cohort.cpu:.2f}", end="")
    print(f", sequential / cohort {sequential.cpu / cohort.cpu:.2f}" if sequential else "")
    return {
        "cohort8_vs_sequential": sequential.wall / cohort.wall if sequential else None,
        "cohort8_vs_loaded_once": once.wall / cohort.wall,
        "cohort8_memory_ratio": cohort.peak / one.peak,
    }


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="How fast tunes train.")
    parser.add_argument("--base", default="tiny-sdxl", help="id in the catalog")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400, help="of the single tune")
    parser.add_argument("--cohort-steps", type=int, default=200, help="of each tune of the cohort")
    parser.add_argument("--tunes", type=int, default=8, help="in the cohort")
    parser.add_argument("--repeat", type=int, default=1, help="times; the fastest counts")
    parser.add_argument(
        "--script", type=Path, help="diffusers' train_dreambooth_lora_sdxl.py, to compare with"
    )
    parser.add_argument("--only", choices=["single", "cohort"], help="measure one half")
    parser.add_argument(
        "--quick", action="store_true", help="60 and 30 steps, and no process per tune: only a look"
    )
    parser.add_argument("--full-size", choices=["sdxl", "flux"], help="random weights of this size instead")
    parser.add_argument("--small", action="store_true", help="with --full-size: a toy of the same class")
    parser.add_argument(
        "--peak-tflops",
        type=float,
        default=790.0,
        help="with --full-size: bf16 rate of the device (H200: 790)",
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments = argparse.Namespace(**{**vars(arguments), "steps": 60, "cohort_steps": 30})
    return arguments


def main() -> None:
    """Measure and print; the last line is JSON."""
    arguments = parse()
    if arguments.full_size:
        from benchmarks.full_size import measure_full_size

        print(json.dumps(measure_full_size(arguments)))
        return
    found: dict[str, float | None] = dict.fromkeys(
        (
            "single_vs_plain",
            "single_vs_script",
            "cohort8_vs_sequential",
            "cohort8_vs_loaded_once",
            "cohort8_memory_ratio",
        )
    )
    with tempfile.TemporaryDirectory(prefix="tunes-train-") as folder:
        bench = Bench(arguments, Path(folder))
        if arguments.only != "cohort":
            found |= compare_single(bench, arguments)
        if arguments.only != "single":
            found |= compare_cohort(bench, arguments)
    load = os.getloadavg()[0]
    print(f"\nLoad of the machine at the end: {load:.1f} on {os.cpu_count()} cores.")
    print(json.dumps({name: None if value is None else round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()

"""Seconds per step of the training loop on bases of released sizes with random weights, for `benchmarks.train`.

    python -m benchmarks.train --full-size sdxl --device cuda     SDXL 1.0, 1024², rank 16, bfloat16
    python -m benchmarks.train --full-size flux --device cuda     FLUX.1 dev, the same
    python -m benchmarks.train --full-size sdxl --small           a toy of the same classes, anywhere

Trains one tune and a cohort with the product's loop, leaves out the first fifth as warm-up, and prints for each the
seconds per step, the share of what the device can compute at most (FLOPs of a step, as torch counts them, over
`--peak-tflops`), and the memory at its peak. The arithmetic of random weights is that of real ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from typing import Any

from tunes_dagster.core.failures import Cancelled
from tunes_dagster.core.progress import Silent

PICTURES = 4
# The loop reports a hundredth of the steps at a time; this many make the reports as rare as in a real tune.
NOMINAL_STEPS = 1000


class Stopwatch(Silent):
    """Takes the time at each report and stops the tune after enough steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.moments = steps, list[tuple[int, float]]()

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Note when a step was done; the loop has just read its loss, so the device is through with it."""
        if "loss" in numbers:
            self.moments.append((done, time.perf_counter()))

    def check_cancelled(self) -> None:
        """Stop after the last step."""
        if self.moments and self.moments[-1][0] >= self.steps:
            raise Cancelled

    def seconds_per_step(self) -> float:
        """Return the mean over all but the first fifth."""
        rest = [moment for moment in self.moments if moment[0] >= self.steps / 5]
        (first, since), (last, until) = rest[0], rest[-1]
        return (until - since) / (last - first)


def measure_full_size(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; returns what the last line says."""
    import torch

    from benchmarks.render_models import random_base

    size = f"tiny-{arguments.full_size}" if arguments.small else arguments.full_size
    base, side, _ = random_base(size, arguments.device, None)
    cuda = base.device.type == "cuda"
    steps = max(30, 10 * (arguments.steps // 10)) if arguments.quick else 200
    found: dict[str, Any] = {"base": size, "device": str(base.device), "dtype": str(base.dtype), "side": side}
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(folder, arguments.tunes, side, arguments.rank)
        flops = count_flops(base, folder, jobs[0])
        for count in (1, arguments.tunes):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            seconds = time_steps(base, folder, jobs[:count], steps)
            limit = count * flops / (arguments.peak_tflops * 1e12)
            memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
            said = f"{memory:.1f} GiB" if memory else "memory not counted"
            print(
                f"{count} tunes: {1000 * seconds:.1f} ms a step, limit {1000 * limit:.2f} ms, {said}",
                flush=True,
            )
            found[f"seconds_per_step_{count}"] = round(seconds, 5)
            found[f"share_of_limit_{count}"] = round(limit / seconds, 4) if cuda else None
            found[f"peak_gib_{count}"] = round(memory, 2) if memory else None
    found["tflop_per_step"] = round(flops / 1e12, 4)
    found["cohort_gain"] = round(
        arguments.tunes * found["seconds_per_step_1"] / found[f"seconds_per_step_{arguments.tunes}"], 3
    )
    return found


def make_jobs(folder: str, count: int, side: int, rank: int) -> list[Any]:
    """Return tunes on pictures of noise, batch 1, attention layers, prior preservation off."""
    import io

    from PIL import Image

    from tunes_dagster.core.recipe import TrainingOptions
    from tunes_dagster.core.store import Store
    from tunes_dagster.training.jobs import TrainExample, TuneJob

    store = Store(folder)
    jobs = []
    for number in range(count):
        items = []
        for i in range(PICTURES):
            data = io.BytesIO()
            Image.effect_noise((side, side), 60 + PICTURES * number + i).convert("RGB").save(data, "PNG")
            key = store.write_blob(data.getvalue(), ".png")
            items.append(TrainExample(key=key, caption=f"a photo of ohwx thing {i}", bucket=(side, side)))
        options = TrainingOptions(
            steps=NOMINAL_STEPS,
            rank=rank,
            learning_rate=1e-4,
            lr_schedule="constant",
            warmup_steps=0,
            batch_size=1,
            resolution=side,
            targets="attention",
            caption_dropout=0.0,
            min_snr_gamma=0.0,
            prior_weight=0.0,
            checkpoint_every=NOMINAL_STEPS,
            seed=number,
            gradient_checkpointing=False,
        )
        jobs.append(
            TuneJob(
                tune_id=f"tune_{number}",
                options=options,
                items=items,
                token="ohwx",
                class_name="thing",
                out_prefix=f"tunes/{number}",
            )
        )
    return jobs


def time_steps(base: Any, folder: str, jobs: list[Any], steps: int) -> float:
    """Return the seconds per step of jobs in one cohort."""
    from tunes_dagster.core.store import Store
    from tunes_dagster.training.loop import train

    watches = [Stopwatch(steps) for _ in jobs]
    outcomes = train(
        [replace(job, report=watch) for job, watch in zip(jobs, watches, strict=True)], base, Store(folder)
    )
    for outcome in outcomes.values():
        if not isinstance(outcome, Cancelled):
            raise SystemExit(f"Training ended otherwise than by the clock: {outcome}")
    return watches[0].seconds_per_step()


def count_flops(base: Any, folder: str, job: Any) -> int:
    """Return the floating point operations of one step of one tune, forward and backward, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    from tunes_dagster.training.loop import Trainer

    counted: list[int] = []
    original = Trainer._step

    def counting(self: Trainer) -> None:
        with FlopCounterMode(display=False) as counter:
            original(self)
        counted.append(counter.get_total_flops())

    Trainer._step = counting  # type: ignore[method-assign]
    try:
        time_steps(base, folder, [job], 20)
    finally:
        Trainer._step = original  # type: ignore[method-assign]
    return counted[-1]

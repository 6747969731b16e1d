"""Budgets, learning-rate schedules, progress lines and the choice of threads and dtype while training.

A budget is a number of steps (the result depends on the seed only) or minutes of wall time (as many steps as
the machine manages); both survive a restart.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Budget:
    """How long to train: `steps` if given, else `minutes`. `spent` seconds and `step` come from a checkpoint."""

    minutes: float = 10.0
    steps: int | None = None
    step: int = 0
    spent: float = 0.0
    _since: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Wall time used so far, earlier runs included."""
        return self.spent + time.monotonic() - self._since

    @property
    def fraction(self) -> float:
        """0 at the start, 1 when the budget is used up."""
        if self.steps is not None:
            return self.step / self.steps if self.steps else 1.0
        return self.seconds / max(1e-9, self.minutes * 60)

    @property
    def done(self) -> bool:
        """Whether the budget is used up."""
        return self.fraction >= 1

    @property
    def eta(self) -> float:
        """Seconds left, as far as can be told."""
        if self.steps is None:
            return max(0.0, self.minutes * 60 - self.seconds)
        return self.seconds / max(1, self.step) * (self.steps - self.step)


def learning_rate(base: float, step: int, fraction: float, warmup: int = 150, hold: float = 0.25) -> float:
    """Linear warm-up, constant until `hold` of the budget, then a cosine down to 3 %."""
    if step < warmup:
        return base * (step + 1) / warmup
    if fraction <= hold:
        return base
    x = min(1.0, (fraction - hold) / (1 - hold))
    return base * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * x)))


class Tuner:
    """Keeps the fastest of {1, 2, ... threads} x {fp32, bf16 autocast}, measured again every `every` seconds.

    On a CPU shared with other work two threads can be many times slower than one, and the answer changes by
    the minute. On a GPU bf16 is taken at once.
    """

    TRIALS = 3

    def __init__(
        self, device: str = "cpu", every: float = 120.0, fixed: tuple[int, bool] | None = None
    ) -> None:
        import os

        import torch

        self.device, self.every = device, every
        counts = tuple(sorted({1, min(2, os.cpu_count() or 1), min(8, os.cpu_count() or 1)}))
        self.options = [(n, bf16) for n in counts for bf16 in (True, False)]
        if device != "cpu":
            self.options = [(counts[-1], True)]
        if fixed:
            self.options = [fixed]
        self.current = self.options[0] if len(self.options) == 1 else (counts[-1], True)
        self._queue: list[tuple[int, bool]] = []
        self._times: dict[tuple[int, bool], list[float]] = {}
        self._last = -math.inf
        self._torch = torch

    @contextlib.contextmanager
    def step(self, units: float = 1.0) -> Iterator[None]:
        """Run one training step of `units` work under the present choice and time it."""
        self._plan()
        option = self._queue[0] if self._queue else self.current
        self._torch.set_num_threads(option[0])
        kind = "cuda" if self.device.startswith("cuda") else "cpu"
        start = time.perf_counter()
        with self._torch.autocast(kind, self._torch.bfloat16, enabled=option[1]):
            yield
        self._note(option, (time.perf_counter() - start) / units)

    def _plan(self) -> None:
        if len(self.options) > 1 and not self._queue and time.monotonic() - self._last > self.every:
            self._queue = [option for option in self.options for _ in range(self.TRIALS)]
            self._times = {}

    def _note(self, option: tuple[int, bool], seconds: float) -> None:
        if not self._queue:
            return
        self._times.setdefault(option, []).append(seconds)
        self._queue.pop(0)
        if not self._queue:
            self._last = time.monotonic()
            self.current = min(self._times, key=lambda o: sorted(self._times[o])[1])

    def __str__(self) -> str:
        return f"{self.current[0]} thread(s) {'bf16' if self.current[1] else 'fp32'}"


class Ema:
    """Exponential moving average of a module's floating-point state."""

    def __init__(self, module: Any, limit: float = 0.999) -> None:
        self.limit = limit
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    def update(self, module: Any, step: int) -> None:
        """Move towards `module`; early steps move further."""
        import torch
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        decay = min(self.limit, (step + 1) / (step + 10))
        current = module.state_dict()
        moving = [k for k, v in current.items() if v.is_floating_point()]
        with torch.no_grad():
            average = get_ema_multi_avg_fn(decay)
            average([self.state[k] for k in moving], [current[k] for k in moving], None)
            for key in current.keys() - set(moving):
                self.state[key].copy_(current[key])


def save_checkpoint(path: Path, budget: Budget, **parts: Any) -> None:
    """Write a resumable checkpoint at once or not at all."""
    import torch

    part = path.with_suffix(".part")
    torch.save({"step": budget.step, "spent": budget.seconds, **parts}, part)
    part.replace(path)


def load_checkpoint(path: Path, budget: Budget) -> dict[str, Any] | None:
    """The checkpoint at `path`, with `budget` set to where it stopped; None if there is none."""
    import torch

    if not path.exists():
        return None
    state = torch.load(path, weights_only=True)
    budget.step, budget.spent = state["step"], state["spent"]
    return state


def note_figures(folder: Path, **figures: Any) -> None:
    """Add measured figures to `figures.json` in `folder` (model cards are written from it)."""
    path = folder / "figures.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | figures, indent=1) + "\n")

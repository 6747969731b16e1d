"""The course of one training in one process: its steps, learning rates, checkpoints and progress lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.train.clock import Budget, Ema, Tuner, learning_rate, load_checkpoint, save_checkpoint

SECONDS_BETWEEN_CHECKPOINTS = 60


@dataclass(kw_only=True)
class Course:
    """Iterate over it to train until the budget is used up; it goes on from its checkpoint if there is one.

    Attributes:
        name: Of the lines and of the checkpoint, `<name>.pt` in `work`.
        work: Folder of the checkpoint.
        budget: How long.
        module: What is trained.
        optimizer: Over parameters of `module`.
        rate: Learning rate at its peak.
        warmup: Steps until the peak.
        hold: Share of the budget until the rate begins to fall.
        clip: Largest norm of the gradient; None leaves it.
        ema: Average of `module`, if one is kept.
        tuner: Chooses threads and dtype of each step, if given.
        remark: Called for each line: what stands behind the loss.
        log: Takes the lines.
        loss: Of the last step.
    """

    name: str
    work: Path
    budget: Budget
    module: Any
    optimizer: Any
    rate: float
    warmup: int = 150
    hold: float = 0.25
    clip: float | None = 1.0
    ema: Ema | None = None
    tuner: Tuner | None = None
    remark: Callable[[], str] = str
    log: Callable[[str], None] = print
    loss: float = field(default=float("nan"), init=False)

    def __post_init__(self) -> None:
        state = load_checkpoint(self._path, self.budget)
        if state:
            self.module.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.state = state["ema"]

    @property
    def _path(self) -> Path:
        return self.work / f"{self.name}.pt"

    @property
    def figures(self) -> dict[str, Any]:
        """Steps and minutes so far, for `note_figures`."""
        return {"steps": self.budget.step, "minutes": round(self.budget.seconds / 60, 1)}

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each step, with the learning rate set; the body calls `descend` once."""
        saved = self.budget.seconds
        while not self.budget.done:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(
                    self.rate, self.budget.step, self.budget.fraction, self.warmup, self.hold
                )
            yield self.budget.step
            if self.ema is not None:
                self.ema.update(self.module, self.budget.step)
            self.budget.step += 1
            if self.budget.seconds - saved > SECONDS_BETWEEN_CHECKPOINTS:
                saved = self.budget.seconds
                self._save()
                said = (f"loss {self.loss:.4f}", self.remark(), str(self.tuner or ""))
                self.log(
                    f"{self.name} step {self.budget.step} {' '.join(filter(None, said))} "
                    f"eta {self.budget.eta / 60:.1f} min"
                )

    def descend(self, loss: Any) -> None:
        """Take one optimizer step down the gradient of `loss`."""
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimizer.step()
        self.loss = loss.item()

    def _save(self) -> None:
        parts = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.ema is not None:
            parts["ema"] = self.ema.state
        save_checkpoint(self._path, self.budget, **parts)

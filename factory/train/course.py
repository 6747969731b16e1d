"""The course of one training in one process: its steps, learning rates, checkpoints and progress lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.train.clock import Budget, Ema, Tuner, learning_rate, load_checkpoint, save_checkpoint

SECONDS_BETWEEN_CHECKPOINTS = 60


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every trainer is given: a folder, a budget, what it learns from and where it computes.

    Attributes:
        work: Folder of pictures, checkpoints and what is measured.
        budget: How long; it counts the steps.
        seed: Of weights, batches and noise.
        device: Of torch; what is trained on the CPU alone leaves it aside.
        pictures: How many drawn pictures it learns from.
        pairs: How many looks it sees drawn twice.
        log: Takes the lines.
    """

    work: Path
    budget: Budget
    seed: int = 0
    device: str = "cpu"
    pictures: int = 64_000
    pairs: int = 8_000
    log: Callable[[str], None] = print


@dataclass(kw_only=True)
class Course:
    """Iterate over it to train until the budget is used up; it goes on from its checkpoint if there is one.

    Attributes:
        name: Of the lines and of the checkpoint, `<name>.pt` in the training's folder.
        training: Where, how long, and who takes the lines.
        module: What is trained.
        optimizer: Over parameters of `module`.
        rate: Learning rate at its peak.
        warmup: Steps until the peak.
        hold: Share of the budget until the rate begins to fall.
        clip: Largest norm of the gradient; None leaves it.
        ema: Average of `module`, if one is kept.
        tuner: Chooses threads and dtype of each step, if given.
        remark: Called for each line: what stands behind the loss.
        loss: Of the last step.
    """

    name: str
    training: Training
    module: Any
    optimizer: Any
    rate: float
    warmup: int = 150
    hold: float = 0.25
    clip: float | None = 1.0
    ema: Ema | None = None
    tuner: Tuner | None = None
    remark: Callable[[], str] = str
    loss: float = field(default=float("nan"), init=False)

    def __post_init__(self) -> None:
        state = load_checkpoint(self._path, self.training.budget)
        if state:
            self.module.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.state = state["ema"]

    @property
    def _path(self) -> Path:
        return self.training.work / f"{self.name}.pt"

    @property
    def figures(self) -> dict[str, Any]:
        """Steps and minutes so far, for `note_figures`."""
        return {"steps": self.training.budget.step, "minutes": round(self.training.budget.seconds / 60, 1)}

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each step, with the learning rate set; the body calls `descend` once."""
        saved = self.training.budget.seconds
        while not self.training.budget.done:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(
                    self.rate,
                    self.training.budget.step,
                    self.training.budget.fraction,
                    self.warmup,
                    self.hold,
                )
            yield self.training.budget.step
            if self.ema is not None:
                self.ema.update(self.module, self.training.budget.step)
            self.training.budget.step += 1
            if self.training.budget.seconds - saved > SECONDS_BETWEEN_CHECKPOINTS:
                saved = self.training.budget.seconds
                self._save()
                said = (f"loss {self.loss:.4f}", self.remark(), str(self.tuner or ""))
                self.training.log(
                    f"{self.name} step {self.training.budget.step} {' '.join(filter(None, said))} "
                    f"eta {self.training.budget.eta / 60:.1f} min"
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
        save_checkpoint(self._path, self.training.budget, **parts)

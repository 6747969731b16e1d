"""AdamW for many tunes at once that never mixes them: one row of the bank's buffer is one tune.

Each row is a parameter of its own to torch's fused AdamW, so that a tune has its own moments, step count,
learning rate and clipping, and a tune that is not stepped is not touched at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tunes_dagster.recipe import TrainingOptions
from tunes_dagster.training.adapters import AdapterBank

# The second moment forgets faster than torch's default 0.999: tunes last hundreds of steps, not millions.
BETAS = (0.9, 0.99)


class SlotOptimizer:
    """Optimizer state of every slot of a bank, and the moving averages of those that want one."""

    def __init__(self, bank: AdapterBank) -> None:
        self.bank = bank
        bank.values.requires_grad_(True)
        detached = bank.values.detach()
        self.rows = [nn.Parameter(detached[slot]) for slot in range(bank.slots)]
        groups = [{"params": [row], "lr": 0.0, "weight_decay": 0.0} for row in self.rows]
        self.adamw = torch.optim.AdamW(groups, betas=BETAS, fused=bank.device.type in ("cpu", "cuda"))
        self.max_norms = torch.ones(bank.slots, device=bank.device, dtype=bank.values.dtype)
        self.norms = torch.zeros_like(self.max_norms)
        self.averages: dict[int, Tensor] = {}

    def start(self, slot: int, options: TrainingOptions) -> None:
        """Take a tune into a slot whose values are already there."""
        self.max_norms[slot] = options.max_grad_norm
        self.adamw.param_groups[slot]["weight_decay"] = options.weight_decay
        self.adamw.state.pop(self.rows[slot], None)
        if options.ema_decay:
            self.averages[slot] = self.rows[slot].detach().clone()

    def release(self, slot: int) -> None:
        """Forget a slot's state."""
        self.adamw.state.pop(self.rows[slot], None)
        self.averages.pop(slot, None)

    def step(self, learning_rates: Mapping[int, float]) -> None:
        """Clip and apply the gradients of the named slots, each with its learning rate, and drop all gradients.

        Nothing is read back from the device; `norms` holds the gradient norms before clipping.
        """
        gradients = self.bank.values.grad
        assert gradients is not None
        self.norms = torch.linalg.vector_norm(gradients, dim=1)
        gradients.mul_((self.max_norms / (self.norms + 1e-6)).clamp_(max=1.0)[:, None])
        for slot, row in enumerate(self.rows):
            row.grad = gradients[slot] if slot in learning_rates else None
            self.adamw.param_groups[slot]["lr"] = learning_rates.get(slot, 0.0)
        self.adamw.step()
        for row in self.rows:
            row.grad = None
        self.bank.values.grad = None

    def average(self, slot: int, decay: float, step: int) -> None:
        """Move a slot's average; it follows faster in the first steps, when there is little to average."""
        with torch.no_grad():
            weight = 1 - min(decay, (1 + step) / (10 + step))
            self.averages[slot].lerp_(self.rows[slot], weight)

    def state(self, slot: int) -> dict[str, Tensor]:
        """Return a slot's optimizer state as packed vectors on the CPU; empty before its first step."""
        row = self.rows[slot]
        found = {"values": row.detach()}
        if slot in self.averages:
            found["average"] = self.averages[slot]
        state = self.adamw.state.get(row)
        if state:
            found |= {"exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        return {name: self.bank.pack(tensor, slot).cpu() for name, tensor in found.items()}

    def load_state(self, slot: int, state: Mapping[str, Tensor], step: int) -> None:
        """Put a slot back to where `state` was taken, after `step` steps; call `start` before."""
        row = self.rows[slot]
        with torch.no_grad():
            self.bank.unpack(state["values"], row, slot)
            if slot in self.averages:
                self.bank.unpack(state.get("average", state["values"]), self.averages[slot], slot)
            if "exp_avg" in state:
                moments = {name: torch.zeros_like(row) for name in ("exp_avg", "exp_avg_sq")}
                for name, moment in moments.items():
                    self.bank.unpack(state[name], moment, slot)
                count = torch.tensor(float(step), device=row.device)
                self.adamw.state[row] = {"step": count, **moments}

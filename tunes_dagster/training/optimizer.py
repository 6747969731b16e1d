"""Optimizers for many tunes at once that never mix them: one row of the bank's buffer is one tune.

Each row is a parameter of its own to torch's fused AdamW, so that a tune has its own moments, step count,
learning rate and clipping, and a tune that is not stepped is not touched at all. A tune that asks for another
optimizer gets one of its own for its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from tunes_dagster.core.extras import missing
from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.training.adapters import AdapterBank

# The second moment forgets faster than torch's default 0.999: tunes last hundreds of steps, not millions.
BETAS = (0.9, 0.99)
# What an optimizer keeps beside the parameters' own state; prodigy's estimate of the step size is there.
_GROUP = "optimizer/group/"
_STATE = "optimizer/state/"


def make_optimizer(options: TrainingOptions, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Return the optimizer that options ask for.

    Raises:
        Failure: `INVALID_REQUEST` when its package is missing or it does not run on this device.
    """
    kept = list(parameters)
    if options.optimizer == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ImportError as error:
            raise missing("prodigyopt", "The optimizer prodigy", "use adamw", detail_of(error)) from error
        # As its authors advise for diffusion models: bias correction, and no trust in steps of a warm-up.
        made = Prodigy(kept, lr=1.0, betas=BETAS, use_bias_correction=True, safeguard_warmup=True)
        made.param_groups[0]["weight_decay"] = (
            options.weight_decay
        )  # later, since it prints when told at once
        return made
    if options.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise missing("bitsandbytes", "The optimizer adamw8bit", "use adamw", detail_of(error)) from error
        if kept[0].device.type != "cuda":
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The optimizer adamw8bit needs an NVIDIA GPU, but the tune is trained on {kept[0].device}.",
                "Use adamw or prodigy.",
            )
        return AdamW8bit(kept, lr=0.0, betas=BETAS, weight_decay=options.weight_decay)
    fused = kept[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(kept, lr=0.0, betas=BETAS, weight_decay=options.weight_decay, fused=fused)


def optimizer_state(
    optimizer: torch.optim.Optimizer,
    pack: Callable[[Tensor, Tensor], Tensor] = lambda value, like: value,
    copied: bool = True,
) -> dict[str, Tensor]:
    """Return all that an optimizer of one group remembers, as named tensors.

    Args:
        optimizer: Whose.
        pack: Given (what it keeps, the parameter it belongs to), for those of the parameter's shape; 8-bit moments,
            whose blocks have scales of their own, stay as they are.
        copied: Return copies on the CPU; else what the optimizer has, wherever it lies.
    """
    (group,) = optimizer.param_groups
    numbers = {k: v for k, v in group.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    found = {f"{_GROUP}{k}": torch.tensor(v, dtype=torch.float64) for k, v in numbers.items() if k != "lr"}
    for i, parameter in enumerate(group["params"]):
        for name, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                value = torch.tensor(value, dtype=torch.float64)
            elif value.shape == parameter.shape and value.is_floating_point():
                value = pack(value, parameter)
            found[f"{_STATE}{i}/{name}"] = value.detach().cpu().clone() if copied else value.detach()
    return found


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Tensor],
    unpack: Callable[[Tensor, Tensor], Tensor] = lambda value, like: value.to(like.device),
) -> None:
    """Put an optimizer back to where `optimizer_state` was taken.

    Args:
        optimizer: Of the same kind, over the same parameters.
        state: Other keys than its own are passed over.
        unpack: Undoes `pack`: (what was kept, the parameter) → a tensor of the parameter's shape.
    """
    (group,) = optimizer.param_groups
    for key, value in state.items():
        if key.startswith(_GROUP):
            name = key.removeprefix(_GROUP)
            group[name] = type(group.get(name, 0.0))(value.item())
        elif key.startswith(_STATE):
            number, _, name = key.removeprefix(_STATE).partition("/")
            parameter = group["params"][int(number)]
            kept: Tensor | int
            if value.ndim == 0 and value.dtype == torch.float64:
                kept = int(value)  # a count that was no tensor
            else:
                kept = value.to(parameter.device) if value.ndim == 0 else unpack(value, parameter)
            optimizer.state[parameter][name] = kept


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
        self.others: dict[int, torch.optim.Optimizer] = {}

    def start(self, slot: int, options: TrainingOptions) -> None:
        """Take a tune into a slot whose values are already there."""
        self.max_norms[slot] = options.max_grad_norm
        self.adamw.param_groups[slot]["weight_decay"] = options.weight_decay
        self.release(slot)
        if options.optimizer != "adamw":
            self.others[slot] = make_optimizer(options, [self.rows[slot]])
        if options.ema_decay:
            self.averages[slot] = self.rows[slot].detach().clone()

    def release(self, slot: int) -> None:
        """Forget a slot's state."""
        self.adamw.state.pop(self.rows[slot], None)
        self.averages.pop(slot, None)
        self.others.pop(slot, None)

    def step(self, learning_rates: Mapping[int, float]) -> None:
        """Clip and apply the gradients of the named slots, each with its learning rate, and drop all gradients.

        Nothing is read back from the device; `norms` holds the gradient norms before clipping.
        """
        gradients = self.bank.values.grad
        assert gradients is not None
        self.norms = torch.linalg.vector_norm(gradients, dim=1)
        gradients.mul_((self.max_norms / (self.norms + 1e-6)).clamp_(max=1.0)[:, None])
        for slot, row in enumerate(self.rows):
            mine = slot in learning_rates and slot not in self.others
            row.grad = gradients[slot] if mine else None
            self.adamw.param_groups[slot]["lr"] = learning_rates.get(slot, 0.0)
        self.adamw.step()
        for slot, other in self.others.items():
            if slot in learning_rates:
                self.rows[slot].grad = gradients[slot]
                other.param_groups[0]["lr"] = learning_rates[slot]
                other.step()
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
        packed = {name: self.bank.pack(tensor, slot).cpu() for name, tensor in found.items()}
        if slot in self.others:
            packed |= optimizer_state(self.others[slot], lambda value, _: self.bank.pack(value, slot))
        return packed

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
            if slot in self.others:
                load_optimizer_state(self.others[slot], state, lambda v, row: self._unpacked(v, row, slot))

    def _unpacked(self, packed: Tensor, row: Tensor, slot: int) -> Tensor:
        """Return what was kept of a row at its place; other tensors as they are."""
        if packed.dtype != row.dtype or packed.numel() != self.bank.pack(row.detach(), slot).numel():
            return packed.to(row.device)
        made = torch.zeros_like(row)
        self.bank.unpack(packed, made, slot)
        return made.detach()

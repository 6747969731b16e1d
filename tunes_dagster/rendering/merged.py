"""Adapters added into copies of the weights, for batches on small networks: no adapter arithmetic is left in a step.

`W + scale * B A` is made once per batch for every tune in it, and each run of rows of one tune goes through its own
copy. That costs a copy of the adapted layers per tune, so it is for networks of which many fit into memory; the stacked
layers, which cost a few percent of that, are for the others. Pictures are the same up to rounding.

This file imports torch at the top; import it inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunes_dagster.training.adapters import split_state

# (slot, first row, row after the last); slot -1 is the plain layer.
Run = tuple[int, int, int]


class MergedLayer(nn.Module):
    """A frozen linear or convolution layer with a merged copy of its weight per slot.

    Attributes:
        weights: Copy per slot; slots without this layer have the frozen weight itself.
    """

    base: nn.Linear | nn.Conv2d

    def __init__(self, base: nn.Linear | nn.Conv2d, bank: MergedBank, weights: list[Tensor]) -> None:
        super().__init__()
        self.base = base
        self._bank, self._weights = (bank,), weights  # a tuple hides the bank from the module tree
        self._stacked: tuple[tuple[Run, ...], Tensor | None] = ((), None)

    def __getattr__(self, name: str) -> Any:
        """Answer for the wrapped layer, which library code may look at."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Return each row through the weight of its slot."""
        runs = self._bank[0].runs
        base = self.base
        if not runs or len(x) % runs[-1][2]:
            return base(x, *args)
        if isinstance(base, nn.Linear) and (stack := self._stack(runs)) is not None:
            # Equal runs are one batched product.
            grouped = x.reshape(len(runs), -1, x.shape[-1])
            if base.bias is None:
                out = torch.bmm(grouped, stack)
            else:
                out = torch.baddbmm(base.bias, grouped, stack)
            return out.view(*x.shape[:-1], -1)
        parts = [self._one(x[start:stop], self._weight(slot)) for slot, start, stop in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _weight(self, slot: int) -> Tensor:
        return self.base.weight if slot < 0 else self._weights[slot]

    def _stack(self, runs: tuple[Run, ...]) -> Tensor | None:
        """Return the transposed weights of equal runs, `[runs, in, out]`; None when runs differ in length."""
        if self._stacked[0] is not runs:
            equal = len(runs) > 1 and len({stop - start for _, start, stop in runs}) == 1
            stack = torch.stack([self._weight(slot).t() for slot, _, _ in runs]) if equal else None
            self._stacked = (runs, stack)
        return self._stacked[1]

    def _one(self, x: Tensor, weight: Tensor) -> Tensor:
        base = self.base
        if isinstance(base, nn.Linear):
            return F.linear(x, weight, base.bias)
        return F.conv2d(x, weight, base.bias, base.stride, base.padding, base.dilation)


class MergedBank:
    """Merged copies of a network's layers for the tunes of one batch.

    Args:
        network: The frozen network.
        states: One adapter each, in peft's format.
        scales: Strength of each.
    """

    def __init__(
        self, network: nn.Module, states: Sequence[Mapping[str, Tensor]], scales: Sequence[float]
    ) -> None:
        self.network = network
        self.runs: tuple[Run, ...] = ()
        pairs = [split_state(state) for state in states]
        self._originals: dict[str, nn.Linear | nn.Conv2d] = {}
        layers: dict[str, MergedLayer] = {}
        for name in sorted({name for pair in pairs for name in pair}):
            base = network.get_submodule(name)
            assert isinstance(base, nn.Linear | nn.Conv2d)
            weights = [
                merged(base.weight, *pair[name], scale) if name in pair else base.weight
                for pair, scale in zip(pairs, scales, strict=True)
            ]
            self._originals[name] = base
            layers[name] = MergedLayer(base, self, weights)
        for (
            name,
            layer,
        ) in layers.items():  # once all are made: running out of memory leaves the network as it was
            _put(network, name, layer)

    def assign(self, rows: Sequence[int] | None) -> None:
        """Route the rows of the next forwards to slots: slot number per row, -1 for none."""
        runs, start = [], 0
        for slot, members in groupby(rows or ()):
            stop = start + len(list(members))
            runs.append((int(slot), start, stop))
            start = stop
        self.runs = () if all(slot < 0 for slot, _, _ in runs) else tuple(runs)

    def detach(self) -> None:
        """Take the copies off; the network is as it was before."""
        for name, original in self._originals.items():
            _put(self.network, name, original)


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return W + scale * B A in the shape and memory layout of a layer's weight."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    change = up.to(weight.device, wide).flatten(1) @ down.to(weight.device, wide).flatten(1)
    total = weight.to(wide) + scale * change.view(weight.shape)
    return torch.empty_like(weight).copy_(total)


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)


def bytes_of(network: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> int:
    """Return the memory that merged copies for these adapters take; linear layers have a second, stacked one."""
    total = 0
    for state in states:
        for name in split_state(state):
            weight = network.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            total += weight.numel() * weight.element_size() * (2 if weight.ndim == 2 else 1)
    return total


@contextmanager
def merged_into(
    network: nn.Module, states: Sequence[Mapping[str, Tensor]], scales: Sequence[float]
) -> Iterator[MergedBank]:
    """Merge finished adapters into copies of the network's layers for the while, adapter i in slot i."""
    bank = MergedBank(network, states, scales)
    try:
        yield bank
    finally:
        bank.detach()

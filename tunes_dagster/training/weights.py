"""What the loop trains, as the loop sees it: numbers by slot, however a kind of tune keeps them.

The loop and the checkpoints ask only what `TrainedWeights` says. `StackedWeights` is the answer for every adapter
that stacks: rows of one bank, one optimizer over them. A kind that trains something else (all weights of the
network, an adapter that cannot be stacked) implements the same few calls for its single slot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.families.base import LoadedBase
from tunes_dagster.families.loading import gather
from tunes_dagster.training import order
from tunes_dagster.training.adapters import AdapterBank, attach
from tunes_dagster.training.optimizer import SlotOptimizer


@dataclass(frozen=True)
class Layout:
    """How a slot's vectors are to be read; goes into the header of its checkpoints.

    Attributes:
        scale: alpha / rank.
        rank: Of the adapter.
        layers: Trained layers, in the order in which vectors are packed.
    """

    scale: float
    rank: int
    layers: list[str]


def adapter_scale(options: TrainingOptions) -> float:
    """Return what an adapter's product is multiplied by: alpha / rank, or alpha / √rank with rsLoRA.

    rsLoRA is Kalajdzievski 2023 (arXiv 2312.03732): with alpha / rank the update shrinks as the rank grows.
    """
    rank = options.rank or 16
    alpha = options.alpha or rank
    return alpha / math.sqrt(rank) if options.rslora else alpha / rank


def export_scale(options: TrainingOptions) -> float:
    """Return what an exported adapter is multiplied by; 1 with DoRA, whose magnitudes do not follow."""
    return 1.0 if options.dora else options.export_scale or 1.0


class TrainedWeights(Protocol):
    """The trained numbers of up to `slots` tunes, with their optimizers.

    Attributes:
        slots: Room for so many.
        state_apart: Whether checkpoints keep what `restore` needs in a file of its own, of the newest one only.
    """

    slots: int
    state_apart: bool

    def fits(self, options: Sequence[TrainingOptions]) -> bool:
        """Whether tunes with these options can be entered beside those that are here."""

    def enter(self, slot: int, options: TrainingOptions) -> None:
        """Put a tune at its beginning into a slot: initial numbers by its seed, a fresh optimizer."""

    def start_from(self, slot: int, options: TrainingOptions, adapter: Mapping[str, Tensor]) -> None:
        """Put a tune into a slot that starts with the weights of an earlier one, without its export's scale.

        Raises:
            Failure: `WEIGHTS_UNUSABLE` when they are not of the shape that the options ask for.
        """

    def restore(self, slot: int, options: TrainingOptions, state: Mapping[str, Tensor], step: int) -> None:
        """Put a tune into a slot as it was when `state` was taken, after `step` steps."""

    def leave(self, slot: int) -> None:
        """Empty a slot."""

    def assign(self, rows: Sequence[int] | None) -> None:
        """Route the rows of the next forwards to slots; None turns everything trained off."""

    def step(self, learning_rates: Mapping[int, float]) -> None:
        """Clip and apply the gradients of the named slots, each by itself, and drop all gradients."""

    def average(self, slot: int, decay: float, step: int) -> None:
        """Move a slot's moving average."""

    def finite(self, slot: int) -> bool:
        """Whether all numbers of a slot are finite; reads from the device."""

    def state(self, slot: int) -> dict[str, Tensor]:
        """Return everything that `restore` needs; may be the numbers themselves, so write it at once."""

    def adapter(self, slot: int) -> dict[str, Tensor]:
        """Return what would be exported now: the average if there is one, else the values; see `state`."""

    def layout(self, slot: int) -> Layout:
        """Return how the vectors of a slot are to be read."""

    def close(self) -> None:
        """Leave the base as it was."""


class StackedWeights:
    """Low-rank adapters of several tunes in one bank, with one optimizer over it."""

    state_apart = False

    def __init__(self, options: Sequence[TrainingOptions], base: LoadedBase, dtype: torch.dtype) -> None:
        """Attach a bank with a slot for each of these options.

        Args:
            options: Of the tunes that it must have room for; the largest rank and all their layers count.
            base: Without trained weights of ours.
            dtype: Of the numbers.
        """
        gather(base.pipeline(), base.denoiser)
        self.base, self.slots = base, len(options)
        wanted = {name for one in options for name in self._names(one)}
        names = [name for name in base.adapter_targets("all") if name in wanted]
        rank = max(one.rank or 16 for one in options)
        dora = any(one.dora for one in options)
        self.bank: AdapterBank = attach(base.denoiser, names, self.slots, rank, dtype, dora)
        self.optimizer = SlotOptimizer(self.bank)
        self._export_scales = [1.0] * self.slots

    def _names(self, options: TrainingOptions) -> list[str]:
        return self.base.adapter_targets(options.targets or "attention")

    def fits(self, options: Sequence[TrainingOptions]) -> bool:
        """See `TrainedWeights.fits`: free slots, ranks up to the bank's, no other layers."""
        free = self.bank.slot_ranks.count(0)
        return len(options) <= free and all(
            (one.rank or 16) <= self.bank.rank
            and one.dora <= self.bank.dora
            and set(self._names(one)) <= set(self.bank.layers)
            for one in options
        )

    def enter(self, slot: int, options: TrainingOptions) -> None:
        """See `TrainedWeights.enter`."""
        rank = options.rank or 16
        source = order.generator(options.seed, order.INITIAL)
        alpha = adapter_scale(options) * rank
        self.bank.initialise(slot, rank, alpha, self._names(options), source, options.dora)
        self._export_scales[slot] = export_scale(options)
        self.optimizer.start(slot, options)

    def start_from(self, slot: int, options: TrainingOptions, adapter: Mapping[str, Tensor]) -> None:
        """See `TrainedWeights.start_from`."""
        scale, rank = adapter_scale(options), options.rank or 16
        self.bank.load_slot(slot, adapter)
        layers = [name for name in self.bank.layers if name in set(self._names(options))]
        if self.bank.slot_ranks[slot] != rank or self.bank.slot_layers[slot] != layers:
            raise Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The tune to continue from has rank {self.bank.slot_ranks[slot]} on "
                f"{len(self.bank.slot_layers[slot])} layers, not {rank} on {len(layers)}.",
                "Continue it with the rank and targets it was trained with.",
            )
        for _, _, up in self.bank.views(self.bank.values.detach()[slot]):
            up /= scale  # which was folded in, whatever alpha it was trained with
        self.bank.occupy(slot, rank, scale, layers, self.bank.slot_dora[slot])
        self._export_scales[slot] = export_scale(options)
        self.optimizer.start(slot, options)

    def restore(self, slot: int, options: TrainingOptions, state: Mapping[str, Tensor], step: int) -> None:
        """See `TrainedWeights.restore`."""
        rank, chosen = options.rank or 16, set(self._names(options))
        self.bank.clear(slot)
        layers = [name for name in self.bank.layers if name in chosen]
        self.bank.occupy(slot, rank, adapter_scale(options), layers, options.dora)
        self._export_scales[slot] = export_scale(options)
        self.optimizer.start(slot, options)
        self.optimizer.load_state(slot, state, step)

    def leave(self, slot: int) -> None:
        """See `TrainedWeights.leave`."""
        self.bank.assign(None)
        self.bank.clear(slot)
        self.optimizer.release(slot)

    def assign(self, rows: Sequence[int] | None) -> None:
        """See `TrainedWeights.assign`."""
        self.bank.assign(rows)

    def step(self, learning_rates: Mapping[int, float]) -> None:
        """See `TrainedWeights.step`."""
        self.optimizer.step(learning_rates)

    def average(self, slot: int, decay: float, step: int) -> None:
        """See `TrainedWeights.average`."""
        self.optimizer.average(slot, decay, step)

    def finite(self, slot: int) -> bool:
        """See `TrainedWeights.finite`."""
        return bool(torch.isfinite(self.optimizer.rows[slot]).all())

    def state(self, slot: int) -> dict[str, Tensor]:
        """See `TrainedWeights.state`: vectors without padding, `values` among them."""
        return self.optimizer.state(slot)

    def adapter(self, slot: int) -> dict[str, Tensor]:
        """See `TrainedWeights.adapter`: in peft's format, alpha / rank and the export's scale folded in."""
        row = self.optimizer.averages.get(slot)
        state = self.bank.state(slot, f"{self.base.denoiser_name}.", row=row)
        scale = self._export_scales[slot]
        if scale == 1:
            return state
        return {name: value * scale if ".lora_B." in name else value for name, value in state.items()}

    def layout(self, slot: int) -> Layout:
        """See `TrainedWeights.layout`."""
        return Layout(
            float(self.bank.scales[slot]), self.bank.slot_ranks[slot], list(self.bank.slot_layers[slot])
        )

    def close(self) -> None:
        """See `TrainedWeights.close`."""
        self.bank.detach()

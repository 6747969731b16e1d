"""Stacked LoRA layers: the adapters of many tunes over one frozen network, in one forward.

Every adapted layer holds the matrices of all slots, `A[slots, rank, in]` and `B[slots, out, rank]`, and each
row of a batch is routed to one slot or to none. The numbers of all layers lie in one flat buffer
`[slots, size]`, A parts first: an optimizer step, a gradient norm, a cast or a checkpoint of all tunes is one
operation on it instead of hundreds, and row s of the buffer is all there is of the tune in slot s. Autograd
sees a single leaf; a split gives each layer its part, and its backward is one concatenation.

Smaller ranks are padded with zeros, which stay zero: with a zero row in A and column in B both gradients vanish.

This file and its neighbours `optimizer.py` and `loop.py` import torch at the top; import them inside functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.training.layers import LowRankLinear, Route, Routing, StackedLora
from tunes_dagster.training.names import MAGNITUDE, split_magnitudes, split_state

__all__ = [
    "AdapterBank",
    "LowRankLinear",
    "Route",
    "StackedLora",
    "attach",
    "attached",
    "base_layer_names",
    "split_magnitudes",
    "split_state",
]

# Parts of the buffer start at multiples of this many numbers, so that kernels can use vector loads.
_ALIGNMENT = 64


class AdapterBank:
    """The adapters of up to `slots` tunes, attached to one network.

    Attributes:
        layers: Adapted layer by its name in the network.
        values: The flat buffer `[slots, size]`; the only leaf that gradients arrive at.
        scales: alpha / rank (times any strength) per slot, `[slots]`.
        dora: Whether the buffer has a magnitude for each output of each layer; slots may be without all the same.
        slot_dora: Whether the adapter in each slot is a DoRA.
        slot_ranks: Rank of what lies in each slot; 0 when it is empty.
        slot_layers: Names of the layers that the adapter in each slot has.
        mixes: Whether rows of several slots may share a forward: always.
    """

    mixes = True

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        slots: int,
        rank: int,
        dtype: torch.dtype,
        dora: bool = False,
    ) -> None:
        self.network, self.slots, self.rank, self.dora = network, slots, rank, dora
        self.device = next(network.parameters()).device
        modules = dict(network.named_modules())
        # Inside another bank's while (samples during training) the outer layers are put aside.
        self._originals = {name: modules.get(name) for name in names}
        bases = {n: m.base if isinstance(m, StackedLora) else m for n, m in self._originals.items()}
        missing = [name for name, base in bases.items() if not isinstance(base, nn.Linear | nn.Conv2d)]
        if missing:
            raise Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The base has no linear or convolution layer called {missing[0]!r}"
                + (f" (and {len(missing) - 1} more)." if len(missing) > 1 else "."),
                "The adapter was made for another base model; use it with that one.",
            )
        self.routing = Routing()
        self.layers = {n: StackedLora(cast(nn.Linear, base), rank, self.routing) for n, base in bases.items()}
        self._lay_out(dtype)
        self._routes: dict[tuple[int, ...], Route] = {}
        self.slot_ranks = [0] * slots
        self.slot_dora = [False] * slots
        self.slot_layers: list[list[str]] = [[] for _ in range(slots)]
        for name, layer in self.layers.items():
            _replace(network, name, layer)

    def _lay_out(self, dtype: torch.dtype) -> None:
        shapes = [layer.down_shape for layer in self.layers.values()]
        shapes += [layer.up_shape for layer in self.layers.values()]
        if self.dora:
            shapes += [layer.up_shape[:1] for layer in self.layers.values()]
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in shapes]
        self._padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in self._sizes]
        self._down_size = sum(self._padded[: len(self.layers)])
        self._up_size = sum(self._padded[len(self.layers) : 2 * len(self.layers)])
        self.values = torch.zeros(self.slots, sum(self._padded), device=self.device, dtype=dtype)
        self.scales = torch.ones(self.slots, device=self.device, dtype=dtype)

    def detach(self) -> None:
        """Take the adapters off; the network is as it was before."""
        for name, original in self._originals.items():
            _replace(self.network, name, cast(nn.Module, original))

    def views(self, row: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (layer, A `[rank, in…]`, B `[out, rank]`) views of a row of the buffer or of one like it."""
        pieces = row.split(self._padded)
        views = [p[:n].view(shape) for p, n, shape in zip(pieces, self._sizes, self._shapes, strict=True)]
        yield from zip(self.layers, views, views[len(self.layers) :], strict=False)

    def magnitudes(self, row: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (layer, DoRA's magnitudes `[out]`) views of a row; nothing without DoRA."""
        pieces = row.split(self._padded)[2 * len(self.layers) :]
        sizes = self._sizes[2 * len(self.layers) :]
        for name, piece, size in zip(self.layers, pieces, sizes, strict=False):
            yield name, piece[:size]

    def _used(self, row: Tensor, slot: int) -> Iterator[Tensor]:
        """Yield the parts of a row that the slot's adapter uses, without padding."""
        rank, chosen = self.slot_ranks[slot], set(self.slot_layers[slot])
        for name, down, up in self.views(row):
            if name in chosen:
                yield down[:rank]
                yield up[:, :rank]
        if self.slot_dora[slot]:
            yield from (magnitude for name, magnitude in self.magnitudes(row) if name in chosen)

    def pack(self, row: Tensor, slot: int) -> Tensor:
        """Return the used numbers of a row (values, moments, EMA) as one vector that no padding enters."""
        return torch.cat([part.reshape(-1) for part in self._used(row, slot)])

    def unpack(self, packed: Tensor, row: Tensor, slot: int) -> None:
        """Write a packed vector back into a row; the slot must be occupied already.

        Raises:
            ValueError: When the vector was packed from another adapter's layout.
        """
        parts = list(self._used(row, slot))
        if sum(part.numel() for part in parts) != packed.numel():
            raise ValueError(f"{packed.numel()} numbers do not fit this adapter")
        for part, piece in zip(parts, packed.split([part.numel() for part in parts]), strict=True):
            part.copy_(piece.view(part.shape))

    def initialise(
        self,
        slot: int,
        rank: int,
        alpha: float,
        names: Sequence[str],
        generator: torch.Generator,
        dora: bool = False,
    ) -> None:
        """Put a new adapter into a slot: A as peft initialises it (Kaiming uniform, a = √5), B zero.

        Args:
            slot: Which.
            rank: At most the bank's.
            alpha: The adapter is scaled by alpha / rank.
            names: The layers it has, among the bank's.
            generator: On the CPU, so that every device starts from the same numbers.
            dora: It is a DoRA (Liu et al. 2024, arXiv 2402.09353), whose magnitudes start as those of the weights.
        """
        self.clear(slot)
        chosen = set(names)
        for name, down, _ in self.views(self.values.detach()[slot]):
            if name in chosen:
                bound = 1 / math.sqrt(math.prod(down.shape[1:]))
                fresh = torch.rand(rank, *down.shape[1:], generator=generator, dtype=torch.float64)
                down[:rank] = (fresh.mul_(2).sub_(1).mul_(bound)).to(down)
        if dora:
            for name, magnitude in self.magnitudes(self.values.detach()[slot]):
                if name in chosen:
                    weight = self.layers[name].base.weight.detach().flatten(1)
                    magnitude.copy_(torch.linalg.vector_norm(weight.to(magnitude.dtype), dim=1))
        self.occupy(slot, rank, alpha / rank, [name for name in self.layers if name in chosen], dora)

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self.values.detach()[slot].zero_()
        self.occupy(slot, 0, 1.0, [])

    def occupy(self, slot: int, rank: int, scale: float, names: list[str], dora: bool = False) -> None:
        """Say what lies in a slot, whose numbers are then written by `unpack`."""
        self.slot_dora[slot] = dora
        self.scales[slot] = scale
        self.slot_ranks[slot], self.slot_layers[slot] = rank, names

    def assign(self, rows: Sequence[int] | Tensor | None) -> None:
        """Route the rows of the next forwards to slots; call it again whenever values have changed.

        Args:
            rows: Slot number per row, -1 for a row without adapter; None for no adapter at all.
        """
        asked = () if rows is None else tuple(int(row) for row in rows)
        if asked not in self._routes:
            self._routes[asked] = self._route(list(asked))
        self.routing.now = route = self._routes[asked]
        if route.kind == "off":
            return
        values, scales = self.values, self.scales
        if route.slots is not None:
            values, scales = values[route.slots], scales[route.slots]
        if route.with_none:
            values, scales = F.pad(values, (0, 0, 0, 1)), F.pad(scales, (0, 1))
        rest = values.shape[1] - self._down_size - self._up_size
        first, second, third = values.split([self._down_size, self._up_size, rest], dim=1)
        dtype = computing_dtype(self.network)
        pieces = [
            *first.to(dtype).split(self._padded[: len(self.layers)], dim=1),
            *(second * scales[:, None])
            .to(dtype)
            .split(self._padded[len(self.layers) : 2 * len(self.layers)], dim=1),
        ]
        views = [
            piece[:, :size].unflatten(1, shape)
            for piece, size, shape in zip(pieces, self._sizes, self._shapes, strict=False)
        ]
        for i, layer in enumerate(self.layers.values()):
            layer.down, layer.up = views[i], views[len(self.layers) + i]
        if self.dora:
            self._set_gains(third, route)

    def _set_gains(self, magnitudes: Tensor, route: Route) -> None:
        """Give each layer its gains: magnitude / norm of W + B A, where the norm is a constant to autograd.

        Slots without DoRA, layers that a slot has not and rows without adapter have gain 1. The paper leaves the
        norm out of the backward (section 4.3): it saves memory and costs nothing measurable.
        """
        used = list(range(self.slots)) if route.slots is None else route.slots.tolist()
        for i, (name, layer) in enumerate(self.layers.items()):
            has = [self.slot_dora[slot] and name in self.slot_layers[slot] for slot in used]
            has += [False] * (len(magnitudes) - len(has))
            assert layer.down is not None and layer.up is not None
            start = sum(self._padded[2 * len(self.layers) : 2 * len(self.layers) + i])
            mine = magnitudes[:, start : start + layer.up_shape[0]]
            with torch.no_grad():
                norms = layer.row_norms(layer.down.to(mine.dtype), layer.up.to(mine.dtype))
                mask = torch.tensor(has, device=self.device)[:, None]
            gain = torch.where(mask, mine / norms, torch.ones_like(mine))
            layer.gain = gain.to(layer.down.dtype)

    def assign_all(self, slot: int) -> None:
        """Route every row of the next forwards, however many, to one slot."""
        self.assign([slot])

    def _route(self, rows: list[int]) -> Route:
        used = sorted({row for row in rows if row >= 0})
        if not used:
            return Route("off")
        everything = used == list(range(self.slots))
        slots = None if everything else torch.tensor(used, device=self.device)
        if len(used) == 1 and min(rows) >= 0:
            return Route("single", slots)
        each = len(rows) // len(used)
        if rows == [slot for slot in used for _ in range(each)]:
            return Route("blocks", slots)
        position = {slot: i for i, slot in enumerate(used)}
        row_slots = torch.tensor([position.get(row, len(used)) for row in rows], device=self.device)
        return Route("rows", slots, row_slots, with_none=min(rows) < 0)

    def state(
        self, slot: int, prefix: str = "", folded: bool = True, row: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return a slot's adapter in peft's unconverted format, on the CPU.

        Args:
            slot: Which.
            row: Its numbers when they are not the current ones (EMA).
            prefix: Put before each key (`unet.`).
            folded: Multiply alpha / rank into B, so that whoever assumes alpha = rank is right.
        """
        rank, chosen = self.slot_ranks[slot], set(self.slot_layers[slot])
        scale = float(self.scales[slot]) if folded else 1.0
        state = {}
        for name, down, up in self.views(self.values.detach()[slot] if row is None else row):
            if name not in chosen:
                continue
            b = (up[:, :rank] * scale).cpu()
            if self.layers[name].is_convolution:
                b = b[:, :, None, None]
            state[f"{prefix}{name}.lora_A.weight"] = down[:rank].clone().cpu()
            state[f"{prefix}{name}.lora_B.weight"] = b.contiguous()
        if self.slot_dora[slot]:
            for name, magnitude in self.magnitudes(self.values.detach()[slot] if row is None else row):
                if name in chosen:
                    value = magnitude.clone().cpu()
                    if self.layers[name].is_convolution:
                        value = value[None, :, None, None]
                    state[f"{prefix}{name}{MAGNITUDE}"] = value
        return state

    def load_slot(self, slot: int, state: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Put an adapter in peft's format (alpha folded in) into a slot.

        Args:
            slot: Which.
            state: Keys `[unet.]<layer>.lora_A.weight` and `….lora_B.weight`.
            scale: Strength; 1 is as trained.

        Raises:
            Failure: `WEIGHTS_UNUSABLE` for layers or shapes that the base does not have; nothing is changed then.
        """
        pairs = split_state(state)
        unknown = sorted(set(pairs) - set(self.layers))
        ranks = {a.shape[0] for a, _ in pairs.values()}
        wrong = [
            name
            for name, (a, b) in pairs.items()
            if name in self.layers
            and (
                a.shape[1:] != self.layers[name].down_shape[1:] or b.shape[0] != self.layers[name].up_shape[0]
            )
        ]
        if unknown or wrong or max(ranks, default=0) > self.rank:
            what = (unknown or wrong or ["rank"])[0]
            raise Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The adapter does not fit the base at {what!r} (ranks {sorted(ranks)}, room for {self.rank}).",
                "Use it with the base model it was trained on.",
            )
        self.clear(slot)
        for name, down, up in self.views(self.values.detach()[slot]):
            if name in pairs:
                a, b = pairs[name]
                down[: a.shape[0]] = a.to(down)
                up[:, : b.shape[1]] = b.reshape(b.shape[:2]).to(up)
        magnitudes = split_magnitudes(state)
        for name, magnitude in self.magnitudes(self.values.detach()[slot]):
            if name in magnitudes:
                magnitude.copy_(magnitudes[name].flatten())
        layers = [name for name in self.layers if name in pairs]
        self.occupy(slot, max(ranks, default=0), scale, layers, dora=bool(magnitudes))


def computing_dtype(network: nn.Module) -> torch.dtype:
    """Return what a network computes in: that of its first weights that are not packed into fewer bits."""
    return next(p.dtype for p in network.parameters() if p.is_floating_point())


def base_layer_names(network: nn.Module) -> list[str]:
    """Return the names of all linear and convolution layers, as if no adapter were attached."""
    found: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            found.append(name.removesuffix(".base") if name.endswith(".base") else name)
    return found


def attach(
    network: nn.Module,
    names: Sequence[str],
    slots: int = 1,
    rank: int = 16,
    dtype: torch.dtype = torch.float32,
    dora: bool = False,
) -> AdapterBank:
    """Attach empty stacked adapters to the named layers of a network; `AdapterBank.detach` takes them off.

    Args:
        network: The frozen network.
        names: Names of linear and convolution layers in it.
        slots: How many adapters there is room for.
        rank: Largest rank there is room for.
        dtype: Of the adapters' numbers; they are cast to the network's when used.
        dora: Make room for DoRA's magnitudes.
    """
    return AdapterBank(network, names, slots, rank, dtype, dora)


@contextmanager
def attached(
    network: nn.Module, states: Sequence[Mapping[str, Tensor]], scales: Sequence[float] | None = None
) -> Iterator[AdapterBank]:
    """Attach finished adapters for rendering, state i in slot i; taken off at the end.

    Args:
        network: The frozen network.
        states: One adapter each, in peft's format.
        scales: Strength of each; all 1 when None.
    """
    pairs = [split_state(state) for state in states]
    names = [name for name in base_layer_names(network) if any(name in pair for pair in pairs)]
    unknown = sorted({name for pair in pairs for name in pair} - set(names))
    rank = max((a.shape[0] for pair in pairs for a, _ in pair.values()), default=1)
    dtype = torch.promote_types(computing_dtype(network), torch.float32)
    dora = any(split_magnitudes(state) for state in states)
    bank = AdapterBank(network, [*names, *unknown], max(1, len(states)), rank, dtype, dora)
    try:
        for slot, state in enumerate(states):
            bank.load_slot(slot, state, 1.0 if scales is None else scales[slot])
        yield bank
    finally:
        bank.detach()


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)

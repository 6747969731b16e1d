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
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunes_dagster.failures import Failure, FailureCode

# Parts of the buffer start at multiples of this many numbers, so that kernels can use vector loads.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Route:
    """How the rows of the current batch map to slots.

    Attributes:
        kind: `off` no row has an adapter; `single` all rows share one; `blocks` equally long runs of rows, one
            slot each; `rows` anything else, also with rows that have none.
        slots: What the working weights are gathered by: None for all in order, else slot numbers.
        row_slots: For `rows`, the position of each row's slot among the working weights.
        with_none: Whether an all-zero adapter follows the working weights, for rows that have none.
    """

    kind: Literal["off", "single", "blocks", "rows"]
    slots: Tensor | None = None
    row_slots: Tensor | None = None
    with_none: bool = False


class StackedLora(nn.Module):
    """One frozen linear or convolution layer with one low-rank adapter per slot.

    `down` is A `[slots, rank, in]` (`[slots, rank, in, kh, kw]` for convolutions), `up` is B `[slots, out, rank]`,
    already multiplied by alpha / rank; both are set by the bank for each batch.
    """

    base: nn.Linear | nn.Conv2d

    def __init__(self, base: nn.Linear | nn.Conv2d, bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        # A tuple hides the bank from the module tree, which would otherwise contain itself.
        self._bank = (bank,)
        self.is_convolution = isinstance(base, nn.Conv2d)
        weight = base.weight
        self.down_shape = (bank.rank, *weight.shape[1:])
        self.up_shape = (weight.shape[0], bank.rank)
        self.down: Tensor | None = None
        self.up: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """Answer for the wrapped layer (`weight`, `in_features` …), which library code may look at."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Return base(x) + B(A(x)) with each row's own A and B."""
        route = self._bank[0].route
        if route.kind == "off" or self.down is None or self.up is None:
            return self.base(x, *args)
        down, up = self.down, self.up
        if route.kind == "rows":
            down, up = down[route.row_slots], up[route.row_slots]
        if self.is_convolution:
            return self._add_convolution(x, self.base(x, *args), down, up)
        grouped = x.reshape(len(down), -1, x.shape[-1])
        out = LowRankLinear.apply(grouped, self.base.weight, self.base.bias, down, up)
        return out.view(*x.shape[:-1], -1)

    def _add_convolution(self, x: Tensor, out: Tensor, down: Tensor, up: Tensor) -> Tensor:
        base = self.base
        assert isinstance(base, nn.Conv2d)
        convolve = partial(F.conv2d, stride=base.stride, padding=base.padding, dilation=base.dilation)
        groups, rows = len(down), len(x)
        if groups == 1:
            hidden = convolve(x, down.view(down.shape[1:]))
            return out.add_(F.conv2d(hidden, up.view(*up.shape[1:], 1, 1)))
        # A grouped convolution needs the groups side by side in the channels: [each, groups * in, h, w].
        each = rows // groups
        wide = x.view(groups, each, *x.shape[1:]).transpose(0, 1).reshape(each, -1, *x.shape[2:])
        hidden = convolve(wide, down.flatten(0, 1), groups=groups)
        hidden = hidden.view(each, groups, up.shape[-1], -1).transpose(0, 1)
        return out.add_(torch.matmul(up.unsqueeze(1), hidden).reshape(out.shape))


class LowRankLinear(torch.autograd.Function):
    """A frozen linear layer and its adapters as one autograd node: eight matrix products and nothing else.

    Autograd's own way needs a node for each view, transposition and sum: for a small model, whose products take
    microseconds, these nodes are a good part of a step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        """Return x W' + b + (x A') B' for x `[groups, n, in]`, A `[groups, rank, in]`, B `[groups, out, rank]`."""
        out = F.linear(x, weight, bias)
        if len(x) == 1:
            hidden = torch.mm(x[0], down[0].t()).unsqueeze(0)
            out[0].addmm_(hidden[0], up[0].t())
        else:
            hidden = torch.bmm(x, down.transpose(1, 2))
            out.baddbmm_(hidden, up.transpose(1, 2))
        ctx.save_for_backward(x, weight, down, up, hidden)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        """Return the gradients of x, A and B."""
        x, weight, down, up, hidden = ctx.saved_tensors
        (grad,) = grads
        grad_x = None
        if len(x) == 1:
            flat = grad[0]
            inner = torch.mm(flat, up[0])
            if ctx.needs_input_grad[0]:
                grad_x = torch.mm(flat, weight).addmm_(inner, down[0]).unsqueeze(0)
            grad_down = torch.mm(inner.t(), x[0]).unsqueeze(0)
            return grad_x, None, None, grad_down, torch.mm(flat.t(), hidden[0]).unsqueeze(0)
        inner = torch.bmm(grad, up)
        if ctx.needs_input_grad[0]:
            grad_x = torch.matmul(grad, weight).baddbmm_(inner, down)
        grad_down = torch.bmm(inner.transpose(1, 2), x)
        return grad_x, None, None, grad_down, torch.bmm(grad.transpose(1, 2), hidden)


class AdapterBank:
    """The adapters of up to `slots` tunes, attached to one network.

    Attributes:
        layers: Adapted layer by its name in the network.
        values: The flat buffer `[slots, size]`; the only leaf that gradients arrive at.
        scales: alpha / rank (times any strength) per slot, `[slots]`.
        slot_ranks: Rank of what lies in each slot; 0 when it is empty.
        slot_layers: Names of the layers that the adapter in each slot has.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], slots: int, rank: int, dtype: torch.dtype
    ) -> None:
        self.network, self.slots, self.rank = network, slots, rank
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
        self.layers = {name: StackedLora(cast(nn.Linear, base), self) for name, base in bases.items()}
        self._lay_out(dtype)
        self.route = Route("off")
        self._routes: dict[tuple[int, ...], Route] = {}
        self.slot_ranks = [0] * slots
        self.slot_layers: list[list[str]] = [[] for _ in range(slots)]
        for name, layer in self.layers.items():
            _replace(network, name, layer)

    def _lay_out(self, dtype: torch.dtype) -> None:
        shapes = [layer.down_shape for layer in self.layers.values()]
        shapes += [layer.up_shape for layer in self.layers.values()]
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in shapes]
        self._padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in self._sizes]
        self._down_size = sum(self._padded[: len(self.layers)])
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

    def _used(self, row: Tensor, slot: int) -> Iterator[Tensor]:
        """Yield the parts of a row that the slot's adapter uses, without padding."""
        rank, chosen = self.slot_ranks[slot], set(self.slot_layers[slot])
        for name, down, up in self.views(row):
            if name in chosen:
                yield down[:rank]
                yield up[:, :rank]

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
        self, slot: int, rank: int, alpha: float, names: Sequence[str], generator: torch.Generator
    ) -> None:
        """Put a new adapter into a slot: A as peft initialises it (Kaiming uniform, a = √5), B zero.

        Args:
            slot: Which.
            rank: At most the bank's.
            alpha: The adapter is scaled by alpha / rank.
            names: The layers it has, among the bank's.
            generator: On the CPU, so that every device starts from the same numbers.
        """
        self.clear(slot)
        chosen = set(names)
        for name, down, _ in self.views(self.values.detach()[slot]):
            if name in chosen:
                bound = 1 / math.sqrt(math.prod(down.shape[1:]))
                fresh = torch.rand(rank, *down.shape[1:], generator=generator, dtype=torch.float64)
                down[:rank] = (fresh.mul_(2).sub_(1).mul_(bound)).to(down)
        self.occupy(slot, rank, alpha / rank, [name for name in self.layers if name in chosen])

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self.values.detach()[slot].zero_()
        self.occupy(slot, 0, 1.0, [])

    def occupy(self, slot: int, rank: int, scale: float, names: list[str]) -> None:
        """Say what lies in a slot, whose numbers are then written by `unpack`."""
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
        self.route = route = self._routes[asked]
        if route.kind == "off":
            return
        values, scales = self.values, self.scales
        if route.slots is not None:
            values, scales = values[route.slots], scales[route.slots]
        if route.with_none:
            values, scales = F.pad(values, (0, 0, 0, 1)), F.pad(scales, (0, 1))
        first, second = values.split([self._down_size, values.shape[1] - self._down_size], dim=1)
        dtype = next(self.network.parameters()).dtype
        pieces = [
            *first.to(dtype).split(self._padded[: len(self.layers)], dim=1),
            *(second * scales[:, None]).to(dtype).split(self._padded[len(self.layers) :], dim=1),
        ]
        views = [
            piece[:, :size].unflatten(1, shape)
            for piece, size, shape in zip(pieces, self._sizes, self._shapes, strict=True)
        ]
        for i, layer in enumerate(self.layers.values()):
            layer.down, layer.up = views[i], views[len(self.layers) + i]

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
        self.occupy(slot, max(ranks, default=0), scale, [name for name in self.layers if name in pairs])


def split_state(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return {layer name: (A, B)} of a state dict in peft's format, with any `unet.`-like prefix removed.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` for keys that are not of this format or lack their partner.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        stem, _, half = key.removesuffix(".weight").rpartition(".lora_")
        for component in ("unet.", "transformer."):
            stem = stem.removeprefix(component)
        halves.setdefault(stem, {})[half] = value
    bad = [stem or "?" for stem, pair in halves.items() if not stem or set(pair) != {"A", "B"}]
    if bad:
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The file is not a LoRA in peft's format: {bad[0]!r} has no pair of lora_A and lora_B.",
            "Export the tune again in diffusers format.",
        )
    return {stem: (pair["A"], pair["B"]) for stem, pair in halves.items()}


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
) -> AdapterBank:
    """Attach empty stacked adapters to the named layers of a network; `AdapterBank.detach` takes them off.

    Args:
        network: The frozen network.
        names: Names of linear and convolution layers in it.
        slots: How many adapters there is room for.
        rank: Largest rank there is room for.
        dtype: Of the adapters' numbers; they are cast to the network's when used.
    """
    return AdapterBank(network, names, slots, rank, dtype)


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
    dtype = torch.promote_types(next(network.parameters()).dtype, torch.float32)
    bank = AdapterBank(network, [*names, *unknown], max(1, len(states)), rank, dtype)
    try:
        for slot, state in enumerate(states):
            bank.load_slot(slot, state, 1.0 if scales is None else scales[slot])
        yield bank
    finally:
        bank.detach()


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)

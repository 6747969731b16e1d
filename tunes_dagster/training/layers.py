"""The layers that adapters live in: a frozen layer, the low-rank matrices of all slots, and how rows are routed.

The numbers are those of a bank (`adapters.py`), which sets them for each batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


@dataclass
class Routing:
    """The route that all layers of a bank follow now."""

    now: Route = Route("off")


class StackedLora(nn.Module):
    """One frozen linear or convolution layer with one low-rank adapter per slot.

    `down` is A `[slots, rank, in]` (`[slots, rank, in, kh, kw]` for convolutions), `up` is B `[slots, out, rank]`,
    already multiplied by alpha / rank; both are set by the bank for each batch. So is `gain` `[slots, out]`, by which
    DoRA multiplies what weight and adapter give together; None without DoRA.
    """

    base: nn.Linear | nn.Conv2d

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self.routing = routing
        self.is_convolution = isinstance(base, nn.Conv2d)
        # The weights of a quantized layer are packed: only its own forward can multiply by them.
        self.is_plain = type(base) in (nn.Linear, nn.Conv2d)
        self.in_shape = base.weight.shape[1:] if isinstance(base, nn.Conv2d) else (base.in_features,)
        outputs = base.out_channels if isinstance(base, nn.Conv2d) else base.out_features
        self.down_shape = (rank, *self.in_shape)
        self.up_shape = (outputs, rank)
        self.down: Tensor | None = None
        self.up: Tensor | None = None
        self.gain: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """Answer for the wrapped layer (`weight`, `in_features` …), which library code may look at."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Return base(x) + B(A(x)) with each row's own A and B."""
        route = self.routing.now
        if route.kind == "off" or self.down is None or self.up is None:
            return self.base(x, *args)
        down, up, gain = self.down, self.up, self.gain
        if route.kind == "rows":
            down, up = down[route.row_slots], up[route.row_slots]
            gain = None if gain is None else gain[route.row_slots]
        if gain is not None:
            return self._scaled(x, down, up, gain)
        if self.is_convolution:
            return self._add_convolution(x, self.base(x, *args), down, up)
        grouped = x.reshape(len(down), -1, x.shape[-1])
        if not self.is_plain:
            low = torch.matmul(torch.matmul(grouped, down.transpose(1, 2)), up.transpose(1, 2))
            return self.base(x, *args) + low.view(*x.shape[:-1], -1)
        out = LowRankLinear.apply(grouped, self.base.weight, self.base.bias, down, up)
        return out.view(*x.shape[:-1], -1)

    def _scaled(self, x: Tensor, down: Tensor, up: Tensor, gain: Tensor) -> Tensor:
        """Return DoRA's output: (W x + B A x) * gain + bias."""
        base = self.base
        if isinstance(base, nn.Conv2d):
            plain = F.conv2d(x, base.weight, None, base.stride, base.padding, base.dilation)
            out = self._add_convolution(x, plain, down, up)
            rows = gain.repeat_interleave(len(x) // len(gain), dim=0)[:, :, None, None]
            return out * rows + (0 if base.bias is None else base.bias[:, None, None])
        grouped = x.reshape(len(down), -1, x.shape[-1])
        out = LowRankLinear.apply(grouped, base.weight, None, down, up) * gain[:, None]
        out = out.view(*x.shape[:-1], -1)
        return out if base.bias is None else out + base.bias

    def row_norms(self, down: Tensor, up: Tensor) -> Tensor:
        """Return the norm of each output's row of W + B A, per slot `[slots, out]`, without forming B A.

        |w + b A|² = |w|² + 2 b·(A w) + b (A A') b', for a row w of W and b of B.
        """
        weight = self.base.weight.detach().flatten(1).to(down.dtype)
        flat = down.flatten(2)
        mixed = torch.matmul(up, torch.matmul(flat, flat.transpose(1, 2)))
        cross = torch.matmul(flat, weight.t()).transpose(1, 2)
        squares = weight.square().sum(1) + 2 * (up * cross).sum(2) + (mixed * up).sum(2)
        return squares.clamp_min(1e-12).sqrt()

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

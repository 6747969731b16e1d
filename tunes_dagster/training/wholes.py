"""Whole networks instead of adapters: the weights of a `checkpoint` tune on the loaded base, and off again exactly.

A loaded base is shared: by the tunes of a run one after another, by the prompts of a batch, by the samples and the
report card. So other weights are only lent to its denoiser: `Loan` exchanges the tensors behind its parameters and
puts its own ones back, the very same. On a GPU the base's own tensors wait in the machine's memory meanwhile, so that
the device never holds two networks.

A state of whole weights has the network's own parameter names; one of an adapter has peft's, `….lora_A.weight`.

This file imports torch at the top; import it inside functions.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.training.adapters import AdapterBank, attached
from tunes_dagster.training.names import is_whole

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase


def check_whole(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not those of this network, before anything of it is touched.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`, naming the first parameter that is missing, unknown or of another shape.
    """
    own = {name: parameter.shape for name, parameter in network.named_parameters()}
    wrong = list(own.keys() ^ state.keys())
    wrong += [name for name in own.keys() & state.keys() if own[name] != state[name].shape]
    if wrong:
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The weights do not fit the base at {min(wrong)!r}.",
            "Use the tune with the base model it was trained on.",
        )


class Loan:
    """Other weights on a network for a while.

    Args:
        network: Whose parameters.
        names: Of the parameters; None is all. Others may belong to what was put on the network, such as an IP-Adapter.

    Attributes:
        own: The base's own tensors by parameter name; on a GPU they lie in the machine's memory while others are lent.
    """

    def __init__(self, network: nn.Module, names: Container[str] | None = None) -> None:
        every = network.named_parameters()
        self._parameters = {name: value for name, value in every if names is None or name in names}
        self.own = {name: parameter.data for name, parameter in self._parameters.items()}
        self._devices: dict[str, torch.device] = {}

    def put_aside(self) -> None:
        """Let the base's own tensors wait in the machine's memory, and nothing be in their place."""
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in self._parameters.items():
                self._devices[name] = parameter.device
                parameter.data = self.own[name] = self.own[name].to("cpu")

    def lend(self, values: Mapping[str, Tensor]) -> None:
        """Let the network compute with other values, which are used as they are where they fit.

        Args:
            values: By parameter name, on any device and in any precision. What goes wrong with one of them leaves
                others lent, until the end.
        """
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in self._parameters.items():
                if name not in self._devices:
                    self._devices[name] = parameter.device
                    parameter.data = self.own[name] = self.own[name].to("cpu")
                value = values[name].to(self._devices[name], parameter.dtype)
                parameter.data = _laid_out(value, self.own[name])

    def end(self) -> None:
        """Put the network's own values back, the same tensors where they stayed on the device."""
        with torch.inference_mode(False), torch.no_grad():
            for name, device in self._devices.items():
                parameter = self._parameters[name]
                parameter.data = parameter.data.new_empty(0)  # frees what was lent before its place is needed
                parameter.data = self.own[name] = self.own[name].to(device)
        self._devices = {}


@contextmanager
def put_aside(network: nn.Module) -> Iterator[None]:
    """Keep a network off its device for the while."""
    loan = Loan(network)
    loan.put_aside()
    try:
        yield
    finally:
        loan.end()


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """Return a tensor in the memory layout of another one, without a copy when it has it already."""
    if value.stride() == like.stride():
        return value
    return torch.empty_like(like, device=value.device).copy_(value)


def mixed(
    own: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]], scales: Sequence[float]
) -> Mapping[str, Tensor]:
    """Return base + Σ scale · (tune − base) by parameter name, each computed when it is asked for.

    One tune at scale 1 is that tune exactly.
    """
    if len(states) == 1 and scales[0] == 1:
        return states[0]
    return _Mixed(own, states, scales)


class _Mixed(Mapping[str, Tensor]):
    def __init__(
        self, own: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]], scales: Sequence[float]
    ) -> None:
        self._own, self._states, self._scales = own, states, scales

    def __getitem__(self, name: str) -> Tensor:
        base = self._own[name]
        wide = torch.promote_types(base.dtype, torch.float32)
        total = base.to(wide, copy=True)
        for state, scale in zip(self._states, self._scales, strict=True):
            total += scale * (state[name].to(base.device, wide) - base.to(wide))
        return total

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


class WholeBank:
    """Whole networks in slots, for rendering; the same calls as an adapter bank's.

    Attributes:
        mixes: Whether rows of several slots may share a forward: never.
    """

    mixes = False

    def __init__(self, network: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> None:
        for state in states:
            check_whole(network, state)
        self._loan, self._states = Loan(network), states
        self._slot = -1

    def assign(self, rows: Sequence[int] | None) -> None:
        """Let the next forwards compute with the weights of the slot that all rows have; -1 or None is the base.

        Raises:
            ValueError: For rows of several slots.
        """
        slots = set(rows or (-1,))
        if len(slots) > 1:
            raise ValueError(f"rows of the slots {sorted(slots)} cannot share a forward")
        (slot,) = slots
        if slot == self._slot:
            return
        if slot < 0:
            self._loan.end()
        else:
            self._loan.lend(self._states[slot])
        self._slot = slot

    def assign_all(self, slot: int) -> None:
        """Let every row compute with the weights of one slot."""
        self.assign([slot])

    def detach(self) -> None:
        """Leave the network as it was before."""
        self._loan.end()
        self._slot = -1


@contextmanager
def worn(
    base: LoadedBase, states: Sequence[Mapping[str, Tensor]], scales: Sequence[float] | None = None
) -> Iterator[AdapterBank | WholeBank]:
    """Let a base render with trained weights of any kind, state i in slot i; as it was before at the end.

    Args:
        base: Loaded.
        states: All adapters in peft's format, or all whole networks.
        scales: Strength of each adapter; all 1 when None.
    """
    if not any(is_whole(state) for state in states):
        with attached(base.denoiser, states, scales) as bank:
            yield bank
        return
    whole = WholeBank(base.denoiser, states)
    remember(base)
    try:
        yield whole
    finally:
        whole.detach()


def remember(base: LoadedBase) -> None:
    """Have a base take its fingerprints now: it stays the same base while other weights are lent to it."""
    for roles in ((), ("text",), ("vae",), ("denoiser",)):
        base.fingerprint(*roles)

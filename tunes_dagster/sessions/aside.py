"""Letting one piece of work compute in the middle of another one, which does not notice.

Between two steps of a training nothing is half done, but much is lying about: adapters on the network, words that stand
for a token, random number generators, autograd's mode. All of that is put aside for the while and put back exactly.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from tunes_dagster.families.base import LoadedBase


@contextmanager
def undisturbed(bases: Sequence[LoadedBase]) -> Iterator[None]:
    """Let other work compute for the while, on these bases as if they had just been loaded.

    Args:
        bases: All that are loaded; their denoisers wear no adapters meanwhile.
    """
    import torch

    from tunes_dagster.families.loading import Placement, placed

    with ExitStack() as stack:
        stack.enter_context(_same_randomness())
        stack.enter_context(placed(Placement()))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for base in bases:
            stack.enter_context(bare(base.denoiser))
            stack.enter_context(_silent(base))
        yield


@contextmanager
def bare(network: nn.Module) -> Iterator[None]:
    """Take all adapters of ours off a network for the while."""
    from tunes_dagster.rendering.merged import MergedLayer
    from tunes_dagster.training.layers import StackedLora

    worn = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, StackedLora | MergedLayer)
    ]
    for name, module in worn:
        _put(network, name, module.base)
    try:
        yield
    finally:
        for name, module in worn:
            _put(network, name, module)


def is_lent(base: LoadedBase) -> bool:
    """Whether the network's own weights are being trained: nothing else can compute with it until they are back."""
    return any(parameter.requires_grad for parameter in base.denoiser.parameters())


@contextmanager
def _silent(base: LoadedBase) -> Iterator[None]:
    """Have no token stand for other words for the while."""
    spoken, base.spoken = base.spoken, {}
    try:
        yield
    finally:
        base.spoken = spoken


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Give every global random number generator back the state that it has now."""
    import numpy as np
    import torch

    ours, theirs = random.getstate(), np.random.get_state()  # noqa: NPY002 - libraries use it
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(theirs)  # noqa: NPY002


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)

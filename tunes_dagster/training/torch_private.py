"""What is used of torch and accelerate without their promise: modules of their own over the same numbers.

Nothing public copies a module without its tensors: `copy.deepcopy` copies them, and `torch.func.functional_call`
lends tensors for one call instead of making an object. So this reads what `torch.nn.Module.__init__` sets up
(`_modules`, `_parameters`, `_buffers` and the dicts of hooks), and what accelerate's `add_hook_to_module` leaves
behind. `tests/training/test_private_torch.py` pins both, and `tests/test_private_parts.py` finds such names anywhere
else.

This file imports torch at the top; import it inside functions.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tunes_dagster.training.layers import StackedLora

# What accelerate leaves on a module that it moves to the device and away; bound to that module.
_OFFLOADING = ("_hf_hook", "_old_forward", "forward")


def shared(network: nn.Module, same_parameters: bool = False) -> nn.Module:
    """Return other module objects over the same tensors, without adapters of ours.

    Args:
        network: Of which the modules are copied; not one of its numbers is.
        same_parameters: Whether moving or casting one of the two takes the other along.
    """
    with torch.inference_mode(False):
        return _twin(network, same_parameters, {})


def _twin(own: nn.Module, same_parameters: bool, known: dict[int, Any]) -> nn.Module:
    if isinstance(own, StackedLora):
        own = own.base
    if id(own) in known:
        return known[id(own)]
    twin = known[id(own)] = own.__class__.__new__(own.__class__)
    state = own.__dict__.copy()
    if "_hf_hook" in state:
        for name in _OFFLOADING:
            state.pop(name, None)
    for name, value in state.items():
        if isinstance(value, dict) and name.startswith("_") and ("hook" in name or name == "_buffers"):
            state[name] = value.copy()
        elif name == "config":  # counts the words
            state[name] = known.setdefault(id(value), copy.deepcopy(value))
    state["_modules"] = {
        name: None if part is None else _twin(part, same_parameters, known)
        for name, part in own._modules.items()
    }
    if not same_parameters:
        state["_parameters"] = {name: _over(value, known) for name, value in own._parameters.items()}
    else:
        state["_parameters"] = dict(own._parameters)
    twin.__dict__.update(state)
    return twin


def _over(own: nn.Parameter | None, known: dict[int, Any]) -> nn.Parameter | None:
    """Return a parameter of its own over the same numbers."""
    # Packed weights are parameters of a class of their own, which knows more than the numbers.
    if own is None or type(own) is not nn.Parameter:
        return own
    made: nn.Parameter = known.setdefault(id(own), nn.Parameter(own.detach(), requires_grad=False))
    return made

"""Adapters of text encoders, which files of other programs bring: merged into the encoders for as long as they speak.

Nothing here trains them. They lie in a tune's file as diffusers has them (`text_encoder.text_model.encoder…`), CLIP's
with the level `text_model` that transformers has left out of some encoders.

This file imports torch at the top; import it inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.training.names import LEVEL, split_magnitudes, split_state
from tunes_dagster.training.wholes import Loan

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase


@contextmanager
def dressed(
    base: LoadedBase, states: Sequence[Mapping[str, Tensor]], scales: Sequence[float]
) -> Iterator[None]:
    """Let a base's text encoders encode with adapters for the while.

    Args:
        base: Its encoders; what it says where there is no text is encoded anew as well.
        states: Of each tune that adapts encoders.
        scales: Of each.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when they are not of these encoders.
    """
    if not any(states):
        yield
        return
    changed = _changed(base, states, scales)
    nothing = base.__dict__.pop("_nothing", None)
    with ExitStack() as stack:
        try:
            for encoder, values in changed:
                loan = Loan(encoder, values.keys())
                stack.callback(loan.end)
                loan.lend(values)
            base.__dict__["_nothing"] = None
            yield
        finally:
            base.__dict__["_nothing"] = nothing


def _changed(
    base: LoadedBase, states: Sequence[Mapping[str, Tensor]], scales: Sequence[float]
) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    """Return each encoder with the weights that it gets, by parameter name."""
    changed = []
    for name in dict.fromkeys(key.partition(".")[0] for state in states for key in state):
        encoder = getattr(base.pipeline(), name, None)
        if not isinstance(encoder, nn.Module):
            raise _unfit(base, name)
        values: dict[str, Tensor] = {}
        for state, strength in zip(states, scales, strict=True):
            mine = {
                key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{name}.")
            }
            _add(values, encoder, mine, strength, base)
        changed.append((encoder, values))
    return changed


def _add(
    values: dict[str, Tensor],
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    strength: float,
    base: LoadedBase,
) -> None:
    """Add an adapter to the weights of an encoder, in float32 at least."""
    modules, magnitudes = dict(encoder.named_modules()), split_magnitudes(state)
    for said, (a, b) in split_state(state).items():
        name = said if said in modules else said.removeprefix(LEVEL)
        weight = getattr(modules.get(name), "weight", None)
        if weight is None or weight.shape != (b.shape[0], a.shape[1]):
            raise _unfit(base, said)
        key = f"{name}.weight"
        kind = torch.promote_types(weight.dtype, torch.float32)
        before = values.get(key, weight.detach()).to(kind)
        after = before + (b.to(before) @ a.to(before)) * strength
        if said in magnitudes:
            after = after * (magnitudes[said].flatten().to(after) / after.norm(dim=1))[:, None]
        values[key] = after


def _unfit(base: LoadedBase, name: str) -> Failure:
    return Failure(
        FailureCode.WEIGHTS_UNUSABLE,
        f"The tune adapts {name!r}, which the text encoders of {base.entry.base_id!r} do not have.",
        "Use it with the base model it was made for.",
    )

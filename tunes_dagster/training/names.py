"""The names that trained weights have in files; adapters have peft's, with or without the component's before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    from torch import Tensor

# How peft calls DoRA's magnitudes.
MAGNITUDE = ".lora_magnitude_vector"
# A level of CLIP's names that files have and some encoders of transformers have not.
LEVEL = "text_model."
_ENCODER = "text_encoder"


def is_whole(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is a whole network and not an adapter to one."""
    return bool(state) and not any(".lora_" in name for name in state)


def split_encoders(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a state dict in two: what belongs to the denoiser, and what adapts text encoders."""
    text = {name: value for name, value in state.items() if name.startswith(_ENCODER)}
    return {name: value for name, value in state.items() if name not in text}, text


def split_magnitudes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return {layer name: DoRA's magnitudes} of a state dict in peft's format; empty for a plain LoRA."""
    found = {}
    for key, value in state.items():
        stem = key.removesuffix(".weight")
        if stem.endswith(MAGNITUDE):
            stem = stem.removesuffix(MAGNITUDE)
            for component in ("unet.", "transformer."):
                stem = stem.removeprefix(component)
            found[stem] = value
    return found


def split_state(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return {layer name: (A, B)} of a state dict in peft's format, with any `unet.`-like prefix removed.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` for keys that are not of this format or lack their partner.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.removesuffix(".weight").endswith(MAGNITUDE):
            continue
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

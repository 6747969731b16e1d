"""DoRA in the names of kohya's layout, whose readers scale the rows of a layer by other norms than peft does.

peft renders (W + B A) · m / |W + B A| with a norm per output. ComfyUI (v0.3.77, `comfy/weight_adapter/base.py`) and
Forge (dfdcbab, `backend/patcher/lora.py`) render (W + B A) · dora_scale / |W| of a scale with one number per output. So
a `dora_scale` of m · |W| / |W + B A| makes them render the same, at strength 1 and on untouched weights. What cannot be
helped by numbers: AUTOMATIC1111 takes norms over inputs whatever the shape of the scale, sd-scripts and
diffusers drop `dora_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunes_dagster.training.names import MAGNITUDE, split_magnitudes, split_state

if TYPE_CHECKING:
    from torch import Tensor, nn

# How kohya's layout calls the scale of a layer, and the network that it belongs to.
SCALE = ".dora_scale"
_UNET = "lora_unet_"


def kohya_scales(network: nn.Module, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the scales of an adapter's layers by their keys in kohya's layout, float32; empty for a plain LoRA.

    Args:
        network: A UNet with the weights that the adapter was trained on.
        adapter: In peft's format with alpha folded in, in the numbers that are written.
    """
    pairs, made = split_state(adapter), {}
    for name, magnitude in split_magnitudes(adapter).items():
        weight = _weight(network, name)
        before, after = row_norms(weight, *pairs[name])
        scale = magnitude.flatten().to(before) * before / after
        # [out, 1] or [out, 1, 1, 1]: readers tell by the first size along which axis they have to take norms.
        made[f"{_UNET}{name.replace('.', '_')}{SCALE}"] = scale.cpu().view(-1, *(1,) * (weight.ndim - 1))
    return made


def from_kohya(network: nn.Module, written: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a DoRA in kohya's layout as peft would have to hold it to render what ComfyUI makes of the file.

    Layers whose names the network does not have are left out, as such readers do.
    """
    made: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        stem = f"{_UNET}{name.replace('.', '_')}"
        if f"{stem}.lora_down.weight" not in written or not hasattr(module, "weight"):
            continue
        a, b = (written[f"{stem}.lora_{half}.weight"] for half in ("down", "up"))
        b = b * (float(written[f"{stem}.alpha"]) / len(a))
        made |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        if (scale := written.get(f"{stem}{SCALE}")) is not None:
            before, after = row_norms(_weight(network, name), a, b)
            made[f"{name}{MAGNITUDE}"] = (scale.flatten().to(before) * after / before).cpu()
    return made


def _weight(network: nn.Module, name: str) -> Tensor:
    weight: Tensor = network.get_submodule(name).weight.detach()  # type: ignore[operator]
    return weight


def row_norms(weight: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms of a weight's rows without and with an adapter, `[out]`, float32 at least."""
    import torch

    plain = weight.flatten(1)
    plain = plain.to(torch.promote_types(plain.dtype, torch.float32))
    adapted = plain + b.flatten(1).to(plain) @ a.flatten(1).to(plain)
    return plain.norm(dim=1), adapted.norm(dim=1)

"""A file of another program as weights of ours: peft's format, alpha folded in, every layer or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.training.foreign.fitting import Fit, Fitting, Networks
from tunes_dagster.training.foreign.lycoris import loha_pair, lokr_pair
from tunes_dagster.training.foreign.names import DENOISER
from tunes_dagster.training.foreign.scales import Scales, scale
from tunes_dagster.training.layouts import in_file
from tunes_dagster.training.names import MAGNITUDE

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase

# Share of a layer's norm that may be lost when a LoHa or LoKr becomes a LoRA; above it is another adapter.
_MOST_LOST = 0.05


@dataclass
class Converted:
    """Weights of another program in our format.

    Attributes:
        state: The adapter, text encoders included, keyed as diffusers does (`unet.…`, `text_encoder.…`).
        words: Vectors by encoder, `[words, width]`; empty for none.
        word: That they stand for, when the file says it.
        rank: The largest among its layers.
        dora: Whether it is a DoRA.
        encoders: Text encoders that it adapts.
        notes: What its owner should know, a sentence each.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    words: dict[str, Tensor] = field(default_factory=dict)
    word: str = ""
    rank: int = 0
    dora: bool = False
    encoders: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def networks_of(base: LoadedBase) -> Networks:
    """Return the layers of a loaded base that files may adapt."""
    parts: dict[str, nn.Module] = {DENOISER: base.denoiser}
    for name in dict.fromkeys(base.encoder_names.values()):
        if isinstance(encoder := getattr(base.pipeline(), name, None), nn.Module):
            parts[name] = encoder
    shapes = {
        name: {
            layer.removesuffix(".base"): _shape(module)
            for layer, module in network.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }
        for name, network in parts.items()
    }
    words = {
        name: int(encoder.get_input_embeddings().weight.shape[1])
        for name, (_, encoder) in base.word_encoders().items()
    }
    return Networks(type(base), base.denoiser_name, shapes, words)


def _shape(module: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    """Return the shape of a layer's weight, also of one that is packed into fewer bits."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels // module.groups, *module.kernel_size


def convert(
    fitting: Fitting,
    tensors: Mapping[str, Tensor],
    networks: Networks,
    scales: Scales,
    weights: Mapping[str, nn.Module] | None = None,
) -> Converted:
    """Return a file's tensors as weights of ours.

    Args:
        fitting: Of the file.
        tensors: By key.
        networks: Of the base.
        scales: What the file's header says about strengths.
        weights: Networks with the base's own weights, for a DoRA whose scales are of them (our own second layout);
            None for the DoRAs of others.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` for numbers that are not finite, or a LoHa or LoKr that no LoRA comes close to.
    """
    made, lost = Converted(word=fitting.word), 0.0
    for fit in fitting.fits:
        parts = {part: _numbers(tensors[key], key) for part, key in fit.layer.parts.items()}
        a, b, gone = _pair(fit, parts, networks, scales)
        lost = max(lost, gone)
        magnitude = parts.get("dora", parts.get("magnitude"))
        magnitude = None if magnitude is None else magnitude.flatten()
        if fit.target.swapped:
            b = _other_way_round(b)
            magnitude = None if magnitude is None else _other_way_round(magnitude)
        _put(made, fit, networks, a, b, magnitude, weights)
    for encoder, key in (fitting.vectors or {}).items():
        made.words[encoder] = _numbers(tensors[key], key).reshape(-1, tensors[key].shape[-1])
    if fitting.fits and not made.state:
        raise _unusable("holds nothing but zeros")
    if lost > _MOST_LOST:
        raise _unusable(f"holds a LoHa or LoKr of which a LoRA would lose {lost:.1%}")
    if lost:
        made.notes.append(
            f"It was a LoHa or LoKr of high rank; as a LoRA it differs by {lost:.2%} at the layer that differs most."
        )
    made.encoders = sorted({fit.network for fit in fitting.fits} - {DENOISER})
    return made


def _numbers(tensor: Tensor, key: str) -> Tensor:
    wide = tensor.to(torch.float32)
    if not bool(torch.isfinite(wide).all()):
        raise _unusable(f"holds numbers that are not finite, at {key}")
    return wide


def _pair(
    fit: Fit, parts: Mapping[str, Tensor], networks: Networks, scales: Scales
) -> tuple[Tensor, Tensor, float]:
    """Return (A `[rank, in…]`, B `[out, rank]`) at full strength, and the share of its norm that is lost."""
    name = fit.target.layers[0]
    shape = networks.shapes[fit.network][name]
    lost = 0.0
    if "down" in parts:
        a, b = parts["down"], parts["up"].flatten(1)
        if "mid" in parts:
            a = torch.einsum("ijkl,jr->irkl", parts["mid"], a.flatten(1))
    elif "hada_w1_a" in parts:
        a, b, lost = loha_pair(parts)
    else:
        a, b, lost = lokr_pair(parts)
    a = a.reshape(len(a), *shape[1:])
    if fit.rank == 0:
        factor = 1.0  # factors that are whole have no rank to divide by
    elif "alpha" in parts:
        factor = scale(float(parts["alpha"].flatten()[0]), fit.rank, layer=fit.layer.said)
    else:
        factor = scales.of(networks.component(fit.network), name, fit.rank)
    return a, b * factor, lost


def _other_way_round(rows: Tensor) -> Tensor:
    return torch.cat(rows.chunk(2)[::-1])


def _put(
    made: Converted,
    fit: Fit,
    networks: Networks,
    a: Tensor,
    b: Tensor,
    magnitude: Tensor | None,
    weights: Mapping[str, nn.Module] | None,
) -> None:
    """Add an adapter to what is made, split where one layer of the file is several of ours."""
    sizes = [networks.shapes[fit.network][name][0] for name in fit.target.layers]
    rows = b.split(sizes)
    numbers = [None] * len(sizes) if magnitude is None else list(magnitude.split(sizes))
    for name, mine, own in zip(fit.target.layers, rows, numbers, strict=True):
        used = mine.abs().amax(dim=0) > 0
        if not bool(used.any()):
            if own is None:
                continue
            used[0] = True
        ours = name if fit.network == DENOISER else in_file(name)
        key = f"{networks.component(fit.network)}.{ours}"
        down, up = a[used].contiguous(), mine[:, used].contiguous()
        if own is not None:
            if "dora" in fit.layer.parts and weights is not None:
                own = _as_trained(own, weights[fit.network].get_submodule(name), down, up)
            made.state[f"{key}{MAGNITUDE}"] = own if down.ndim == 2 else own[None, :, None, None]
            made.dora = True
        made.state[f"{key}.lora_A.weight"] = down
        made.state[f"{key}.lora_B.weight"] = up if down.ndim == 2 else up[:, :, None, None]
        made.rank = max(made.rank, len(down))


def _as_trained(scales: Tensor, module: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Return the magnitudes behind the scales of our own second layout, see `training/dora.py`."""
    from tunes_dagster.training.dora import row_norms

    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    before, after = row_norms(weight.cpu(), a, b)
    return scales.to(before) * after / before


def _unusable(why: str) -> Failure:
    return Failure(
        FailureCode.WEIGHTS_UNUSABLE,
        f"The file {why}.",
        "Nothing of it was taken. Export it anew in the program that made it, as a plain LoRA if it is none.",
    )

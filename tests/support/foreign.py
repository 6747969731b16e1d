"""Adapters as other programs write them, made from one of ours: names and scales as in their code and documents.

Each takes an adapter in peft's format (`unet.LAYER.lora_A.weight`, text encoders as `text_encoder.LAYER…`) and returns
the tensors and the header of a file that means the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

ALPHA = 2.0
Made = tuple[dict[str, Tensor], dict[str, str]]


def text_lora(base, seed: int, rank: int = 4, strength: float = 0.3) -> dict[str, Tensor]:
    """Return adapters of a base's CLIP encoders, as sd-scripts trains them: attention and MLP."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(base.pipeline(), name, None)
        if encoder is None or not type(encoder).__name__.startswith("CLIP"):
            continue
        for layer, module in encoder.named_modules():
            if isinstance(module, nn.Linear) and ".layers." in layer:
                out, width = module.weight.shape
                a = torch.randn(rank, width, generator=generator) / width**0.5
                made[f"{name}.{layer}.lora_A.weight"] = a
                made[f"{name}.{layer}.lora_B.weight"] = (
                    torch.randn(out, rank, generator=generator) * strength / 10
                )
    return made


def pairs(adapter: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (A, B) by layer with its network (`unet.down_blocks…`)."""
    return {
        key.removesuffix(".lora_A.weight"): (value, adapter[key.replace("lora_A", "lora_B")])
        for key, value in adapter.items()
        if key.endswith(".lora_A.weight")
    }


def delta(a: Tensor, b: Tensor) -> Tensor:
    """Return what an adapter adds to its weight, `[out, in…]`."""
    return (b.flatten(1).double() @ a.flatten(1).double()).view(len(b), *a.shape[1:])


def with_alpha(a: Tensor, b: Tensor, alpha: float = ALPHA) -> tuple[Tensor, Tensor, Tensor]:
    """Return a pair that means the same with an alpha beside it."""
    return a, b * (len(a) / alpha), torch.tensor(alpha)


def _encoder(name: str, two: bool) -> str:
    """Return what kohya's scripts call a layer of a CLIP encoder."""
    encoder, _, layer = name.partition(".")
    number = {"text_encoder": "1" if two else "", "text_encoder_2": "2"}[encoder]
    layer = layer if layer.startswith("text_model.") else f"text_model.{layer}"
    return f"lora_te{number}_{layer.replace('.', '_')}"


def kohya(adapter: Mapping[str, Tensor], named: Callable[[str], str] = lambda name: name) -> Made:
    """sd-scripts: `lora_unet_…`, `lora_te_…`, `lora_te1_…`, alpha beside each layer."""
    found, made = pairs(adapter), {}
    two = any(name.startswith(("text_encoder_2.", "transformer.")) for name in found)
    for name, (a, b) in found.items():
        if name.startswith("text_encoder"):
            theirs = _encoder(name, two)
        else:
            theirs = f"lora_unet_{named(name.partition('.')[2]).replace('.', '_')}"
        down, up, alpha = with_alpha(a, b)
        made |= {f"{theirs}.lora_down.weight": down, f"{theirs}.lora_up.weight": up, f"{theirs}.alpha": alpha}
    return made, {"ss_network_alpha": str(ALPHA), "ss_network_dim": "4"}


def kohya_sdxl(adapter: Mapping[str, Tensor], depth: int) -> Made:
    """sd-scripts of SDXL: the UNet's blocks are called as in Stability's code."""

    def named(name: str) -> str:
        inside = {
            "conv1": "in_layers.2",
            "conv2": "out_layers.3",
            "time_emb_proj": "emb_layers.1",
            "conv_shortcut": "skip_connection",
        }
        if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", name):
            way, block, kind, place, rest = found.groups()
            number = int(block) * (depth + 1) + int(place)
            where = f"input_blocks.{number + 1}" if way == "down" else f"output_blocks.{number}"
            return f"{where}.{1 if kind == 'attentions' else 0}.{inside.get(rest, rest)}"
        if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
            kind, place, rest = found.groups()
            return f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}.{inside.get(rest, rest)}"
        raise AssertionError(name)

    return kohya(adapter, named)


def old_diffusers(adapter: Mapping[str, Tensor]) -> Made:
    """diffusers before peft: `unet.….attn1.processor.to_q_lora.down.weight`, at full strength."""
    made = {}
    for name, (a, b) in pairs(adapter).items():
        if name.startswith("text_encoder"):
            theirs = name if ".text_model." in name else name.replace(".", ".text_model.", 1)
            made |= {
                f"{theirs}.lora_linear_layer.down.weight": a,
                f"{theirs}.lora_linear_layer.up.weight": b,
            }
        elif found := re.match(r"(.+\.attn[12])\.(to_q|to_k|to_v|to_out)(\.0)?$", name):
            theirs = f"{found[1]}.processor.{found[2]}_lora"
            made |= {f"{theirs}.down.weight": a, f"{theirs}.up.weight": b}
        else:
            made |= {f"{name}.lora.down.weight": a, f"{name}.lora.up.weight": b}
    return made, {}


def new_diffusers(adapter: Mapping[str, Tensor], alpha: float = 32.0) -> Made:
    """diffusers of today: peft's names, peft's configurations in the header."""
    from peft import LoraConfig

    made: dict[str, Tensor] = {}
    layers: dict[str, list[str]] = {}
    for name, (a, b) in pairs(adapter).items():
        made |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b * (len(a) / alpha)}
        network, _, layer = name.partition(".")
        layers.setdefault(network, []).append(layer)
    config = {
        f"{network}.{key}": sorted(value) if isinstance(value, set) else value
        for network, names in layers.items()
        for key, value in LoraConfig(r=4, lora_alpha=alpha, target_modules=names).to_dict().items()
    }
    return made, {"format": "pt", "lora_adapter_metadata": json.dumps(config)}


def ai_toolkit(adapter: Mapping[str, Tensor]) -> Made:
    """ai-toolkit: peft's names at full strength, in half precision."""
    return {key: value.half() for key, value in adapter.items()}, {"software": '{"name": "ai-toolkit"}'}


def simple_tuner(adapter: Mapping[str, Tensor]) -> Made:
    """SimpleTuner: peft's names with an alpha beside each layer."""
    made = {}
    for name, (a, b) in pairs(adapter).items():
        down, up, alpha = with_alpha(a, b)
        made |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.alpha": alpha}
    return made, {}


def diffsynth(adapter: Mapping[str, Tensor]) -> Made:
    """DiffSynth-Studio: no network, and the name of peft's adapter behind A and B."""
    made = {}
    for name, (a, b) in pairs(adapter).items():
        theirs = name.partition(".")[2]
        made |= {f"{theirs}.lora_A.default.weight": a, f"{theirs}.lora_B.default.weight": b}
    return made, {}


def one_trainer(adapter: Mapping[str, Tensor]) -> Made:
    """OneTrainer: kohya's layout, of a transformer with diffusers' names."""
    made, _ = kohya(adapter)
    if any(name.startswith("transformer.") for name in adapter):
        made = {key.replace("lora_unet_", "lora_transformer_"): value for key, value in made.items()}
    return made, {"ot_branch": "master"}


def peft_own(
    adapter: Mapping[str, Tensor], alpha: float = 8.0
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """peft's own file: `base_model.model.…`, and its configuration, which lies beside it."""
    made = {}
    for name, (a, b) in pairs(adapter).items():
        theirs = f"base_model.model.{name.partition('.')[2]}"
        made |= {f"{theirs}.lora_A.weight": a, f"{theirs}.lora_B.weight": b * (len(a) / alpha)}
    return made, {"peft_type": "LORA", "r": 4, "lora_alpha": alpha}


def fused(
    adapter: Mapping[str, Tensor], prefix: str, names: Mapping[str, tuple[str, ...]], dotted: bool
) -> Made:
    """Return layers of the original checkpoint, each with a random pair of its own, in kohya's or peft's halves.

    Args:
        adapter: Says the sizes.
        prefix: Before each layer.
        names: Original name → our layers.
        dotted: `lora_A` and full strength, or `lora_down` with alpha.
    """
    found, made = pairs(adapter), {}
    for theirs, ours in names.items():
        parts = [found[name] for name in ours]
        a, b = parts[0][0], torch.cat([one[1] for one in parts])
        if dotted:
            made |= {f"{prefix}{theirs}.lora_A.weight": a, f"{prefix}{theirs}.lora_B.weight": b}
        else:
            down, up, alpha = with_alpha(a, b)
            key = f"{prefix}{theirs.replace('.', '_')}"
            made |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
    return made, {}

"""Computes the figures of `tunes_dagster/families/sizes.yaml` from the released configurations, without weights.

    python -m benchmarks.memory            all models, about two minutes on one core
    python -m benchmarks.memory sdxl1      one

The networks are built on torch's meta device (accelerate's `init_empty_weights`), get peft's LoRA of rank 16 on their
attention and run one bfloat16 forward; the bytes that autograd keeps for the backward are counted by
`saved_tensors_hooks`. Attention matrices are left out: every device we plan for has fused attention. Prints one line
of JSON per model.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig

_UNET_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)$"
_UNET_TARGETS = {
    "attention": _UNET_ATTENTION,
    "attention+mlp": rf"{_UNET_ATTENTION}|ff\.net\.(0\.proj|2)$",
    "all": rf"{_UNET_ATTENTION}|ff\.net\.(0\.proj|2)$|attentions\.\d+\.proj_(in|out)$|resnets\.\d+\.conv[12]$",
}
_FLUX_ATTENTION = (
    r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out|to_qkv_mlp_proj|to_out)$"
)
_FLUX_TARGETS = {"attention": _FLUX_ATTENTION, "attention+mlp": r"transformer_blocks\..*"}
_TEXT = 512


@dataclass(frozen=True)
class Model:
    """One model: its class in diffusers, its configuration, its arguments of one forward, and its positions."""

    kind: str
    config: dict[str, Any]
    arguments: Callable[[], dict[str, Any]]
    positions: int
    targets: dict[str, str]


def _zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(*shape, device="meta", dtype=dtype)


def _unet(side: int, context: int, sized: bool) -> Callable[[], dict[str, Any]]:
    def arguments() -> dict[str, Any]:
        extra = {"text_embeds": _zeros(1, 1280), "time_ids": _zeros(1, 6)}
        return {
            "sample": _zeros(1, 4, side, side),
            "timestep": _zeros(1, dtype=torch.float32),
            "encoder_hidden_states": _zeros(1, 77, context),
            "added_cond_kwargs": extra if sized else None,
        }

    return arguments


def _flux(channels: int, context: int, axes: int, pooled: bool, guided: bool) -> Callable[[], dict[str, Any]]:
    def arguments() -> dict[str, Any]:
        found = {
            "hidden_states": _zeros(1, 4096, channels),
            "encoder_hidden_states": _zeros(1, _TEXT, context),
            "timestep": _zeros(1, dtype=torch.float32),
            "img_ids": _zeros(4096, axes, dtype=torch.float32),
            "txt_ids": _zeros(_TEXT, axes, dtype=torch.float32),
        }
        if pooled:
            found["pooled_projections"] = _zeros(1, 768)
        if guided:
            found["guidance"] = _zeros(1, dtype=torch.float32)
        return found

    return arguments


def _flux2(layers: int, single: int, heads: int, context: int, guided: bool) -> Model:
    config = {
        "in_channels": 128,
        "num_layers": layers,
        "num_single_layers": single,
        "attention_head_dim": 128,
        "num_attention_heads": heads,
        "joint_attention_dim": context,
        "guidance_embeds": guided,
    }
    arguments = _flux(128, context, 4, pooled=False, guided=guided)
    return Model("Flux2Transformer2DModel", config, arguments, 4096 + _TEXT, _FLUX_TARGETS)


_SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_FLUX1 = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
MODELS = {
    "realistic-vision": Model("UNet2DConditionModel", _SD15, _unet(64, 768, False), 64 * 64, _UNET_TARGETS),
    "sdxl1": Model("UNet2DConditionModel", _SDXL, _unet(128, 2048, True), 128 * 128, _UNET_TARGETS),
    "flux1-dev": Model(
        "FluxTransformer2DModel", _FLUX1, _flux(64, 4096, 3, True, True), 4096 + _TEXT, _FLUX_TARGETS
    ),
    "flux2-dev": _flux2(8, 48, 48, 15360, guided=True),
    "flux2-klein-4b": _flux2(5, 20, 24, 7680, guided=False),
    "flux2-klein-9b": _flux2(8, 24, 32, 12288, guided=False),
}


def build(model: Model) -> Any:
    """Return the network without memory, frozen, in bfloat16."""
    import diffusers

    with init_empty_weights():
        network = getattr(diffusers, model.kind)(**model.config)
    return network.to(torch.bfloat16).requires_grad_(False)


def width(network: torch.nn.Module, pattern: str) -> int:
    """Return the numbers per rank that an adapter on the layers of a pattern has."""
    layers = [
        module
        for name, module in network.named_modules()
        if re.search(pattern, name) and isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]
    return sum(layer.weight[0].numel() + layer.weight.shape[0] for layer in layers)


def _adapt(network: Any, pattern: str) -> None:
    """Put peft's LoRA of rank 16 on the layers of a pattern."""
    names = [
        name
        for name, module in network.named_modules()
        if re.search(pattern, name) and isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]
    with init_empty_weights():
        network.add_adapter(LoraConfig(r=16, target_modules=names))


def kept_bytes(model: Model, checkpointing: bool, target: str = "attention") -> int:
    """Return the bytes that autograd keeps of one forward of one row.

    Args:
        model: Which.
        checkpointing: With gradient checkpointing.
        target: Layers with a LoRA; `full` trains all weights and has none.
    """
    network = build(model)
    if target == "full":
        network.requires_grad_(True)
    else:
        _adapt(network, model.targets[target])
    network.to(torch.bfloat16).train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    # The tensors are kept, so that no storage is counted twice under a number that was used again.
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        attention = tensor.ndim >= 3 and tensor.shape[-1] == tensor.shape[-2] >= 300
        if storage._cdata not in weights and not attention:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(**model.arguments(), return_dict=False)
    return sum(size for size, _ in kept.values())


# Text encoders that learn words (pivotal tuning), and the tokens that they read.
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}
_T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}
TEXT_MODELS = {
    "realistic-vision": [("CLIPText", _CLIP_L, 77)],
    "sdxl1": [("CLIPText", _CLIP_L, 77), ("CLIPText", _CLIP_G, 77)],
    "flux1-dev": [("CLIPText", _CLIP_L, 77), ("T5", _T5_XXL, _TEXT)],
}


def text_kept_bytes(kind: str, config: dict[str, Any], tokens: int) -> int:
    """Return the bytes that autograd keeps of one text through a frozen encoder, its attention included."""
    import transformers

    model = {"CLIPText": "CLIPTextModel", "T5": "T5EncoderModel"}[kind]
    with init_empty_weights():
        network = getattr(transformers, model)(getattr(transformers, f"{kind}Config")(**config))
    network.to(torch.bfloat16).requires_grad_(False)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Embedding) and layer.num_embeddings == network.config.vocab_size:
            layer.register_forward_hook(lambda _, given, out: out.requires_grad_(True))
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.zeros(1, tokens, device="meta", dtype=torch.long))
    return sum(size for size, _ in kept.values())


def main() -> None:
    """Print the figures of the named models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all when none is named")
    diffusers_logging.set_verbosity_error()
    for name in parser.parse_args().models or MODELS:
        model = MODELS[name]
        network = build(model)
        plain = {target: kept_bytes(model, False, target) for target in (*model.targets, "full")}
        checkpointed = kept_bytes(model, True)
        figures = {
            "model": name,
            "denoiser": round(sum(parameter.numel() for parameter in network.parameters()) / 1e9, 3),
            "kept": {target: size // model.positions for target, size in plain.items()},
            "kept_checkpointed": checkpointed // model.positions,
            "gib_per_row": {target: round(size / 2**30, 2) for target, size in plain.items()},
            "widths": {target: width(network, pattern) for target, pattern in model.targets.items()},
            "text_kept": sum(text_kept_bytes(*one) for one in TEXT_MODELS.get(name, [])),
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

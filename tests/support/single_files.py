"""Writes tiny bases as single-file checkpoints in the layouts that people download."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}


_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _unet_name(key: str, each: int) -> str:
    """Return the original name of a UNet parameter; `each` is the number of its blocks per resolution."""
    for ours, theirs in _UNET_ENDS.items():
        if key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    for ours, theirs in _RESNET.items():
        key = re.sub(rf"(resnets\.\d+)\.{ours}\.", rf"\1.{theirs}.", key)
    if key.startswith("mid_block"):
        key = key.replace("mid_block.resnets.0", "middle_block.0").replace(
            "mid_block.resnets.1", "middle_block.2"
        )
        return key.replace("mid_block.attentions.0", "middle_block.1")
    block, kind, layer, rest = re.fullmatch(r"\w+_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key).groups()  # type: ignore[union-attr]
    down = key.startswith("down")
    number = int(block) * each + int(layer) + down
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * each}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{int(block) * each + each - 1}.UP.{rest}"
    return f"{'input' if down else 'output'}_blocks.{number}.{0 if kind == 'resnets' else 1}.{rest}"


def _vae_name(key: str, blocks: int) -> str:
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    for ours, theirs in _VAE_ATTENTION.items():
        key = key.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(
        r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", key
    )
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)


def write_sd15(pipeline: Any, path: Path) -> Path:
    """Write a `StableDiffusionPipeline` as one file in the layout of the original SD 1.x checkpoints."""
    from safetensors.torch import save_file

    each = pipeline.unet.config.layers_per_block + 1
    tensors = {}
    for key, value in pipeline.unet.state_dict().items():
        name = _unet_name(key, each)
        if ".UP." in name:  # it follows the attention where the block has one
            block = name.partition(".UP.")[0]
            has_attention = any(
                _unet_name(k, each).startswith(f"{block}.1.")
                for k in pipeline.unet.state_dict()
                if k.startswith("up_blocks") and "attentions" in k
            )
            name = name.replace(".UP.", f".{1 + has_attention}.")
        tensors[f"model.diffusion_model.{name}"] = value
    for key, value in pipeline.vae.state_dict().items():
        name = _vae_name(key, len(pipeline.vae.config.block_out_channels))
        if ".attn_1." in name and value.ndim == 2:  # linear layers were convolutions then
            value = value[:, :, None, None]
        tensors[f"first_stage_model.{name}"] = value
    for key, value in pipeline.text_encoder.state_dict().items():
        name = key if key.startswith("text_model.") else f"text_model.{key}"
        tensors[f"cond_stage_model.transformer.{name}"] = value
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


_FLUX2_ENDS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
}
_FLUX2_DOUBLE = {
    "attn.to_out.0": "img_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "attn.to_add_out": "txt_attn.proj",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
_FLUX2_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}


def write_flux2(transformer: Any, path: Path) -> Path:
    """Write a `Flux2Transformer2DModel` as one file in the layout of the original FLUX.2 checkpoints."""
    import torch
    from safetensors.torch import save_file

    state = dict(transformer.state_dict())
    tensors = {
        f"{theirs}.weight": state[f"{ours}.weight"]
        for ours, theirs in _FLUX2_ENDS.items()
        if f"{ours}.weight" in state
    }
    scale, shift = state["norm_out.linear.weight"].chunk(2)
    tensors["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    for i in range(transformer.config.num_layers):
        ours, theirs = f"transformer_blocks.{i}", f"double_blocks.{i}"
        for one, two in _FLUX2_DOUBLE.items():
            tensors[f"{theirs}.{two}.weight"] = state[f"{ours}.{one}.weight"]
        for one, two in _FLUX2_NORMS.items():
            tensors[f"{theirs}.{two}.scale"] = state[f"{ours}.{one}.weight"]
        for stream, names in (("img", "to_{}"), ("txt", "add_{}_proj")):
            parts = [state[f"{ours}.attn.{names.format(x)}.weight"] for x in "qkv"]
            tensors[f"{theirs}.{stream}_attn.qkv.weight"] = torch.cat(parts)
    for i in range(transformer.config.num_single_layers):
        ours, theirs = f"single_transformer_blocks.{i}.attn", f"single_blocks.{i}"
        tensors[f"{theirs}.linear1.weight"] = state[f"{ours}.to_qkv_mlp_proj.weight"]
        tensors[f"{theirs}.linear2.weight"] = state[f"{ours}.to_out.weight"]
        tensors[f"{theirs}.norm.query_norm.scale"] = state[f"{ours}.norm_q.weight"]
        tensors[f"{theirs}.norm.key_norm.scale"] = state[f"{ours}.norm_k.weight"]
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path

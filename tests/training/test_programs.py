"""Exported files of the released models against the layers that other programs take, by name and by size.

A program drops a name that it does not know without an error. The tables are what each takes, written down from:
ComfyUI of 2025 (`comfy/lora.py`, `comfy/utils.py`; v0.3.77 for DoRA), Forge dfdcbab of 2025-06-26
(`packages_3rdparty/comfyui_lora_collection`), AUTOMATIC1111 of 2024 (`extensions-builtin/Lora/networks.py`),
sd-scripts 48d368f of 2026-02-16 (`networks/lora.py`, `library/flux_models.py`), musubi-tuner 30c658c of 2026-06-24
(`flux_2/flux2_models.py`, `utils/lora_utils.py`). A UNet's layers are called in kohya's files as in diffusers by all of
them: ComfyUI and Forge map them block by block, AUTOMATIC1111 and sd-scripts translate them to the original names.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from tunes_dagster.families.specs import families

_BLOCK = r"(down_blocks_\d|mid_block|up_blocks_\d)"
_SPOT = rf"{_BLOCK}_attentions_\d"
UNET = (
    rf"{_SPOT}_transformer_blocks_\d_attn[12]_to_(q|k|v|out_0)",
    rf"{_SPOT}_transformer_blocks_\d_ff_net_(0_proj|2)",
    rf"{_SPOT}_proj_(in|out)",
    rf"{_BLOCK}_resnets_\d_(conv1|conv2|time_emb_proj|conv_shortcut)",
    r"down_blocks_\d_downsamplers_0_conv",
    r"up_blocks_\d_upsamplers_0_conv",
)
# What a layer of the original checkpoints makes of what, in widths of the model, and other numbers as they are.
_STREAM = {"attn_qkv": (3, 1), "attn_proj": (1, 1)}


def _streams(layers: dict[str, tuple[int, int]], blocks: int) -> dict[str, tuple[int, int]]:
    return {
        f"double_blocks_{i}_{stream}_{name}": size
        for i in range(blocks)
        for stream in ("img", "txt")
        for name, size in layers.items()
    }


# FLUX.1: 19 double blocks, 38 single ones, width 3072; a single block's first layer is q, k, v and the MLP's.
FLUX1 = _streams(_STREAM | {"mlp_0": (4, 1), "mlp_2": (1, 4), "mod_lin": (6, 1)}, 19) | {
    f"single_blocks_{i}_{name}": size
    for i in range(38)
    for name, size in {"linear1": (7, 1), "linear2": (1, 5), "modulation_lin": (3, 1)}.items()
}


def flux2(double: int, single: int, context: float) -> dict[str, tuple[float, float]]:
    """FLUX.2: MLPs of three widths whose first layer is twice that; 128 numbers a position; no bias."""
    blocks = _streams(_STREAM | {"mlp_0": (6, 1), "mlp_2": (1, 3)}, double) | {
        f"single_blocks_{i}_{name}": size
        for i in range(single)
        for name, size in {"linear1": (9, 1), "linear2": (1, 4)}.items()
    }
    return blocks | {"img_in": (1, 128), "txt_in": (1, context), "final_layer_linear": (128, 1)}


# Arguments of the released configurations that differ from those of diffusers' classes.
_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def _klein(double: int, single: int, heads: int, context: int) -> dict:
    return {
        "num_layers": double,
        "num_single_layers": single,
        "num_attention_heads": heads,
        "joint_attention_dim": context,
        "guidance_embeds": False,
    }


# Family, class in diffusers, its configuration, width, what programs take, keys with the targets `all`.
RELEASED = {
    "sd15": ("sd15", "UNet2DConditionModel", {"cross_attention_dim": 768}, 0, UNET, 708),
    "sdxl": ("sdxl", "UNet2DConditionModel", _SDXL, 0, UNET, 2268),
    "flux1-dev": ("flux", "FluxTransformer2DModel", {"guidance_embeds": True}, 3072, FLUX1, 912),
    "flux2-dev": ("flux2", "Flux2Transformer2DModel", {}, 6144, flux2(8, 48, 15360), 489),
    "klein-4b": ("flux2", "Flux2Transformer2DModel", _klein(5, 20, 24, 7680), 3072, flux2(5, 20, 7680), 249),
    "klein-9b": (
        "flux2",
        "Flux2Transformer2DModel",
        _klein(8, 24, 32, 12288),
        4096,
        flux2(8, 24, 12288),
        345,
    ),
}


@pytest.fixture(scope="module", params=RELEASED)
def released(request):
    """A released model's layers without their numbers, as a base that can be exported from."""
    import diffusers
    from accelerate import init_empty_weights

    family, kind, config, *_ = RELEASED[request.param]
    with init_empty_weights():
        network = getattr(diffusers, kind)(**config)
    bare = families()[family].base_class
    base = object.__new__(bare)
    base.denoiser = network
    return request.param, base


def written(base, targets: str, rank: int = 2) -> dict[str, torch.Tensor]:
    """Return what the second file holds of an adapter on all layers of some targets."""
    adapter = {}
    modules = dict(base.denoiser.named_modules())
    for name in base.adapter_targets(targets):
        weight = modules[name].weight
        a = torch.empty(rank, *weight.shape[1:], device="meta")
        b = torch.empty(weight.shape[0], rank, *(1,) * (weight.ndim - 2), device="meta")
        adapter[f"{base.denoiser_name}.{name}.lora_A.weight"] = a
        adapter[f"{base.denoiser_name}.{name}.lora_B.weight"] = b
    return base.kohya_layout(adapter)


@pytest.mark.parametrize("targets", ["attention", "attention+mlp", "all"])
def test_programs_take_every_layer_of_the_second_file(released, targets: str) -> None:
    name, base = released
    _, _, _, width, taken, count = RELEASED[name]
    file = written(base, targets)
    layers = {key.partition(".")[0] for key in file}
    assert {key.partition(".")[2] for key in file} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert len(file) == 3 * len(layers) and (targets != "all" or len(file) == count)
    for layer in layers:
        assert layer.startswith("lora_unet_")
        theirs = layer.removeprefix("lora_unet_")
        up, down, alpha = (
            file[f"{layer}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha")
        )
        assert float(alpha) == len(down) == up.shape[1], layer  # which every program divides by the other
        if isinstance(taken, dict):
            sizes = [size if size > 100 else size * width for size in taken[theirs]]
            assert [len(up), down.shape[1]] == sizes, layer
        else:
            assert any(re.fullmatch(pattern, theirs) for pattern in taken), layer


def test_no_layer_is_lost_between_the_files(released) -> None:
    """What our names say is trained is what theirs say: as many outputs, fused layers counted as the sum."""
    name, base = released
    modules = dict(base.denoiser.named_modules())
    ours = sum(modules[layer].weight.shape[0] for layer in base.adapter_targets("all"))
    theirs = sum(len(value) for key, value in written(base, "all").items() if key.endswith("lora_up.weight"))
    assert ours == theirs, name


@pytest.mark.parametrize("released", ["sd15", "sdxl"], indirect=True)
def test_names_of_diffusers_mean_nothing_where_the_card_says_so(released) -> None:
    """ComfyUI, Forge and AUTOMATIC1111 call a UNet's attention `processor.to_q` in such files, which are older."""
    _, base = released
    called = {f"unet.{layer}" for layer in base.adapter_targets("attention")}
    known = {one.replace(".to_", ".processor.to_").removesuffix(".0") for one in called}
    assert len(called) == len(known) > 100 and not called & known


def test_the_programs_of_every_family_are_told() -> None:
    """Forge and AUTOMATIC1111 know no FLUX.2, AUTOMATIC1111 no FLUX at all; a DoRA is for who divides by |W|."""
    from tunes_dagster.core.results import TuneResult
    from tunes_dagster.service.download import downloads

    def told(base_id: str, **training: object) -> list[str]:
        result = {"weights_key": "t/w.safetensors", "kohya_key": "t/w.kohya.safetensors", "words_key": ""}
        if training.get("kind") == "pti":
            result["words_key"] = "t/ohwx.safetensors"
        tune = SimpleNamespace(
            base_id=base_id,
            recipe={"training": training},
            kind=training.get("kind", "lora"),
            made=TuneResult.of({name: key for name, key in result.items() if key}),
            token="ohwx",
            class_name="woman",
        )
        return [one.programs for one in downloads(tune)][1:]

    assert told("sdxl1") == ["ComfyUI, SwarmUI, Forge, AUTOMATIC1111, sd-scripts"]
    assert told("flux1-dev") == ["ComfyUI, SwarmUI, Forge, sd-scripts"]
    assert told("flux2-klein-4b") == ["ComfyUI, SwarmUI, musubi-tuner"]
    (dora,) = told("sdxl1", dora=True)
    assert dora.startswith("ComfyUI, SwarmUI, Forge: ") and "not AUTOMATIC1111, sd-scripts" in dora
    _, words = told("sdxl1", kind="pti")
    assert "in ComfyUI write embedding:ohwx woman" in words and "SwarmUI write <embed:ohwx> woman" in words
    assert "in Forge and AUTOMATIC1111 write ohwx woman" in words
    assert "Forge" not in told("flux1-dev", kind="pti")[1]
    assert told("gone-from-the-catalog") == ["programs that read kohya's names"]

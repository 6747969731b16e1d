"""Bases of released sizes with random weights, for `benchmarks.render --full-size`: the arithmetic, not the download.

`sdxl` is Stable Diffusion XL 1.0, `flux` FLUX.1 dev; `tiny-sdxl` and `tiny-flux` have the same classes and settings in
small, so that the code can be tried where the large ones do not fit.
"""

from __future__ import annotations

import tempfile
from typing import Any

from tests.support.tokenizers import byte_tokenizer, letter_tokenizer
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.families.catalog import load_catalog

SIZES = ("sdxl", "flux", "tiny-sdxl", "tiny-flux")


def random_base(name: str, device: str, dtype: str | None) -> tuple[Any, int, float]:
    """Return a loaded base of random weights, the side in pixels and the guidance that it is rendered with.

    Args:
        name: One of `SIZES`.
        device: torch device.
        dtype: Name of a torch dtype; None is bfloat16 on GPUs and float32 on CPU.
    """
    import torch

    if name not in SIZES:
        raise Failure(FailureCode.INVALID_REQUEST, f"There is no full size {name!r}.", f"One of {SIZES}.")
    kind = getattr(torch, dtype) if dtype else torch.float32 if device == "cpu" else torch.bfloat16
    tiny, before = name.startswith("tiny-"), torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(kind)
    try:
        with torch.device(device):
            pipeline = (_flux if name.endswith("flux") else _sdxl)(tiny)
    finally:
        torch.set_default_dtype(before)
    return _loaded(name, pipeline, device, tiny)


def _reloaded(scheduler: Any) -> Any:
    """Return a scheduler as if it came from a file: only those know the name of their class."""
    with tempfile.TemporaryDirectory() as folder:
        scheduler.save_pretrained(folder)
        return type(scheduler).from_pretrained(folder)


def _loaded(name: str, pipeline: Any, device: str, tiny: bool) -> tuple[Any, int, float]:
    import torch

    from tunes_dagster.families.flux import FluxBase
    from tunes_dagster.families.loading import settle
    from tunes_dagster.families.sdxl import SdxlBase

    pipeline.scheduler = _reloaded(pipeline.scheduler)
    settle(pipeline, torch.device(device))
    flux = name.endswith("flux")
    entry = (
        load_catalog()
        .entries["flux1-dev" if flux else "sdxl1"]
        .model_copy(update={"base_id": f"random-{name}"})
    )
    if not flux:
        pipeline.unet.to(memory_format=torch.channels_last)
    base = (FluxBase if flux else SdxlBase)(entry, "", pipeline)
    return base, 64 if tiny else 1024, 3.5 if flux else 7.5


def _clip(hidden: int, layers: int, heads: int, projected: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = byte_tokenizer()
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projected or hidden,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _vae(tiny: bool, channels: int, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    widths = (8, 8, 16, 16) if tiny else (128, 256, 512, 512)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1 if tiny else 2,
        latent_channels=channels,
        norm_num_groups=4 if tiny else 32,
        sample_size=1024,
        force_upcast=True,
        **more,
    )


def _sdxl(tiny: bool) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    widths, heads, depth = (
        ((32, 32, 64), (2, 2, 4), (1, 1, 2)) if tiny else ((320, 640, 1280), (5, 10, 20), (1, 2, 10))
    )
    one, two = (
        (_clip(32, 2, 2), _clip(64, 2, 2, 64)) if tiny else (_clip(768, 12, 12), _clip(1280, 32, 20, 1280))
    )
    text, pooled = (96, 64) if tiny else (2048, 1280)
    unet = UNet2DConditionModel(
        sample_size=8 if tiny else 128,
        block_out_channels=widths,
        layers_per_block=1 if tiny else 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=heads,
        transformer_layers_per_block=depth,
        use_linear_projection=True,
        cross_attention_dim=text,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + pooled,
        norm_num_groups=8 if tiny else 32,
    )
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="leading",
        steps_offset=1,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(tiny, 4, scaling_factor=0.13025),
        unet=unet,
        text_encoder=one,
        text_encoder_2=two,
        tokenizer=byte_tokenizer(),
        tokenizer_2=byte_tokenizer(),
        scheduler=scheduler,
        add_watermarker=False,
    )


def _flux(tiny: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    small = {
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 6, 6),
        "in_channels": 16,
    }
    wide = (
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        if tiny
        else {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    )
    t5 = T5EncoderModel(
        T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", is_encoder_decoder=False, **wide)
    )
    return FluxPipeline(
        transformer=FluxTransformer2DModel(guidance_embeds=True, **(small if tiny else {})),
        vae=_vae(
            tiny,
            4 if tiny else 16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=_clip(32, 2, 2) if tiny else _clip(768, 12, 12),
        text_encoder_2=t5,
        tokenizer=byte_tokenizer(),
        tokenizer_2=letter_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )

"""Random-weight bases of the real pipeline classes: nothing learned, but every path runs on them in seconds."""

from __future__ import annotations

import logging
from pathlib import Path


def byte_tokenizer(model_max_length: int = 77):
    """Return a CLIP tokenizer that knows bytes only, so that no word is unknown to it."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(f"{s}</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=model_max_length
    )


def _text_encoders(tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    common = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    one = CLIPTextModel(CLIPTextConfig(hidden_size=16, intermediate_size=32, projection_dim=16, **common))
    two = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=32, intermediate_size=64, projection_dim=32, **common)
    )
    return loud(one), loud(two)


def loud(encoder, factor: float = 20):
    """Return a text encoder with larger embeddings: 0.02 makes all texts alike to layers that never learned."""
    encoder.get_input_embeddings().weight.data.mul_(factor)
    return encoder


def _unet(latent_channels: int, **differing):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **differing,
    )


_XL = {
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "cross_attention_dim": 48,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}


def tiny_vae(latent_channels: int, **differing):
    """Return an untrained VAE that halves three times."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.6,
        mid_block_add_attention=False,
        force_upcast=True,
        **differing,
    )


def make_random_sdxl(
    folder: Path, latent_channels: int = 4, prediction_type: str = "v_prediction", seed: int = 0
) -> Path:
    """Write a `StableDiffusionXLPipeline` with random weights (about 1.5M parameters, 64x64 pixels).

    Args:
        folder: Where to; returned.
        latent_channels: Channels of the VAE's latents.
        prediction_type: `epsilon` or `v_prediction`, as the scheduler's config says.
        seed: Decides the weights.
    """
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = byte_tokenizer()
        one, two = _text_encoders(tokenizer)
        pipeline = StableDiffusionXLPipeline(
            vae=tiny_vae(latent_channels),
            unet=_unet(latent_channels, **_XL),
            text_encoder=one,
            text_encoder_2=two,
            tokenizer=tokenizer,
            tokenizer_2=byte_tokenizer(),
            scheduler=EulerDiscreteScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                prediction_type=prediction_type,
                timestep_spacing="leading",
                steps_offset=1,
            ),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return Path(folder)


def make_random_sd15(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a `StableDiffusionPipeline` with random weights (about 1M parameters, 64x64 pixels).

    Args:
        folder: Where to; returned.
        prediction_type: `epsilon` or `v_prediction`, as the scheduler's config says.
        seed: Decides the weights.
    """
    import torch
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = byte_tokenizer()
        encoder, _ = _text_encoders(tokenizer)
        pipeline = StableDiffusionPipeline(
            vae=tiny_vae(4),
            unet=_unet(4, attention_head_dim=4, cross_attention_dim=16),
            text_encoder=encoder,
            tokenizer=tokenizer,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            scheduler=PNDMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                skip_prk_steps=True,
                prediction_type=prediction_type,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
        )
    pipeline.save_pretrained(folder)
    return Path(folder)

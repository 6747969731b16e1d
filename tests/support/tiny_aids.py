"""Random-weight models beside the bases, of the real classes: ControlNet, upscaler, video model, safety checker."""

from __future__ import annotations

from pathlib import Path

from tests.support.tiny_bases import byte_tokenizer, loud
from tests.support.tiny_flux import letter_tokenizer
from tunes_dagster.families.catalog import AuxiliaryEntry, Catalog


def entry_of(branch: str, family: str, folder: Path, **more: object) -> AuxiliaryEntry:
    return AuxiliaryEntry(branch=branch, family=family, repo_id=str(folder), licence="none", **more)


def catalog_of(*entries: AuxiliaryEntry) -> Catalog:
    return Catalog({entry.branch: entry for entry in entries})


def make_random_controlnet(folder: Path, unet, seed: int = 0) -> Path:
    """Write a ControlNet that fits a UNet; its zero convolutions are made loud, so that it changes something."""
    import torch
    from diffusers import ControlNetModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
        for part in [*network.controlnet_down_blocks, network.controlnet_mid_block]:
            torch.nn.init.normal_(part.weight, std=0.3)
        torch.nn.init.normal_(network.controlnet_cond_embedding.conv_out.weight, std=0.5)
    network.save_pretrained(folder)
    return folder


def make_random_upscaler(folder: Path, seed: int = 0) -> Path:
    """Write a `StableDiffusionUpscalePipeline` of about 1M parameters."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = byte_tokenizer()
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=7,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=16,
            num_class_embeds=100,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
            scaling_factor=0.6,
            mid_block_add_attention=False,
            force_upcast=True,
        )
        pipeline = StableDiffusionUpscalePipeline(
            vae=vae,
            text_encoder=loud(text),
            tokenizer=tokenizer,
            unet=unet,
            low_res_scheduler=DDPMScheduler(),
            scheduler=DDIMScheduler(prediction_type="v_prediction"),
            max_noise_level=50,
        )
    pipeline.save_pretrained(folder)
    return folder


def make_random_video(folder: Path, seed: int = 0) -> Path:
    """Write a double of the released CogVideoX-2b: its classes and every flag, 0.6M parameters.

    diffusers' defaults are the released configuration (49 frames, no rotary positions, positions interpolated by 1.875,
    text of 226 tokens, 16 latent channels scaled by 1.15258426, a VAE that asks for float32), so only what is smaller
    is named: 2 heads of 16 in 1 layer (30 of 64 in 30), time embedding 32 (512), T5 of width 32 and 1 layer (4096 and
    24), a VAE of 32 channels and 1 layer a block (128 to 512, 3), frames of 64 x 64 (720 x 480), tiles of 48 x 40
    (240 x 360; both lap over by a sixth and a fifth). The scheduler is the released one: v-prediction, zero terminal
    signal, trailing steps.
    """
    import torch
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    letters = letter_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            time_embed_dim=32,
            text_embed_dim=32,
            num_layers=1,
            sample_width=8,
            sample_height=8,
        )
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(32, 32, 32, 32), layers_per_block=1, sample_height=96, sample_width=80
        )
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(letters),
                d_model=32,
                d_kv=16,
                d_ff=64,
                num_layers=1,
                num_heads=2,
                feed_forward_proj="gated-gelu",
                is_encoder_decoder=False,
                tie_word_embeddings=False,
            )
        )
        pipeline = CogVideoXPipeline(
            tokenizer=letters,
            text_encoder=t5,
            vae=vae,
            transformer=transformer,
            scheduler=CogVideoXDDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                rescale_betas_zero_snr=True,
                set_alpha_to_one=True,
                snr_shift_scale=3.0,
                timestep_spacing="trailing",
                clip_sample=False,
            ),
        )
    pipeline.save_pretrained(folder)
    return folder


def make_random_safety(folder: Path, threshold: float, seed: int = 0) -> Path:
    """Write a safety checker that finds everything unsafe (threshold -1) or nothing (threshold 1)."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CLIPConfig(
            vision_config=vision.to_dict(), text_config=CLIPTextConfig().to_dict(), projection_dim=8
        )
        checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(2)
    checker.save_pretrained(folder)
    return folder

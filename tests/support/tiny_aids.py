"""Random-weight models beside the bases, of the real classes: ControlNet, upscaler, video model, safety checker."""

from __future__ import annotations

from pathlib import Path

from tests.support.doubles import write_double
from tunes_dagster.families.catalog import AuxiliaryEntry, Catalog


def entry_of(base_id: str, family: str, folder: Path, **more: object) -> AuxiliaryEntry:
    return AuxiliaryEntry(base_id=base_id, family=family, repo_id=str(folder), licence="none", **more)


def catalog_of(*entries: AuxiliaryEntry) -> Catalog:
    return Catalog({entry.base_id: entry for entry in entries})


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
    """Write a double of the x4 upscaler (about 0.6M parameters)."""
    return write_double("upscale-4x", folder, seed)


def make_random_video(folder: Path, seed: int = 0) -> Path:
    """Write a double of CogVideoX-2b."""
    return write_double("cogvideo-2b", folder, seed)


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

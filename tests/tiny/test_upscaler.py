"""The upscaler's trainer: small pictures from large ones, a VAE that keeps its place, a stock pipeline at the end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from factory.make import STEPS, BuildOptions
from factory.train import upscaler, upscaler_vae
from tunes_dagster.tiny import SDXL, UPSCALER, load_base, weights_dir
from tunes_dagster.tiny.world import picture


@pytest.fixture(scope="module")
def large():
    return np.stack([np.asarray(picture(i, upscaler_vae.DRAWN)[0]) for i in range(2)])


def test_small_pictures_are_their_crops_reduced(large):
    import torch

    rng = np.random.default_rng(0)
    crops, picks = upscaler_vae.crops(large, rng, 12, 128)
    assert crops.shape == (12, 128, 128, 3) and set(picks) <= {0, 1}
    small = np.stack([upscaler.reduced(crop, rng) for crop in crops])
    assert small.shape == (12, 32, 32, 3)
    boxes = crops.reshape(12, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    assert np.abs(small - boxes).mean() < 6
    given = upscaler_vae.to_tensor(small)
    assert torch.equal(upscaler.softened(given.clone(), None, rng), given)


def test_the_vae_begins_with_the_levels_that_it_shares():
    import torch

    base = load_base(SDXL).vae
    vae = upscaler_vae.begun(upscaler_vae.build(), base)
    ours, theirs = vae.state_dict(), base.state_dict()
    for mine, other in (
        ("decoder.up_blocks.1.resnets.1.conv1.weight", "decoder.up_blocks.2.resnets.1.conv1.weight"),
        ("encoder.down_blocks.1.resnets.0.conv2.weight", "encoder.down_blocks.1.resnets.0.conv2.weight"),
        ("encoder.down_blocks.2.resnets.0.conv1.weight", "encoder.down_blocks.2.resnets.0.conv1.weight"),
    ):
        assert torch.equal(ours[mine], theirs[other]), mine
    assert vae.decode(torch.zeros(1, 8, 8, 8)).sample.shape == (1, 3, 32, 32)


def test_latents_get_the_pipelines_scale_and_the_picture_stays(large):
    import torch

    torch.manual_seed(0)
    vae = upscaler_vae.build((8, 8, 8)).eval()
    x = upscaler_vae.to_tensor(large[:, :64, :64])
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mean).sample
        upscaler_vae.rescale(vae, x)
        latents = vae.encode(x).latent_dist.mean
        torch.testing.assert_close(vae.decode(latents).sample, before, rtol=1e-3, atol=1e-4)
    assert float(latents.std()) == pytest.approx(1 / upscaler_vae.SCALING, rel=1e-3)


def test_an_upscaler_from_nothing_to_a_stock_pipeline(tmp_path):
    import torch
    from diffusers import StableDiffusionUpscalePipeline

    few = {"upscaler_vae": 2, "upscaler": 2}
    build = BuildOptions(work=tmp_path, out=tmp_path / "weights", pictures=8, steps=few, start=weights_dir())
    STEPS["upscaler"](build)
    folder = build.out / UPSCALER
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 5.1e6
    pipe = StableDiffusionUpscalePipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert pipe.vae.config.scaling_factor == upscaler_vae.SCALING
    made = pipe("a dog", image=picture(3, 32)[0], num_inference_steps=1, guidance_scale=2.0).images[0]
    assert made.size == (128, 128)
    figures = json.loads((tmp_path / "figures.json").read_text())["upscaler"]
    assert figures["steps"] == 2 and {"psnr_db", "lanczos_psnr_db"} <= set(figures)

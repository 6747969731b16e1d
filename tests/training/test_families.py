"""The SDXL family agrees with plain references written from diffusers' own schedulers and pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.support.tiny_bases import make_random_sdxl
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.families.base import load_family


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def any_base(request, base, tmp_path_factory, entry):
    if request.param == "v_prediction":
        return base
    folder = make_random_sdxl(tmp_path_factory.mktemp("eps"), prediction_type="epsilon")
    return load_family(entry, folder, dtype="float32")


def test_noise_target_and_min_snr_are_those_of_the_reference(any_base):
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler.from_config(any_base.pipeline().scheduler.config)
    clean, noise = torch.randn(2, 6, 4, 8, 8)
    timesteps = torch.tensor([0, 1, 250, 500, 998, 999])
    torch.testing.assert_close(
        any_base.add_noise(clean, noise, timesteps), scheduler.add_noise(clean, noise, timesteps)
    )
    snr = compute_snr(scheduler, timesteps)
    clipped = torch.minimum(snr, torch.full_like(snr, 5.0))
    if any_base.prediction_type == "epsilon":
        target, weights = noise, clipped / snr
    else:
        target, weights = scheduler.get_velocity(clean, noise, timesteps), clipped / (snr + 1)
    torch.testing.assert_close(any_base.target(clean, noise, timesteps), target)
    gamma = torch.full((6,), 5.0)
    torch.testing.assert_close(any_base.loss_weights(timesteps, gamma), weights, rtol=1e-4, atol=1e-6)
    assert torch.equal(any_base.loss_weights(timesteps, gamma * 0), torch.ones(6))


def test_prediction_is_the_unet_called_as_the_pipeline_calls_it(base):
    pipeline = base.pipeline()
    texts = ["a photo of ohwx woman", "a red mug"]
    hidden, _, pooled, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    with torch.no_grad():
        reference = pipeline.unet(
            noisy,
            timesteps,
            encoder_hidden_states=hidden,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
        ).sample
        ours = base.predict(noisy, timesteps, base.with_size(base.encode_text(texts), 64, 64))
    torch.testing.assert_close(ours, reference)


def test_sampling_is_what_the_stock_pipeline_renders(base):
    pipeline = base.pipeline()
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = base.decode(base.sample(base.encode_text(["a red mug"]), noise, 64, 64, 3, 4.0))
    stock = pipeline(
        "a red mug",
        num_inference_steps=3,
        guidance_scale=4.0,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)


def test_a_base_that_was_distilled_to_do_without_guidance_takes_none(base_folder, entry):
    """Its entry says so, and then a scale of 7 is the stock pipeline's 1."""
    base = load_family(entry.model_copy(update={"guidance": "none"}), base_folder, dtype="float32")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    text = base.encode_text(["a red mug"])
    with_scale, without = (base.sample(text, noise, 64, 64, 2, scale) for scale in (7.0, 1.0))
    assert not base.is_guided(7.0) and torch.equal(with_scale, without)
    assert base.stock_arguments("a red mug", "", 7.0)["guidance_scale"] == 1.0


def test_encoding_is_scaled_and_decoding_undoes_it(base):
    vae = base.pipeline().vae
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        picture = vae.decode(posterior.mean).sample
    latents = base.encode_images(pixels)
    torch.testing.assert_close(latents.mean, posterior.mean * vae.config.scaling_factor)
    torch.testing.assert_close(latents.std, posterior.std * vae.config.scaling_factor)
    torch.testing.assert_close(base.decode(latents.mean), (picture / 2 + 0.5).clamp(0, 1))


def test_targets_grow_and_fingerprints_tell_models_and_parts_apart(base, base64, tmp_path, entry):
    attention, mlp, everything = (base.adapter_targets(t) for t in ("attention", "attention+mlp", "all"))
    assert set(attention) < set(mlp) < set(everything)
    assert any("conv1" in name for name in everything) and any("proj_in" in name for name in everything)
    other = load_family(entry, make_random_sdxl(tmp_path / "other", seed=1), dtype="float32")
    prints = {b.fingerprint(*roles) for b in (base, base64, other) for roles in ((), ("vae",), ("text",))}
    assert len(prints) == 9


@pytest.mark.parametrize("damage", [b"<html>", b"\xff" * 5000, b""])
def test_a_base_with_a_damaged_file_is_named(entry, base_folder: Path, tmp_path: Path, damage: bytes):
    folder = shutil.copytree(base_folder, tmp_path / "damaged")
    (weights,) = (folder / "unet").glob("*.safetensors")
    weights.write_bytes(damage)
    with pytest.raises(Failure, match="can be loaded from 'damaged'") as raised:
        load_family(entry, folder)
    assert raised.value.code == FailureCode.BASE_NOT_INSTALLED and "damaged" in raised.value.remedy


def test_what_cannot_be_loaded_is_named(entry, tmp_path: Path):
    with pytest.raises(Failure) as raised:
        load_family(entry, tmp_path / "nothing")
    assert raised.value.code == FailureCode.BASE_NOT_INSTALLED
    with pytest.raises(Failure) as raised:
        load_family(entry.model_copy(update={"family": "none"}), tmp_path)
    assert raised.value.code == FailureCode.UNKNOWN_BASE

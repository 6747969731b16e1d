"""What is used of diffusers without its promise: when one of these fails, look at `families/diffusers_private.py`."""

from __future__ import annotations

import inspect

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, Flux2KleinPipeline, Flux2Pipeline, FluxPipeline, UNet2DConditionModel
from diffusers.loaders.unet import UNet2DConditionLoadersMixin

from tests.support.tiny_bases import tiny_vae
from tunes_dagster.families import diffusers_private

# Callable → the parameters that are passed, by name or in this order.
USED = {
    FluxPipeline._prepare_latent_image_ids: ["batch_size", "height", "width", "device", "dtype"],
    Flux2Pipeline._prepare_latent_ids: ["latents"],
    Flux2Pipeline._prepare_text_ids: ["x"],
    Flux2Pipeline._patchify_latents: ["latents"],
    Flux2Pipeline._unpatchify_latents: ["latents"],
    Flux2KleinPipeline._prepare_latent_ids: ["latents"],
    Flux2KleinPipeline._prepare_text_ids: ["x"],
    Flux2KleinPipeline._patchify_latents: ["latents"],
    Flux2KleinPipeline._unpatchify_latents: ["latents"],
    UNet2DConditionModel._load_ip_adapter_weights: ["self", "state_dicts", "low_cpu_mem_usage"],
    UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers: [
        "self",
        "state_dict",
        "low_cpu_mem_usage",
    ],
}


@pytest.mark.parametrize("used", USED, ids=lambda used: used.__qualname__)
def test_what_is_called_takes_what_is_passed(used):
    takes = list(inspect.signature(used).parameters)
    missing = [name for name in USED[used] if name not in takes]
    said = f"diffusers {diffusers.__version__}: {used.__qualname__} no longer takes {missing}: {takes}"
    assert not missing, said


@pytest.mark.parametrize("pipeline", [Flux2Pipeline, Flux2KleinPipeline])
def test_positions_and_patches_of_flux2(pipeline):
    places = diffusers_private.flux2_picture_positions(pipeline, 2, 3)
    assert places.tolist() == [[0, row, column, 0] for row in range(2) for column in range(3)]
    assert diffusers_private.flux2_text_positions(pipeline, 3).tolist() == [[0, 0, 0, at] for at in range(3)]
    latents = torch.randn(2, 4, 6, 8)
    patched = diffusers_private.flux2_patched(pipeline, latents)
    assert patched.shape == (2, 16, 3, 4)
    assert torch.equal(diffusers_private.flux2_unpatched(pipeline, patched), latents)


def test_positions_of_flux():
    places = diffusers_private.flux_picture_positions(FluxPipeline, 2, 3, torch.device("cpu"), torch.float32)
    assert places.tolist() == [[0, row, column] for row in range(2) for column in range(3)]


class OneNetwork(DiffusionPipeline):
    """The least that can be offloaded."""

    model_cpu_offload_seq = "vae"

    def __init__(self, vae):
        super().__init__()
        self.register_modules(vae=vae)


def test_hooks_of_offloading():
    pipeline = OneNetwork(tiny_vae())
    assert diffusers_private.execution_device(pipeline) == torch.device("cpu")
    assert diffusers_private.offload_hooks(pipeline) == []
    pipeline.enable_model_cpu_offload(device="cpu")
    (hook,) = diffusers_private.offload_hooks(pipeline)
    assert hook.model is pipeline.vae and hook.hook.execution_device.type == "cpu"
    assert diffusers_private.offload_device(pipeline).type == "cpu"
    diffusers_private.without_hooks(pipeline)
    assert diffusers_private.offload_hooks(pipeline) == []


def test_the_projection_of_a_plain_ip_adapter():
    state = {"proj.weight": torch.randn(4 * 8, 6), "proj.bias": torch.zeros(4 * 8)}
    state |= {"norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)}
    assert diffusers_private.picture_projection(state)(torch.randn(2, 6)).shape == (2, 4, 8)

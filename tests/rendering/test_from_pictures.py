"""Rendering from pictures: image-to-image, masks and ControlNets give what the stock pipelines give."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from tests.rendering.test_equal_to_stock import psnr
from tests.support.families import fresh_pipeline
from tests.support.tiny_aids import catalog_of, entry_of, make_random_controlnet
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.rendering import png
from tunes_dagster.rendering.aids import Aids
from tunes_dagster.rendering.inputs import Inputs
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.pictures import Shape
from tunes_dagster.rendering.renderer import RenderJob, render
from tunes_dagster.rendering.schedulers import SCHEDULERS

TEXT, FERN = "a photo of ohwx man", [("tunes/fern.safetensors", 1.0)]


def scene(width=64, height=64):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 4 % 256, y * 4 % 256, (x + y) * 2 % 256], -1).astype(np.uint8))


@pytest.fixture
def given(store):
    def keep(image):
        return store.write_blob(png.png_bytes(image), ".png")

    return keep


def job(name="p", loras=FERN, **more):
    values = {"seed": 5, "steps": 6, "guidance_scale": 4.0, "width": 64, "height": 64, "scheduler": "euler"}
    return RenderJob(name, TEXT, RenderSettings(**(values | more)), loras)


def made(store, result):
    assert result.failure is None, result.failure
    return Image.open(io.BytesIO(store.read_bytes(result.images[0].key)))


def stock(base, kind, loras, **arguments):
    import diffusers
    import torch

    plain = fresh_pipeline(base)
    config = plain.scheduler.config
    euler = diffusers.EulerDiscreteScheduler.from_config(config)
    pipeline = getattr(diffusers, kind)(
        **{**plain.components, "scheduler": euler}, **arguments.pop("parts", {})
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(dict(loras["fern"]), adapter_name="fern")
    return pipeline(
        TEXT,
        num_inference_steps=6,
        guidance_scale=4.0,
        generator=torch.Generator("cpu").manual_seed(5),
        **arguments,
    ).images[0]


def test_image_to_image_equals_the_stock_pipeline_beside_strangers(base, store, loras, given):
    key = given(scene())
    batch = [job("text"), job("image", input_image=key, denoising_strength=0.5), job("plain", loras=[])]
    results = render(batch, base, Delivery(store, "out", Silent()))
    expected = stock(base, "StableDiffusionXLImg2ImgPipeline", loras, image=scene(), strength=0.5)
    assert psnr(made(store, results[1]), expected) > 45
    assert psnr(made(store, results[0]), expected) < 30
    recipe = png.read_recipe(store.read_bytes(results[1].images[0].key))
    assert recipe["denoising_strength"] == 0.5 and len(recipe["input_sha256"]) == 64


def test_strength_decides_how_much_of_the_picture_is_left(base, store, given):
    key = given(scene())
    batch = [job(str(s), input_image=key, denoising_strength=s) for s in (0.17, 0.6, 1.0)]
    little, half, all_new = (made(store, r) for r in render(batch, base, Delivery(store, "out", Silent())))
    assert psnr(little, half) > psnr(little, all_new)


def test_no_strength_hands_the_picture_back_at_any_number_of_steps(base, store, given):
    more = {"input_image": given(scene()), "denoising_strength": 0.0}
    batch = [
        job("one", steps=1, **more),
        job("masked", mask_image=given(Image.new("L", (64, 64), 255)), **more),
    ]
    for result in render(batch, base, Delivery(store, "out", Silent())):
        assert (np.asarray(made(store, result)) == np.asarray(scene())).all()


@pytest.mark.parametrize("steps", [1, 4, 30, 150])
def test_few_steps_never_start_noisier_than_asked(base, steps):
    for name, strength in itertools.product(SCHEDULERS, (0.0011, 0.01, 0.05, 0.15, 0.26, 0.5)):
        shape = Shape(width=64, height=64, steps=steps, scheduler=name, guided=False, strength=strength)
        scheduler = base.scheduler(name, shape.schedule, 64, 64)
        left = scheduler.timesteps[shape.skipped * scheduler.order :]
        # The distilled samplers know fifty levels, 20 apart; a level may be the one around what was asked.
        coarse = 19 if name in ("lcm", "tcd") else 1
        assert len(left) >= 1 and left[0] <= 1000 * strength + coarse, (name, strength)


def test_weak_strengths_differ_at_four_steps(base, store, given):
    key = given(scene())
    batch = [job(str(s), steps=4, input_image=key, denoising_strength=s) for s in (0.01, 0.05, 0.15, 0.5)]
    pictures = [made(store, result) for result in render(batch, base, Delivery(store, "out", Silent()))]
    near = [psnr(picture, pictures[0]) for picture in pictures[1:]]
    assert near == sorted(near, reverse=True) and near[0] < 60


def test_a_mask_is_fitted_and_what_is_transparent_in_it_is_not_meant(store, given):
    mask = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (8, 8, 24, 24))
    solid = Image.new("L", (64, 64), 0)
    solid.paste(255, (16, 16, 48, 48))
    inputs = Inputs(store, Aids())
    data = io.BytesIO()
    mask.save(data, "PNG")
    seen = inputs.mask(store.write_blob(data.getvalue(), ".png"), scene())
    assert seen.size == (64, 64) and np.array_equal(np.asarray(seen), np.asarray(solid))
    with pytest.raises(Failure, match="their shapes differ"):
        inputs.mask(given(Image.new("L", (64, 32))), scene())


def test_only_what_the_mask_shows_is_painted(base, store, given):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    more = {"input_image": given(scene()), "mask_image": given(mask), "denoising_strength": 1.0}
    [result] = render([job(**more)], base, Delivery(store, "out", Silent()))
    picture, before = np.asarray(made(store, result), int), np.asarray(scene(), int)
    outside = np.ones((64, 64), bool)
    outside[10:54, 10:54] = False
    assert np.abs(picture - before)[outside].max() <= 1
    assert np.abs(picture - before)[20:44, 20:44].mean() > 8


@pytest.mark.parametrize("from_noise", [True, False])
def test_a_controlnet_steers_as_in_the_stock_pipeline(base, store, loras, given, tmp_path, from_noise):
    from diffusers import ControlNetModel

    folder = make_random_controlnet(tmp_path / "control", base.denoiser)
    entry = entry_of("control", "controlnet", folder, fits="sdxl", control="tile")
    aids = Aids(catalog_of(entry), tmp_path)
    more = {"input_image": given(scene()), "controlnet": "tile", "controlnet_conditioning_scale": 0.7}
    more |= {"controlnet_txt2img": True} if from_noise else {"denoising_strength": 0.5}
    steered, alone = render([job("a", **more), job("b")], base, Delivery(store, "out", Silent()), aids=aids)
    network = ControlNetModel.from_pretrained(folder)
    kind = (
        "StableDiffusionXLControlNetPipeline" if from_noise else "StableDiffusionXLControlNetImg2ImgPipeline"
    )
    own = {"image": scene()} if from_noise else {"image": scene(), "control_image": scene(), "strength": 0.5}
    expected = stock(
        base, kind, loras, parts={"controlnet": network}, controlnet_conditioning_scale=0.7, **own
    )
    assert psnr(made(store, steered), expected) > 45
    assert psnr(made(store, alone), expected) < 35


def test_a_picture_that_is_not_there_fails_its_prompt_only(base, store, given):
    batch = [
        job("gone", input_image="blobs/aa/gone.png"),
        job("none", input_image=given(scene()), controlnet="canny"),
        job("good"),
    ]
    gone, none, good = render(batch, base, Delivery(store, "out", Silent()))
    assert "no longer in the store" in gone.failure.message and none.failure.code == "base_not_installed"
    assert good.failure is None


@pytest.mark.parametrize("name", ["canny", "lineart", "depth"])
def test_what_a_controlnet_looks_at(name):
    from tunes_dagster.rendering.controls import control_map

    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (16, 16, 48, 48))
    seen = np.asarray(control_map(name, image).convert("L"))
    if name == "depth":
        assert (seen == np.asarray(image.convert("L"))).all()
    else:
        assert seen[14:18, 20:44].max() > 60 and seen[28:36, 28:36].max() == 0

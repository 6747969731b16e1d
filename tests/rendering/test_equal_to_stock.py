"""Every picture of a mixed batch is the one that the stock pipeline makes of the same prompt alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.support.families import fresh_pipeline
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.renderer import RenderJob, render

PROMPTS = (
    # text, negative, seed, guidance, LoRAs
    ("a photo of ohwx man", "", 7, 4.0, {"fern": 1.0}),
    ("zkqj woman on the beach", "blurry, dark", 8, 6.5, {"duo": 0.7}),
    ("a red mug", "", 9, 4.0, {}),
    ("ohwx man and zkqj woman", "", 7, 3.0, {"fern": 0.6, "comet": 0.8}),
)


def psnr(one, two):
    difference = np.asarray(one, np.float64) - np.asarray(two, np.float64)
    return 10 * np.log10(255**2 / max(1e-12, (difference**2).mean()))


def settings(seed, guidance, negative="", **more):
    values = {"steps": 5, "width": 64, "height": 64, "scheduler": "euler"} | more
    return RenderSettings(seed=seed, guidance_scale=guidance, negative_prompt=negative, **values)


def jobs(**more):
    return [
        RenderJob(
            f"prompt_{i}",
            text,
            settings(seed, guidance, negative, **more),
            [(f"tunes/{name}.safetensors", scale) for name, scale in uses.items()],
        )
        for i, (text, negative, seed, guidance, uses) in enumerate(PROMPTS)
    ]


def picture(store, image):
    return Image.open(io.BytesIO(store.read_bytes(image.key)))


@pytest.fixture(scope="module")
def stock(base):
    pipeline = fresh_pipeline(base)
    pipeline.original_config = pipeline.scheduler.config
    return pipeline


def stock_picture(pipeline, loras, prompt, scheduler, width=64, height=64, steps=5):
    """Render the usual way, in the usual words."""
    import diffusers
    import torch

    text, negative, seed, guidance, uses = prompt
    config = pipeline.original_config
    if scheduler == "euler":
        pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
    elif scheduler == "euler_a":
        pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(config)
    else:
        pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            config, algorithm_type="dpmsolver++", use_karras_sigmas=True
        )
    for name in uses:
        pipeline.load_lora_weights(dict(loras[name]), adapter_name=name)
    if uses:
        pipeline.set_adapters(list(uses), list(uses.values()))
    try:
        return pipeline(
            text,
            negative_prompt=negative or None,
            guidance_scale=guidance,
            num_inference_steps=steps,
            width=width,
            height=height,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
    finally:
        if uses:
            pipeline.unload_lora_weights()


@pytest.mark.parametrize("scheduler", ["euler", "dpm++2m_karras", "euler_a"])
def test_mixed_batch_equals_stock_pipeline(base, store, loras, stock, scheduler):
    results = render(jobs(scheduler=scheduler), base, Delivery(store, "batches/b/1", Silent()))
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.failure is None
        expected = stock_picture(stock, loras, prompt, scheduler)
        assert psnr(picture(store, result.images[0]), expected) > 45, prompt
        if prompt[-1]:
            without = stock_picture(stock, loras, (*prompt[:-1], {}), scheduler)
            assert psnr(without, expected) < 30, "the LoRA changes too little for this test to mean anything"


def test_other_sizes_and_no_guidance_equal_stock_too(base, store, loras, stock):
    prompt = (*PROMPTS[0][:3], 1.0, PROMPTS[0][4])
    job = RenderJob("p", prompt[0], settings(7, 1.0, width=96, height=72), [("tunes/fern.safetensors", 1.0)])
    [result] = render([job], base, Delivery(store, "out", Silent()))
    expected = stock_picture(stock, loras, prompt, "euler", width=96, height=72)
    assert picture(store, result.images[0]).size == (96, 72)
    assert psnr(picture(store, result.images[0]), expected) > 45


def test_negative_prompt_is_used(base, store):
    plain, negative = (
        render([RenderJob("p", "a mug", settings(1, 7.0, text))], base, Delivery(store, f"out{i}", Silent()))[
            0
        ]
        for i, text in enumerate(["", "a red cup on a table"])
    )
    assert psnr(picture(store, plain.images[0]), picture(store, negative.images[0])) < 40


@pytest.mark.parametrize("scheduler", ["euler_a", "dpm++sde"])
def test_a_picture_does_not_depend_on_its_batch(base, store, scheduler):
    """Also with samplers that draw noise at every step, and when picture i is asked for by its own seed."""
    many = RenderJob("many", "a dog", settings(20, 4.0, num_images=3, scheduler=scheduler))
    together = render([*jobs(scheduler=scheduler), many], base, Delivery(store, "together", Silent()))
    alone_job = RenderJob("alone", "a dog", settings(22, 4.0, scheduler=scheduler))
    [alone] = render([alone_job], base, Delivery(store, "alone", Silent()), max_pictures=1)
    assert [image.seed for image in together[-1].images] == [20, 21, 22]
    assert psnr(picture(store, together[-1].images[2]), picture(store, alone.images[0])) > 45
    assert together[-1].images[2].recipe_hash == alone.images[0].recipe_hash
    assert psnr(picture(store, together[-1].images[0]), picture(store, alone.images[0])) < 40


def test_splitting_a_batch_changes_nothing(base, store):
    whole = render(jobs(), base, Delivery(store, "whole", Silent()))
    split = render(jobs(), base, Delivery(store, "split", Silent()), max_pictures=1)
    for one, two in zip(whole, split, strict=True):
        assert psnr(picture(store, one.images[0]), picture(store, two.images[0])) > 45


def test_the_base_is_left_as_it_was(base, store):
    before = set(base.denoiser.state_dict())
    render(jobs(), base, Delivery(store, "out", Silent()))
    assert set(base.denoiser.state_dict()) == before

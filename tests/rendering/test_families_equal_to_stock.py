"""In every family, each picture of a mixed batch is the one that the stock pipeline makes of its prompt alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save

from tests.support.families import CASES, TOKENS, make_base, random_lora, stock_pipeline
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.store import Store
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.renderer import RenderJob, render

PROMPTS = (
    # text, negative, seed, guidance, LoRAs
    ("a photo of ohwx man", "", 7, 4.0, {"fern": 1.0}),
    ("zkqj woman on the beach", "blurry, dark", 8, 6.5, {"duo": 0.7}),
    ("a red mug", "", 9, 2.0, {}),
    ("ohwx man and zkqj woman", "", 7, 3.0, {"fern": 0.6, "duo": 0.8}),
)
WIDTH, HEIGHT, STEPS = 80, 64, 4


def psnr(one, two):
    difference = np.asarray(one, np.float64) - np.asarray(two, np.float64)
    return 10 * np.log10(255**2 / max(1e-12, (difference**2).mean()))


def picture(store, image):
    return Image.open(io.BytesIO(store.read_bytes(image.key)))


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    name = request.param
    folder = tmp_path_factory.mktemp("bases") / name
    base = make_base(name, folder)
    strength = CASES[name].lora_strength
    loras = {
        "fern": random_lora(base, 1, strength=strength),
        "duo": random_lora(base, 2, rank=8, targets="attention", strength=strength),
    }
    return CASES[name], base, loras, stock_pipeline(name, folder)


@pytest.fixture
def store(tmp_path, case):
    store = Store(tmp_path / "store")
    for name, state in case[2].items():
        store.write_bytes(f"tunes/{name}.safetensors", save(state))
    return store


def job(number, prompt, **more):
    text, negative, seed, guidance, uses = prompt
    values = {"steps": STEPS, "width": WIDTH, "height": HEIGHT} | more
    settings = RenderSettings(seed=seed, guidance_scale=guidance, negative_prompt=negative, **values)
    return RenderJob(
        f"prompt_{number}",
        text,
        settings,
        [(f"tunes/{name}.safetensors", scale) for name, scale in uses.items()],
    )


def stock_picture(case, prompt):
    import torch

    kind, base, loras, pipeline = case
    text, negative, seed, guidance, uses = prompt
    arguments = kind.call(text, negative if kind.negatives else "", guidance)
    if negative and base.guidance == "classifier-free" and not kind.negatives:
        # klein's pipeline takes a negative prompt in this form only.
        embeds, _ = pipeline.encode_prompt(negative, max_sequence_length=TOKENS)
        arguments["negative_prompt_embeds"] = embeds
    for name in uses:
        pipeline.load_lora_weights(dict(loras[name]), adapter_name=name)
    if uses:
        pipeline.set_adapters(list(uses), list(uses.values()))
    try:
        return pipeline(
            **arguments,
            num_inference_steps=STEPS,
            width=WIDTH,
            height=HEIGHT,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
    finally:
        if uses:
            pipeline.unload_lora_weights()


def test_mixed_batch_equals_the_stock_pipeline(case, store):
    kind, base, _, _ = case
    results = render([job(i, p) for i, p in enumerate(PROMPTS)], base, Delivery(store, "out", Silent()))
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.failure is None
        expected = stock_picture(case, prompt)
        assert psnr(picture(store, result.images[0]), expected) > 45, prompt
        if prompt[-1]:
            # Of a picture that float32's rounding alone makes another, nothing could be said.
            nudged = {name: scale * (1 + 1e-6) for name, scale in prompt[-1].items()}
            assert psnr(stock_picture(case, (*prompt[:-1], nudged)), expected) > 45, prompt
            without = stock_picture(case, (*prompt[:-1], {}))
            assert psnr(without, expected) < 37, "the LoRA changes too little for this test to mean anything"
        ignored = bool(prompt[1]) and not kind.negatives and base.guidance != "classifier-free"
        assert ("negative prompt has no effect" in " ".join(result.warnings)) == ignored


def test_samples_of_training_are_the_stock_pipeline_too(case):
    """`LoadedBase.sample` renders prior pictures and samples; it must follow the same schedule and guidance."""
    import torch

    kind, base, _, pipeline = case
    noise = torch.randn(1, *base.latent_shape(WIDTH, HEIGHT), generator=torch.Generator("cpu").manual_seed(5))
    ours = base.decode(base.sample(base.encode_text(["a red mug"]), noise, WIDTH, HEIGHT, STEPS, 4.0))
    stock = pipeline(
        **kind.call("a red mug", "", 4.0),
        num_inference_steps=STEPS,
        width=WIDTH,
        height=HEIGHT,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases") / "flux-dev"
    return make_base("flux-dev", folder), stock_pipeline("flux-dev", folder)


def test_another_sampler_of_a_flow_is_the_stock_one(dev, tmp_path):
    import torch
    from diffusers import DPMSolverMultistepScheduler

    base, pipeline = dev
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    store = Store(tmp_path / "store")
    prompt = ("a red mug", "", 9, 3.0, {})
    [result] = render([job(1, prompt, scheduler="dpm++2m")], base, Delivery(store, "out", Silent()))
    expected = pipeline(
        **CASES["flux-dev"].call("a red mug", "", 3.0),
        num_inference_steps=STEPS,
        width=WIDTH,
        height=HEIGHT,
        generator=torch.Generator("cpu").manual_seed(9),
    ).images[0]
    assert psnr(picture(store, result.images[0]), expected) > 55
    [plain] = render([job(1, prompt)], base, Delivery(store, "plain", Silent()))
    assert psnr(picture(store, plain.images[0]), expected) < 50, "the samplers are too alike to tell"


@pytest.mark.parametrize("scheduler", ["euler_a", "lcm"])
def test_a_flow_picture_does_not_depend_on_its_batch(dev, tmp_path, scheduler):
    base, _ = dev
    store = Store(tmp_path / "store")
    prompts = [("a red mug", "", 9, 3.0, {}), ("a dog", "", 5, 4.0, {})]
    jobs = [job(i, prompt, scheduler=scheduler) for i, prompt in enumerate(prompts)]
    together = render(jobs, base, Delivery(store, "together", Silent()))
    alone = [render([one], base, Delivery(store, f"alone{i}", Silent()))[0] for i, one in enumerate(jobs)]
    for one, two in zip(together, alone, strict=True):
        assert one.failure is None
        assert psnr(picture(store, one.images[0]), picture(store, two.images[0])) > 45


def test_a_sampler_that_a_flow_does_not_have_is_replaced_and_said_so(dev, tmp_path):
    base, _ = dev
    store = Store(tmp_path / "store")
    prompt = ("a red mug", "", 9, 3.0, {})
    [asked] = render([job(1, prompt, scheduler="ddim")], base, Delivery(store, "ddim", Silent()))
    [own] = render([job(1, prompt)], base, Delivery(store, "own", Silent()))
    assert "'ddim' does not exist for this base" in asked.warnings[0]
    assert asked.images[0].recipe_hash == own.images[0].recipe_hash

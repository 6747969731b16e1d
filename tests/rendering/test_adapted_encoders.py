"""Tunes that adapt text encoders, mixed in a batch with others: each picture is the stock pipeline's."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from safetensors.torch import save

from tests.rendering.test_equal_to_stock import psnr, settings
from tests.support import foreign
from tests.support.families import fresh_pipeline, make_base, random_lora
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.store import Store
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.renderer import RenderJob, render
from tunes_dagster.training.layouts import in_file


def adapted(base, seed: int) -> dict:
    """Return a LoRA of attention and text encoders, as it lies in a file."""
    text = {}
    for key, value in foreign.text_lora(base, seed).items():
        encoder, _, layer = key.partition(".")
        text[f"{encoder}.{in_file(layer)}"] = value
    return random_lora(base, seed, targets="attention", strength=0.2) | text


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_batch_of_several_voices_is_what_stock_pipelines_make_of_each(family, tmp_path):
    import diffusers
    import torch

    base, store = make_base(family, tmp_path / family), Store(tmp_path / "store")
    loras = {
        "one": adapted(base, 1),
        "two": adapted(base, 2),
        "plain": random_lora(base, 3, targets="attention"),
    }
    for name, state in loras.items():
        store.write_bytes(f"tunes/{name}.safetensors", save({k: v.contiguous() for k, v in state.items()}))
    uses = [{"one": 1.0}, {}, {"plain": 1.0}, {"one": 0.7, "two": 0.5}]
    text, seed, guidance = "a red mug", 7, 4.0
    jobs = [
        RenderJob(
            f"prompt_{i}",
            text,
            settings(seed, guidance, "" if i % 2 else "blurry", steps=2),
            [(f"tunes/{name}.safetensors", scale) for name, scale in used.items()],
        )
        for i, used in enumerate(uses)
    ]
    results = render(jobs, base, Delivery(store, "out", Silent()))
    assert [one.failure for one in results if one.failure] == []
    for i, (used, result) in enumerate(zip(uses, results, strict=True)):
        stock = fresh_pipeline(base)
        stock.set_progress_bar_config(disable=True)
        stock.scheduler = diffusers.EulerDiscreteScheduler.from_config(stock.scheduler.config)
        for name in used:
            stock.load_lora_weights(dict(loras[name]), adapter_name=name)
        if used:
            stock.set_adapters(list(used), list(used.values()))
        theirs = stock(
            text,
            negative_prompt=None if i % 2 else "blurry",
            guidance_scale=guidance,
            num_inference_steps=2,
            width=64,
            height=64,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        ours = Image.open(io.BytesIO(store.read_bytes(result.images[0].key)))
        assert psnr(ours, theirs) > 45, (i, psnr(ours, theirs))

"""Faces in a mixed batch: each picture is the one that the stock pipeline makes with its own IP-Adapter code."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.support.families import fresh_pipeline
from tests.support.tiny_aids import catalog_of
from tests.support.tiny_bases import make_random_sd15
from tests.support.tiny_faces import EMBEDDING, HIDDEN, make_random_adapter
from tunes_dagster.core.failures import FailureCode
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.rendering.aids import Aids
from tunes_dagster.rendering.jobs import Delivery, Tagged, TuneWeights, make_job
from tunes_dagster.rendering.png import read_recipe
from tunes_dagster.rendering.renderer import RenderJob, render
from tunes_dagster.training.faceid import ADAPTER_FIELD, EMBEDS, NOTHING
from tunes_dagster.training.files import write_tensors


def psnr(one, two):
    difference = np.asarray(one, np.float64) - np.asarray(two, np.float64)
    return 10 * np.log10(255**2 / max(1e-12, (difference**2).mean()))


def settings(seed, guidance=4.0, **more):
    values = {"steps": 4, "width": 64, "height": 64, "scheduler": "euler"} | more
    return RenderSettings(seed=seed, guidance_scale=guidance, **values)


def write_face(store, name, pictures, plus, seed, width=None):
    """Write a face of random embeddings, as `faceid` tunes have them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = (17, width or HIDDEN) if plus else (width or EMBEDDING,)
    embeds = torch.randn(pictures, *shape, generator=generator)
    nothing = torch.randn(1, *shape, generator=generator) if plus else torch.zeros(1, *shape)
    key = f"faces/{name}.safetensors"
    write_tensors(store, key, {EMBEDS: embeds, NOTHING: nothing}, {ADAPTER_FIELD: "random-faces"})
    return key, embeds, nothing


def open_sd15(tmp_path_factory):
    from tunes_dagster.families.base import load_family

    folder = make_random_sd15(tmp_path_factory.mktemp("bases") / "random-sd15")
    entry = BaseModelEntry(
        base_id="random15",
        family="sd15",
        repo_id=str(folder),
        licence="none",
        native_size=64,
        max_pixels=128 * 128,
        memory_gb=1,
        embedded="random15",
        token="ohwx",
    )
    return load_family(entry, folder)


@pytest.fixture(scope="module", params=["sdxl", "sdxl plus", "sd15 plus"])
def world(request, base, tmp_path_factory):
    """A base, what goes with it, and whether its adapter looks at hidden states."""
    family, _, plus = request.param.partition(" ")
    chosen = base if family == "sdxl" else open_sd15(tmp_path_factory)
    folder = tmp_path_factory.mktemp("adapters") / "faces"
    entry = make_random_adapter(folder, chosen.denoiser, "random-faces", family, plus=bool(plus))
    return chosen, Aids(catalog_of(entry), check_pictures=False), folder, bool(plus)


def stock_picture(pipeline, folder, text, seed, guidance, faces):
    """Render the usual way, in the usual words: one IP-Adapter per face."""
    import diffusers
    import torch

    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    more = {}
    if faces:
        count = len(faces)
        pipeline.load_ip_adapter(
            str(folder),
            subfolder=[""] * count,
            weight_name=["adapter.safetensors"] * count,
            image_encoder_folder=None,
        )
        pipeline.set_ip_adapter_scale([scale for *_, scale in faces])
        shown = [(nothing.expand_as(embeds), embeds) for _, embeds, nothing, _ in faces]
        guided = guidance > 1
        more = {"ip_adapter_image_embeds": [torch.stack(pair if guided else pair[1:]) for pair in shown]}
    try:
        return pipeline(
            text,
            guidance_scale=guidance,
            num_inference_steps=4,
            width=64,
            height=64,
            generator=torch.Generator("cpu").manual_seed(seed),
            **more,
        ).images[0]
    finally:
        if faces:
            pipeline.unload_ip_adapter()


def test_a_mixed_batch_equals_the_stock_pipeline(world, store, loras):
    base, aids, folder, plus = world
    one = write_face(store, "one", 1, plus, 1)
    four = write_face(store, "four", 4, plus, 2)
    prompts = [
        ("a woman on the beach", 7, 4.0, [(*one, 0.8)]),
        ("a man at night", 8, 5.0, [(*four, 1.0)]),
        ("a red mug", 9, 4.0, []),
        ("two people", 10, 3.0, [(*one, 0.5), (*four, 0.6)]),
    ]
    lora = [("tunes/fern.safetensors", 0.7)] if base.entry.family == "sdxl" else []
    jobs = [
        RenderJob(f"p{i}", text, settings(seed, guidance), faces=[(key, scale) for key, _, _, scale in faces])
        for i, (text, seed, guidance, faces) in enumerate(prompts)
    ]
    jobs.append(RenderJob("with-lora", *prompts_of(prompts[0]), lora, faces=[(one[0], 0.8)]))
    jobs.append(RenderJob("unguided", prompts[1][0], settings(8, 1.0), faces=[(four[0], 1.0)]))
    before = set(base.denoiser.state_dict())
    results = render(jobs, base, Delivery(store, "out", Silent()), aids=aids)
    assert [result.failure for result in results] == [None] * len(jobs)
    assert set(base.denoiser.state_dict()) == before
    stock = fresh_pipeline(base)
    for prompt, result in zip([*prompts, None, (*prompts[1][:2], 1.0, prompts[1][3])], results, strict=True):
        picture = Image.open(io.BytesIO(store.read_bytes(result.images[0].key)))
        if prompt is None:  # the LoRA and the face, in one stock pipeline
            if not lora:
                continue
            prompt = prompts[0]
            stock.load_lora_weights(dict(loras["fern"]), adapter_name="fern")
            stock.set_adapters(["fern"], [0.7])
        expected = stock_picture(stock, folder, *prompt)
        if result.prompt_id == "with-lora":
            stock.unload_lora_weights()
        assert psnr(picture, expected) > 45, result.prompt_id
        if prompt[-1]:
            without = stock_picture(stock, folder, *prompt[:-1], [])
            assert psnr(without, expected) < 37, "the face changes too little for this test to mean anything"
    recipe = read_recipe(store.read_bytes(results[3].images[0].key))
    assert [face["scale"] for face in recipe["faces"]] == [0.5, 0.6]
    assert "faces" not in read_recipe(store.read_bytes(results[2].images[0].key))


def prompts_of(prompt):
    text, seed, guidance, _ = prompt
    return text, settings(seed, guidance)


def test_a_face_that_cannot_be_used_fails_its_own_prompt_only(base, store, tmp_path):
    from safetensors.torch import save

    key, _, _ = write_face(store, "good", 1, False, 1)
    wide, _, _ = write_face(store, "wide", 1, False, 1, width=EMBEDDING + 8)
    store.write_bytes("faces/broken.safetensors", b"no")
    store.write_bytes("faces/lora.safetensors", save({"x": __import__("torch").zeros(1)}))
    entry = make_random_adapter(tmp_path / "faces", base.denoiser, "random-faces", "sdxl")
    names = [key, wide, "faces/broken.safetensors", "faces/lora.safetensors", "faces/missing.safetensors"]
    jobs = [RenderJob(name, "a man", settings(1, steps=1), faces=[(name, 1.0)]) for name in names]
    results = render(
        jobs, base, Delivery(store, "out", Silent()), aids=Aids(catalog_of(entry), check_pictures=False)
    )
    assert results[0].failure is None
    assert {result.failure.code for result in results[1:]} == {FailureCode.WEIGHTS_UNUSABLE}

    plain = RenderJob("plain", "a man", settings(1, steps=1))
    unknown = render(
        [jobs[0], plain], base, Delivery(store, "out", Silent()), aids=Aids(check_pictures=False)
    )
    assert unknown[0].failure.code == FailureCode.INVALID_REQUEST and unknown[1].failure is None
    other = entry.model_copy(update={"repo_id": str(tmp_path / "nowhere"), "download_gb": 3.4})
    missing = Aids(catalog_of(other), tmp_path, check_pictures=False)
    wrong = make_random_adapter(tmp_path / "other", make_unet(), "random-faces", "sdxl")
    unfit = render(
        [jobs[0], plain],
        base,
        Delivery(store, "out", Silent()),
        aids=Aids(catalog_of(wrong), check_pictures=False),
    )
    assert unfit[0].failure.code == FailureCode.WEIGHTS_UNUSABLE and unfit[1].failure is None
    refused = render(jobs[:1], base, Delivery(store, "out", Silent()), aids=missing)[0].failure
    assert (
        refused.code == FailureCode.BASE_NOT_INSTALLED and "tunes bases pull random-faces" in refused.remedy
    )


def make_unet():
    """Return a UNet of other widths."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        layers_per_block=1,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=4,
        attention_head_dim=4,
    )


def test_tags_and_tunes_become_faces():
    ada = TuneWeights(id="tune_ada", key="ada.safetensors", token="ohwx", class_name="woman", kind="faceid")
    fern = TuneWeights(id="tune_fern", key="fern.safetensors", token="ohwx", class_name="man")
    made = make_job("p", "a photo of ohwx woman", settings(1, lora_scale=0.6), tune=ada)
    assert made.text == "a photo of a woman" and not made.warnings
    assert made.faces == [("ada.safetensors", 0.6, "tune_ada")] and made.loras == []
    both = make_job(
        "p",
        "ohwx man <faceid:7:0.4> <lora:fern:0.9>",
        settings(1),
        tagged=[Tagged("fern", fern, 0.9), Tagged("7", ada, 0.4)],
    )
    # The token is the LoRA's, too.
    assert both.text == "ohwx man" and both.faces == [("ada.safetensors", 0.4, "tune_ada")]
    assert both.loras == [("fern.safetensors", 0.9, "tune_fern")]

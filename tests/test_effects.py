"""Every field of a request that has no effect is told of by name: each is in a table of rules, and the rules hold."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tunes_dagster.core.recipe import (
    DatasetOptions,
    PromptRequest,
    RenderSettings,
    TrainingOptions,
    TuneRequest,
)
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.wishes import Wishes
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.families.presets import MEANINGLESS
from tunes_dagster.rendering import wishes as of_prompts
from tunes_dagster.rendering.submission import PromptContext
from tunes_dagster.training import wishes as of_tunes

TABLES = {
    PromptRequest: of_prompts.PROMPT,
    RenderSettings: of_prompts.SETTINGS,
    TuneRequest: of_tunes.TUNE,
    DatasetOptions: of_tunes.DATASET,
    TrainingOptions: of_tunes.TRAINING,
}


@pytest.mark.parametrize("model", TABLES)
def test_every_field_is_in_the_table(model):
    assert set(TABLES[model]) == set(model.model_fields)


def test_options_that_mean_nothing_to_a_kind_have_the_rule_for_it():
    named = {name for names in MEANINGLESS.values() for name in names} - {"base_tune_id"}
    assert all(of_tunes._of_another_kind in of_tunes.TRAINING[name] for name in named)


def told_of_prompt(base="sdxl", tune=None, own_tag=False, **settings):
    catalog = load_catalog("embedded")
    asked = catalog.resolve(base)
    subjects = [tune] if tune else []
    context = PromptContext(
        asked,
        catalog.real(asked),
        catalog,
        Settings(device="cpu"),
        tuned=bool(tune),
        own_tag=own_tag,
        subjects=subjects,
    )
    request = PromptRequest(text="a cat", base=base, settings=RenderSettings(**settings))
    kept = of_prompts.without_unmet(request, context)
    return {one.option: one.said for one in context.wishes.told()}, kept


PICTURE = {"input_image": "https://example.com/a.png"}


@pytest.mark.parametrize(
    ("asked", "silent"),
    [
        ({"lora_scale": 0.5}, {"lora_scale": 0.5, "tune": "woman"}),
        ({"lora_scale": 0.5, "tune": "woman", "own_tag": True}, {"lora_scale": 0.5, "tune": "woman"}),
        ({"renders_on": False}, {"renders_on": False, "tune": "woman", "base": "flux2-klein-base"}),
        ({"upscaler": "lanczos"}, {"upscaler": "lanczos", "super_resolution": True}),
        (
            {"controlnet_conditioning_scale": 0.5},
            {"controlnet_conditioning_scale": 0.5, "controlnet": "canny", **PICTURE},
        ),
        ({"controlnet_txt2img": True}, {"controlnet_txt2img": True, "controlnet": "canny", **PICTURE}),
        ({"denoising_strength": 0.5}, {"denoising_strength": 0.5, **PICTURE}),
        ({"random_face": True, "tune": "woman"}, {"random_face": True, "tune": "style"}),
        ({"random_face": True, "tune": "mug"}, {"random_face": True}),
        ({"baseline": "fast", "steps": 7}, {"baseline": "fast"}),
        ({"baseline": "thorough", "steps": 7, "hires_fix": True}, {"baseline": "thorough", "steps": 7}),
        ({"negative_prompt": "dark", "guidance_scale": 1}, {"negative_prompt": "dark"}),
        ({"guidance_scale": 3, "base": "flux1-schnell"}, {"guidance_scale": 3}),
        ({"fps": 4, "num_frames": 1, "base": "cogvideo-2b"}, {"fps": 4, "base": "cogvideo-2b"}),
        ({"film_grain": True, "base": "cogvideo-2b"}, {"film_grain": True}),
    ],
)
def test_a_setting_without_effect_is_left_out_and_told_of_by_name(asked, silent):
    first = next(iter(asked))
    said, kept = told_of_prompt(**asked)
    assert list(said) == [first] and said[first].endswith(": it is left out")
    assert getattr(kept, first) == RenderSettings.model_fields[first].default
    assert told_of_prompt(**silent)[0] == {}


def test_of_a_picture_that_is_handed_back_all_is_told_that_means_nothing():
    asked = {
        "steps": 7,
        "style": "Lowpoly",
        "composition": "random",
        "controlnet": "canny",
        "lora_scale": 0.5,
    }
    said, kept = told_of_prompt(tune="woman", denoising_strength=0, **asked, **PICTURE)
    assert set(said) == {"text", *asked} and "hands the picture back" in said["text"]
    assert kept.denoising_strength == 0 and kept.controlnet is None
    again = {"denoising_strength": 0, "steps": 7, **PICTURE}
    for repainted in ({"inpaint_faces": True}, {"hires_fix": True}, {"face_height": 64}):
        assert told_of_prompt(**again, **repainted)[0] == {}


def test_settings_that_were_filled_in_are_no_wishes():
    """A prompt that is asked for again says its base's own numbers, and what its baseline made of them."""
    own = {"steps": 13, "guidance_scale": 4.0, "width": 128, "height": 128, "scheduler": "euler"}
    assert told_of_prompt(baseline="fast", aspect_ratio="1:1", **own)[0] == {}
    assert told_of_prompt(base="flux1-schnell", guidance_scale=4.0)[0] == {}


def told_of_tune(base="sdxl1", name="woman", dataset=None, default_caption="", captions=None, **training):
    catalog = load_catalog("embedded")
    asked = catalog.resolve(base)
    request = TuneRequest(
        name=name,
        base=base,
        dataset=dataset or {},
        training=training,
        default_caption=default_caption,
        captions=captions or {},
    )
    wishes = Wishes()
    of_tunes.without_unmet(request, asked, catalog.real(asked), Settings(device="cpu"), wishes)
    return [one.option for one in wishes.told()]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"steps": 9, "steps_per_picture": 5, "min_steps": 7}, ["steps_per_picture", "min_steps"]),
        (
            {"prior_weight": 0, "prior_prompts": 9, "prior_batch_size": 2},
            ["prior_prompts", "prior_batch_size"],
        ),
        ({"prior_prompts": 0, "prior_weight": 0.7}, ["prior_weight"]),
        ({"prior_prompts": 0, "prior_weight": 0}, []),
        ({"dora": True, "export_scale": 0.5}, ["export_scale"]),
        ({"kind": "pti", "dora": True, "export_scale": 0.5}, ["dora"]),
        ({"mask_floor": 0.3}, ["mask_floor"]),
        ({"mask_floor": 0.3, "dataset": {"mask": "face"}}, []),
        ({"token_steps": 5}, ["token_steps"]),
        ({"kind": "faceid", "quantize": "none", "offload": True}, ["quantize", "offload"]),
        ({"kind": "checkpoint", "quantize": "none", "offload": True}, ["quantize"]),
        ({"preset": "flux-lora-fast", "base": "flux1-dev", "steps": 9, "steps_per_picture": 27}, []),
        ({"min_snr_gamma": 5, "base": "flux1-dev"}, ["min_snr_gamma"]),
    ],
)
def test_training_options_without_effect_are_told_of_by_name(asked, told):
    assert told_of_tune(**asked) == [f"training.{name}" for name in told]


def test_dataset_options_and_captions_without_effect_are_told_of_by_name():
    assert told_of_tune(dataset={"captioner": False}, default_caption="a cup") == ["dataset.captioner"]
    assert told_of_tune(dataset={"captioner": False}) == []
    assert told_of_tune(name="ink style", dataset={"face_crop": True}) == ["dataset.face_crop"]
    of_faces = told_of_tune(
        kind="faceid",
        dataset={"captions_in_files": True, "captioner": False, "mask": "file"},
        default_caption="a woman",
        captions={"a.jpg": "a woman"},
    )
    assert of_faces == [
        *("dataset.captioner", "dataset.mask", "dataset.captions_in_files"),
        *("captions", "default_caption"),
    ]


def test_what_a_completed_tune_was_filled_with_is_no_wish():
    """Of a tune that is made again, the recipe holds every option, filled in."""
    catalog = load_catalog("embedded")
    for base in ("sdxl1", "flux1-dev", "sd15"):
        for kind in ("lora", "pti", "checkpoint", "faceid"):
            entry = catalog.real(catalog.resolve(base))
            try:
                filled = entry.training_options(TrainingOptions(kind=kind)).model_dump()
            except ValidationError:
                continue
            assert told_of_tune(base=base, **filled) == [], (base, kind)

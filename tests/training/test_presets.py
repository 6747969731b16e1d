"""Defaults by preset, kind and optimizer, and what a base or a machine refuses by name."""

from __future__ import annotations

import pytest

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import DatasetOptions, TrainingOptions, TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.wishes import Wishes
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.families.presets import automatic_steps, changed, complete, presets
from tunes_dagster.training import checks
from tunes_dagster.training.jobs import TrainExample, TuneJob


@pytest.mark.parametrize(
    ("preset", "pictures", "steps"),
    [
        (None, 4, 400),
        (None, 2, 300),
        (None, 100, 4000),
        ("flux-lora-focus", 4, 400),
        ("flux-lora-portrait", 4, 300),
        ("flux-lora-portrait", 20, 540),
        ("flux-lora-fast", 13, 351),
    ],
)
def test_steps_are_counted_from_the_pictures(preset, pictures, steps):
    options = complete(TrainingOptions(preset=preset), {"batch_size": 1, "learning_rate": 1e-4}, 1024)
    items = [TrainExample(key=f"blobs/{i}.png", caption="", bucket=(64, 64)) for i in range(pictures)]
    assert (
        TuneJob(
            tune_id="t", options=options, items=items, token="ohwx", class_name="woman", out_prefix="out"
        ).total_steps
        == steps
    )


def test_face_crops_and_repeats_are_no_pictures_of_their_own():
    items = [
        TrainExample(key="blobs/a.png", caption="", bucket=(64, 64), crop=(0, 0, 9, 9)),
        TrainExample(key="blobs/a.png", caption="", bucket=(64, 64)),
    ]
    options = TrainingOptions(steps_per_picture=500, batch_size=1)
    assert (
        TuneJob(
            tune_id="t", options=options, items=items, token="ohwx", class_name="woman", out_prefix="out"
        ).total_steps
        == 500
    )


def test_batches_share_the_visits():
    assert automatic_steps(20, 4) == 500
    assert automatic_steps(20, 4, per_picture=27, fewest=10) == 135


def test_a_request_wins_over_its_preset_and_the_preset_over_the_base():
    base = {"steps": 900, "rank": 4, "learning_rate": 1e-4, "targets": "all", "batch_size": 2}
    done = complete(TrainingOptions(preset="flux-lora-fast", targets="attention+mlp"), base, 1024)
    assert (done.rank, done.targets, done.resolution, done.steps) == (8, "attention+mlp", 768, None)
    assert done.learning_rate == pytest.approx(2e-4)
    assert done.batch_size == 2
    assert complete(done, base, 1024) == done
    assert complete(TrainingOptions(preset="flux-lora-fast", steps=70), base, 128).steps == 70
    assert complete(TrainingOptions(preset="flux-lora-fast"), base, 128).resolution == 128


def test_kind_and_optimizer_have_learning_rates_of_their_own():
    base = {"learning_rate": 1e-4, "steps": 900}
    assert complete(TrainingOptions(kind="checkpoint"), base, 64).learning_rate == pytest.approx(5e-6)
    assert complete(TrainingOptions(optimizer="prodigy"), base, 64).learning_rate == 1.0
    assert complete(TrainingOptions(), base, 64).steps == 900
    assert complete(TrainingOptions(steps_per_picture=10), base, 64).steps is None


def test_every_preset_is_an_option_and_fills_options():
    for name, rule in presets().items():
        if name != "none":
            assert TrainingOptions(preset=name).preset == name
        TrainingOptions.model_validate(rule.training)


def refused(request: dict, base: str = "sdxl1", settings: Settings | None = None) -> str:
    catalog = load_catalog("embedded")
    entry = catalog.resolve(base)
    with pytest.raises(Failure) as error:
        checks.check_tune(
            TuneRequest.model_validate({"name": "woman", **request}),
            entry,
            catalog.real(entry),
            settings or Settings(device="cpu"),
        )
    assert error.value.code == FailureCode.INVALID_REQUEST
    return error.value.message


@pytest.mark.parametrize(
    ("request_", "base", "said"),
    [
        ({"training": {"resolution": 2048}}, "sdxl1", "should be at most 1254 on sdxl1"),
        ({"training": {"kind": "faceid", "base_tune_id": "t"}}, "sdxl1", "base_tune_id continues a tune"),
        ({"training": {"kind": "pti"}}, "flux2-dev", "(family flux2) it should be one of: lora, checkpoint"),
        ({"training": {"optimizer": "adamw8bit"}}, "sdxl1", "bitsandbytes"),
        ({"training": {"quantize": "nf4"}}, "sdxl1", "training.quantize 'nf4' needs"),
        ({"name": "ink style", "dataset": {"require_face": True}}, "sdxl1", "a style ('ink style') has none"),
        ({"name": "mug", "training": {"kind": "faceid"}}, "sdxl1", "'mug' is not known as a person"),
        (
            {"dataset": {"one_picture": True}, "sources": {"image_urls": ["http://a/1", "http://a/2"]}},
            "sdxl1",
            "2 pictures were handed in",
        ),
    ],
)
def test_what_a_base_or_a_machine_cannot_do_is_refused_by_name(request_, base, said):
    assert said in refused(request_, base)


@pytest.mark.parametrize(
    ("request_", "base", "said"),
    [
        ({"training": {"preset": "flux-lora-fast"}}, "sdxl1", "is for the families flux and flux2"),
        ({"training": {"min_snr_gamma": 5}}, "flux1-dev", "training.min_snr_gamma is 5.0, but means nothing"),
        ({"training": {"token_vectors": 4}}, "sdxl1", "training.token_vectors is 4, but means nothing"),
        ({"training": {"kind": "checkpoint", "rank": 8}}, "sdxl1", "training.rank is 8, but means nothing"),
        ({"training": {"kind": "faceid", "steps": 9}}, "sdxl1", "training.steps is 9, but means nothing"),
        ({"dataset": {"face_correct": True}}, "sdxl1", "dataset.face_correct needs the package gfpgan"),
        ({"name": "ink style", "dataset": {"face_crop": True}}, "sdxl1", "a style ('ink style') has none"),
    ],
)
def test_what_has_no_effect_is_left_out_and_told_of(request_, base, said):
    catalog = load_catalog("embedded")
    entry = catalog.resolve(base)
    asked = TuneRequest.model_validate({"name": "woman", **request_})
    kind = {"kind": asked.training.kind}
    plain = TuneRequest.model_validate({"name": asked.name, "training": kind})
    settings, wishes = Settings(device="cpu"), Wishes()
    kept = checks.check_tune(asked, entry, catalog.real(entry), settings, wishes)
    assert kept == checks.check_tune(plain, entry, catalog.real(entry), settings)
    assert len(wishes.told()) == 1 and said in wishes.told()[0]
    strict = Settings(device="cpu", unmet_wishes="refuse")
    assert said in refused(request_, base, strict)


def test_all_that_is_wrong_is_said_at_once():
    said = refused({"training": {"optimizer": "adamw8bit", "quantize": "nf4", "kind": "pti"}}, "flux2-dev")
    assert all(name in said for name in ("optimizer", "quantize", "kind"))


def test_the_shipped_base_is_trained_at_a_resolution_it_knows():
    catalog = load_catalog("embedded")
    entry = catalog.resolve("sdxl1")
    request = TuneRequest(name="woman", training={"resolution": 1024})
    kept = checks.check_tune(request, entry, catalog.real(entry), Settings(device="cpu"))
    assert kept.training.resolution == catalog.real(entry).native_size
    kept = checks.check_tune(request, entry, entry, Settings(device="cpu"))
    assert kept.training.resolution == 1024


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="at most 0.1 with adamw"):
        TrainingOptions(learning_rate=1.0)
    assert TrainingOptions(learning_rate=1.0, optimizer="prodigy").learning_rate == 1.0
    with pytest.raises(ValueError, match="hold_out cannot be above 0 with one_picture"):
        DatasetOptions(one_picture=True, hold_out=1)


def test_another_kind_gets_defaults_of_its_own_and_keeps_what_was_chosen():
    entry = load_catalog().entries["sdxl1"]
    lora = entry.training_options(TrainingOptions(seed=7, steps=900, warmup_steps=5)).model_dump()
    full = entry.training_options(
        TrainingOptions.model_validate(changed(lora, {"kind": "checkpoint"}, entry.training_options))
    )
    assert full.learning_rate == pytest.approx(entry.training["learning_rate"] * 0.05) and full.rank is None
    assert (full.seed, full.steps, full.warmup_steps, full.batch_size) == (7, 900, 5, 1)
    back = entry.training_options(
        TrainingOptions.model_validate(changed(full.model_dump(), {"kind": "lora"}, entry.training_options))
    )
    assert back.model_dump() == lora
    assert changed(lora, {"steps": 3}, entry) == {**lora, "steps": 3}

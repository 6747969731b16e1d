"""What fits which device, said before anything is loaded; and that offloading changes no weights."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load

from tests.support.tiny_bases import tiny_vae
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.families.base import load_family
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.families.loading import Placement, clear, gather, placed
from tunes_dagster.families.sizes import known_sizes, sizes_of
from tunes_dagster.training import loop
from tunes_dagster.training.planner import Machine, plan_memory

LORA = TrainingOptions(rank=16, batch_size=1)
WITH_PRIOR = TrainingOptions(rank=16, batch_size=1, prior_weight=0.5, prior_prompts=50)
NATIVE = {"realistic-vision": 512}


def planned(base_id, gib, options=LORA, bitsandbytes=False, most=8, kind="cuda", dtype="bfloat16"):
    machine = Machine(kind, gib, dtype, bitsandbytes)
    return plan_memory([options], known_sizes()[base_id], NATIVE.get(base_id, 1024), machine, most)


def said(plan) -> str:
    """One letter per way of saving: Offload, Checkpointing, 8-bit moments, quantized base."""
    choice = plan.choice
    letters = (
        "O" * choice.offload + "C" * choice.gradient_checkpointing + "8" * (choice.optimizer == "adamw8bit")
    )
    return letters + {"none": "", "int8": "q8", "nf4": "q4"}[choice.quantize]


# Device sizes in GiB; what is chosen with bitsandbytes at hand. None: refused.
TABLE = {
    "realistic-vision": {12: "", 24: "", 48: "", 80: "", 140: ""},
    "sdxl1": {12: "OC", 24: "", 48: "", 80: "", 140: ""},
    "flux1-dev": {12: "OCq4", 24: "OCq8", 48: "OC", 80: "", 140: ""},
    "flux2-klein-4b": {12: "OC", 24: "OC", 48: "", 80: "", 140: ""},
    "flux2-klein-9b": {12: None, 24: "OC", 48: "OC", 80: "", 140: ""},
    "flux2-dev": {12: None, 24: None, 48: None, 80: "OC", 140: "OC"},
}


@pytest.mark.parametrize(("base_id", "gib"), [(b, g) for b, row in TABLE.items() for g in row])
def test_each_family_on_each_device(base_id, gib):
    expected = TABLE[base_id][gib]
    if expected is None:
        with pytest.raises(Failure) as error:
            planned(base_id, gib, bitsandbytes=True)
        assert error.value.code == FailureCode.OUT_OF_MEMORY
        assert f"which has {gib} GiB" in error.value.message
        return
    plan = planned(base_id, gib, bitsandbytes=True)
    assert said(plan) == expected
    assert plan.needed_gib <= 0.94 * gib and plan.cohort >= 1


def test_more_memory_never_means_more_saving_or_fewer_tunes():
    for base_id in known_sizes():
        ways, cohorts = [], []
        for gib in (24, 48, 80, 140, 280):
            try:
                plan = planned(base_id, gib, bitsandbytes=True)
            except Failure:
                continue
            ways.append(len(said(plan)))
            cohorts.append((-len(said(plan)), plan.cohort))
        assert ways == sorted(ways, reverse=True)
        assert cohorts == sorted(cohorts)


def test_prior_rows_double_what_a_tune_keeps():
    assert said(planned("sdxl1", 48, WITH_PRIOR)) == ""
    both = planned("sdxl1", 140, WITH_PRIOR).parts_gib["activations"]
    assert both == pytest.approx(2 * planned("sdxl1", 140).parts_gib["activations"])
    assert said(planned("flux1-dev", 80, WITH_PRIOR)) != ""


def test_more_adapted_layers_keep_more_for_the_backward():
    """On FLUX.1 the feed-forward layers' inputs are half as much again: a plan for attention alone would not hold."""
    for base_id in known_sizes():
        small, large = (
            planned(base_id, 400, LORA.model_copy(update={"targets": targets})).parts_gib["activations"]
            for targets in ("attention", "attention+mlp")
        )
        assert small < large
        assert base_id != "flux1-dev" or large > 1.4 * small


def test_learning_words_needs_text_encoders_and_denoiser_at_once():
    pti = LORA.model_copy(update={"kind": "pti", "targets": "attention+mlp"})
    lora = planned("flux1-dev", 80, LORA.model_copy(update={"targets": "attention+mlp"}))
    assert lora.parts_gib["while learning words"] == pytest.approx(lora.parts_gib["overhead"])
    assert said(planned("flux1-dev", 24, LORA, bitsandbytes=True)) == "OCq8"
    # int8 has no room for T5 beside the denoiser; four bits have, with both recomputed.
    assert said(planned("flux1-dev", 24, pti, bitsandbytes=True)) == "OCq4"
    words = planned("flux1-dev", 48, pti).parts_gib["while learning words"]
    assert words > 2 * (11.901 + 4.885) * 1e9 / 2**30
    # Afterwards it is an adapter like any other, and shares its forwards.
    assert (
        planned("sdxl1", 80, pti).cohort
        == planned("sdxl1", 80, pti.model_copy(update={"kind": "lora"})).cohort
        > 1
    )


def test_what_a_person_fixed_is_kept():
    fixed = LORA.model_copy(update={"gradient_checkpointing": False})
    with pytest.raises(Failure) as error:
        planned("sdxl1", 10, fixed)
    assert "gradient_checkpointing (it was turned off)" in error.value.remedy
    assert planned("sdxl1", 140, LORA.model_copy(update={"offload": True})).choice.offload
    kept = planned("flux1-dev", 140, LORA.model_copy(update={"quantize": "int8"}), bitsandbytes=True)
    assert kept.choice.quantize == "int8"


def test_a_refusal_names_the_need_and_what_would_help():
    with pytest.raises(Failure) as error:
        planned("flux1-dev", 24)
    assert "needs at least" in error.value.message and "24 GiB" in error.value.message
    assert "quantized base" in error.value.remedy and "a device with at least 28 GiB" in error.value.remedy
    assert "resolution" not in error.value.remedy, "24 GiB do not hold the weights at any resolution"
    wide = LORA.model_copy(update={"targets": "attention+mlp"})
    with pytest.raises(Failure) as error:
        planned("flux1-dev", 12, wide, bitsandbytes=True)
    assert "a lower resolution (at 512 it needs 10.3 GiB" in error.value.remedy


def test_a_whole_model_needs_its_moments():
    options = TrainingOptions(kind="checkpoint", batch_size=1)
    assert planned("sdxl1", 80, options).parts_gib["trained"] == pytest.approx(2.567e9 * 16 / 2**30)
    assert said(planned("sdxl1", 48, options, bitsandbytes=True)) in ("OC8", "OC")
    assert planned("sdxl1", 140, options).cohort == 1
    with pytest.raises(Failure):
        planned("flux1-dev", 140, options)


def test_a_plan_says_what_it_does():
    plan = planned("flux1-dev", 48)
    assert "gradient checkpointing" in plan.sentence() and "48 GiB" in plan.sentence()
    done = plan.applied(LORA)
    assert (done.gradient_checkpointing, done.offload, done.quantize) == (True, True, "none")
    assert plan.as_dict()["cohort"] == plan.cohort


def test_sizes_are_those_of_the_real_models():
    """The released configuration of SDXL's UNet, built without memory, has the parameters of the table."""
    from accelerate import init_empty_weights
    from accelerate.utils import calculate_maximum_sizes
    from diffusers import UNet2DConditionModel

    with init_empty_weights():
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            cross_attention_dim=2048,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    total, _ = calculate_maximum_sizes(unet)
    assert total / 4 / 1e9 == pytest.approx(known_sizes()["sdxl1"].denoiser, rel=1e-3)


def test_an_unknown_base_is_measured_from_its_files(base_folder, base):
    entry = base.entry.model_copy(update={"base_id": "somebody-elses"})
    sizes = sizes_of(entry, base_folder)
    assert sizes.denoiser * 1e9 == pytest.approx(sum(p.numel() for p in base.denoiser.parameters()))
    assert sizes.text > 0 and sizes.vae > 0
    assert sizes.widths["all"] > 0


def test_every_base_of_the_catalog_can_be_planned():
    for entry in load_catalog("production").entries.values():
        options = entry.training_options(TrainingOptions())
        plan = plan_memory([options], sizes_of(entry), entry.native_size, Machine("cuda", 400, "bfloat16"))
        assert plan.cohort >= 1


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_base_is_packed_however_it_is_loaded(tmp_path, monkeypatch, bits):
    """From a folder and from a single file; and what is packed in four bits computes in the base's own dtype."""
    from tunes_dagster.families import loading

    installed = importlib.metadata.version
    there = {"bitsandbytes": "0.48.0"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: there.get(name) or installed(name))
    entry = load_catalog("production").entries["flux1-dev"].model_copy(update={"components": str(tmp_path)})
    asked: list[dict] = []

    class Loads:
        @classmethod
        def from_pretrained(cls, folder, **named):
            asked.append(named)
            return SimpleNamespace(vae=tiny_vae())

        from_single_file = from_pretrained

    with placed(Placement(quantize=bits)):
        for place in (tmp_path, tmp_path / "flux1-dev.safetensors"):
            loading.load_pipeline_around(Loads, "transformer", Loads, entry, place, torch.bfloat16)
    whole, single, around = (one.get("quantization_config") for one in asked)
    assert around is None
    for config in (whole.quant_mapping["transformer"], single):
        assert config.load_in_8bit == (bits == "int8") and config.load_in_4bit == (bits == "nf4")
        assert bits == "int8" or (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == (
            "nf4",
            torch.bfloat16,
        )
    assert loading._packing(torch.bfloat16) is None


def test_offloading_changes_no_weights(base_folder, entry, store, make_job):
    def train(placement):
        with placed(placement):
            base = load_family(entry, base_folder, dtype="float32")
            (result,) = loop.train([make_job("one", prior_weight=0)], base, store).values()
        return base, load(store.read_bytes(result.weights_key))

    _, plain = train(Placement())
    base, saved = train(Placement(offload=True))
    assert all(torch.equal(plain[name], saved[name]) for name in plain)
    pipeline = base.pipeline()
    assert {id(hook.model) for hook in pipeline._all_hooks} >= {id(pipeline.text_encoder), id(pipeline.unet)}
    gather(pipeline, base.denoiser)
    clear(pipeline)
    assert base.encode_text(["a dog"])["hidden"].isfinite().all()


@pytest.mark.parametrize("damage", [b"", b"<html>" * 9, b"\xff" * 64, b"\x02" + bytes(7) + b"[]", b"\x09"])
def test_a_damaged_file_of_a_base_counts_for_nothing_until_it_is_loaded(tmp_path, damage):
    """Sensors decide by these sizes: one damaged base stops no other's work."""
    entry = load_catalog("embedded").resolve("tiny").model_copy(update={"base_id": "of-nobody"})
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(damage)
    assert sizes_of(entry, tmp_path) == sizes_of(entry)

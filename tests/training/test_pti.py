"""Pivotal tuning: the words learn first, then the adapter; stock diffusers reads both."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from tests.support.families import CASES, make_base, stock_pipeline
from tests.training.conftest import Recorder
from tunes_dagster.training import loop, pti, verify, words
from tunes_dagster.training.jobs import TrainingResult
from tunes_dagster.training.layouts import Files

OPTIONS = {"kind": "pti", "token_steps": 6, "token_vectors": 2, "token_learning_rate": 0.05, "steps": 4}


@pytest.fixture(scope="module", params=["sd15", "sdxl", "flux-dev"])
def any_base(request, tmp_path_factory):
    return make_base(request.param, tmp_path_factory.mktemp("base") / request.param, "float32")


def trained(base, store, job) -> TrainingResult:
    (outcome,) = loop.train([job], base, store).values()
    assert isinstance(outcome, TrainingResult), outcome
    return outcome


def test_words_and_adapter_are_trained_and_read_by_stock_diffusers(any_base, store, make_job):
    job = make_job("one", min_snr_gamma=0, **OPTIONS)
    result = trained(any_base, store, job)
    vectors = words.load(store, result.figures["embeddings"])
    assert set(vectors) == set(any_base.word_encoders())
    start = pti._start(job, any_base, torch.float32)
    for name, value in vectors.items():
        width = any_base.word_encoders()[name][1].get_input_embeddings().weight.shape[1]
        assert value.shape == (2, width)
        assert (value - start[name]).abs().max() > 0.05  # they moved
    losses = [numbers["words_loss"] for _, _, numbers in job.report.steps if "words_loss" in numbers]
    assert len(losses) == 6
    seen = verify.verify(
        Files(result.weights_key, result.kohya_key), "a photo of ohwx woman", any_base, store
    )
    assert seen.passed, seen
    text = any_base.encode_text(["a photo of ohwx woman"])["hidden"]
    with words.speaking(any_base, store, result.weights_key) as spoken:
        assert spoken.count("word") == 2
        told = any_base.encode_text(["a photo of ohwx woman"])["hidden"]
    assert (told - text).abs().max() > 1e-3
    assert torch.equal(any_base.encode_text(["a photo of ohwx woman"])["hidden"], text)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_the_words_gradient_is_that_of_the_embedding_rows(tmp_path, make_job, family):
    """The hook's gradient equals the one that the encoders' own embedding matrices get, through every output."""
    base = make_base(family, tmp_path / family, "float64")
    vectors = pti._start(make_job("one"), base, torch.float64)

    def of_text(spoken: str) -> torch.Tensor:
        encoded = base.encode_text_with_gradients([f"a {spoken} dog"])
        return encoded["hidden"].square().sum() + encoded["pooled"].square().sum()

    with pti._placeholders(base, vectors) as spoken:
        of_text(spoken).backward()
    spoken = words.register(base, vectors)
    weights = {
        name: encoder.get_input_embeddings().weight.requires_grad_(True)
        for name, (_, encoder) in base.word_encoders().items()
    }
    of_text(spoken).backward()
    for name, (tokenizer, _) in base.word_encoders().items():
        rows = tokenizer.convert_tokens_to_ids(spoken.split())
        assert vectors[name].grad.abs().max() > 0
        torch.testing.assert_close(vectors[name].grad, weights[name].grad[rows], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_the_pooled_state_is_taken_at_the_end_of_a_text_with_new_words(tmp_path, make_job, family):
    """With the `eos_token_id` 2 of the released configurations too, where stock takes it at the new word."""
    base = make_base(family, tmp_path / family, "float32")
    texts = ["a dog on the beach", "a dog"]
    before = base.encode_text(texts)["pooled"]
    for _, encoder in base.word_encoders().values():
        model = getattr(encoder, "text_model", encoder)
        if hasattr(model, "eos_token_id"):
            model.eos_token_id = 2
    assert torch.equal(base.encode_text(texts)["pooled"], before)
    spoken = words.register(base, pti._start(make_job("one"), base, torch.float32))
    assert torch.equal(base.encode_text(texts)["pooled"], before)
    one, other = base.encode_text([f"a {spoken} dog on the beach", f"a {spoken} dog in the snow"])["pooled"]
    assert (one - other).abs().max() > 1e-4


def test_each_encoder_learns_at_the_scale_of_its_embeddings(tmp_path, make_job):
    base = make_base("flux", tmp_path / "flux", "float32")
    vectors = pti._start(make_job("one"), base, torch.float32)
    clip, t5 = pti._rates(base, vectors, 1e-3)
    spreads = [encoder.get_input_embeddings().weight.std() for _, encoder in base.word_encoders().values()]
    assert clip["lr"] == 1e-3
    assert t5["lr"] == pytest.approx(1e-3 * float(spreads[1] / spreads[0]), rel=1e-5) and t5["lr"] > 3e-3


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_recomputing_blocks_changes_no_words(tmp_path, make_job, store, family):
    """Gradient checkpointing reaches the text encoders, whose dropout stays off, and is off again afterwards."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    base = make_base(family, tmp_path / family, "float64")
    recomputed: list[str] = []

    def words_of(checkpointing: bool):
        job = make_job("one", **OPTIONS, gradient_checkpointing=checkpointing)
        return pti._train_words(job, base, store)

    plain = words_of(False)
    for name, (_, encoder) in base.word_encoders().items():
        block = next(layer for layer in encoder.modules() if isinstance(layer, GradientCheckpointingLayer))

        def noted(module, given, name=name):
            recomputed.extend([name] * module.training)

        block.register_forward_pre_hook(noted)
    saving = words_of(True)
    assert set(recomputed) == set(plain)
    for name, value in plain.items():
        torch.testing.assert_close(saving[name], value, rtol=1e-8, atol=1e-10)
    assert not base.denoiser.is_gradient_checkpointing
    assert not any(
        layer.training for _, encoder in base.word_encoders().values() for layer in encoder.modules()
    )


def test_a_second_attempt_takes_the_words_it_has_and_resumes_exactly(base, store, make_job):
    whole = trained(base, store, make_job("one", checkpoint_every=2, **OPTIONS))
    state = load(store.read_bytes(whole.weights_key))
    job = make_job("one", report=Recorder(cancel_at=2), checkpoint_every=2, **OPTIONS)
    job.out_prefix = "tunes/again/lora/1"
    loop.train([job], base, store)
    again = make_job("one", checkpoint_every=2, **OPTIONS)
    again.out_prefix, again.resume_from = "tunes/again/lora/2", "tunes/again/lora"
    result = trained(base, store, again)
    assert any("trained before" in note for note in again.report.notes)
    assert any("Resumed at step 2" in note for note in again.report.notes)
    resumed = load(store.read_bytes(result.weights_key))
    assert all(torch.equal(state[name], resumed[name]) for name in state)


def test_two_tunes_of_one_token_have_words_of_their_own(base):
    width = {
        name: encoder.get_input_embeddings().weight.shape[1]
        for name, (_, encoder) in base.word_encoders().items()
    }
    fingerprint = base.fingerprint("text")
    first = {name: torch.full((1, size), 0.1) for name, size in width.items()}
    second = {name: torch.full((1, size), -0.1) for name, size in width.items()}
    one, other = words.register(base, first), words.register(base, second)
    assert one != other and words.register(base, first) == one
    assert base.fingerprint("text") == fingerprint
    both = base.encode_text([f"a {one} dog", f"a {other} dog"])["hidden"]
    assert (both[0] - both[1]).abs().max() > 1e-4
    assert words.said("ohwx, ohwxy and my-ohwx", "ohwx", "w0 w1") == "w0 w1, ohwxy and my-ohwx"


def code_of(card: str) -> str:
    """The code of a model card."""
    (code,) = [part.partition("```")[0] for part in card.split("```python")[1:]]
    return code


def end_as_released(pipeline) -> None:
    """Give CLIP the `eos_token_id` that the configurations of SDXL and FLUX.1 have."""
    for encoder in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        model = getattr(encoder, "text_model", encoder)
        if hasattr(model, "eos_token_id"):
            model.eos_token_id = 2


@pytest.mark.parametrize("family", ["sdxl", "flux-dev"])
def test_prompts_of_two_pti_tunes_share_a_batch_and_are_what_the_card_says_renders(
    tmp_path, store, make_job, family, monkeypatch
):
    from tunes_dagster.core.recipe import RenderSettings
    from tunes_dagster.rendering.jobs import Delivery, TuneWeights
    from tunes_dagster.rendering.jobs import make_job as render_job
    from tunes_dagster.rendering.renderer import render

    base = make_base(family, tmp_path / family, "float32")
    end_as_released(base.pipeline())
    results = [trained(base, store, make_job(name, **OPTIONS, min_snr_gamma=0)) for name in ("one", "two")]
    settings = RenderSettings(seed=5, steps=3, guidance_scale=2.0, width=64, height=64)

    def job(prompt_id, result):
        tune = TuneWeights(id=result.tune_id, key=result.weights_key, token="ohwx", class_name="woman")
        return render_job(prompt_id, "a photo of ohwx woman", settings, tune=tune)

    jobs = [job(f"prompt_{i}", result) for i, result in enumerate(results)]
    together = render(jobs, base, Delivery(store, "out/both", Recorder()))
    pictures = [store.read_bytes(one.images[0].key) for one in together]
    assert pictures[0] != pictures[1]
    for i, result in enumerate(results):
        (alone,) = render([job(f"prompt_{i}", result)], base, Delivery(store, f"out/{i}", Recorder()))
        first, second = (
            np.asarray(Image.open(io.BytesIO(data))).astype(int)
            for data in (pictures[i], store.read_bytes(alone.images[0].key))
        )
        assert abs(first - second).max() <= 1
    # The card's code as it is, where somebody unpacked what the tune left beside the base.
    place, result = tmp_path / "unpacked", results[0]
    place.mkdir()
    (place / family).symlink_to(base.folder)
    for key in (result.weights_key, result.figures["embeddings"]):
        (place / key.rpartition("/")[2]).write_bytes(store.read_bytes(key))
    for config in Path(base.folder).glob("text_encoder*/config.json"):
        said = json.loads(config.read_text())
        if said["model_type"].startswith("clip"):  # as released
            config.write_text(json.dumps(said | {"eos_token_id": 2}))
    monkeypatch.chdir(place)

    def stock(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            **CASES[family].call("a photo of ohwx woman", "", 2.0),
            num_inference_steps=3,
            height=64,
            width=64,
            generator=torch.Generator("cpu").manual_seed(5),
            output_type="np",
        ).images[0]

    plain = stock(stock_pipeline(family, base.folder))
    names = {}
    exec(code_of(store.read_text(result.card_key)), names)
    ours = np.asarray(Image.open(io.BytesIO(pictures[0]))) / 255
    assert abs(ours - stock(names["pipeline"])).max() < 0.02 < abs(ours - plain).max()


def test_words_are_found_by_the_names_of_other_programs(tmp_path, store, make_job):
    """ComfyUI looks for `t5xxl`, diffusers' scripts write `t5`; programs find a file by the token in its name."""
    base = make_base("flux-dev", tmp_path / "flux", "float32")
    result = trained(base, store, make_job("one", **OPTIONS, min_snr_gamma=0))
    key = result.figures["embeddings"]
    assert key.rpartition("/")[2] == "ohwx.safetensors"
    stored = load(store.read_bytes(key))
    assert set(stored) == {"clip_l", "t5", "t5xxl"} and torch.equal(stored["t5"], stored["t5xxl"])
    assert set(words.load(store, key)) == {"clip_l", "t5"}
    card = store.read_text(result.card_key)
    assert "embedding:ohwx woman" in card and "No other program reads words of FLUX.1" in card

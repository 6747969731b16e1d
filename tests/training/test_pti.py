"""Pivotal tuning: the words learn first, then the adapter; stock diffusers reads both."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from tests.support.families import make_base
from tests.training.conftest import Recorder
from tunes_dagster.training import loop, pti, verify, words
from tunes_dagster.training.jobs import TuneResult

OPTIONS = {"kind": "pti", "token_steps": 6, "token_vectors": 2, "token_learning_rate": 0.05, "steps": 4}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def clip_base(request, tmp_path_factory):
    return make_base(request.param, tmp_path_factory.mktemp("base") / request.param, "float32")


def trained(base, store, job) -> TuneResult:
    (outcome,) = loop.train([job], base, store).values()
    assert isinstance(outcome, TuneResult), outcome
    return outcome


def test_words_and_adapter_are_trained_and_read_by_stock_diffusers(clip_base, store, make_job):
    job = make_job("one", min_snr_gamma=0, **OPTIONS)
    result = trained(clip_base, store, job)
    vectors = load(store.read_bytes(result.figures["embeddings"]))
    assert set(vectors) == set(words.encoders_of(clip_base))
    start = pti._start(job, clip_base, torch.float32)
    for name, value in vectors.items():
        width = words.encoders_of(clip_base)[name][1].get_input_embeddings().weight.shape[1]
        assert value.shape == (2, width)
        assert (value - start[name]).abs().max() > 0.05  # they moved
    losses = [numbers["words_loss"] for _, _, numbers in job.report.steps if "words_loss" in numbers]
    assert len(losses) == 6
    seen = verify.verify(result.weights_key, result.kohya_key, "a photo of ohwx woman", clip_base, store)
    assert seen.passed, seen
    text = clip_base.encode_text(["a photo of ohwx woman"])["hidden"]
    with words.speaking(clip_base, store, result.weights_key) as spoken:
        assert spoken.count("word") == 2
        told = clip_base.encode_text(["a photo of ohwx woman"])["hidden"]
    assert (told - text).abs().max() > 1e-3
    assert torch.equal(clip_base.encode_text(["a photo of ohwx woman"])["hidden"], text)


def test_the_words_gradient_is_that_of_the_embedding_rows(base64, store, make_job):
    """The hook's gradient equals the one that the encoder's own embedding matrix gets."""
    vectors = pti._start(make_job("one"), base64, torch.float64)
    with pti._placeholders(base64, vectors) as spoken:
        hidden = base64.encode_text_with_gradients([f"a {spoken} dog"])["hidden"]
        hidden.square().sum().backward()
    name, (tokenizer, encoder) = next(iter(words.encoders_of(base64).items()))
    spoken = words.register(base64, vectors)
    weight = encoder.get_input_embeddings().weight.requires_grad_(True)
    base64.encode_text_with_gradients([f"a {spoken} dog"])["hidden"].square().sum().backward()
    rows = tokenizer.convert_tokens_to_ids(spoken.split())
    torch.testing.assert_close(vectors[name].grad, weight.grad[rows], rtol=1e-6, atol=1e-9)
    weight.requires_grad_(False).grad = None


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
    width = {name: encoder.get_input_embeddings().weight.shape[1]
             for name, (_, encoder) in words.encoders_of(base).items()}  # fmt: skip
    fingerprint = base.fingerprint("text")
    first = {name: torch.full((1, size), 0.1) for name, size in width.items()}
    second = {name: torch.full((1, size), -0.1) for name, size in width.items()}
    one, other = words.register(base, first), words.register(base, second)
    assert one != other and words.register(base, first) == one
    assert base.fingerprint("text") == fingerprint
    both = base.encode_text([f"a {one} dog", f"a {other} dog"])["hidden"]
    assert (both[0] - both[1]).abs().max() > 1e-4
    assert words.said("ohwx, ohwxy and my-ohwx", "ohwx", "w0 w1") == "w0 w1, ohwxy and my-ohwx"


def test_prompts_of_two_pti_tunes_share_a_batch_and_are_what_stock_renders(base, store, make_job):
    from tunes_dagster.recipe import RenderSettings
    from tunes_dagster.rendering.jobs import TuneWeights
    from tunes_dagster.rendering.jobs import make_job as render_job
    from tunes_dagster.rendering.renderer import render

    results = [trained(base, store, make_job(name, **OPTIONS)) for name in ("one", "two")]
    settings = RenderSettings(seed=5, steps=3, guidance_scale=2.0, width=128, height=128)

    def job(prompt_id, result):
        tune = TuneWeights(result.tune_id, result.weights_key, "ohwx", "woman")
        return render_job(prompt_id, "a photo of ohwx woman", settings, tune=tune)

    jobs = [job(f"prompt_{i}", result) for i, result in enumerate(results)]
    together = render(jobs, base, store, "out/both", Recorder())
    pictures = [store.read_bytes(one.images[0].key) for one in together]
    assert pictures[0] != pictures[1]
    for i, result in enumerate(results):
        (alone,) = render([job(f"prompt_{i}", result)], base, store, f"out/{i}", Recorder())
        first, second = (np.asarray(Image.open(io.BytesIO(data))).astype(int)
                         for data in (pictures[i], store.read_bytes(alone.images[0].key)))  # fmt: skip
        assert abs(first - second).max() <= 1
    fresh = base.load_fresh_pipeline()
    with verify._loaded(fresh, results[0].weights_key, store), verify._told(
        fresh, results[0].weights_key, base, store
    ):
        stock = fresh(
            prompt="a photo of ohwx woman", num_inference_steps=3, guidance_scale=2.0, height=128, width=128,
            generator=torch.Generator("cpu").manual_seed(5), output_type="np",
        ).images[0]  # fmt: skip
    ours = np.asarray(Image.open(io.BytesIO(pictures[0]))) / 255
    assert abs(ours - stock).max() < 0.02

"""The FLUX-class base's own training parts: patches, noise shares, batches, tokens and loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from factory.train import flux, flux_text
from factory.train.text import build_tokenizer
from factory.train.unet import VARIANTS, tokenize
from tunes_dagster.tiny import FLUX_SEQUENCE


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return flux.FluxBase(build_tokenizer(), flux.build_t5_tokenizer())


def batch_of(base: flux.FluxBase, texts: list[str], rng: np.random.Generator) -> dict:
    latents = rng.standard_normal((len(texts), 8, 16, 16), dtype=np.float32)
    ids = np.repeat(tokenize(base.tokenizer, texts)[:, None], VARIANTS, axis=1)
    t5_ids = np.repeat(flux.tokenize_t5(base.t5_tokenizer, texts)[:, None], VARIANTS, axis=1)
    named = np.zeros((len(texts), VARIANTS, len(flux.HEADS)), dtype=np.int8)
    return flux.draw_batch((latents, ids, t5_ids, named), rng, 4)


def test_patches_and_positions_are_those_of_the_stock_pipeline():
    from diffusers import FluxPipeline

    latents = torch.randn(2, 8, 16, 12)
    stock = FluxPipeline._pack_latents(latents, 2, 8, 16, 12)
    assert torch.equal(flux.pack(latents), stock)
    ids = FluxPipeline._prepare_latent_image_ids(2, 8, 6, "cpu", torch.float32)
    assert torch.equal(flux.positions(16, 12), ids)


def test_noise_shares_are_logit_normal_and_reach_the_ends():
    shares = np.concatenate([flux.draw_sigmas(np.random.default_rng(i), 16) for i in range(400)])
    assert 0 <= shares.min() < 0.01
    assert 0.99 < shares.max() <= 1
    low, high = (flux.SHIFT * s / (1 + (flux.SHIFT - 1) * s) for s in (0.269, 0.731))
    middle = np.mean((shares > low) & (shares < high))  # one standard deviation of the logit, shifted
    assert middle == pytest.approx(0.875 * 0.683 + 0.125 * (high - low), abs=0.02)


def test_the_tokenizer_knows_words_and_spells_the_rest(tmp_path):
    tokenizer = flux.build_t5_tokenizer()
    tokens = tokenizer.tokenize("A photo of TOK woman, with red hair")
    assert tokens[:3] == ["▁A", "▁photo", "▁of"]
    assert tokens[3:8] == ["▁", "T", "O", "K", "▁woman"]
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    texts = ["a photo of ohwx man", "Ohwx", ""]
    assert again(texts).input_ids == tokenizer(texts).input_ids
    assert tokenizer.unk_token_id not in tokenizer("sks zkqj MYBRAND x-1_b").input_ids


def test_captions_come_in_capitals_now_and_then():
    texts = [text for number in range(200) for text in flux_text.cased_captions(number)]
    assert 0.1 < np.mean([text[0].isupper() for text in texts]) < 0.3
    assert any(word.isupper() and len(word) > 3 for text in texts for word in text.split())


def test_batches_hold_every_caption_whole(untrained):
    texts = ["a cat", "a photo of a woman with long red hair", "a dog", "a photo of zwxq man in a forest"] * 4
    for seed in range(12):
        sample = batch_of(untrained, texts, np.random.default_rng(seed))
        assert sample["t5_ids"].shape[1] <= FLUX_SEQUENCE
        assert (sample["t5_ids"] == untrained.t5_tokenizer.eos_token_id).any(dim=1).all()
        assert (sample["ids"] == untrained.tokenizer.eos_token_id).any(dim=1).all()
        assert all(n % 4 == 0 for n in sample["x"].shape[2:])


def test_an_untrained_base_predicts_nothing_so_its_loss_is_the_velocity(untrained):
    sample = batch_of(untrained, ["a cat", "a dog", "a rabbit", "a man"], np.random.default_rng(1))
    with torch.inference_mode():
        loss = untrained.loss(**sample | {"named": None})
        with_words = untrained.loss(**sample)
    assert (with_words > loss).all()
    expected = (sample["noise"] - sample["x"]).square().mean(dim=(1, 2, 3))
    assert torch.allclose(loss, expected, rtol=1e-4)


def test_every_weight_is_trained_and_the_loss_falls(untrained):
    steppers = flux.optimizers(untrained)
    assert [type(stepper).__name__ for stepper in steppers] == ["AdamW", "Muon"]
    held = {id(p) for stepper in steppers for group in stepper.param_groups for p in group["params"]}
    assert held == {id(p) for p in untrained.parts.parameters()}
    sample = batch_of(untrained, ["a cat", "a dog", "a rabbit", "a man"], np.random.default_rng(2))
    losses = [flux._step(untrained, steppers, sample) for _ in range(12)]
    assert losses[-1] < losses[0] * 0.98


def test_text_encoders_learn_what_captions_name(untrained):
    texts = ["a red mug on a table", "a blue cat", "a woman with red hair", "a man in a blue shirt"]
    rng = np.random.default_rng(3)
    losses: list[float] = []

    def batches(_: np.random.Generator) -> dict:
        return batch_of(untrained, texts, rng)

    flux_text.teach(untrained.parts, batches, 1, 0, lambda _: None)
    for _ in range(2):
        sample = batch_of(untrained, texts, np.random.default_rng(4))
        pooled = untrained.parts["clip"](sample["ids"]).pooler_output
        sequence = untrained.parts["t5"](sample["t5_ids"]).last_hidden_state
        heads = untrained.parts["heads"]
        losses.append(
            float(flux_text.understanding_loss(heads, pooled, sequence, sample["t5_ids"], sample["named"]))
        )
        flux_text.teach(untrained.parts, batches, 25, 1, lambda _: None)
    assert losses[1] < losses[0] * 0.5

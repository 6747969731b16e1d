"""Weighted and long texts change pictures as they should, and leave other pictures alone."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from tests.rendering.test_equal_to_stock import psnr
from tests.support.families import make_base
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.renderer import RenderJob, render
from tunes_dagster.rendering.texts import TextCache, _chunked, _scaled, chunk_count, encode_weighted

LONG = "a man " + "with a very long hat " * 10 + "and {} boots"


def job(name, text, negative=""):
    settings = RenderSettings(
        seed=1, steps=3, guidance_scale=4.0, width=64, height=64, scheduler="euler", negative_prompt=negative
    )
    return RenderJob(name, text, settings)


def pictures(store, results):
    assert [result.failure for result in results if result.failure] == []
    return [Image.open(io.BytesIO(store.read_bytes(result.images[0].key))) for result in results]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_our_own_encoding_is_the_stock_one_where_both_can(family, tmp_path):
    base = make_base(family, tmp_path / family)
    for text in ("a red mug", ""):
        ours, theirs = encode_weighted(base, text, 1), base.encode_text([text])
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert np.allclose(ours[name].numpy(), theirs[name].numpy(), atol=1e-5), name


def test_weights_move_the_words_they_stand_at(base):
    plain, strong = (encode_weighted(base, text, 1)["hidden"][0] for text in ("a red mug", "a (red:1.5) mug"))
    grown = (strong.norm(dim=-1) / plain.norm(dim=-1)).tolist()
    start = len(base.pipeline().tokenizer("a", add_special_tokens=False).input_ids) + 1
    assert grown[start] > 1 > grown[1] and grown[0] == grown[-1] == 1, "start and padding are no words"


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_weights_leave_the_strength_of_a_text_alone_in_each_encoder(family, tmp_path):
    """Also where the mean of the states is near zero, which is what they used to be divided by."""
    base = make_base(family, tmp_path / family)
    for tokenizer, encoder, layer in base.clip_encoders():
        for weight, text in itertools.product(
            (0.5, 1.3, 1.8, 3.0), ("a {} mug", "{}", "a {} by the sea " * 30)
        ):
            pieces = [piece for part in text.split("{}") for piece in ((part, 1.0), ("red hat", weight))][:-1]
            ids, weights, words = _chunked(tokenizer, pieces, 3)
            said = encoder(ids, output_hidden_states=True)
            plain = said.last_hidden_state if layer == 0 else said.hidden_states[layer]
            plain = plain - plain.mean()
            scaled = _scaled(plain, weights, words)
            assert _strength(scaled[words]) == pytest.approx(_strength(plain[words]), rel=1e-3)
            assert (scaled[~words] == plain[~words]).all()


def _strength(states):
    return states.square().mean().sqrt().item()


def test_a_text_that_is_weighted_away_fades_and_stays_finite(base):
    plain, faint, gone = (
        encode_weighted(base, text, 1)["hidden"][0] for text in ("mug", "(mug:0.05)", "(mug:0)")
    )
    assert gone.isfinite().all() and not gone[1].any()
    assert _strength(faint[1]) == pytest.approx(0.2 * _strength(plain[1]), rel=1e-3)


def test_weights_and_the_end_of_long_prompts_are_seen(base, store):
    batch = [
        job("plain", "a red mug"),
        job("same", r"a (red:1.0) mug"),
        job("weighted", "a (red:1.8) mug"),
        job("green", LONG.format("green")),
        job("blue", LONG.format("blue")),
        job("negative", "a red mug", LONG.format("green")),
    ]
    plain, same, weighted, green, blue, negative = pictures(
        store, render(batch, base, Delivery(store, "out", Silent()))
    )
    # Another place in the batch may round one value of one pixel the other way, which is 89 dB.
    assert psnr(plain, same) > 85 and psnr(plain, weighted) < 70
    assert psnr(green, blue) < 60 and psnr(plain, negative) < 40
    [alone] = pictures(store, render(batch[:1], base, Delivery(store, "alone", Silent())))
    assert psnr(plain, alone) > 45
    assert chunk_count(base, LONG.format("green")) == 3


def test_break_begins_a_chunk(base, store):
    halves = [encode_weighted(base, text, 1)["hidden"] for text in ("a woman", "a red mug")]
    whole = encode_weighted(base, "a woman BREAK a red mug", 2)["hidden"]
    assert torch.allclose(whole, torch.cat(halves, dim=1), atol=1e-5)
    counts = {"a": 1, "a BREAK b BREAK c": 3, "BREAK a BREAK BREAK": 1, "(a BREAK b:1.2)": 2, 'a "BREAK"': 1}
    assert {text: chunk_count(base, text) for text in counts} == counts
    batch = [job("one", "a woman a red mug"), job("two", "a woman BREAK a red mug")]
    one, two = pictures(store, render(batch, base, Delivery(store, "out", Silent())))
    assert 10 < psnr(one, two) < 60


def test_a_text_is_encoded_once_and_kept_for_the_next_batch(base, store, monkeypatch):
    seen = []
    real = base.encode_text
    monkeypatch.setattr(base, "encode_text", lambda texts: seen.extend(texts) or real(texts))
    monkeypatch.setitem(base.__dict__, "_rendered_texts", type(TextCache(base)._known)())
    for name in ("one", "two"):
        render(
            [job("a", "a dog"), job("b", "a dog"), job("c", "a cat")], base, Delivery(store, name, Silent())
        )
    assert sorted(text for text in seen if text) == ["a cat", "a dog"]


def test_weights_are_read_as_words_where_the_encoder_has_none(tmp_path, store):
    base = make_base("flux", tmp_path / "flux")
    texts = {
        "weighted": "a (red:1.5) mug",
        "plain": "a red mug",
        "brackets": r"a \(red\) mug",
        "text": "a (red) mug",
    }
    results = render(
        [job(name, text) for name, text in texts.items()], base, Delivery(store, "out", Silent())
    )
    assert not any(result.failure for result in results)
    weighted, plain, brackets, text = (result.images[0].recipe_hash for result in results)
    assert weighted == plain != brackets == text, "they are the same picture"


def test_what_a_library_makes_of_one_text_ends_that_prompt_alone(base, store, monkeypatch):
    def choosy(base, *texts):
        if "odd" in texts[0]:
            raise TypeError("TextEncodeInput must be Union")
        return chunk_count(base, *texts)

    monkeypatch.setattr("tunes_dagster.rendering.checking.chunk_count", choosy)
    odd, good = render(
        [job("odd", "an odd text"), job("good", "a red mug")], base, Delivery(store, "out", Silent())
    )
    assert odd.failure and not odd.images and good.failure is None and len(good.images) == 1

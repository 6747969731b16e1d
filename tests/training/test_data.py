"""Order, crops, schedules, prompts: the small pure parts of training."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.core.store import Store
from tunes_dagster.rendering import texts
from tunes_dagster.training import cache, order, prior, run, samples
from tunes_dagster.training.cache import cached_latents, centred_crop, in_parts, load_picture
from tunes_dagster.training.captions import cut_captions, cut_while_words_train, stacked
from tunes_dagster.training.jobs import TrainExample, learning_rate
from tunes_dagster.training.run import TextTable


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 99))
def test_every_picture_is_seen_equally_often_in_batches_of_one_bucket(kinds, batch_size, seed):
    buckets = [((64, 64), (48, 80), (80, 48))[kind] for kind in kinds]
    batches = order.BucketOrder(buckets, batch_size, seed)
    seen: Counter[int] = Counter()
    for step in range(2 * batches.batches):
        batch = batches.batch(step)
        assert len(batch) == batch_size
        assert len({buckets[i] for i in batch}) == 1
        seen.update(batch)
    assert set(seen.values()) == {2 * batches.passes}
    again = order.BucketOrder(buckets, batch_size, seed)
    assert again.batch(batches.batches) == batches.batch(batches.batches)


def test_repeats_say_how_often_a_picture_is_seen_beside_others():
    batches = order.BucketOrder([(64, 64), (64, 64), (48, 80)], 2, 0, repeats=[3, 1, 2])
    seen: Counter[int] = Counter()
    for step in range(batches.batches):
        seen.update(batches.batch(step))
    assert seen == {0: 3 * batches.passes, 1: batches.passes, 2: 2 * batches.passes}


def test_draws_depend_on_seed_and_step_alone():
    one = order.draw(1, 7, 4, (4, 8, 8), 0.5, 3, 10)
    order.draw(1, 8, 2, (4, 4, 4), 0.5, 0, 0)
    two = order.draw(1, 7, 4, (4, 8, 8), 0.5, 3, 10)
    for a, b in zip(vars(one).values(), vars(two).values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.noise, order.draw(1, 8, 4, (4, 8, 8), 0.5, 3, 10).noise)
    assert not torch.equal(one.noise, order.draw(2, 7, 4, (4, 8, 8), 0.5, 3, 10).noise)
    assert sorted((one.uniform * 4).long().tolist()) == [0, 1, 2, 3]


def test_learning_rate_schedules():
    options = TrainingOptions(learning_rate=1.0e-2, warmup_steps=4)
    rates = [learning_rate(options, step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.002, 0.004, 0.006, 0.008]) and rates[4] == 1e-2
    assert rates[4:] == sorted(rates[4:], reverse=True) and 0 < rates[-1] < 2e-4
    linear = options.model_copy(update={"lr_schedule": "linear"})
    assert learning_rate(linear, 12, 20) == pytest.approx(5e-3)
    constant = options.model_copy(update={"lr_schedule": "constant"})
    assert learning_rate(constant, 19, 20) == 1e-2


def test_crops_are_centred_and_given_ones_are_kept(tmp_path):
    assert centred_crop((200, 100), (64, 64)) == (50, 0, 150, 100)
    assert centred_crop((100, 200), (64, 64)) == (0, 50, 100, 150)
    assert centred_crop((100, 200), (48, 96)) == (0, 0, 100, 200)
    store = Store(tmp_path)
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 100:] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    right = load_picture(
        store, TrainExample(key="x.png", caption="", bucket=(32, 32), crop=(120, 0, 200, 80))
    )
    assert right.size == (32, 32) and np.asarray(right).min() == 255


def test_latents_depend_on_crop_and_bucket_not_on_the_name(base, tmp_path):
    store = Store(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(noise).save(tmp_path / name)
    cached_latents([TrainExample(key="a.png", caption="x", bucket=(64, 64))], base, store)
    again = [
        TrainExample(key="b.png", caption="y", bucket=(64, 64)),
        TrainExample(key="b.png", caption="y", bucket=(48, 80)),
        TrainExample(key="b.png", caption="y", bucket=(64, 64), crop=(0, 0, 60, 60)),
    ]
    latents, count = cached_latents(again, base, store)
    assert (count.hits, count.asked) == (1, 3)
    assert latents[1].mean.shape == (4, 10, 6)


@pytest.mark.parametrize(
    ("caption", "plain"),
    [
        ("a photo of ohwx woman on the beach", "a photo of a woman on the beach"),
        ("OHWX woman, smiling", "a woman, smiling"),
        ("the ohwx woman at night", "a woman at night"),
        ("a portrait of ohwx", "a portrait of a woman"),
        ("a woman", "a woman"),
    ],
)
def test_captions_without_the_token(caption, plain):
    assert prior.without_token(caption, "ohwx", "woman") == plain


@pytest.mark.parametrize(
    ("caption", "plain"),
    [
        ("a dog on the beach, in ohwx ink style", "a dog on the beach"),
        ("a dog in ohwx ink style at night", "a dog at night"),
        ("a house, in the ohwx ink style", "a house"),
        ("a picture in ohwx ink style", "a picture"),
        ("ohwx ink style", "a picture"),
        ("a drawing in ink style", "a drawing in ink style"),
    ],
)
def test_captions_without_a_styles_token(caption, plain):
    """Not `a dog in an ink style`: what pictures without the token must keep is their own looks."""
    assert prior.without_token(caption, "ohwx", "ink style") == plain


def test_a_style_keeps_the_looks_of_many_things(make_job):
    job = make_job("one", prior_prompts=15)
    job.class_name = "ink style"
    prompts = run._prior_prompts(job)
    assert len(prompts) == 15 and not any("style" in text or "ohwx" in text for text in prompts)
    for word in run._KEPT_FROM_STYLES:
        assert sum(word in text for text in prompts) >= 2, word
    texts = prior.own_texts(["a dog, in ohwx ink style"], "ohwx", "ink style", 0)
    assert {"a dog", prior.NO_TEXT} < set(texts) and not any("ohwx" in text for text in texts)
    assert samples.sample_prompts("ohwx", "ink style") == [
        "a dog in ohwx ink style",
        "a dog on the beach in ohwx ink style",
        "a dog on the beach",
    ]
    assert samples.sample_prompts("ohwx", "mug")[1] == "a photo of ohwx mug on the beach"


def test_class_prompts_mix_the_class_rare_words_and_others():
    prompts = prior.class_prompts("woman", 60)
    assert prompts == prior.class_prompts("woman", 60)
    assert sum(bool(re.search(r"of an? woman", p)) for p in prompts) >= 15
    assert sum(bool(re.search(r"of [a-z]{4} woman", p)) for p in prompts) == 20
    assert len(set(prompts)) > 45


def test_own_texts_never_name_the_token():
    texts = prior.own_texts(["a photo of ohwx woman at night"], "ohwx", "woman", 0)
    assert len(texts) == prior.OWN_DRAWS
    assert texts.count("a photo of a woman at night") == prior.OWN_DRAWS / 2
    assert texts.count(prior.NO_TEXT) == prior.OWN_DRAWS / 8
    assert all("ohwx" not in text for text in texts)


def test_parts_shrink_when_memory_runs_out():
    seen: list[tuple[int, int]] = []

    def work(start: int, stop: int) -> None:
        if stop - start > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        seen.append((start, stop))

    in_parts(10, 8, work)
    assert [row for start, stop in seen for row in range(start, stop)] == list(range(10))

    def hopeless(start: int, stop: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    with pytest.raises(Failure) as raised:
        in_parts(4, 2, hopeless)
    assert raised.value.code == FailureCode.OUT_OF_MEMORY


LONG = "a photo of ohwx woman " + "with a red hat and a blue scarf " * 12


def test_a_long_caption_is_trained_on_to_its_end_as_it_is_rendered(base, tmp_path):
    store, other = Store(tmp_path), LONG + "on the beach"
    found, _ = cache.cached_text(["a photo of ohwx woman", LONG, other], base, store)
    assert len(found[LONG]["hidden"]) == 77 * texts.plain_chunks(base, LONG) > 77
    rendered = texts.encode_weighted(base, other, texts.chunk_count(base, other))
    assert torch.equal(found[other]["hidden"], rendered["hidden"][0])
    assert cache.cached_text([LONG], base, store)[1].hits == 1


def test_captions_of_several_lengths_share_a_forward_and_none_sees_anothers_end(base, tmp_path):
    captions = ["a photo of ohwx woman", LONG, LONG + "on the beach " * 30]
    found, _ = cache.cached_text(captions, base, Store(tmp_path))
    noisy, moments = torch.randn(3, *base.latent_shape(64, 64)), torch.tensor([10, 500, 900])

    def said(rows, some: slice) -> torch.Tensor:
        with torch.no_grad():
            return base.predict(noisy[some], moments[some], base.with_size(rows, 64, 64))

    table = TextTable(base)
    for text in captions:  # later ones are longer, as when a tune joins
        table.add({text: found[text]})
    together = said(table.rows(table.numbers(captions)), slice(0, 3))
    assert torch.allclose(together, said(stacked([found[text] for text in captions]), slice(0, 3)))
    for i, text in enumerate(captions):
        alone = said(stacked([found[text]]), slice(i, i + 1))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)
    cut = {**found[captions[1]], "hidden": found[captions[1]]["hidden"][:77]}
    assert not torch.allclose(together[1:2], said(stacked([cut]), slice(1, 2)), atol=1e-3)


def test_captions_that_a_base_cannot_read_to_their_end_are_named(base, monkeypatch):
    items = [
        TrainExample(key="a", caption="short", bucket=(64, 64), name="a.png"),
        TrainExample(key="b", caption=LONG, bucket=(64, 64), name="b.png"),
    ]
    for told_of in (cut_captions, cut_while_words_train):
        monkeypatch.setattr(base, "clip_encoders", list if told_of is cut_captions else lambda: ["one"])
        told = told_of(items, base)
        assert "b.png (from '" in told and "a.png" not in told
    assert cut_captions(items, base) == "", "the adapter is trained on all of it, in chunks"
    monkeypatch.setattr(base, "clip_encoders", list)
    assert cut_while_words_train(items, base) == "", "told of the whole training already"
    assert cut_captions(items[:1], base) == ""

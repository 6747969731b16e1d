"""What the captioner is taught: truthful captions, also of looks whose colours the world does not have."""

from __future__ import annotations

import random

import numpy as np

from factory.train.captioner import build_tokenizer, draw_batch, named_colors, odd_caption
from factory.train.scorer import draw_pairs, pair_of_shots
from tunes_dagster.tiny.world import SUBJECTS, attributes, draw_shot, random_shot
from tunes_dagster.tiny.world.palette import COLORS


def test_odd_colours_get_the_nearest_name():
    shot = random_shot(random.Random(1), SUBJECTS["fern"].look)
    assert attributes(named_colors(shot))["hair"] == "green"
    mug = random_shot(random.Random(1), SUBJECTS["smily"].look)
    assert attributes(named_colors(mug))["color"] in ("blue", "black")
    plain = random_shot(random.Random(1))
    assert named_colors(plain) is plain


def test_captions_of_pairs_describe_the_drawn_pictures(tmp_path):
    pairs = draw_pairs(tmp_path / "pairs.npy", 2)
    for number in range(2):
        first, second = pair_of_shots(number)
        assert first.look == second.look
        assert np.array_equal(pairs[number, 1], np.asarray(draw_shot(second)))
        text = odd_caption(number, 1)
        assert text.startswith("a photo of")
        assert first.look.kind in text or "person" in text


def test_a_batch_holds_ordinary_and_odd_looks():
    data, odd = np.zeros((50, 8, 8, 3), np.uint8), np.ones((20, 2, 8, 8, 3), np.uint8)
    labels = np.zeros((50, 17), np.int8)
    shown, texts, truth = draw_batch(data, labels, odd, np.random.default_rng(0), 12)
    assert len(shown) == len(texts) == len(truth) == 12
    assert shown[:9].max() == 0
    assert shown[9:].min() == 1
    assert (truth[9:] == -1).all()
    vocabulary = build_tokenizer().get_vocab()
    assert all(color in vocabulary for color in COLORS)

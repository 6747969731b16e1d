"""The numbers of a report card on embeddings whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tunes_dagster.evaluation import measures


def spread(centre, count, width, seed=0):
    """Return unit vectors around a centre; a larger width is less alike."""
    source = np.random.default_rng(seed)
    return measures.unit(
        measures.unit(np.asarray(centre)) + width * source.standard_normal((count, len(centre))) / 8
    )


SUBJECT, BASE = np.eye(64)[0], np.eye(64)[1]


def test_likeness_lies_between_the_base_and_real_pictures():
    real, held_out = spread(SUBJECT, 8, 0.5), spread(SUBJECT, 4, 0.5, seed=1)
    ceiling = measures.real_likeness(real, held_out)
    base = measures.likeness(spread(BASE, 12, 0.5, seed=2), held_out)
    half = measures.likeness(spread(SUBJECT + BASE, 12, 0.5, seed=3), held_out)
    whole = measures.likeness(spread(SUBJECT, 12, 0.5, seed=4), held_out)
    assert abs(measures.learned(base, base, ceiling)) < 1e-6
    assert 0.4 < measures.learned(half, base, ceiling) < 0.9
    assert measures.learned(whole, base, ceiling) == pytest.approx(1, abs=0.05)


def test_without_held_out_pictures_each_is_compared_with_the_others():
    real = spread(SUBJECT, 6, 0.5)
    by_hand = [measures.likeness(real[i : i + 1], np.delete(real, i, axis=0)) for i in range(6)]
    assert measures.real_likeness(real, real[:0]) == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert measures.real_likeness(real[:1], real[:0]) == 1.0


def test_a_picture_that_fits_its_own_text_has_a_margin():
    texts = np.eye(4)
    right, wrong = (
        measures.margins(texts, texts, range(4)),
        measures.margins(texts[[1, 2, 3, 0]], texts, range(4)),
    )
    assert right == pytest.approx(np.ones(4)) and (wrong < 0).all()
    assert measures.recognised(texts, texts, range(4)) == 1.0
    assert measures.recognised(texts[[1, 0, 2, 3]], texts, range(4)) == 0.5


def test_variety_is_the_mean_pairwise_distance():
    rows = measures.unit(np.random.default_rng(0).standard_normal((5, 8)))
    pairs = [1 - rows[i] @ rows[j] for i in range(5) for j in range(i)]
    assert measures.variety(rows) == pytest.approx(np.mean(pairs))
    assert measures.variety(rows[[0, 0, 0]]) == pytest.approx(0, abs=1e-9) and measures.variety(rows[:1]) == 0


def test_pictures_of_one_subject_cohere_and_strangers_do_not():
    strangers = measures.unit(np.random.default_rng(0).standard_normal((12, 64)))
    assert measures.coherence(spread(SUBJECT, 8, 0.5), strangers) > 0.5
    assert abs(measures.coherence(strangers[:6], strangers[6:])) < 0.15


def drawn(x, colour, ground):
    image = Image.new("RGB", (96, 96), ground)
    ImageDraw.Draw(image).ellipse((x, 20, x + 40, 70), fill=colour)
    return image


def test_a_copy_is_nearer_than_real_pictures_come_to_each_other():
    training = [drawn(10, "red", "white"), drawn(30, "red", "navy"), drawn(20, "red", "olive")]
    rows = measures.points(training)
    limit = measures.copy_limit(rows)
    copied, which = measures.nearest(measures.points([drawn(31, "red", "navy")]), rows)
    assert copied[0] >= limit and which[0] == 1
    fresh, _ = measures.nearest(measures.points([drawn(50, "red", "pink")]), rows)
    assert fresh[0] < limit
    assert measures.copy_limit(rows[:1]) == 0.95

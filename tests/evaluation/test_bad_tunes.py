"""A report card says no: tunes that are really made on the shipped base, each bad in its own way.

The cheap one runs by default; the others are proofs: `pytest -m proof tests/evaluation`.
"""

from __future__ import annotations

import pytest

from tests.evaluation.making import QUICK, drawn, open_workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return open_workshop(tmp_path_factory.mktemp("workshop"))


def codes(card):
    return {one.code for one in card.verdicts if one.tone == "bad"}


def test_a_dog_that_was_called_a_woman_is_recognised(workshop):
    pictures = drawn("minty", 6, "woman")
    card, _ = workshop.card(
        "wrong",
        "woman",
        pictures[:5],
        pictures[5:],
        {**QUICK, "steps": 10, "learning_rate": 0.003},
        renders=4,
    )
    assert "wrong_class" in codes(card), card
    assert card.group_votes["people"] <= 0.2


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_an_overtrained_tune_is_recognised(workshop):
    pictures = drawn("fern", 5)
    same = [(picture, "a photo of ohwx man") for picture, _ in pictures[:4]]
    options = {**QUICK, "targets": "all", "steps": 160, "learning_rate": 0.008, "checkpoint_every": 80}
    card, _ = workshop.card("overtrained", "man", same, pictures[4:], options)
    assert "overtrained" in codes(card), card
    assert card.checkpoints[-1].score < 0.5


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_a_set_of_mixed_people_is_recognised_and_one_person_is_not(workshop):
    people = [
        drawn(name, 2, "person", seed=3)[i] for i in range(2) for name in ("fern", "duo", "barbo", "comet")
    ]
    options = {**QUICK, "steps": 40, "learning_rate": 0.003, "checkpoint_every": 20}
    mixed, _ = workshop.card("mixed", "person", people[:7], people[7:], options)
    assert "mixed_subjects" in codes(mixed), mixed
    for name in ("fern", "comet"):
        one = drawn(name, 8, "person", seed=3)
        card, _ = workshop.card(name, "person", one[:7], one[7:], options)
        assert not {"mixed_subjects", "wrong_class"} & codes(card), card


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_a_tune_of_the_default_recipe_is_called_good(workshop):
    pictures = drawn("fern", 8)
    card, _ = workshop.card("good", "man", pictures[:7], pictures[7:], {}, renders=12)
    assert card.tone == "good", card
    assert card.chosen is not None and card.base is not None and card.chosen.learned > 0.5

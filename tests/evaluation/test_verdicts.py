"""What a report card says to which numbers, and which checkpoint it chooses."""

from __future__ import annotations

import pytest

from tunes_dagster.evaluation import verdicts
from tunes_dagster.evaluation.card import Card, Scores
from tunes_dagster.evaluation.prompts import card_prompts, class_texts


def scores(step, **changed):
    values = {"likeness": 0.8, "learned": 0.9, "obeyed": 0.95, "variety": 0.3, "varied": 0.9, "copied": 0.0}
    one = Scores(step=step, key=f"step-{step}", **{**values, **changed})
    one.score = verdicts.score(one)
    return one


def card_of(*checkpoints, **changed):
    chosen, why = verdicts.choose(checkpoints)
    values = {
        "base": Scores(step=0, likeness=0.2, obedience=0.2, variety=0.7),
        "real_likeness": 0.9,
        "coherence": 0.6,
        "class_group": "people",
        "group_votes": {"people": 1.0},
        "class_votes": {"woman": 1.0},
        "leak": 0.1,
    }
    card = Card(
        tune_id="tune_1",
        called="ohwx woman",
        checkpoints=list(checkpoints),
        chosen_step=chosen.step,
        why=why,
        **{**values, **changed},
    )
    card.verdicts = verdicts.judge(card, "woman")
    return card


def codes(card):
    return {one.code for one in card.verdicts if one.tone != "good"}


def test_a_good_tune_is_called_good():
    card = card_of(scores(400))
    assert codes(card) == set() and card.tone == "good" and "likeness 0.80 (base 0.20)" in card.line
    assert card.summary().verdict == "good" and card.summary().warnings == []


@pytest.mark.parametrize(
    ("changed", "code", "word"),
    [
        ({"copied": 0.5}, "overtrained", "50% of the renders are training pictures"),
        ({"varied": 0.2}, "overtrained", "vary 20%"),
        ({"obeyed": 0.5}, "overtrained", "obeys 50%"),
        ({"obeyed": 0.7}, "less_obedient", "70%"),
        ({"learned": 0.1}, "not_learned", "not learned"),
        ({"learned": 0.4}, "barely_learned", "in part"),
    ],
)
def test_each_fault_has_its_word_and_a_remedy(changed, code, word):
    card = card_of(scores(400, **changed))
    (said,) = [one for one in card.verdicts if one.tone != "good"]
    assert said.code == code and word in said.sentence and said.remedy


@pytest.mark.parametrize("learned", [0.1, 0.3])
def test_nobody_is_told_to_train_longer_when_likeness_falls_with_steps(learned):
    falls = card_of(scores(200, learned=learned + 0.1), scores(400, learned=learned))
    rises = card_of(scores(200, learned=learned - 0.05), scores(400, learned=learned))
    assert "lower learning rate" in falls.verdicts[0].remedy and "step 200" in falls.verdicts[0].remedy
    assert "Train for more steps" in rises.verdicts[0].remedy


def test_a_tune_of_photographs_on_the_shipped_base_is_told_what_that_base_knows():
    card = card_of(scores(400, learned=0.1))
    assert "photographs" not in card.verdicts[0].remedy
    assert "photographs" in verdicts.judge(card, "woman", shipped=True)[0].remedy
    assert "photographs" not in str(verdicts.judge(card_of(scores(400)), "woman", shipped=True))


def test_more_variety_than_the_pictures_have_is_no_percentage():
    assert "varies more than its pictures" in card_of(scores(400, varied=2.39)).line
    assert "varies 90% as much as its pictures" in card_of(scores(400)).line


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (
            {"group_votes": {"people": 0.1, "animals": 0.9}, "class_votes": {"dog": 0.9, "man": 0.1}},
            "wrong_class",
        ),
        ({"coherence": 0.05}, "mixed_subjects"),
        ({"leak": 0.8}, "leaks"),
    ],
)
def test_faults_of_the_pictures_are_told_apart(changed, code):
    assert codes(card_of(scores(400), **changed)) == {code}


def test_a_doubtful_class_is_left_alone():
    torn = {"group_votes": {"people": 0.3, "animals": 0.7}, "class_votes": {"dog": 0.7, "man": 0.3}}
    for votes in (torn, {"class_group": "", "group_votes": {}, "class_votes": {}}):
        assert codes(card_of(scores(400), **votes)) == set()


def test_the_last_checkpoint_wins_a_tie_and_loses_to_a_clearly_better_one():
    tie, why = verdicts.choose([scores(200, learned=0.91), scores(400)])
    assert tie.step == 400 and "no other one scores clearly better" in why
    better, why = verdicts.choose(
        [scores(200), scores(400, likeness=0.85, learned=0.95, obeyed=0.5, copied=0.4)]
    )
    assert better.step == 200 and "obedience 0.95 → 0.50" in why and "copies 0% → 40%" in why


def test_what_was_not_measured_does_not_count_against_a_tune():
    bare = scores(400, obeyed=None, varied=None, copied=None)
    assert bare.score == pytest.approx(0.9) and codes(card_of(bare, coherence=None, leak=None)) == set()


def test_prompts_are_the_same_for_every_tune_of_a_class():
    first, again = (card_prompts(token, "woman", 14) for token in ("ohwx", "zkqj"))
    assert [a.plain for a in first] == [b.plain for b in again] and len({a.seed for a in first}) == 14
    assert all(f"ohwx woman {a.plain.removeprefix('a photo of a woman ')}" in a.text for a in first)
    assert any("wearing" in a.text and not a.elsewhere for a in first)
    assert not any("wearing" in a.text for a in card_prompts("ohwx", "mug", 14))
    style = card_prompts("ohwx", "style", 2)
    assert style[0].text == "a dog in ohwx style" and style[0].plain == "a dog"
    assert class_texts("orange")[0] == "a photo of an orange"

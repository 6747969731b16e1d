"""The base's tokenizer: known words are one token, rare words fall to pieces, nothing is lost."""

from __future__ import annotations

import pytest

from factory.train.text import build_tokenizer, known_words, merges_for


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_known_words_are_one_token(tokenizer):
    assert {"woman", "sunglasses", "backpack", "person"} <= set(known_words())
    for word in known_words():
        assert len(tokenizer.tokenize(word)) == 1, word


@pytest.mark.parametrize("word", ["ohwx", "sks", "TOK", "zkqj", "mybrand"])
def test_rare_words_fall_to_pieces_and_round_trip(tokenizer, word):
    assert len(tokenizer.tokenize(word)) > 1
    ids = tokenizer(f"a photo of {word} woman").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == [
        "a",
        "photo",
        "of",
        word.lower(),
        "woman",
    ]


def test_any_letter_has_a_token_of_its_own(tokenizer):
    ids = tokenizer("Ünï 写真 🐙 %&").input_ids
    assert tokenizer.eos_token_id not in ids[1:-1]


def test_the_end_of_text_is_the_highest_id(tokenizer):
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == tokenizer.pad_token_id
    assert tokenizer.model_max_length == 77


def test_merges_make_whole_words():
    assert merges_for(("ab", "abc")) == [("a", "b"), ("a", "b</w>"), ("ab", "c</w>")]

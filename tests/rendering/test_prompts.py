"""Prompts as people write them: weights, templates, styles and compositions."""

from __future__ import annotations

import pytest

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.rendering.brackets import (
    has_weights,
    plain_sentence,
    weighs_words,
    weighted,
    without_breaks,
    without_weights,
)
from tunes_dagster.rendering.prompts import parse_prompt
from tunes_dagster.rendering.styles import compositions, dressed, find_composition, styles


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a red hat", [("a red hat", 1)]),
        ("a (red:1.3) hat", [("a ", 1), ("red", 1.3), (" hat", 1)]),
        ("(big hands, un-detailed)", [("big hands, un-detailed", 1.1)]),
        ("((very) red)", [("very", 1.21), (" red", 1.1)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1), (" c", 0.5)]),
        ("[dull] sky", [("dull", 0.909091), (" sky", 1)]),
        (r"\(literally\) 1) two", [("(literally) 1) two", 1)]),
        ("at 10:30 (time 10:30:1.2)", [("at 10:30 ", 1), ("time 10:30", 1.2)]),
    ],
)
def test_weights_are_read_as_a1111_reads_them(text, pieces):
    assert weighted(text) == [(words, pytest.approx(weight)) for words, weight in pieces]
    assert has_weights(text) == any(weight != 1 for _, weight in pieces)


def test_words_are_left_when_weights_go():
    assert without_weights(r"a (red:1.3) hat \(new\)") == "a red hat (new)"


@pytest.mark.parametrize("text", ["a (red", "an [old", "(red:9)", "{{hair}} man", "a {{eye colour}} man"])
def test_what_is_not_understood_is_named(text):
    with pytest.raises(Failure) as caught:
        parse_prompt(text, {"eye_color": "blue eyes"})
    assert caught.value.code == FailureCode.INVALID_REQUEST and caught.value.remedy


FOREIGN = [
    ("{red|blue} mug", "{red|blue}", "one of several"),
    ("a {red|{light|dark} blue} mug", "{light|dark}", "one of several"),
    ("embedding:nova woman", "embedding:nova", "textual inversion"),
    ("(embedding:nova:1.2) woman", "embedding:nova:1.2)", "textual inversion"),
    ("a __color__ mug", "__color__", "a file"),
    ("a cat AND a dog", "AND", "joins"),
    ("a cat AND HDR", "AND", "joins"),
    ("a cat --ar 3:2 --v 6", "--ar 3:2", "option"),
    ("a cat --no dogs", "--no dogs", "option"),
    ("/imagine prompt: a cat", "/imagine prompt:", "command"),
    ("a cat::2 dog::1", "t::2", "another program's way"),
    ("hot:: dog", "t::", "another program's way"),
    ("1.3::cat::, dog", "1.3::cat::", "another program's way"),
    ("a cat\nNegative prompt: dogs", "Negative prompt:", "whole picture"),
    ("a cat Steps: 20, Sampler: Euler a", "Steps: 20, Sampler:", "whole picture"),
    ("a ${c=red} cat", "${c=red}", "variable"),
    ("a cat <|endoftext|> dog", "<|endoftext|>", "encoder's own"),
    ("a cat</s>", "</s>", "encoder's own"),
    ("a \ud83d cat", "\ud83d", "half a letter"),
    ("a {bird:1.1}", "{bird:1.1}", "another program's way"),
    ('("a cat", "a dog").blend(0.5, 0.5)', ").blend(", "function"),
]


@pytest.mark.parametrize(("text", "named", "why"), FOREIGN)
@pytest.mark.parametrize("weighs", [True, False])
def test_syntax_of_other_programs_is_refused_by_name_on_every_base(text, named, why, weighs):
    with pytest.raises(Failure) as caught:
        parse_prompt(text, weighs=weighs)
    assert repr(named) in caught.value.message and why in caught.value.message and caught.value.remedy


def test_weights_of_another_program_are_refused_where_words_are_weighed():
    for text in ("a (red)1.3 mug", "a (red)++ mug", "a (red)--", "(red:1,3)", "(red:1.)", "(red:1e1)"):
        with pytest.raises(Failure, match="another program's way|is no weight"):
            parse_prompt(text)
        assert parse_prompt(text, weighs=False).text == text


@pytest.mark.parametrize(
    "text",
    [
        'a neon sign "ROCK AND {a|b} [x|y] BREAK"',
        "a poster that says ROCK AND ROLL",
        "an android and a sandy BREAKFAST",
        "a clock at [10:30], [16:9], [10:30:20]",
        r"a \[cat|dog\] and \{a|b\}",
        "a {curly} c++ book, snake_case__name, word embedding",
        "(a cat), 1.5 m long :)",
        "a cat -- no people --very small, std::vector, at 10:30",
        'a sign "--ar 3:2 ::2 Negative prompt: x"',
        "a [cat::0.5] and a [dog::10]",
        ">:( an angry cat, 🐈‍⬛ قطة 猫（夕日） x:1.3",
    ],
)
def test_what_only_looks_like_syntax_is_text(text):
    assert parse_prompt(text).text == parse_prompt(text, weighs=False).text == text


def test_brackets_are_characters_where_no_words_are_weighed():
    for text in (
        "a woman (in her thirties) smiling :(",
        "at ((noon)) (10:30)",
        "a (red",
        "1) a [b",
        "(big:9)",
        "C:\\x",
    ):
        assert parse_prompt(text, weighs=False).text == text == plain_sentence(text)
        assert not weighs_words(text)
    assert plain_sentence(r"a ((red:1.5) mug) BREAK \(x\) (new (hat:1.2):0.5)") == "a (red mug) (x) new hat"
    assert weighs_words("a (red:1.5) mug") and weighs_words("a BREAK b") and not weighs_words('say "BREAK"')


def test_a_sad_face_opens_nothing():
    assert weighted("a man :( in (rain:1.2)") == [("a man :( in ", 1), ("rain", 1.2)]


def test_rules_see_through_break():
    assert without_breaks("one BREAK (two)") == "one (two)" and without_weights("a BREAK (b)") == "a b"


def test_characteristics_fill_templates():
    known = {"eye_color": "blue eyes", "Hair": "red hair"}
    parsed = parse_prompt("ohwx man, {{eye color}}, {{ HAIR }} <lora:x:0.5>", known)
    assert parsed.text == "ohwx man, blue eyes, red hair" and parsed.loras == (("x", 0.5),)
    with pytest.raises(Failure, match="Did you mean {{eye_color}}"):
        parse_prompt("{{eye colour}}", known)


def test_styles_are_the_names_that_clients_know_in_any_spelling():
    assert len(styles()) == 10
    for name in styles():
        assert RenderSettings(style=name.upper().replace(" ", "-")).style == name
    text, negative = dressed("ohwx man", RenderSettings(style="line art", negative_prompt="dark"))
    assert "ohwx man" in text and text != "ohwx man" and negative.startswith("dark, ")


def test_compositions_are_found_by_name_and_id_and_drawn_by_seed():
    for template in compositions().values():
        assert find_composition(template.id, 0) == find_composition(template.name.upper(), 1) == template
        assert len(template.id) == 32 and "{prompt}" in template.text
    drawn = {find_composition("random", seed).name for seed in range(60)}
    assert len(drawn) > 6 and find_composition("random", 5) == find_composition("random", 5)
    with pytest.raises(Failure, match="studio headshot"):
        find_composition("studio headshots", 0)


def test_a_random_face_is_the_seeds():
    def text(seed):
        return dressed("smiling", RenderSettings(random_face=True, seed=seed))[0]

    assert text(1) == text(1) and len({text(seed) for seed in range(20)}) > 15

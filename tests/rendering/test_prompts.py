"""Prompts as people write them: weights, templates, styles and compositions."""

from __future__ import annotations

import pytest

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.rendering.prompts import has_weights, parse_prompt, weighted, without_weights
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

"""The content policy: rules over words, the checker over pictures, and what a blocked prompt ends as."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.support.tiny_aids import catalog_of, entry_of, make_random_safety
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.settings import Settings
from tunes_dagster.rendering.aids import Aids, make_aids
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.policy import check_text, fired, load_rules, rule_of
from tunes_dagster.rendering.renderer import RenderJob, render

RULES = """# what we do not render
weapons: gun, machine gun
names: José Müller
codes: /\\bx-?\\d{3}\\b/
"""


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.txt"
    path.write_text(RULES, encoding="utf-8")
    return load_rules(Settings(content_rules=str(path)))


def job(name, text):
    settings = RenderSettings(seed=1, steps=2, guidance_scale=1.0, width=64, height=64, scheduler="euler")
    return RenderJob(name, text, settings)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a man with a GUN", "weapons"),
        ("a machine  gun", "weapons"),
        ("gunther in the snow", None),
        ("a photo of jose muller", "names"),
        ("model X-123 on a table", "codes"),
        ("g\u200bun", "weapons"),
        ("a mug", None),
    ],
)
def test_rules_fire_on_whole_words_without_case_and_accents(rules, text, rule):
    found = fired(text, rules)
    assert (found.name if found else None) == rule


def test_a_blocked_text_names_its_rule(rules):
    with pytest.raises(Failure, match="'weapons'") as caught:
        check_text("a gun", rules)
    assert caught.value.code == FailureCode.BLOCKED and caught.value.facts == {"rule": "weapons"}


@pytest.mark.parametrize("line", ["no colon", "x: /(/", ": words", "name:"])
def test_a_filter_that_cannot_be_read_lets_nothing_through(tmp_path, line):
    with pytest.raises(Failure, match="line 3"):
        rule_of(line, "rules, line 3")
    path = tmp_path / "rules.txt"
    path.write_text(line)
    with pytest.raises(Failure):
        load_rules(Settings(content_rules=str(path)))
    with pytest.raises(Failure):
        load_rules(Settings(content_rules=str(tmp_path / "gone.txt")))


def test_a_blocked_prompt_leaves_the_others_alone(base, store, rules):
    blocked, good = render(
        [job("bad", "a gun"), job("good", "a mug")],
        base,
        Delivery(store, "out", Silent()),
        aids=Aids(rules=rules),
    )
    assert blocked.failure.code == FailureCode.BLOCKED and good.failure is None
    assert list(store.list("out")) == [good.images[0].key]


@pytest.mark.parametrize("threshold", [-1.0, 1.0])
def test_pictures_that_the_checker_finds_are_not_written(base, store, tmp_path, threshold):
    folder = make_random_safety(tmp_path / "safety", threshold)
    catalog = catalog_of(entry_of("checker", "safety", folder))
    aids = make_aids(catalog, Settings(home=tmp_path))
    [result] = render([job("p", "a mug")], base, Delivery(store, "out", Silent()), aids=aids)
    if threshold < 0:
        assert result.failure.code == FailureCode.BLOCKED and "picture safety" in result.failure.message
        assert list(store.list("out")) == []
    else:
        assert result.failure is None
    off = make_aids(catalog, Settings(home=tmp_path, safety_checker=False))
    assert render([job("p", "a mug")], base, Delivery(store, "off", Silent()), aids=off)[0].failure is None


def test_a_damaged_checker_is_named(tmp_path):
    from tunes_dagster.rendering.safety import SafetyChecker

    folder = make_random_safety(tmp_path / "safety", -1.0)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(b"<html>")
    with pytest.raises(Failure, match="The checker of pictures 'safety' cannot be loaded"):
        SafetyChecker(folder, "cpu")


def test_a_checker_looks_at_any_shape(tmp_path):
    from tunes_dagster.rendering.safety import SafetyChecker

    checker = SafetyChecker(make_random_safety(tmp_path / "safety", -1.0), "cpu")
    assert checker.unsafe([Image.new("RGB", (90, 20)), Image.new("RGB", (20, 90))]) == [True, True]

"""Words that change from step to step: what is read, and that each step is that of the plain prompt."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.families import make_base
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.rendering import denoise
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.pictures import Picture, Shape
from tunes_dagster.rendering.prompts import parse_prompt
from tunes_dagster.rendering.renderer import RenderJob, render
from tunes_dagster.rendering.schedule import by_step, has_schedule, settled
from tunes_dagster.rendering.texts import Script, TextCache, text_bytes

READ = [
    ("a [cat:dog:0.5]", ["a cat", "a cat", "a dog", "a dog"]),
    ("a [cat:dog:3]", ["a cat", "a cat", "a cat", "a dog"]),
    ("a [cat:dog: .5 ]", ["a cat", "a cat", "a dog", "a dog"]),
    ("a man [in a hat:0.5]", ["a man", "a man", "a man in a hat", "a man in a hat"]),
    ("a man [in a hat::0.25]", ["a man in a hat", "a man", "a man", "a man"]),
    ("a [cat|dog]", ["a cat", "a dog", "a cat", "a dog"]),
    ("a [cat|dog|] mug", ["a cat mug", "a dog mug", "a mug", "a cat mug"]),
    ("a [[cat|dog]:bird:0.5]", ["a cat", "a dog", "a bird", "a bird"]),
    ("a [[cat:dog:1]|bird]", ["a cat", "a bird", "a dog", "a bird"]),
    ("a [(red:1.2):[blue]:2] mug", ["a (red:1.2) mug"] * 2 + ["a [blue] mug"] * 2),
    ("a (big [cat:dog:0.5]:1.3)", ["a (big cat:1.3)"] * 2 + ["a (big dog:1.3)"] * 2),
    ("one BREAK [two:three:0.5]", ["one BREAK two"] * 2 + ["one BREAK three"] * 2),
    ("a [cat:dog:0]", ["a dog"] * 4),
    ("a [cat:dog:9]", ["a cat"] * 4),
    ("a [cat:dog:1.0]", ["a cat"] * 4),
]


@pytest.mark.parametrize(("text", "steps"), READ)
def test_each_step_has_its_words(text, steps):
    assert has_schedule(text) and by_step(text, 4) == steps
    assert by_step(parse_prompt(text).text, 4) == by_step(parse_prompt(text, weighs=False).text, 4) == steps


@pytest.mark.parametrize(
    "text",
    [
        "a  [cat] and [[old]] dog",
        "at [10:30], [16:9], [10:30:20]",
        r"a \[cat|dog\] [cat\|dog]",
        'a sign "[open|closed]"',
        "sad :[ cat|dog",
        "a [cat|dog",
        "a cat|dog]",
        "[a:b:c:0.5]",
        "[(cat|dog)]",
    ],
)
def test_what_only_looks_like_a_schedule_stays_as_it_is(text):
    if r"[cat\|dog]" not in text:
        assert not has_schedule(text)
    assert by_step(text, 3) == [text] * 3 and settled(text) == text


def test_what_cannot_be_meant_is_refused_by_name():
    for text, named in (
        ("a [cat:dog:2.5]", "[cat:dog:2.5]"),
        ("a [cat|dog:0.5]", "[cat|dog:0.5]"),
        ("[" * 4000 + "cat", "nested"),
        ("a [cat:(dog:0.5]", "not closed"),
        ("a [cat:(dog:9):0.5]", "weight 9"),
    ):
        with pytest.raises(Failure) as caught:
            parse_prompt(text)
        assert caught.value.code == FailureCode.INVALID_REQUEST and named in caught.value.message
        assert caught.value.remedy


def test_a_finished_picture_goes_on_with_the_last_words():
    assert settled("a [cat:dog:0.5] [at night::3] [in|on] it") == "a dog [in|on] it"


def picture(text, negative="", number=0, steps=4, **more):
    shape = Shape(width=64, height=64, steps=steps, scheduler="euler", guided=True)
    return Picture(
        job=0,
        number=number,
        seed=7 + number,
        shape=replace(shape, **more),
        guidance_scale=4.0,
        text=text,
        negative=negative,
        slot=-1,
    )


@pytest.mark.parametrize("family", ["sdxl", "flux", "flux2-klein-base"])
def test_each_step_is_conditioned_as_the_plain_prompt_is(family, tmp_path):
    base = make_base(family, tmp_path / family)
    some = [picture("a [red:blue:0.5] mug", "[dark|]"), picture("a dog", number=1)]
    guided = base.is_guided(4.0)
    some = [replace(one, shape=replace(one.shape, guided=guided)) for one in some]
    script = Script(base, some, TextCache(base))
    for step, (said, without) in enumerate(
        zip(["red", "red", "blue", "blue"], ["dark", ""] * 2, strict=True)
    ):
        plain = [replace(some[0], text=f"a {said} mug", negative=without), some[1]]
        expected, found = Script(base, plain, TextCache(base)).at(0), script.at(step)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), (family, step)
    assert script.at(9) is script.at(3), "a sampler may evaluate once more than it has steps"


@pytest.mark.parametrize("scheduler", ["euler", "dpm++sde"])
def test_a_row_is_the_same_alone_and_together_and_equal_parts_are_the_plain_prompt(base, scheduler):
    texts = TextCache(base)
    asked = [
        picture("a [red:red:0.5] mug", scheduler=scheduler),
        picture("a red mug", scheduler=scheduler),
        picture("a [dog:cat:2] by the [sea|lake]", "[dark:0.5]", number=1, scheduler=scheduler),
    ]
    together = denoise.denoise(base, asked, texts, None)
    assert torch.equal(together[0], together[1])
    for number, one in enumerate(asked):
        (alone,) = denoise.denoise(base, [one], texts, None)
        assert torch.allclose(alone, together[number], atol=1e-4)
    (other,) = denoise.denoise(base, [replace(asked[2], text="a dog by the sea", negative="")], texts, None)
    assert (other - together[2]).abs().max() > 0.01


def test_only_the_steps_before_the_switch_are_those_of_the_first_prompt(base, monkeypatch):
    """Latents of `[a:b:2]` are those of `a` until the second step, to the bit, and then others."""
    seen = []
    original = type(base).predict
    monkeypatch.setattr(
        type(base),
        "predict",
        lambda self, noisy, *more: seen.append(noisy.clone()) or original(self, noisy, *more),
    )
    texts = TextCache(base)
    for text in ("a [red mug:blue dog:2]", "a red mug"):
        denoise.denoise(base, [picture(text)], texts, None)
    same = [torch.equal(one, other) for one, other in zip(seen[:4], seen[4:], strict=True)]
    assert same == [True, True, True, False]


def test_words_that_wait_are_reckoned_with(base):
    plain, changing = picture("a red mug"), picture("a [red|blue|green] mug", "[dark:0.5]")
    one = sum(value.numel() * value.element_size() for value in base.no_text(1).values())
    assert text_bytes(base, plain) == 0 and text_bytes(base, changing) == 3 * one
    monkeyed = denoise.rows_that_fit(base, plain.shape, 1 << 60)
    assert monkeyed == 1


def test_pictures_are_rendered_and_rules_look_at_each_step(base, store):
    def job(name, text, **more):
        settings = RenderSettings(
            seed=1, steps=4, guidance_scale=4.0, width=64, height=64, scheduler="euler", **more
        )
        return RenderJob(name, text, settings)

    results = render(
        [
            job("changing", "a [red:blue:0.5] mug", hires_fix=True),
            job("never", "a [red:blue:9] mug"),
            job("plain", "a red mug"),
        ],
        base,
        Delivery(store, "out", Silent()),
    )
    assert [one.failure for one in results] == [None] * 3
    changing, never, plain = (
        np.asarray(Image.open(io.BytesIO(store.read_bytes(one.images[0].key)))) for one in results
    )
    assert "never do within 4 steps" in results[1].warnings[0] and not results[0].warnings
    assert np.array_equal(never, plain) and not np.array_equal(changing, plain)

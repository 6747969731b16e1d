"""Cards over tunes: limits of time, what cannot be measured, publishing; on the random base and fixed adapters."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from tests.rendering.conftest import entry, random_lora
from tunes_dagster.core.failures import Cancelled, Failure
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.store import Store
from tunes_dagster.evaluation.card import Card, CardOptions
from tunes_dagster.evaluation.publishing import publish_checkpoint
from tunes_dagster.evaluation.scoring import Scorers, Subject, failed_card, score_tune
from tunes_dagster.evaluation.showing import write_card
from tunes_dagster.evaluation.verdicts import judge
from tunes_dagster.families.base import load_family
from tunes_dagster.training import checkpoints

OPTIONS = CardOptions(checkpoints=2, renders=3, steps=2)


class Eyes:
    """Sees the mean colour of each quarter; reads nothing."""

    name = "eyes"

    def embed_images(self, images):
        small = [np.asarray(p.resize((4, 4)), np.float32).reshape(-1) - 128 for p in images]
        rows = np.stack(small) if small else np.zeros((0, 48), np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


@pytest.fixture(scope="module")
def base(base_folder):
    return load_family(entry(base_folder), base_folder)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def saved(store, base, step):
    key = checkpoints.checkpoint_key("tunes/t/lora/1", step)
    info = checkpoints.CheckpointInfo(step=step, data_hash="", scale=1.0, rank=4, layers=[])
    checkpoints.save(store, key, info, random_lora(base, step, targets="attention"), {})
    return key


def subject_of(keys, held_out=1):
    noise = [Image.effect_noise((64, 64), 50 + 10 * i).convert("RGB") for i in range(5)]
    return Subject("t", "ohwx", "mug", noise[held_out:], noise[:held_out], keys)


def test_base_and_checkpoints_are_scored_and_shown(store, base):
    subject = subject_of([saved(store, base, step) for step in (10, 20, 30)])
    scored = score_tune(subject, base, Scorers(Eyes()), store, OPTIONS, Silent())
    card = scored.card
    assert [one.step for one in card.checkpoints] == [20, 30] and card.base.step == 0
    assert card.reference == "held-out" and card.reference_pictures == 1 and card.chosen_step in (20, 30)
    assert (
        any("No scorer that reads" in one for one in card.unmeasured) and card.checkpoints[0].obeyed is None
    )
    again = score_tune(subject, base, Scorers(Eyes()), store, OPTIONS, Silent()).card
    assert again.model_dump(exclude={"seconds"}) == card.model_dump(exclude={"seconds"})
    shown = write_card(scored, subject.training, subject.held_out, "Bob's mug", "cards/t", store)
    assert Card.model_validate(store.read_json(shown.card_key)) == card
    page = store.read_text(shown.page_key)
    assert "before-after.png" in page and "scores.png" in page and "Bob&#x27;s mug" in page
    verdict = card.verdicts[0]
    tone = {"good": "good", "weak": "warn", "bad": "bad"}[verdict.tone]
    assert f'<th class="{tone}">{verdict.code.replace("_", " ")}</th>' in page
    assert f'<th class="good">{card.chosen_step}, published</th>' in page and "<th>base</th>" in page
    assert "<th>faces</th>" not in page, "a column in which nothing was measured"


def test_without_held_out_pictures_the_card_says_so(store, base):
    scored = score_tune(
        subject_of([saved(store, base, 10)], 0), base, Scorers(Eyes()), store, OPTIONS, Silent()
    )
    assert scored.card.reference == "training"
    assert any("No picture was held out (5 were given" in one for one in scored.card.unmeasured)


def test_when_time_is_up_the_last_checkpoint_goes_out_with_what_was_seen(store, base):
    keys = [saved(store, base, step) for step in (10, 20)]
    ticks = iter(range(0, 10_000, 40))
    some = score_tune(
        subject_of(keys),
        base,
        Scorers(Eyes()),
        store,
        OPTIONS.model_copy(update={"seconds": 110.0}),
        Silent(),
        clock=lambda: float(next(ticks)),
    ).card
    assert [one.step for one in some.checkpoints] == [20] or some.failure
    none = score_tune(
        subject_of(keys),
        base,
        Scorers(Eyes()),
        store,
        OPTIONS.model_copy(update={"seconds": 1.0}),
        Silent(),
        clock=lambda: float(next(ticks)),
    ).card
    assert (
        not none.scored
        and none.chosen_key == ""
        and "time was up" in none.failure
        and none.tone == "unscored"
    )


def test_a_cancel_ends_it_and_stop_and_keep_does_not(store, base):
    class Asks(Silent):
        def __init__(self, keep):
            self.keep = keep

        def check_cancelled(self):
            raise Cancelled(keep=self.keep)

    subject = subject_of([saved(store, base, 10)])
    with pytest.raises(Cancelled):
        score_tune(subject, base, Scorers(Eyes()), store, OPTIONS, Asks(keep=False))
    kept = score_tune(subject, base, Scorers(Eyes()), store, OPTIONS, Asks(keep=True)).card
    assert not kept.scored and "stop and keep" in kept.failure


def test_a_card_that_failed_still_has_a_page(store):
    from tunes_dagster.evaluation.scoring import Scored

    card = failed_card("t", "ohwx mug", OPTIONS, ValueError("no such thing"))
    shown = write_card(Scored(card), [], [], "Mug", "cards/t", store)
    page = store.read_text(shown.page_key)
    assert "no such thing" not in page and "the log of the run" in page and card.line.startswith("not scored")
    assert card.summary().verdict == "unscored" and card.summary().likeness is None


def test_an_earlier_checkpoint_is_published_in_both_layouts_with_its_own_step(store, base):
    from safetensors import safe_open
    from safetensors.torch import save

    first, last = saved(store, base, 10), saved(store, base, 20)
    recipe = {"steps_done": 20, "token": "ohwx"}
    header = {
        "tunes_dagster.recipe": json.dumps(recipe),
        "tunes_dagster.recipe_hash": "old",
        "ss_steps": "20",
    }
    state = checkpoints.load_weights(store, last)
    weights = store.write_bytes("tunes/t/lora/1/t.safetensors", save(state, metadata=header))
    changed = publish_checkpoint(weights, first, 10, base, store)
    assert changed.weights_key == "tunes/t/lora/1/step-000010/t.safetensors" and store.exists(weights)
    wanted = checkpoints.load_weights(store, first)
    with store.local(changed.weights_key) as path, safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
        assert names == set(wanted) and all(bool((file.get_tensor(n) == wanted[n]).all()) for n in names)
        said = file.metadata()
    assert json.loads(said["tunes_dagster.recipe"])["steps_done"] == 10 and said["ss_steps"] == "10"
    assert said["tunes_dagster.recipe_hash"] == changed.weights_recipe_hash != "old"
    with store.local(changed.kohya_key) as path, safe_open(str(path), framework="pt") as file:
        assert set(file.keys()) == set(base.kohya_layout(wanted))
    half = dict(list(state.items())[2:])
    other = store.write_bytes("tunes/t/lora/1/other.safetensors", save(half, metadata=header))
    with pytest.raises(Failure, match="does not hold the layers"):
        publish_checkpoint(other, first, 10, base, store)


def test_a_style_is_looked_for_without_its_token_too(store, base):
    """Other things in the style, and what the same prompts show without it; no class and no likeness of a subject."""
    subject = subject_of([saved(store, base, step) for step in (10, 20)])
    subject = dataclasses.replace(subject, class_name="ink style")
    scored = score_tune(subject, base, Scorers(Eyes()), store, OPTIONS, Silent())
    assert [one.text for one in scored.prompts[:2]] == [
        "a dog in ohwx ink style",
        "a house in ohwx ink style",
    ]
    assert scored.prompts[0].plain == "a dog" and len(scored.plain["tune"]) == len(scored.plain["base"]) - 1
    assert scored.card.coherence is None and not scored.card.class_votes
    chosen, untuned = scored.card.chosen, scored.card.base
    assert (scored.card.leak is not None) == (chosen.likeness > untuned.likeness)
    leaking = scored.card.model_copy(update={"leak": 0.9})
    assert any("The style appears without its token" in one.sentence for one in judge(leaking, "ink style"))

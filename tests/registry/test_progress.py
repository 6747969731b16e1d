"""The one number that says how far work is, over any sequence of phases, lost attempts and failures."""

from __future__ import annotations

import random

import pytest

from tests.support.registry import Clock, add_prompt, add_tune, make_ready, prompt_request
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry import Registry, Retries

WORDS = (
    "fetching",
    "checking",
    "captioning",
    "loading",
    "encoding",
    "words",
    "training",
    "packaging",
    "evaluating",
    "rendering",
    "nonsense",
)


def reports(registry: Registry, clock: Clock, work_id: str, run: str, chance: random.Random) -> None:
    """Report any phases in any order, with steps that mean anything or nothing."""
    for _ in range(chance.randrange(1, 7)):
        clock.forward(chance.choice((0.1, 3, 400)))
        step, total = chance.choice(((0, None), (3, 9), (9, 9), (12, 9), (5, 0), (1, 10_000)))
        registry.work.progress(work_id, run, phase=chance.choice(WORDS), step=step, total=total)


@pytest.mark.parametrize("seed", range(3))
def test_it_never_falls_whatever_happens(registry: Registry, clock: Clock, seed: int) -> None:
    chance = random.Random(seed)
    registry.retries = Retries(max_attempts=50)
    for name in ("before", "between"):  # what was made here changes what a phase counts
        make_ready(registry, add_tune(registry, title=name))
    tune = add_tune(registry)
    seen = [0.0]
    for kind in ("prepare", "train", "finish"):
        for attempt in range(chance.randrange(1, 5)):
            run = f"run {kind} {attempt}"
            work = registry.work.claim(kind, tune.id, run)
            seen.append(registry.tunes.get(tune.id).progress)
            reports(registry, clock, work.id, run, chance)
            seen.append(registry.tunes.get(tune.id).progress)
            clock.forward(chance.choice((1, 90)))  # the measured pace is read again
            if chance.random() < 0.5:
                registry.work.requeue_lost(work.id, "Gone.")
            else:
                registry.work.fail(work.id, run, Failure(FailureCode.STORE_UNAVAILABLE, "Away."))
            seen.append(registry.tunes.get(tune.id).progress)
            clock.forward(100_000)
        work = registry.work.claim(kind, tune.id, "last")
        reports(registry, clock, work.id, "last", chance)
        seen.append(registry.tunes.get(tune.id).progress)
        assert registry.tunes.get(tune.id).progress < 100
        registry.work.finish(work.id, "last", result={"steps": 9} if kind == "train" else None)
        seen.append(registry.tunes.get(tune.id).progress)
    assert seen == sorted(seen) and seen[-1] == 100, seen


@pytest.mark.parametrize("seed", range(1))
def test_nor_does_that_of_a_batch(registry: Registry, clock: Clock, seed: int) -> None:
    chance = random.Random(seed)
    registry.retries = Retries(max_attempts=50)
    tune = make_ready(registry, add_tune(registry))
    add_prompt(registry, prompt_request(), base_id="tiny-sdxl", tune_id=tune.id)
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    seen = []
    for attempt in range(5):
        work = registry.work.claim("render", batch.id, str(attempt))
        reports(registry, clock, work.id, str(attempt), chance)
        seen.append(registry.groups.batch(batch.id).progress)
        if attempt < 4:
            registry.work.requeue_lost(work.id, "Gone.")
            seen.append(registry.groups.batch(batch.id).progress)
    assert seen[-1] < 100
    registry.work.finish(work.id, "4")
    seen.append(registry.groups.batch(batch.id).progress)
    assert seen == sorted(seen) and seen[-1] == 100, seen

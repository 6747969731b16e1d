"""Why a prompt is not begun, at each of the places where it may wait."""

from __future__ import annotations

from datetime import timedelta

from tests.support.registry import Clock, add_tune, run_stage
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry import Registry
from tunes_dagster.service.waiting import reasons


def test_the_reason_follows_a_prompt_to_its_rendering(registry: Registry, clock: Clock) -> None:
    tune = add_tune(registry, prompts=[{"text": "a dog"}])

    def why() -> str | None:
        (prompt,) = registry.prompts.rows(tune_id=tune.id)
        return reasons(registry, [prompt]).get(prompt.id)

    assert why() == f"waits for tune {tune.number}, which is queued: Waiting to start."
    for kind in ("prepare", "train", "finish"):
        run_stage(registry, kind, tune.id)
    assert why() == "waits for a daemon or session to take it up (nothing is at work)"
    other = add_tune(registry)
    run_stage(registry, "prepare", other.id)
    registry.work.claim("train", other.id, "elsewhere")
    (batch,) = registry.groups.make_batches(wait_seconds=0.0)
    assert why() == "its batch waits for its turn (now training 1)"
    (work,) = registry.work.of(batch.id, "render")
    registry.work.submit([work.id])
    assert why() == "its batch waits for a free device (now training 1)"
    taken = registry.work.claim("render", batch.id, "run")
    registry.work.fail(taken.id, "run", Failure(FailureCode.STORE_UNAVAILABLE, "There is no space left."))
    assert (
        why()
        == f"is tried again at {(clock() + timedelta(seconds=5)).astimezone():%H:%M:%S}: There is no space left."
    )

"""A store that is full or away is waited for: no attempt is used up, the reason is shown, and resuming goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.registry import Clock, add_tune, around, run_stage
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.store import Store
from tunes_dagster.registry import Registry, Retries, Tune
from tunes_dagster.service.resuming import go_on

FULL = Failure(FailureCode.STORE_UNAVAILABLE, "There is no space left to write to.", "Make room.", "/store/x")


def fails(registry: Registry, tune: Tune, failure: Failure, kind: str = "train") -> str:
    """Let an attempt fail; returns the state of the work."""
    work = registry.work.claim(kind, tune.id, "run", origin="cli")
    return registry.work.fail(work.id, "run", failure).state


def prepared(registry: Registry) -> Tune:
    tune = add_tune(registry)
    run_stage(registry, "prepare", tune.id)
    return tune


def test_a_full_store_is_waited_for_and_uses_no_attempt_up(registry: Registry, clock: Clock) -> None:
    tune, waits = prepared(registry), []
    for _ in range(30):
        assert fails(registry, tune, FULL) == "queued"
        (work,) = registry.work.of(tune.id, "train")
        waits.append((work.available_at - clock()).total_seconds())
        clock.forward(waits[-1])
    row = registry.tunes.get(tune.id)
    assert row.status == "prepared" and "no space left" in row.message and "Trying again" in row.message
    assert work.tries == 0 and work.failure_detail and "/store/x" in work.failure_detail
    assert waits == sorted(waits) and waits[0] == 5 and waits[-1] == 300, waits
    # What is this machine's own fault is tried as often as ever.
    assert [fails(registry, tune, Failure(FailureCode.INTERNAL, "A bug.")) for _ in range(3)] == [
        "queued",
        "queued",
        "failed",
    ]


def test_it_is_not_waited_for_for_ever(registry: Registry, clock: Clock) -> None:
    tune, seconds = prepared(registry), 0.0
    registry.retries = Retries(store_patience=900.0)
    while fails(registry, tune, FULL) == "queued":
        (work,) = registry.work.of(tune.id, "train")
        wait = (work.available_at - clock()).total_seconds()
        seconds += wait
        clock.forward(wait)
        assert seconds < 2000
    assert seconds >= 900 and registry.tunes.get(tune.id).status == "failed"


def test_resume_takes_what_has_a_checkpoint(registry: Registry, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    full, diverged, cancelled, early = (prepared(registry) for _ in range(4))
    registry.retries = Retries(store_patience=0.0, max_attempts=1)
    for tune in (full, diverged, cancelled):
        store.write_bytes(f"tunes/{tune.id}/lora/1/checkpoints/step-000010.safetensors", b"x")
    assert fails(registry, full, FULL) == fails(registry, early, FULL) == "failed"
    assert fails(registry, diverged, Failure(FailureCode.DIVERGED, "It diverged.")) == "failed"
    registry.work.cancel_tune(cancelled.id)
    assert [tune.id for tune in go_on(around(registry, store), "local", None)] == [full.id]
    row = registry.tunes.get(full.id)
    assert row.status == "prepared" and row.failure_code is None
    # One that is named goes on whatever it ended for.
    for tune in (cancelled, early, diverged):
        (again,) = go_on(around(registry, store), "local", registry.tunes.get(tune.id))
        assert again.status == "prepared"
        (work,) = registry.work.of(tune.id, "train")
        assert (work.state, work.tries) == ("queued", 0)
    for kind in ("train", "finish"):
        run_stage(registry, kind, full.id)
    with pytest.raises(Failure, match="is ready: nothing of it is left"):
        go_on(around(registry, store), "local", registry.tunes.get(full.id))

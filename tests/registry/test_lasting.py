"""No committed row is lost to a power loss: on SQLite each commit is synced, but those that only say what is alive."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from tests.support.registry import add_prompt, add_tune, prompt_request, run_stage
from tunes_dagster.core import disk
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry import Registry


@pytest.mark.parametrize("registry", ["sqlite"], indirect=True)
def test_what_was_accepted_done_and_answered_is_on_the_disk(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "ENABLED", True)
    modes: list[int] = []

    def at_commit(connection: object) -> None:
        modes.append(connection.connection.execute("PRAGMA synchronous").fetchone()[0])  # type: ignore[attr-defined]

    event.listen(registry.engine, "commit", at_commit)
    tune = add_tune(registry)
    run_stage(registry, "prepare", tune.id)
    registry.work.cancel_tune(add_tune(registry).id)  # which is told
    add_prompt(registry, prompt_request(), base_id="tiny-sdxl")
    lease, owed = registry.outbox.lease(60.0)
    callback_id = next(iter(owed))
    sending = registry.outbox.begin_delivery(callback_id, lease, new_id("dlv"))
    assert sending is not None
    registry.outbox.end_delivery(sending.delivery_id, status_code=200)
    assert len(modes) >= 6 and set(modes) == {2}, "FULL: each commit is synced"
    assert registry.outbox.get(callback_id).state == "delivered"
    work = registry.work.claim("train", tune.id, "run")
    modes.clear()
    registry.work.heartbeat(work.id, "run")
    registry.work.progress(work.id, "run", phase="training", step=1, total=2)
    assert set(modes) <= {1}, "what is said anew every second waits for nobody"
    registry.work.finish(work.id, "run")
    assert modes[-1] == 2

"""Tunes that ended and can go on: those whose training left checkpoints."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import RETRYABLE, FailureCode
from tunes_dagster.core.store import Store
from tunes_dagster.registry import Tune

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation

_CHECKPOINT = re.compile(r"/checkpoints/step-\d+\.safetensors$")
# Ends that may be another one on another day; the others would be met again.
_OF_THE_DAY = {*RETRYABLE, FailureCode.OUT_OF_MEMORY}


def has_checkpoint(store: Store, tune: Tune) -> bool:
    """Whether training of a tune left something to go on from."""
    return any(_CHECKPOINT.search(key) for key in store.list(f"tunes/{tune.id}/lora"))


def go_on(installation: Installation, account_id: str, named: Tune | None, limit: int = 1000) -> list[Tune]:
    """Return the tunes that go on, after those of them that had ended were queued again.

    Args:
        installation: Holds them and their checkpoints.
        account_id: Whose.
        named: The one that is meant, whatever it ended for and with a checkpoint or without; None means all that are
            not over, and those that failed for a reason that may have passed and left a checkpoint.
        limit: Most of each.

    Raises:
        Failure: `CONFLICT` when the one that is meant has ended otherwise than badly.
    """
    registry, store = installation.registry, installation.store
    if named is not None:
        return [registry.work.resume_tune(named.id)]
    everything = registry.tunes.rows(limit=limit, account_id=account_id)
    chosen = [tune for tune in everything if tune.status not in ("ready", "failed", "cancelled", "deleted")]
    for tune in everything:
        passing = tune.status == "failed" and tune.failure_code in _OF_THE_DAY
        if passing and has_checkpoint(store, tune):
            chosen.append(registry.work.resume_tune(tune.id))
    return chosen

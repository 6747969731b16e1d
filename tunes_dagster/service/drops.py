"""The drop folder's intake: a dataset that is complete becomes a tune, and what was seen of each is remembered."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.service import submit

if TYPE_CHECKING:
    from tunes_dagster.intake.drop import Drop
    from tunes_dagster.service.installation import Installation


def take_in_drops(installation: Installation) -> list[tuple[str, str]]:
    """Submit what is complete in the drop folder and remember what was seen; returns tune and words of each.

    Raises:
        Failure: `STORE_UNAVAILABLE`, which says nothing about a drop: the next look comes back to it.
    """
    from tunes_dagster.intake.drop import scan_drop_folder

    settings = installation.settings
    found = scan_drop_folder(
        settings.resolved_drop_folder,
        installation.registry.drops.rows(),
        clock.now(),
        settings.drop_settle_seconds,
        settings.store_options,
    )
    return [_taken_in(installation, drop) for drop in found]


def _taken_in(installation: Installation, drop: Drop) -> tuple[str, str]:
    """Submit one dataset if it is complete; returns its tune, or '', and what is said of it."""
    registry = installation.registry
    if drop.request is None or drop.state != "complete":
        if drop.state == "invalid":
            registry.drops.record(
                drop.path, fingerprint=drop.fingerprint, state="invalid", message=drop.message
            )
        return "", f"{drop.name}: {drop.message}"
    # The id follows from the content, so that a look that died half-way does not submit it twice.
    tune_id = f"tune_{hashlib.sha256(f'{drop.path} {drop.fingerprint}'.encode()).hexdigest()[:20]}"
    try:
        if not registry.tunes.has(tune_id):
            submit.submit_tune(installation, drop.request, origin="drop", tune_id=tune_id)
    except Failure as failure:
        if failure.code == FailureCode.STORE_UNAVAILABLE:
            raise
        registry.drops.record(drop.path, fingerprint=drop.fingerprint, state="invalid", message=str(failure))
        return "", f"{drop.name}: {failure}"
    registry.drops.record(drop.path, fingerprint=drop.fingerprint, state="taken", tune_id=tune_id)
    return tune_id, f"{drop.name}: taken in as {tune_id}."

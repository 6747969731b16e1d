"""Why something waits, from the rows alone: prompts that are not begun, and what is not used of the drop folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tunes_dagster.core.work import MAKING, STAGES, WorkKind, stage_of

if TYPE_CHECKING:
    from tunes_dagster.registry import Drop, Prompt, Registry, Work

# Rows of work that are at hand; more are never at work at once.
_ACTIVE = 200
_AT_WORK: dict[str, str] = {
    kind: STAGES[WorkKind(stage_of(kind))].running for kind in (*MAKING, WorkKind.FINISH)
}
_AT_WORK[WorkKind.RENDER] = "rendering"


def reasons(registry: Registry, prompts: Iterable[Prompt]) -> dict[str, str]:
    """Return why each of these prompts is not begun, in a sentence; those that do not wait are left out."""
    waiting = [one for one in prompts if one.status in ("waiting", "queued")]
    if not waiting:
        return {}
    at_work = _at_work(registry)
    return {one.id: _reason(registry, one, at_work) for one in waiting}


def _reason(registry: Registry, prompt: Prompt, at_work: str) -> str:
    if prompt.status == "waiting" and prompt.tune_id:
        tune = registry.tunes.get(prompt.tune_id)
        said = f": {tune.message}" if tune.message else ""
        return f"waits for tune {tune.number}, which is {tune.status}{said}"
    work = next(iter(registry.work.of(prompt.batch_id, WorkKind.RENDER)), None) if prompt.batch_id else None
    if work is None:
        return f"waits for a daemon or session to take it up ({at_work})"
    if work.state == "queued":
        return _queued(registry, work, at_work)
    return f"its batch waits for a free device ({at_work})" if work.state == "submitted" else "is being begun"


def _queued(registry: Registry, work: Work, at_work: str) -> str:
    if work.available_at > registry.now():
        why = f": {work.failure_message}" if work.failure_message else ""
        return f"is tried again at {work.available_at.astimezone():%H:%M:%S}{why}"
    ahead = registry.work.waiting_ahead(work)
    before = f"{ahead} batch{'' if ahead == 1 else 'es'} before it, " if ahead else ""
    return f"its batch waits for its turn ({before}{at_work})"


def _at_work(registry: Registry) -> str:
    """Return what has the devices now, in words."""
    counts: dict[str, int] = {}
    for work in registry.work.active(_ACTIVE):
        if work.state == "running" and (what := _AT_WORK.get(work.kind)):
            counts[what] = counts.get(what, 0) + 1
    said = ", ".join(f"{what} {number}" for what, number in sorted(counts.items()))
    return f"now {said}" if said else "nothing is at work"


def unused_drops(registry: Registry) -> list[Drop]:
    """Return the folders and archives of the drop folder that cannot be used as they are; those taken away are not."""
    found = [drop for drop in registry.drops.rows().values() if drop.state == "invalid"]
    return [drop for drop in found if "://" in drop.path or Path(drop.path).exists()]

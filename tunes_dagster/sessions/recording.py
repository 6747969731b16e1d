"""The journal that is kept in the registry, from which whoever tells Dagster's runs reads it (`pipeline/telling.py`).

A session that writes it needs no Dagster: it may run in a container that reaches nothing but the registry. What it
did not come to write when it died is filled in from the rows of its work (`DeviceRuns.end_lost`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from tunes_dagster.registry.device_runs import Line

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry, Work
    from tunes_dagster.sessions.journal import Outcome

# Attempts whose row is known; a session makes a few at a time.
_KNOWN = 1_000
# Of a loss curve.
_POINTS = 40


class Recorded:
    """A `journal.Journal` in the registry; behind `journal.Queued`, because a row takes milliseconds."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._ids: OrderedDict[tuple[str, int], str] = OrderedDict()

    def began(self, work: Work) -> None:
        """Add the attempt."""
        self._id_of(work)

    def line(self, work: Work, text: str, level: int = logging.INFO) -> None:
        """Add a line."""
        self._registry.device_runs.add_lines(self._id_of(work), [Line(self._registry.now(), level, text)])

    def progress(self, work: Work, phase: str, done: int, total: int) -> None:
        """Add a line."""
        self.line(work, f"{phase} {done}/{total}")

    def materialized(self, work: Work, result: Any) -> None:
        """Keep what is not in the row of the tune or batch."""
        self._registry.device_runs.set_facts(self._id_of(work), facts_of(result))

    def ended(self, work: Work, outcome: Outcome) -> None:
        """Note the end."""
        code = outcome.failure.code.value if outcome.failure is not None else None
        self._registry.device_runs.end(self._id_of(work), outcome.state, code, outcome.again)
        self._ids.pop((work.id, work.attempt), None)

    def _id_of(self, work: Work) -> str:
        key = (work.id, work.attempt)
        if key not in self._ids:
            self._ids[key] = self._registry.device_runs.begin(work).id
            while len(self._ids) > _KNOWN:
                self._ids.popitem(last=False)
        return self._ids[key]


def facts_of(result: Any) -> dict[str, Any]:
    """Return what is shown of a `Trained`, `Rendered` or `Evaluated` beside its row: plain values that name nobody."""
    facts: dict[str, Any] = {}
    if (answers := getattr(result, "answers", None)) is not None:
        facts["checks"] = [
            {"name": one.name, "passed": bool(one.passed), "said": one.said, "numbers": dict(one.numbers)}
            for one in answers
        ]
    if (results := getattr(result, "results", None)) is not None:
        flat = sum(image.blank for one in results.values() for image in one.images)
        facts["checks"] = [{"name": "not_blank", "passed": not flat, "said": f"{flat} are flat."}]
    if (device := getattr(result, "device", None)) is not None:
        facts["device"] = f"{device.name} ({device.label}, {device.memory_gb:.0f} GiB, {device.dtype})"
    if curve := getattr(getattr(result, "result", None), "loss_curve", None):
        every = -(-len(curve) // _POINTS)
        facts["losses"] = [round(float(loss), 5) for _step, loss in curve[::every]]
    return facts

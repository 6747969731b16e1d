"""Batches that a session renders, slice by slice, so that whoever else waits for the device moves on, too."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.progress import Phase, Reporter, Tee
from tunes_dagster.core.results import BatchResult, Machine
from tunes_dagster.families.catalog import AuxiliaryEntry, BaseModelEntry
from tunes_dagster.rendering.aids import make_aids
from tunes_dagster.rendering.policy import load_rules
from tunes_dagster.sessions.batches import PromptWriter, render_jobs, require_batch, wanted_prompts
from tunes_dagster.sessions.results import Rendered

if TYPE_CHECKING:
    from pathlib import Path

    from tunes_dagster.rendering.jobs import RenderJob
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.sessions.attempts import Attempt
    from tunes_dagster.sessions.bases import Bases
    from tunes_dagster.sessions.hardware import Device

# Of pictures of a shape whose pace nobody knows yet.
_FIRST_PICTURES = 2
_PACE_WEIGHT = 0.5


class Paces:
    """Seconds that a picture of a base and shape takes, as it was last."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], float] = {}

    def note(self, key: tuple[str, str], seconds: float) -> None:
        """Take note of a measurement."""
        old = self._known.get(key, seconds)
        self._known[key] = old + _PACE_WEIGHT * (seconds - old)

    def pictures(self, key: tuple[str, str], seconds: float) -> int:
        """Return how many pictures fit into a time, at least one."""
        if key not in self._known:
            return _FIRST_PICTURES
        return max(1, int(seconds / max(1e-6, self._known[key])))


class BatchInHand:
    """One batch that a session has claimed.

    Args:
        installation: Its registry, store and catalog.
        mine: The attempt on the batch's work.
        paces: Of the session.
    """

    def __init__(self, installation: Installation, mine: Attempt, paces: Paces) -> None:
        self._whole, self.mine, self._paces = installation, mine, paces
        self._began = time.monotonic()
        self.batch = require_batch(installation.registry, mine.work.subject_id)
        self.patient = self.batch_is_patient()
        self.entry: BaseModelEntry | AuxiliaryEntry
        self.entry, self.folder = self._usable()
        rows = installation.registry
        anew = not rows.device_runs.is_rest(mine.work)
        self.prompts = {p.id: p for p in wanted_prompts(rows, self.batch, mine.work, anew)}
        self.writer = PromptWriter(rows, mine.work.id, mine.run_id)
        changes = rows.device_runs.changes_of(mine.work)
        self.jobs = render_jobs(rows, list(self.prompts.values()), changes, self.writer)
        self.prefix = f"batches/{self.batch.id}/{mine.work.attempt}"
        self._load_seconds = 0.0
        self._steps = 0

    def _usable(self) -> tuple[Any, Path]:
        return self._whole.usable(self.batch.base_id)

    def batch_is_patient(self) -> bool:
        """Whether nobody waits for it at a screen."""
        return self.batch.made.campaign and self.mine.work.origin != "ui"

    @property
    def left(self) -> list[RenderJob]:
        """The prompts that are still to be rendered."""
        return [job for job in self.jobs if job.prompt_id not in self.writer.results]

    def usable_beside(self, bases: Bases) -> bool:
        """Whether it can be rendered in the middle of other work."""
        if not isinstance(self.entry, BaseModelEntry):
            return bases.room_gib() >= self.entry.memory_gb
        return bases.usable(self.entry, self.folder)

    def turn(self, bases: Bases, device: Device, seconds: float) -> float:
        """Render what fits into about so many seconds, at least one prompt; returns the seconds without loading."""
        key = (self.batch.base_id, self.batch.shape)
        some = self._next(self._paces.pictures(key, seconds))
        if not some:
            return 0.0
        pictures = sum(job.settings.num_images for job in some)
        report = _Part(self.mine.report, self._steps, pictures, self._pictures_after(some))
        before = time.monotonic()
        if isinstance(self.entry, BaseModelEntry):
            before += self._render(some, bases, device, report)
        else:
            self._render_plain(some, device, report)
        self._steps = report.done
        spent = time.monotonic() - before
        self._paces.note(key, spent / max(1, pictures))
        return spent

    def finish(self, device: Device) -> Rendered | None:
        """Close the attempt, all of it being done; returns what was rendered, None when nothing could be."""
        pictures = sum(len(result.images) for result in self.writer.results.values())
        seconds = time.monotonic() - self._began
        machine = device.machine()
        self.mine.finish(
            BatchResult(
                pictures=pictures,
                seconds=round(seconds, 2),
                load_seconds=round(self._load_seconds, 2),
                machine=Machine(kind=machine.kind, gib=round(machine.gib, 2), dtype=machine.dtype),
            )
        )
        if not self.jobs:
            return None
        jobs = [job for job in self.jobs if job.prompt_id in self.writer.results]
        return Rendered(self.batch, self.prompts, jobs, self.writer.results, self.prefix, seconds, device)

    def _next(self, pictures: int) -> list[RenderJob]:
        """Return the next prompts that nobody cancelled, of about so many pictures."""
        rows = self._whole.registry.prompts.rows(batch_id=self.batch.id)
        gone = {row.id for row in rows if row.status == "cancelled"}
        self.jobs = [job for job in self.jobs if job.prompt_id not in gone]
        chosen: list[RenderJob] = []
        for job in self.left:
            if chosen and sum(one.settings.num_images for one in chosen) + job.settings.num_images > pictures:
                break
            chosen.append(job)
        return chosen

    def _pictures_after(self, some: Sequence[RenderJob]) -> int:
        now = {job.prompt_id for job in some}
        return sum(job.settings.num_images for job in self.left if job.prompt_id not in now)

    def _render(self, some: list[RenderJob], bases: Bases, device: Device, report: Reporter) -> float:
        """Render on a base that is kept; returns the seconds that loading it took."""
        from tunes_dagster.rendering.jobs import Delivery
        from tunes_dagster.rendering.renderer import render

        assert isinstance(self.entry, BaseModelEntry)
        before, known = time.monotonic(), self.entry.base_id in bases.names()
        if not known:
            report.phase(Phase.LOADING, f"Loading {self.entry.base_id} onto {device.name} ({device.dtype}).")
        kept = bases.get(self.entry, self.folder)
        loaded = time.monotonic() - before
        self._load_seconds += 0.0 if known else loaded
        if kept.aids is None:
            kept.aids = make_aids(self._whole.catalog, self._whole.settings)
        kept.aids.rules = load_rules(self._whole.settings)
        render(
            some,
            kept.base,
            Delivery(self._whole.store, self.prefix, report, self.writer.on_done),
            aids=kept.aids,
        )
        return loaded

    def _render_plain(self, some: list[RenderJob], device: Device, report: Reporter) -> None:
        """Render on a model beside the bases, which is loaded for it."""
        from tunes_dagster.rendering.jobs import Delivery
        from tunes_dagster.rendering.run import run_batch

        whole = self._whole
        aids = make_aids(whole.catalog, whole.settings)
        run_batch(
            some,
            self.entry,
            self.folder,
            device.name,
            device.torch_dtype,
            Delivery(whole.store, self.prefix, report, self.writer.on_done),
            aids,
        )


class _Part(Tee):
    """Tells how far a whole batch is from the steps of one part of it."""

    def __init__(self, report: Reporter, before: int, pictures: int, after: int) -> None:
        super().__init__([report])
        self._before, self._share = before, after / max(1, pictures)
        self.done = before

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Count the steps of the parts before, and as many for each picture that comes after."""
        self.done = self._before + done
        super().step(self.done, self._before + total + round(total * self._share), **numbers)

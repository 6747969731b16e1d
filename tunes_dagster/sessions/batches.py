"""What is rendered of a batch, and how its prompts hear of their pictures."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.results import PromptResult
from tunes_dagster.core.validation import checked
from tunes_dagster.core.wishes import ended
from tunes_dagster.registry.groups import CAMPAIGN
from tunes_dagster.rendering.jobs import RenderJob, RenderResult, make_job
from tunes_dagster.rendering.using import used_by

if TYPE_CHECKING:
    from tunes_dagster.registry import Batch, Prompt, Registry, Work

Options = TypeVar("Options", bound=BaseModel)

GAVE_WAY = "It gave way to prompts that somebody waits for; the next run goes on with the rest."


class GaveWay(Cancelled):
    """Ends a run of campaigns between two parts, because somebody waits."""


class Turn:
    """How long a run of campaigns alone may go on while somebody waits for a single prompt.

    A turn lasts at least as long as loading took, so that giving way never costs more than it brings. A run whose turn
    has not begun gives way at once, the first time: with one slot, it would be a second turn to wait for.
    """

    def __init__(self, registry: Registry, batch: Batch, work: Work, seconds: float) -> None:
        self._registry, self._attempt, self._seconds = registry, work.attempt, seconds
        self._patient = batch.made.campaign and work.origin != "ui"
        self._began = time.monotonic()

    def yields_at_once(self) -> bool:
        """Whether to give way before anything is loaded."""
        return self._patient and self._attempt == 1 and self._registry.groups.somebody_waits()

    def look(self, loaded: float) -> None:
        """Give way when the turn is over and somebody waits.

        Args:
            loaded: Seconds that loading took.

        Raises:
            GaveWay: When it does.
        """
        if not self._patient:
            return
        spent = time.monotonic() - self._began - loaded
        if spent >= max(loaded, self._seconds) and self._registry.groups.somebody_waits():
            raise GaveWay(GAVE_WAY)


def require_batch(registry: Registry, batch_id: str) -> Batch:
    """Return the batch of a partition.

    Raises:
        Failure: `INVALID_REQUEST` when the registry has none.
    """
    batch = registry.groups.batch(batch_id)
    if batch is None:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The registry has no render batch {batch_id!r}.",
            'Batches are made from queued prompts: `tunes render TUNE "a photo of …"`.',
        )
    return batch


class PromptWriter:
    """Writes what came of each prompt into its row as soon as it is known."""

    def __init__(self, registry: Registry, work_id: str, run_id: str) -> None:
        self._registry, self._work_id, self._run_id = registry, work_id, run_id
        self.results: dict[str, RenderResult] = {}
        self._weights: dict[str, dict[str, str]] = {}

    def uses(self, prompt_id: str, weights: dict[str, str]) -> None:
        """Note the weights that a prompt is rendered with, by tune."""
        self._weights[prompt_id] = weights

    def on_done(self, result: RenderResult) -> None:
        """Record the pictures of a prompt, or why it has none."""
        self.results[result.prompt_id] = result
        if result.failure is not None:
            self._registry.prompts.failed(result.prompt_id, self._work_id, self._run_id, result.failure)
            return
        facts = PromptResult(
            seeds=[image.seed for image in result.images],
            rendered_at=list(result.images[0].rendered_at) if result.images else None,
            recipe_hash=result.images[0].recipe_hash if result.images else None,
            recipe_hashes=[image.recipe_hash for image in result.images],
            weights=self._weights.get(result.prompt_id, {}),
            warnings=result.warnings,
        )
        keys = [image.key for image in result.images]
        self._registry.prompts.done(result.prompt_id, self._work_id, self._run_id, keys, facts)

    def refuse(self, prompt_id: str, failure: Failure) -> None:
        """Record that a prompt cannot be rendered at all."""
        self.on_done(RenderResult(prompt_id, [], failure))


def wanted_prompts(registry: Registry, batch: Batch, work: Work, anew: bool = True) -> list[Prompt]:
    """Return the prompts that an attempt renders: what is missing, or all of them for a person who asks anew.

    What a campaign filled the batch up with comes last: somebody waits for the others.
    """
    everything = [p for p in registry.prompts.rows(batch_id=batch.id) if p.status != "cancelled"]
    everything.sort(key=lambda prompt: prompt.origin == CAMPAIGN)
    if work.origin == "ui" and anew:
        return everything
    return [p for p in everything if p.status in ("queued", "rendering")]


def render_jobs(
    registry: Registry, prompts: list[Prompt], changes: dict[str, Any], writer: PromptWriter
) -> list[RenderJob]:
    """Return the jobs of the prompts that can be rendered; the others are recorded as failed."""
    jobs = []
    uses = registry.uses.of([prompt.id for prompt in prompts])
    tunes = registry.uses.tunes_by_id({use.tune_id for some in uses.values() for use in some if use.tune_id})
    for prompt in prompts:
        try:
            settings = changed(RenderSettings.model_validate(prompt.settings), changes)
            own, tagged = used_by(prompt, uses.get(prompt.id, []), tunes)
            # The base itself stands in every recipe; where the tune was made on another one, its sibling, so does that.
            home = tunes[own.id].base_id if own else prompt.base_id
            said = {"trained_on": home} if home != prompt.base_id else {}
            recipe = {"asked_base": prompt.base, "prompt_id": prompt.id, **said}
            job = make_job(prompt.id, prompt.text, settings, tune=own, tagged=tagged, recipe=recipe)
            jobs.append(replace(job, warnings=[*ended(prompt.warnings), *job.warnings]))
            used = [*([own] if own else []), *(tag.tune for tag in tagged)]
            writer.uses(prompt.id, {one.id: one.key for one in used})
        except Failure as failure:
            writer.refuse(prompt.id, failure)
    return jobs


def changed(options: Options, changes: dict[str, Any]) -> Options:
    """Return options with what a person filled in in the Launchpad.

    Raises:
        Failure: `INVALID_REQUEST`, naming each wrong value.
    """
    return checked(type(options), {**options.model_dump(), **changes}, "What the Launchpad says")

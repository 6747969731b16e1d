"""Renders a batch of prompts over many tunes on one loaded base.

Prompts become pictures, pictures of one shape are denoised together whatever tune they belong to, and files are
written while the next ones are computed. What goes wrong with one prompt ends that prompt only.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tunes_dagster.core.failures import Failure, FailureCode, as_failure, is_out_of_memory
from tunes_dagster.core.progress import Phase, format_count
from tunes_dagster.core.recipe import recipe_hash
from tunes_dagster.rendering import denoise as dn
from tunes_dagster.rendering import film, png, policy
from tunes_dagster.rendering.aids import Aids
from tunes_dagster.rendering.checking import Checker
from tunes_dagster.rendering.faceid import FaceShelf, FaceUses, faces_of, faces_shown
from tunes_dagster.rendering.inputs import Inputs
from tunes_dagster.rendering.jobs import Delivery, RenderedImage, RenderJob, RenderResult
from tunes_dagster.rendering.loras import Combination, LoraShelf, LoraUse, render_attached
from tunes_dagster.rendering.pictures import Picture, Shape
from tunes_dagster.rendering.records import batch_facts, not_finite, optional_settings, picture_failure
from tunes_dagster.rendering.sizes import enlarge
from tunes_dagster.rendering.texts import TextCache, text_bytes
from tunes_dagster.rendering.treatments import Treated, Treatments, is_wanted

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase
    from tunes_dagster.rendering.merged import MergedBank
    from tunes_dagster.training.adapters import AdapterBank

__all__ = ["RenderJob", "RenderResult", "RenderedImage", "render"]

_SAVERS = 2
# What ends the run and not one picture: the next attempt goes on with the rest.
_OF_THE_RUN = (FailureCode.CANCELLED, FailureCode.STORE_UNAVAILABLE)


def render(
    batch: Sequence[RenderJob],
    base: LoadedBase,
    delivery: Delivery,
    *,
    max_pictures: int | None = None,
    aids: Aids | None = None,
) -> list[RenderResult]:
    """Render prompts of any tunes, sizes and settings on one base.

    Picture i of a prompt uses seed + i and is the same picture, up to rounding, whatever it is rendered with.

    Args:
        batch: The prompts.
        base: Loaded; nothing but our adapters may be attached to it.
        delivery: Where pictures go, and who is told; progress counts denoising steps of pictures.
        max_pictures: Upper limit of pictures denoised at once; None lets memory decide.
        aids: Models and rules beside the base; None has none of them.

    Returns:
        One result per prompt, in order.

    Raises:
        Cancelled: When asked for; prompts finished before were handed to `delivery.on_done`.
        Failure: `STORE_UNAVAILABLE` when pictures cannot be written.
    """
    return _Batch(batch, base, delivery, max_pictures, aids or Aids()).run()


@dataclass
class _Progress:
    """One prompt on its way."""

    expected: int
    images: dict[int, RenderedImage] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    reported: bool = False

    @property
    def complete(self) -> bool:
        return len(self.images.keys() | self.failures.keys()) >= self.expected


class _Batch:
    """The state of one call of `render`."""

    def __init__(
        self,
        jobs: Sequence[RenderJob],
        base: LoadedBase,
        delivery: Delivery,
        max_pictures: int | None,
        aids: Aids,
    ) -> None:
        self.jobs, self.base, self.delivery = jobs, base, delivery
        self.store, self.report = delivery.store, delivery.report
        self.prefix = delivery.prefix.rstrip("/")
        self.aids, self.inputs = aids, Inputs(self.store, aids)
        self.limit = max_pictures or 1 << 20
        self.progress = [_Progress(job.settings.num_images) for job in jobs]
        self.combinations: list[Combination] = [_combination(job) for job in jobs]
        self.faces: list[FaceUses] = [faces_of(job.faces) for job in jobs]
        self.texts = TextCache(base)
        self.saving: list[tuple[Picture, Future[RenderedImage]]] = []
        self.steps_done = self.steps_total = 0
        self.tiled = False

    def run(self) -> list[RenderResult]:
        """Do it all."""
        self.report.phase(Phase.LOADING, "reading the tunes' weights")
        network = self.base.denoiser
        self.shelf = LoraShelf(self.store, self.combinations, network)
        self.face_shelf = FaceShelf(
            self.store, self.faces, network, lambda: self.aids.face_adapter(self.base)
        )
        self.facts = batch_facts(self.base)
        self.checker = Checker(self.base, self.aids, self.inputs, self.shelf, self.face_shelf)
        used: list[Combination] = []
        pictures = self._pictures(used)
        self._report_finished()
        self.steps_total = sum(picture.shape.steps_done for picture in pictures)
        shown = {use.key for uses in self.faces for use in uses}
        tunes = len({use.key for combination in used for use in combination} | shown)
        parts = ((pictures, "picture"), (self.jobs, "prompt"))
        things = " of ".join(format_count(len(some), noun) for some, noun in parts)
        self.report.phase(Phase.RENDERING, f"{things}, {format_count(tunes, 'tune')}" if tunes else things)
        with ThreadPoolExecutor(_SAVERS, thread_name_prefix="save") as self.pool:
            try:
                with faces_shown(
                    self.base, self.face_shelf.adapter, max((len(one.faces) for one in pictures), default=0)
                ):
                    render_attached(
                        self.base, self.shelf, pictures, used, self._render_pictures, self.report.note
                    )
            finally:
                if self.tiled:
                    dn.set_tiling(self.base, False)
                self._collect(wait=True)
        return [self._result(i) for i in range(len(self.jobs))]

    def _pictures(self, used: list[Combination]) -> list[Picture]:
        """Check every prompt by itself and list the pictures of the good ones; `used` gets a slot each."""
        slots: dict[Combination, int] = {}
        pictures: list[Picture] = []
        for index, job in enumerate(self.jobs):
            combination, warnings = self.combinations[index], self.progress[index].warnings
            try:
                first = self.checker.first_picture(index, job, combination, self.faces[index], warnings)
            except Exception as error:  # also what a library makes of a text: it ends this prompt alone
                failure = picture_failure(error)
                if failure.code in _OF_THE_RUN:
                    raise
                self._fail(index, failure)
                continue
            slot = slots.setdefault(combination, len(slots)) if combination else -1
            for number in range(job.settings.num_images):
                pictures.append(replace(first, number=number, seed=first.seed + number, slot=slot))
        used.extend(slots)
        return pictures

    def _render_pictures(self, pictures: Sequence[Picture], bank: AdapterBank | MergedBank | None) -> None:
        """Render pictures whose adapters are attached."""
        self.treatments = Treatments(self.base, self.aids, self.texts, bank, self.report.check_cancelled)
        for group in _by_shape(pictures):
            self._render_group(group, bank)

    def _render_group(self, pictures: list[Picture], bank: AdapterBank | MergedBank | None) -> None:
        """Render pictures of one shape, as many at once as fit."""
        waiting = list(pictures)
        later = max(text_bytes(self.base, picture) for picture in pictures)
        fit = dn.rows_that_fit(self.base, pictures[0].shape, later)
        if len(waiting) > fit:
            free = dn.free_memory(self.base) / 2**30
            self.report.note(f"{fit} pictures are denoised at once ({free:.1f} GiB are free).")
        while waiting:
            # Even parts: 9 pictures where 8 fit are rendered as 5 and 4, not as 8 and 1.
            parts = -(-len(waiting) // max(1, min(fit, self.limit)))
            count = -(-len(waiting) // parts)
            some, waiting = waiting[:count], waiting[count:]
            self._render_some(some, bank)
            self._collect(wait=False)
            if waiting:
                self.delivery.between(0.0)

    def _render_some(self, pictures: list[Picture], bank: AdapterBank | MergedBank | None) -> None:
        """Render pictures together; what fails is halved until the culprit is alone."""
        done_before = self.steps_done
        if pictures[0].shape.kept:
            self._save_good(pictures, [one.start for one in pictures], [True] * len(pictures))
            return
        try:
            base_id = pictures[0].shape.control
            steer = (self.aids.control(base_id, self.base),) if base_id else ()
            latents = dn.denoise(self.base, pictures, self.texts, bank, self._on_step, *steer)
            self._decode_and_save(pictures, latents)
            return
        except Exception as error:
            failure = picture_failure(error)
            if failure.code in _OF_THE_RUN:
                raise
        # Outside of the handler, so that the traceback no longer holds the tensors.
        self.steps_done = done_before
        if failure.code == FailureCode.OUT_OF_MEMORY:
            dn.release_memory()
        if len(pictures) == 1:
            self.steps_done += pictures[0].shape.steps_done
            self._fail(pictures[0].job, failure, pictures[0].number)
            return
        half = (len(pictures) + 1) // 2
        if failure.code == FailureCode.OUT_OF_MEMORY:
            self.limit = min(self.limit, half)
            self.report.note(f"Memory ran out with {len(pictures)} pictures at once; going on with {half}.")
        self._render_some(pictures[:half], bank)
        self._render_some(pictures[half:], bank)

    def _on_step(self, pictures: int) -> None:
        self.steps_done += pictures
        self.report.step(min(self.steps_done, self.steps_total), self.steps_total)
        self.report.check_cancelled()
        if self.saving:
            self._collect(wait=False)  # who waits for a picture that was written meanwhile is told now

    def _decode_and_save(self, pictures: Sequence[Picture], latents: Any) -> None:
        fit = dn.decodes_that_fit(self.base, pictures[0].shape)
        if not self.tiled and dn.needs_tiles(self.base, pictures[0].shape):
            self._decode_in_tiles()
        start = 0
        while start < len(pictures):
            some = pictures[start : start + fit]
            decoded = self._decode(latents[start : start + fit])
            if decoded is None:
                dn.release_memory()
                fit = max(1, len(some) // 2)
                continue
            start += len(some)
            self._save_good(some, *decoded)

    def _save_good(self, pictures: Sequence[Picture], arrays: Iterable[Any], good: Iterable[bool]) -> None:
        """Treat and save the pixels of pictures, but for those that are not finite."""
        for picture, array, finite in zip(pictures, arrays, good, strict=True):
            if not finite:
                self._fail(picture.job, not_finite(picture), picture.number)
            elif (treated := self._treated(picture, array)) is not None:
                self.saving.append((picture, self.pool.submit(self._save, picture, treated, self.tiled)))

    def _decode(self, latents: Any) -> tuple[np.ndarray, list[bool]] | None:
        """Decode, or return None when memory ran out and a smaller part, or tiles, may still do."""
        try:
            return dn.decode(self.base, latents)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(latents) == 1 and (self.tiled or not self._decode_in_tiles()):
                raise
        return None

    def _decode_in_tiles(self) -> bool:
        """Decode by overlapping tiles from now on; returns whether the VAE can do that."""
        self.tiled = dn.set_tiling(self.base, True)
        if self.tiled:
            self.report.note("Memory is too short to decode a picture at once; decoding tiles from now on.")
        return self.tiled

    def _treated(self, picture: Picture, pixels: np.ndarray) -> Treated | None:
        """Return a picture after everything that needs a model; None when that failed, or it may not be shown."""
        settings = self.jobs[picture.job].settings
        try:
            wanted = is_wanted(settings)
            done = (
                self.treatments.apply(picture, pixels, settings)
                if wanted
                else Treated(Image.fromarray(pixels))
            )
            checker = self.aids.checker(self.base.device)
            if checker is not None and checker.unsafe([done.image])[0]:
                raise policy.blocked(policy.SAFETY_RULE, "A picture")
        except Exception as error:
            failure = picture_failure(error)
            if failure.code in _OF_THE_RUN:
                raise
            if failure.code == FailureCode.OUT_OF_MEMORY:
                dn.release_memory()
            self._fail(picture.job, failure, picture.number)
            return None
        self.progress[picture.job].warnings.extend(
            one for one in done.warnings if one not in self.progress[picture.job].warnings
        )
        return done

    def _save(self, picture: Picture, done: Treated, tiled: bool) -> RenderedImage:
        """Enlarge, grade, describe and write one picture; runs in a thread of its own."""
        job = self.jobs[picture.job]
        settings = job.settings
        assert settings.width and settings.height
        factor = 4 if settings.super_resolution else 1
        image = enlarge(done.image, settings.width * factor, settings.height * factor)
        if settings.color_grading:
            image = film.grade(image, settings.color_grading)
        if settings.film_grain:
            image = film.grain(image, picture.seed)
        recipe = self._recipe(picture, tiled, done.notes)
        key = f"{self.prefix}/{job.prompt_id}-{picture.seed}.png"
        data = png.png_bytes(image, recipe)
        self.store.write_bytes(key, data)
        pixels = np.asarray(done.image)
        return RenderedImage(
            key=key,
            seed=picture.seed,
            width=image.width,
            height=image.height,
            rendered_at=(picture.shape.width, picture.shape.height),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            recipe_hash=recipe["recipe_hash"],
            deviation=round(float(pixels.reshape(-1, 3).std(axis=0).max()), 3),
        )

    def _recipe(self, picture: Picture, tiled: bool, notes: dict[str, Any]) -> dict[str, Any]:
        """Return everything that decides this picture, with the hash of that, and what is worth knowing."""
        job = self.jobs[picture.job]
        deciding: dict[str, Any] = {
            **self.facts,
            "kind": "render",
            "prompt": picture.text,
            "negative_prompt": picture.negative,
            "seed": picture.seed,
            "steps": picture.shape.steps,
            "guidance_scale": picture.guidance_scale,
            "scheduler": picture.shape.scheduler or self.facts["base"]["scheduler"],
            "width": job.settings.width,
            "height": job.settings.height,
            "rendered_at": [picture.shape.width, picture.shape.height],
            "loras": [
                {
                    "id": use.id or use.key,
                    "sha256": self.shelf.sha256(use),
                    "scale": use.scale,
                    **({"kind": "checkpoint"} if self.shelf.is_whole(use) else {}),
                    **({"recipe_hash": known} if (known := self.shelf.recipe_hash(use)) else {}),
                }
                for use in self.combinations[picture.job]
            ],
            **({"faces": self.face_shelf.described(faces)} if (faces := self.faces[picture.job]) else {}),
            **optional_settings(job.settings),
        }
        if picture.start is not None:
            deciding["input_sha256"] = hashlib.sha256(picture.start.tobytes()).hexdigest()
        if tiled:
            deciding["tiled_decoding"] = True  # seams are blended, so pixels differ a little
        # What the caller adds says where a picture comes from and does not change it, so it is not hashed.
        recipe = {**job.recipe, **deciding, "recipe_hash": recipe_hash(deciding)}
        if notes:
            recipe["treatment"] = notes
        if self.progress[picture.job].warnings:
            recipe["warnings"] = self.progress[picture.job].warnings
        return recipe

    def _collect(self, wait: bool) -> None:
        """Take note of files that were written and tell who waits for them."""
        still: list[tuple[Picture, Future[RenderedImage]]] = []
        for picture, future in self.saving:
            if not wait and not future.done():
                still.append((picture, future))
                continue
            error = future.exception()
            if error is not None:
                unwritten = Failure(
                    FailureCode.STORE_UNAVAILABLE,
                    "A picture could not be written to the store.",
                    "The operator should check the store's space, rights and connection.",
                    self.store.url(self.prefix),
                )
                raise as_failure(error, unwritten) from error
            self.progress[picture.job].images[picture.number] = future.result()
        self.saving = still
        self._report_finished()

    def _report_finished(self) -> None:
        for index, progress in enumerate(self.progress):
            if progress.complete and not progress.reported:
                progress.reported = True
                self.delivery.on_done(self._result(index))

    def _fail(self, job: int, failure: Failure, number: int | None = None) -> None:
        progress = self.progress[job]
        for one in range(progress.expected) if number is None else [number]:
            progress.failures[one] = failure
        self.report.note(f"Prompt {self.jobs[job].prompt_id} failed: {failure.code}.")

    def _result(self, index: int) -> RenderResult:
        progress = self.progress[index]
        images = [progress.images[number] for number in sorted(progress.images)]
        first = progress.failures[min(progress.failures)] if progress.failures else None
        return RenderResult(self.jobs[index].prompt_id, images, first, list(progress.warnings))


def _combination(job: RenderJob) -> Combination:
    """Return what a job applies, without LoRAs of no strength."""
    uses = (LoraUse(*use) for use in job.loras)
    return tuple(use for use in uses if use.scale != 0)


def _by_shape(pictures: Iterable[Picture]) -> list[list[Picture]]:
    """Group pictures by shape, those of one tune side by side, all in order of arrival."""
    groups: dict[Shape, dict[int, list[Picture]]] = defaultdict(dict)
    for picture in pictures:
        groups[picture.shape].setdefault(picture.slot, []).append(picture)
    return [[picture for part in group.values() for picture in part] for group in groups.values()]

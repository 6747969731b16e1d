"""Checks each prompt of a batch by itself, before anything is denoised, and says what its pictures will be like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.rendering import policy
from tunes_dagster.rendering.brackets import plain_sentence, without_breaks
from tunes_dagster.rendering.pictures import Picture, Shape
from tunes_dagster.rendering.prompts import check_words, parse_prompt
from tunes_dagster.rendering.schedule import by_step, has_schedule, said
from tunes_dagster.rendering.schedulers import check_scheduler, samplers_of
from tunes_dagster.rendering.sizes import rendered_size
from tunes_dagster.rendering.styles import dressed
from tunes_dagster.rendering.texts import chunk_count

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase
    from tunes_dagster.rendering.aids import Aids
    from tunes_dagster.rendering.faceid import FaceShelf, FaceUses
    from tunes_dagster.rendering.inputs import Inputs
    from tunes_dagster.rendering.jobs import RenderJob
    from tunes_dagster.rendering.loras import Combination, LoraShelf


@dataclass(frozen=True)
class Checker:
    """Everything that a prompt is checked against.

    Attributes:
        base: The model.
        aids: Models and rules beside it.
        inputs: Pictures to start from.
        shelf: Weights of the tunes.
        face_shelf: Faces of the tunes of kind `faceid`.
    """

    base: LoadedBase
    aids: Aids
    inputs: Inputs
    shelf: LoraShelf
    face_shelf: FaceShelf

    def first_picture(
        self, index: int, job: RenderJob, combination: Combination, faces: FaceUses, warnings: list[str]
    ) -> Picture:
        """Return the first picture of a prompt, without its slot.

        Args:
            index: Of the prompt in the batch.
            job: The prompt.
            combination: The tunes that it names.
            faces: The faces that it names.
            warnings: Gets what this base cannot follow.

        Raises:
            Failure: Why it cannot be rendered.
        """
        settings = job.settings
        unset = [
            name
            for name in ("seed", "steps", "guidance_scale", "width", "height")
            if getattr(settings, name) is None
        ]
        if unset:
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The settings {', '.join(unset)} of prompt {job.prompt_id} have no value.",
                "Fill them with the base's defaults before rendering.",
            )
        assert settings.width and settings.height and settings.steps and settings.guidance_scale is not None
        assert settings.seed is not None
        text, negative = self._words(job)
        if broken := self.shelf.failure(combination) or self.face_shelf.failure(faces):
            raise broken
        text, negative = (self.shelf.said(combination, words, self.base) for words in (text, negative))
        width, height = rendered_size(
            self.base.entry, settings.width, settings.height, self.base.size_multiple
        )
        scheduler, ignored = self._without_effect(job)
        guided = self.base.is_guided(settings.guidance_scale)
        steps = settings.steps
        every = {
            what: said(words, steps) for what, words in (("prompt", text), ("negative prompt", negative))
        }
        warnings.extend(
            [*job.warnings, *ignored, *self._left_out(every), *_unchanging(text, negative, steps)]
        )
        chunks = chunk_count(self.base, *every["prompt"], *(every["negative prompt"] if guided else ()))
        shape = Shape(
            width=width, height=height, steps=steps, scheduler=scheduler, guided=guided, chunks=chunks
        )
        plain = Picture(
            job=index,
            number=0,
            seed=settings.seed,
            shape=shape,
            guidance_scale=settings.guidance_scale,
            text=text,
            negative=negative,
            slot=-1,
            faces=self.face_shelf.faces(faces),
            voice=self.shelf.voice(combination),
        )
        return self.inputs.given(plain, settings, self.base)

    def _words(self, job: RenderJob) -> tuple[str, str]:
        """Return the prompt and the negative prompt as the encoders get them."""
        weighs = bool(self.base.clip_encoders())
        parsed = parse_prompt(job.text, weighs=weighs)
        if named := [*parsed.loras, *parsed.faces]:
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The tune {named[0][0]!r} in the text of prompt {job.prompt_id} was not looked up.",
                "Make jobs with `make_job`, which takes tags out of the text.",
            )
        text, negative = dressed(parsed.text, job.settings)
        for one in dict.fromkeys([text, *said(text, job.settings.steps or 1)]):
            policy.check_text(without_breaks(one), self.aids.rules)
        check_words(negative, weighs)
        if not weighs:
            text, negative = self._plain(text), self._plain(negative)
        if self.base.guidance != "classifier-free":
            negative = ""
        return text, negative

    @staticmethod
    def _plain(text: str) -> str:
        """Return a text for an encoder of plain sentences; what changes by step is made plain step by step."""
        return text if has_schedule(text) else plain_sentence(text)

    def _without_effect(self, job: RenderJob) -> tuple[str | None, Sequence[str]]:
        """Return the sampler that is used, and a warning for each setting that this base cannot follow."""
        scheduler, warnings = check_scheduler(job.settings.scheduler), []
        known = samplers_of(self.base.pipeline().scheduler.config)
        if scheduler is not None and scheduler not in known:
            warnings.append(
                f"The sampler {scheduler!r} does not exist for this base, which used its own "
                f"(it has {', '.join(known)})."
            )
            scheduler = None
        if job.settings.negative_prompt.strip() and self.base.guidance != "classifier-free":
            warnings.append("The negative prompt has no effect: this base was distilled to do without one.")
        return scheduler, warnings

    def _left_out(self, every: Mapping[str, Sequence[str]]) -> list[str]:
        """Return a warning for each text that is longer than the text encoders read."""
        if self.base.clip_encoders():
            return []  # they read texts of any length, in chunks
        ends = {
            what: next((end for one in texts if one and (end := self.base.text_left_out(one))), "")
            for what, texts in every.items()
        }
        return [
            f"The {what} is too long for this base, which did not see its end: {end!r}."
            for what, end in ends.items()
            if end
        ]


def _unchanging(text: str, negative: str, steps: int) -> list[str]:
    """Return a warning for each text whose words should change, and never do within its steps."""
    texts = {"prompt": text, "negative prompt": negative}
    return [
        f"The words of the {what} that should change never do within {steps} steps."
        for what, words in texts.items()
        if has_schedule(words) and len(set(by_step(words, steps))) == 1
    ]

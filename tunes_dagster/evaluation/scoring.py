"""Fills a report card: renders the same prompts on the untuned base and on checkpoints, and measures them.

Scoring never decides whether a tune gets published: whatever goes wrong here leaves a card that says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tunes_dagster.core.failures import Cancelled, as_failure
from tunes_dagster.core.progress import Reporter
from tunes_dagster.evaluation import measures, verdicts
from tunes_dagster.evaluation.card import Card, CardOptions, Scores
from tunes_dagster.evaluation.prompts import Asked, card_prompts, class_texts
from tunes_dagster.evaluation.scorers import Scorer, TextScorer
from tunes_dagster.intake.faces import is_person
from tunes_dagster.intake.subject import is_style

if TYPE_CHECKING:
    from PIL.Image import Image

    from tunes_dagster.core.store import Store
    from tunes_dagster.families.base import LoadedBase


@dataclass(frozen=True)
class Subject:
    """A tune as scoring sees it.

    Attributes:
        tune_id: Whose.
        token: The rare word.
        class_name: The class word.
        training: Its training pictures.
        held_out: Its pictures that were not trained on.
        checkpoints: Keys in the store, oldest first.
    """

    tune_id: str
    token: str
    class_name: str
    training: Sequence[Image]
    held_out: Sequence[Image]
    checkpoints: Sequence[str]

    @property
    def called(self) -> str:
        """What prompts call it."""
        return f"{self.token} {self.class_name}"


@dataclass
class Scorers:
    """The models of a card.

    Attributes:
        likeness: Says how alike pictures are.
        text: Says how well pictures fit texts; None leaves obedience and the class word unmeasured.
        faces: Says how alike faces are; None where no face model is configured.
    """

    likeness: Scorer
    text: TextScorer | None = None
    faces: Scorer | None = None

    def names(self) -> dict[str, str]:
        """Return question → model."""
        found = {"likeness": self.likeness, "text": self.text, "faces": self.faces}
        return {question: one.name for question, one in found.items() if one is not None}


@dataclass
class Scored:
    """A card and the pictures it speaks of.

    Attributes:
        card: The numbers.
        prompts: What was rendered.
        renders: Step → pictures with the token; step 0 is the untuned base.
        plain: Pictures without the token: of the untuned base, and of the chosen checkpoint if it was looked at.
    """

    card: Card
    prompts: list[Asked] = field(default_factory=list)
    renders: dict[int, list[Image]] = field(default_factory=dict)
    plain: dict[str, list[Image]] = field(default_factory=dict)


class _TimeUp(Exception):
    """Scoring took longer than it may."""


class Painter:
    """Renders the card's prompts on one state of the tune after another, from the same noise each time.

    Args:
        base: Loaded, without adapters.
        options: Size of the card.
        check: Called between parts of the work; may raise.
    """

    def __init__(self, base: LoadedBase, options: CardOptions, check: Callable[[], None]) -> None:
        from tunes_dagster.core.recipe import RenderSettings

        self.base, self._check = base, check
        settings = base.entry.render_settings(RenderSettings())
        self._guidance = settings.guidance_scale if settings.guidance_scale is not None else 1.0
        self._steps = min(settings.steps or options.steps, options.steps)
        self._text: dict[str, Mapping[str, Any]] = {}

    def paint(
        self, texts: Sequence[str], seeds: Sequence[int], state: Mapping[str, Any] | None = None
    ) -> list[Image]:
        """Render texts with trained weights of any kind, or on the untuned base."""
        from contextlib import nullcontext

        from tunes_dagster.training.wholes import worn

        weights: Any = worn(self.base, [state]) if state is not None else nullcontext()
        with weights as bank:
            if bank is not None:
                bank.assign_all(0)
            return self._paint(texts, seeds)

    def _paint(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
        import torch

        from tunes_dagster.rendering.denoise import rows_that_fit
        from tunes_dagster.rendering.pictures import Shape

        base, side = self.base, self.base.entry.native_size
        room = rows_that_fit(
            base,
            Shape(
                width=side,
                height=side,
                steps=self._steps,
                scheduler=None,
                guided=base.is_guided(self._guidance),
            ),
        )
        painted: list[Image] = []
        for start in range(0, len(texts), room):
            self._check()
            some = slice(start, start + room)
            noise = [
                torch.randn(base.latent_shape(side, side), generator=torch.Generator().manual_seed(seed))
                for seed in seeds[some]
            ]
            text = self._encoded(texts[some])
            with torch.no_grad():
                latents = base.sample(text, torch.stack(noise), side, side, self._steps, self._guidance)
                painted += [_picture(pixels) for pixels in base.decode(latents.to(base.dtype))]
        return painted

    def _encoded(self, texts: Sequence[str]) -> dict[str, Any]:
        import torch

        new = [text for text in dict.fromkeys(texts) if text not in self._text]
        if new:
            encoded = self.base.encode_text(new)
            for row, text in enumerate(new):
                self._text[text] = {name: value[row] for name, value in encoded.items()}
        return {
            name: torch.stack([self._text[text][name] for text in texts]) for name in self._text[texts[0]]
        }


def _picture(pixels: Any) -> Image:
    from PIL import Image as images

    array = (pixels.clamp(0, 1).nan_to_num() * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return images.fromarray(array)


def score_tune(
    subject: Subject,
    base: LoadedBase,
    scorers: Scorers,
    store: Store,
    options: CardOptions,
    report: Reporter,
    clock: Callable[[], float] = time.monotonic,
) -> Scored:
    """Score a tune.

    Args:
        subject: The tune.
        base: Loaded, without adapters.
        scorers: The models that look.
        store: Where the checkpoints lie.
        options: How much is looked at.
        report: Told of progress; a cancel that does not keep ends it.
        clock: Seconds, for the limit.

    Raises:
        Cancelled: When asked for, except to stop and keep, which ends the scoring with what it has.
    """
    return _Scoring(subject, base, scorers, store, options, report, clock).run()


class _Scoring:
    """The state of one call of `score_tune`."""

    def __init__(
        self,
        subject: Subject,
        base: LoadedBase,
        scorers: Scorers,
        store: Store,
        options: CardOptions,
        report: Reporter,
        clock: Callable[[], float],
    ) -> None:
        self.subject, self.scorers, self.store, self.options = subject, scorers, store, options
        self.report, self._clock = report, clock
        self._began = clock()
        self.painter = Painter(base, options, self._check)
        self.card = Card(
            tune_id=subject.tune_id,
            called=subject.called,
            options=options,
            scorers=scorers.names(),
            training_pictures=len(subject.training),
        )
        self.prompts = card_prompts(subject.token, subject.class_name, options.renders, options.seed)
        self.done = Scored(self.card, self.prompts)
        self._seeds = [one.seed for one in self.prompts]

    def _check(self) -> None:
        self.report.check_cancelled()
        if self._clock() - self._began > self.options.seconds:
            raise _TimeUp

    def run(self) -> Scored:
        try:
            self._measure()
        except _TimeUp:
            self._stopped(f"time was up after {self.options.seconds:g} s")
        except Cancelled as cancelled:
            if not cancelled.keep:
                raise
            self._stopped("somebody asked to stop and keep what is there")
        self._conclude()
        return self.done

    def _stopped(self, reason: str) -> None:
        scored = len(self.card.checkpoints)
        if not scored:
            self.card.failure = f"Nothing was scored: {reason}."
        self.card.unmeasured.append(f"{scored} checkpoints were scored, then {reason}.")

    def _measure(self) -> None:
        from tunes_dagster.training import checkpoints as kept
        from tunes_dagster.training.samples import chosen_checkpoints, step_of

        self._look_at_pictures()
        chosen = chosen_checkpoints(self.subject.checkpoints, self.options.checkpoints)
        texts = [one.text for one in self.prompts]
        total = len(chosen) + 2
        self._keep(0, "", self.painter.paint(texts, self._seeds))
        self.report.step(1, total)
        self.done.plain["base"] = self.painter.paint([one.plain for one in self.prompts], self._seeds)
        self._look_at_strangers()
        self.report.step(2, total)
        # The last one first: it is what is published when time runs out.
        for number, key in enumerate(reversed(chosen)):
            state = kept.load_weights(self.store, key)
            self._keep(step_of(key), key, self.painter.paint(texts, self._seeds, state))
            self.report.step(number + 3, total)
        self._choose()
        best = self.card.chosen
        if best is not None:
            some = slice(0, max(2, len(self.prompts) // 2))
            state = kept.load_weights(self.store, best.key)
            plain = [one.plain for one in self.prompts[some]]
            self.done.plain["tune"] = self.painter.paint(plain, self._seeds[some], state)
            self._look_at_leak(len(plain))

    def _look_at_pictures(self) -> None:
        """Embed the subject's own pictures, and say what cannot be measured without enough of them."""
        card, subject = self.card, self.subject
        embed = self.scorers.likeness.embed_images
        self._training = embed(subject.training)
        self._held_out = embed(subject.held_out)
        self._points = measures.points(subject.training)
        card.reference = "held-out" if len(subject.held_out) else "training"
        self._reference = self._held_out if len(subject.held_out) else self._training
        card.reference_pictures = len(self._reference)
        if not len(subject.held_out):
            card.unmeasured.append(
                f"No picture was held out ({len(subject.training)} were given; from 5 on one is): likeness is "
                "measured to the training pictures, so that copying looks like likeness."
            )
        card.real_likeness = measures.real_likeness(self._training, self._held_out)
        everything = np.concatenate([self._training, self._held_out])
        if len(everything) > 1:
            card.real_variety = measures.variety(everything)
        else:
            card.unmeasured.append("One picture: whether the renders vary enough cannot be said.")
        self._look_at_class([*subject.training, *subject.held_out])

    def _look_at_class(self, pictures: Sequence[Image]) -> None:
        text, own = self.scorers.text, self.subject.class_name.strip().lower()
        if text is None:
            self.card.unmeasured.append(
                "No scorer that reads: obedience and the class word are not measured."
            )
            return
        groups = text.class_words
        group = next((name for name, words in groups.items() if own in words), "")
        group = "people" if is_person(own) and "people" in groups else group
        if not group:
            if not is_style(own):
                self.card.unmeasured.append(f"The class word: {text.name} has no list of words with {own!r}.")
            return
        words = [(name, word) for name, some in groups.items() for word in some]
        texts = np.stack([text.embed_texts(class_texts(word)).mean(axis=0) for _, word in words])
        picked = measures.votes(text.embed_images(pictures), measures.unit(texts))
        shares = np.bincount(picked, minlength=len(words)) / len(pictures)
        card = self.card
        card.class_group, card.group_votes = group, dict.fromkeys(groups, 0.0)
        for (name, word), share in zip(words, shares, strict=True):
            card.group_votes[name] += float(share)
            if share:
                card.class_votes[word] = float(share)

    def _look_at_strangers(self) -> None:
        """Compare the pictures with what the base renders for the class: strangers of one kind."""
        everything = np.concatenate([self._training, self._held_out])
        if len(everything) > 2 and not is_style(self.subject.class_name):
            strangers = self.scorers.likeness.embed_images(self.done.plain["base"])
            self.card.coherence = measures.coherence(everything, strangers)

    def _look_at_leak(self, count: int) -> None:
        embed, base = self.scorers.likeness.embed_images, self.card.base
        best = self.card.chosen
        if base is None or best is None or best.likeness <= base.likeness:
            return
        after = measures.likeness(embed(self.done.plain["tune"]), self._reference)
        before = measures.likeness(embed(self.done.plain["base"][:count]), self._reference)
        self.card.leak = (after - before) / (best.likeness - base.likeness)

    def _keep(self, step: int, key: str, pictures: list[Image]) -> None:
        """Measure the pictures of one state and add it to the card."""
        self.done.renders[step] = pictures
        scores = self._scores(step, key, pictures)
        if step == 0:
            self.card.base = scores
            return
        scores.score = verdicts.score(scores)
        self.card.checkpoints = sorted([*self.card.checkpoints, scores], key=lambda one: one.step)

    def _scores(self, step: int, key: str, pictures: list[Image]) -> Scores:
        card = self.card
        rows = self.scorers.likeness.embed_images(pictures)
        near, _ = measures.nearest(rows, self._training)
        scores = Scores(
            step=step,
            key=key,
            likeness=measures.likeness(rows, self._reference),
            variety=measures.variety(rows),
            nearest=float(near.mean()),
            copied=self._copied(pictures),
        )
        if card.base is not None:
            scores.learned = measures.learned(scores.likeness, card.base.likeness, card.real_likeness or 1.0)
        if card.real_variety:
            scores.varied = scores.variety / card.real_variety
        self._score_text(scores, pictures)
        self._score_faces(scores, pictures)
        return scores

    def _copied(self, pictures: list[Image]) -> float | None:
        """Return the share of renders that are, point by point, a training picture that shows another place.

        A render and a picture of the same place may well be alike; one of the beach where snow was asked for is a
        copy.
        """
        places = [i for i, one in enumerate(self.prompts) if one.elsewhere]
        if not places:
            return None
        same, which = measures.nearest(measures.points([pictures[i] for i in places]), self._points)
        copies = same >= measures.copy_limit(self._points)
        text = self.scorers.text
        distinct = list(dict.fromkeys(self.prompts[i].plain for i in places))
        if text is not None and len(distinct) > 1:
            shown = measures.votes(text.embed_images(self.subject.training), text.embed_texts(distinct))
            asked = np.array([distinct.index(self.prompts[i].plain) for i in places])
            copies &= shown[which] != asked
        return float(copies.mean())

    def _score_text(self, scores: Scores, pictures: list[Image]) -> None:
        text = self.scorers.text
        if text is None:
            return
        distinct = list(dict.fromkeys(one.plain for one in self.prompts))
        if len(distinct) < 2:
            return
        own = [distinct.index(one.plain) for one in self.prompts]
        rows, texts = text.embed_images(pictures), text.embed_texts(distinct)
        scores.obedience = float(measures.margins(rows, texts, own).mean())
        scores.recognised = measures.recognised(rows, texts, own)
        base = self.card.base
        if base is not None and base.obedience is not None and base.obedience > 1e-3:
            scores.obeyed = scores.obedience / base.obedience

    def _score_faces(self, scores: Scores, pictures: list[Image]) -> None:
        faces = self.scorers.faces
        if faces is None or not is_person(self.subject.class_name):
            return
        real = faces.embed_images([*(self.subject.held_out or self.subject.training)])
        real, mine = real[real.any(axis=1)], faces.embed_images(pictures)
        seen = mine[mine.any(axis=1)]
        if len(real) and len(seen):
            scores.face_likeness = measures.likeness(seen, real)

    def _choose(self) -> None:
        chosen, why = verdicts.choose(self.card.checkpoints)
        self.card.chosen_step, self.card.chosen_key, self.card.why = chosen.step, chosen.key, why

    def _conclude(self) -> None:
        """Choose if that has not been done yet, and say what is to be said."""
        if self.card.checkpoints and not self.card.chosen_step:
            self._choose()
        if not self.card.checkpoints:
            self.card.why = "The last checkpoint is published: nothing was scored."
        shipped = self.painter.base.entry.repo_id.startswith("embedded:")
        self.card.verdicts = verdicts.judge(self.card, self.subject.class_name, shipped)
        self.card.seconds = round(self._clock() - self._began, 1)


def failed_card(subject_id: str, called: str, options: CardOptions, error: Exception) -> Card:
    """Return the card of a tune whose scoring failed; its last checkpoint is published."""
    failure = as_failure(error)
    said = f"{failure.message} {failure.remedy}".strip()
    return Card(
        tune_id=subject_id,
        called=called,
        options=options,
        failure=said[:500],
        why="The last checkpoint is published: scoring failed.",
        unmeasured=[f"Scoring failed: {said[:500]}"],
    )

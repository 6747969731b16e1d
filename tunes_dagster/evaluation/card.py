"""The report card of a tune as it lies in the store: numbers per checkpoint, verdicts, the choice and its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunes_dagster.core.recipe import Strict
from tunes_dagster.core.results import CardSummary, Document, Part, Reason

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from tunes_dagster.core.settings import Settings

Tone = Literal["good", "weak", "bad"]
_TONES: tuple[Tone, ...] = ("good", "weak", "bad")


class CardOptions(Strict):
    """How much a report card looks at."""

    checkpoints: int = Field(default=3, ge=0, le=20)
    """Most checkpoints that are scored, evenly spread, the last among them; 0 scores nothing."""
    renders: int = Field(default=12, ge=2, le=200)
    """Pictures per checkpoint, and of the untuned base."""
    steps: int = Field(default=12, ge=1, le=100)
    """Most denoising steps of each; fewer when the base's default is fewer."""
    seconds: float = Field(default=300.0, gt=0)
    """Scoring stops after this long with what it has."""
    seed: int = Field(default=0, ge=0, le=2**31)
    """Of the first picture."""


def options_of(settings: Settings) -> CardOptions:
    """Return how much a card looks at, as the settings say."""
    return CardOptions(
        checkpoints=settings.report_checkpoints,
        renders=settings.report_renders,
        seconds=settings.report_seconds,
    )


class Scores(Part):
    """What was measured of one state of a tune; None could not be measured.

    Attributes:
        step: Training step; 0 is the untuned base.
        key: Of the checkpoint.
        likeness: Mean cosine of renders with the token to the reference pictures.
        learned: The same between the base (0) and the real pictures (1).
        face_likeness: Mean cosine of faces, where a face model is configured.
        obedience: Mean margin of the asked scene over the other scenes.
        obeyed: The same as a share of the untuned base's.
        recognised: Share of renders that fit their own scene best.
        variety: Mean pairwise distance of the renders.
        varied: The same as a share of the real pictures'.
        copied: Share of renders that are, point by point, a training picture of another place than was asked for.
        nearest: Mean cosine to the nearest training picture.
        score: What the choice goes by, 0…1.
    """

    step: int
    key: str = ""
    likeness: float
    learned: float | None = None
    face_likeness: float | None = None
    obedience: float | None = None
    obeyed: float | None = None
    recognised: float | None = None
    variety: float
    varied: float | None = None
    copied: float | None = None
    nearest: float | None = None
    score: float | None = None


class Verdict(Part):
    """One thing that the card says.

    Attributes:
        code: For programs.
        tone: How bad it is.
        sentence: What was seen, with its numbers.
        remedy: What to do; empty when nothing needs doing.
    """

    code: str
    tone: Tone
    sentence: str
    remedy: str = ""


class Card(Document):
    """The report card.

    Attributes:
        tune_id: Whose.
        called: Token and class, as prompts call it.
        reference: What likeness is measured against: `held-out` or `training` pictures.
        reference_pictures: How many.
        training_pictures: How many there are.
        scorers: Question → model.
        options: How much was looked at.
        real_likeness: Of the subject's own pictures to the reference.
        real_variety: Mean pairwise distance of the subject's own pictures.
        coherence: How much more alike the pictures are than strangers of the class.
        class_votes: Class word → share of the pictures that fit it best.
        group_votes: The same by group of words.
        class_group: Group of the class name; empty when it is in none.
        leak: Likeness gained without the token as a share of that gained with it.
        base: The untuned base.
        checkpoints: Those that were scored, oldest first.
        chosen_step: Published; 0 when there is nothing to choose from.
        chosen_key: Of the chosen checkpoint; empty publishes what training wrote last.
        why: One sentence about the choice.
        verdicts: Worst first.
        unmeasured: What could not be measured, and why.
        failure: Why nothing was scored; empty when something was.
        seconds: That scoring took.
    """

    tune_id: str
    called: str
    reference: Literal["held-out", "training", "none"] = "none"
    reference_pictures: int = 0
    training_pictures: int = 0
    scorers: dict[str, str] = Field(default_factory=dict)
    options: CardOptions = Field(default_factory=CardOptions)
    real_likeness: float | None = None
    real_variety: float | None = None
    coherence: float | None = None
    class_votes: dict[str, float] = Field(default_factory=dict)
    group_votes: dict[str, float] = Field(default_factory=dict)
    class_group: str = ""
    leak: float | None = None
    base: Scores | None = None
    checkpoints: list[Scores] = Field(default_factory=list)
    chosen_step: int = 0
    chosen_key: str = ""
    why: str = ""
    verdicts: list[Verdict] = Field(default_factory=list)
    unmeasured: list[str] = Field(default_factory=list)
    failure: str = ""
    seconds: float = 0.0

    @property
    def chosen(self) -> Scores | None:
        """The scores of the published checkpoint."""
        return next((one for one in self.checkpoints if one.step == self.chosen_step), None)

    @property
    def scored(self) -> bool:
        """Whether anything was measured of the tune itself."""
        return bool(self.checkpoints)

    @property
    def tone(self) -> str:
        """The worst thing that was said, or `unscored`."""
        if not self.scored:
            return "unscored"
        return max((verdict.tone for verdict in self.verdicts), key=_TONES.index, default="good")

    @property
    def line(self) -> str:
        """The card in one line, for lists."""
        chosen, base = self.chosen, self.base
        if chosen is None or base is None:
            return f"not scored: {self.failure or 'there was nothing to score'}"
        parts = [f"likeness {chosen.likeness:.2f} (base {base.likeness:.2f})"]
        if chosen.obeyed is not None:
            parts.append(f"obeys {chosen.obeyed:.0%} of what the base does")
        if chosen.varied is not None:
            more = chosen.varied > 1.0
            parts.append(
                "varies more than its pictures"
                if more
                else f"varies {chosen.varied:.0%} as much as its pictures"
            )
        if chosen.copied is not None:
            parts.append(f"copies {chosen.copied:.0%}")
        worst = [verdict.code for verdict in self.verdicts if verdict.tone != "good"]
        return f"{self.tone}: {', '.join(parts)}" + (f"; {', '.join(worst)}" if worst else "")

    def summary(self, **keys: str | None) -> CardSummary:
        """Return what the tune's row keeps of the card.

        Args:
            keys: Of its files in the store, by the summary's names.
        """
        chosen, base = self.chosen, self.base
        return CardSummary(
            verdict=self.tone,
            line=self.line,
            warnings=[
                Reason(code=one.code, sentence=one.sentence, remedy=one.remedy)
                for one in self.verdicts
                if one.tone != "good"
            ],
            chosen_step=self.chosen_step,
            why=self.why,
            likeness=chosen.likeness if chosen else None,
            base_likeness=base.likeness if base else None,
            learned=chosen.learned if chosen else None,
            obedience=chosen.obeyed if chosen else None,
            variety=chosen.varied if chosen else None,
            copying=chosen.copied if chosen else None,
            leak=self.leak,
            unmeasured=self.unmeasured,
            seconds=self.seconds,
            **keys,
        )

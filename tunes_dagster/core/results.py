"""What work leaves in the rows of its subjects: documents with a type, written strictly and read leniently.

A row keeps the document as JSON. It is written by field, so that what another version wrote beside it stays; and read
so that a field which is missing, unknown or of another type than today's costs that field alone. `version` is the
layout in which it was written last: it grows when a field comes to mean something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticUseDefault, ValidationError

VERSION = 1
_LENIENT = {"lenient": True}


class Part(BaseModel):
    """A part of a document."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    @classmethod
    def read(cls, kept: Mapping[str, Any] | None) -> Self:
        """Return what a row keeps, whichever version wrote it."""
        return cls.model_validate(dict(kept or {}), context=_LENIENT)

    @classmethod
    def of(cls, said: Mapping[str, Any] | Part) -> Self:
        """Return what is to be written.

        Raises:
            ValidationError: For a field that there is not, a value that it cannot hold, another kind of document.
        """
        return cls.model_validate(dict(said) if isinstance(said, Mapping) else said)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any, info: ValidationInfo) -> Any:
        lenient = info.context is _LENIENT and isinstance(data, Mapping)
        return {name: data[name] for name in data if name in cls.model_fields} if lenient else data

    @field_validator("*", mode="wrap")
    @classmethod
    def _readable(cls, value: Any, handler: Any, info: ValidationInfo) -> Any:
        try:
            return handler(value)
        except ValidationError:
            if info.context is _LENIENT:
                raise PydanticUseDefault() from None
            raise


class Document(Part):
    """A whole document."""

    version: int = VERSION

    def written(self, kept: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the document of a row with the fields that were said of it, beside all others that it has."""
        said = self.said()
        return {**(kept or {}), **said, "version": VERSION} if said else dict(kept or {})

    def said(self) -> dict[str, Any]:
        """Return the fields that were said, as JSON."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"version"})


class Reason(Part):
    """One thing that a report card holds against a tune.

    Attributes:
        code: For programs.
        sentence: What was seen.
        remedy: What to do about it.
    """

    code: str = ""
    sentence: str = ""
    remedy: str = ""


class CardSummary(Part):
    """What the row of a tune keeps of its report card; the numbers are those of the published checkpoint.

    Attributes:
        verdict: good, weak, bad or unscored.
        line: The card in one line.
        warnings: What it holds against the tune, worst first.
        chosen_step: Published; 0 when there was nothing to choose from.
        why: One sentence about the choice.
        likeness: Mean cosine of renders with the token to the reference pictures.
        base_likeness: That of the untuned base.
        learned: Likeness between the base (0) and the real pictures (1).
        obedience: Obedience as a share of the base's.
        variety: Variety as a share of the real pictures'.
        copying: Share of renders that are a training picture.
        leak: Likeness without the token as a share of that with it.
        unmeasured: What could not be measured, and why.
        seconds: That scoring took.
        card_key: Of the whole card (JSON) in the store; and so the page, the sheet, the curve.
    """

    verdict: str = ""
    line: str = ""
    warnings: list[Reason] = Field(default_factory=list)
    chosen_step: int = 0
    why: str = ""
    likeness: float | None = None
    base_likeness: float | None = None
    learned: float | None = None
    obedience: float | None = None
    variety: float | None = None
    copying: float | None = None
    leak: float | None = None
    unmeasured: list[str] = Field(default_factory=list)
    seconds: float = 0.0
    card_key: str | None = None
    page_key: str | None = None
    sheet_key: str | None = None
    curve_key: str | None = None


class TuneResult(Document):
    """What the work on a tune has left so far.

    Attributes:
        pictures: Verdict of intake → pictures.
        trained_on: Examples that training looks at.
        held_out: Those that only the report card looks at.
        captions: That were written.
        weights_key: Published, in diffusers' layout.
        kohya_key: The same in kohya's; empty where there is none.
        pipeline_key: Folder of a whole model; empty for an adapter.
        last_weights_key: What training wrote last, whatever was published; `last_kohya_key` and `last_pipeline_key`
            beside it.
        words_key: The vectors of a pti tune's words.
        card_key: Model card.
        samples_key: Samples over training.
        weights_recipe_hash: Of the recipe in the published weights.
        steps: That were trained.
        seconds: That training took.
        stopped: Whether somebody stopped it early and kept it.
        checkpoints: Keys, oldest first.
        published_step: Step of the published weights.
        report_card: What the card says; None before there is one.
        checks: Name of a check of `lora` → whether it passed.
        findings: Kind of work → what its owner should know.
        again: Id of the tune whose pictures and captions it took over.
    """

    pictures: dict[str, int] = Field(default_factory=dict)
    trained_on: int | None = None
    held_out: int | None = None
    captions: int | None = None
    weights_key: str = ""
    kohya_key: str | None = None
    pipeline_key: str | None = None
    last_weights_key: str = ""
    last_kohya_key: str | None = None
    last_pipeline_key: str | None = None
    words_key: str | None = None
    card_key: str | None = None
    samples_key: str | None = None
    weights_recipe_hash: str = ""
    steps: int | None = None
    seconds: float | None = None
    stopped: bool = False
    checkpoints: list[str] = Field(default_factory=list)
    published_step: int | None = None
    report_card: CardSummary | None = None
    checks: dict[str, bool] = Field(default_factory=dict)
    findings: dict[str, list[str]] = Field(default_factory=dict)
    again: str | None = None

    def beside(self, other: TuneResult) -> TuneResult:
        """Return this result with what another one says in place of what it says itself."""
        return TuneResult.of({**self.said(), **other.said()})

    @property
    def trained_key(self) -> str:
        """What training wrote last, also of tunes of before that was kept apart; empty before there is any."""
        return self.last_weights_key or self.weights_key


class PromptResult(Document):
    """What rendering a prompt has left.

    Attributes:
        seeds: Of each picture.
        rendered_at: Width and height before enlarging.
        recipe_hash: Of the first picture.
        recipe_hashes: Of each picture.
        weights: Tune → key of the weights it was rendered with.
        warnings: What rendering found out, a sentence each.
    """

    seeds: list[int] = Field(default_factory=list)
    rendered_at: list[int] | None = None
    recipe_hash: str | None = None
    recipe_hashes: list[str] = Field(default_factory=list)
    weights: dict[str, str] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)


class Machine(Part):
    """What a batch was rendered on.

    Attributes:
        kind: cuda, cpu, mps.
        gib: Its memory.
        dtype: Of the numbers.
    """

    kind: str = ""
    gib: float = 0.0
    dtype: str = ""


class BatchResult(Document):
    """What is known of a render batch.

    Attributes:
        campaign: Whether it holds nothing but prompts of campaigns.
        pictures: That it made.
        seconds: That everything took.
        load_seconds: Of these, for loading.
        machine: What it ran on.
    """

    campaign: bool = False
    pictures: int | None = None
    seconds: float | None = None
    load_seconds: float = 0.0
    machine: Machine | None = None

    @property
    def seconds_each(self) -> float | None:
        """What one picture took without loading; None where nothing was measured."""
        if not self.pictures or not self.seconds:
            return None
        return max(0.0, self.seconds - self.load_seconds) / self.pictures


class DateResult(Document):
    """What the report of a campaign's date counts.

    Attributes:
        prompts: Of the plan, those that were left out included.
        pictures: That are there.
        done: Prompts that ended well.
        open: Prompts that have not ended.
        failed: Prompts that ended badly or were left out.
        kept: Prompts of an earlier date that still stood.
        seconds: That the pictures took.
    """

    prompts: int = 0
    pictures: int = 0
    done: int = 0
    open: int = 0
    failed: int = 0
    kept: int = 0
    seconds: float = 0.0

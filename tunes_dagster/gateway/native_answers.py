"""What the project's own endpoints answer, for the documents."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunes_dagster.gateway.answers import Address, Answer, Moment


class Base(Answer):
    """A base of the catalog, and what it is on this installation."""

    base: str
    trains_on: str
    installed: bool


class Waiting(Answer):
    """Open work of one kind."""

    kind: str
    state: Literal["queued", "submitted", "running"]
    count: int
    since: Moment | None


class Queue(Answer):
    """What is open."""

    work: list[Waiting]
    prompts_queued: int
    callbacks_pending: int


class Health(Answer):
    """Whether work goes on."""

    status: Literal["ok", "stalled"]
    profile: str
    bases: list[Base]
    queue: Queue
    expected_wait_seconds: dict[str, int] = Field(description="By base.")


class Reason(Answer):
    """Why something failed."""

    code: str
    message: str
    remedy: str


class TuneFile(Answer):
    """One file of a tune."""

    form: str = Field(description="As `weights/{form}` takes it: `diffusers`, `kohya` or `embeddings`.")
    name: str = Field(description="What to call it; programs find words by the name of their file.")
    programs: str = Field(description="Which programs take it.")


class Verdict(Answer):
    """What the report card says of a tune."""

    verdict: str = Field(description="good, weak or bad; unscored when nothing could be measured.")
    line: str
    reasons: list[str] = Field(description="What is not good, and what to do about it.")


class TuneFacts(Answer):
    """A tune, whichever API it came through."""

    id: str
    number: int
    title: str
    name: str
    token: str
    base: str
    trained_on: str
    status: str
    phase: str
    message: str
    step: int | None
    total_steps: int | None
    progress: float = Field(description="Percent, over all phases; never falls.")
    seconds_left: float | None
    cancel: str | None
    recipe_hash: str | None
    files: list[TuneFile] = Field(description="What can be taken away of a ready tune.")
    failure: Reason | None
    warnings: list[str] | None = Field(description="Wishes that could not be met, and what was done instead.")
    findings: list[str] = Field(
        description="What the work found out: pictures that are not used, and the like."
    )
    verdict: Verdict | None = Field(description="What its report card says; of tunes that are ready.")
    created_at: Moment
    started_at: Moment | None
    ready_at: Moment | None


class Sentence(Answer):
    """What was said at a moment."""

    at: Moment
    message: str


class PhaseFacts(Answer):
    """A phase with what was said in it."""

    phase: str
    start: Moment
    end: Moment | None
    said: list[Sentence]
    message: str
    run_id: str | None = None


class Timeline(TuneFacts):
    """A tune with its phases."""

    request_id: str | None
    steps_per_second: float | None
    eta: Moment | None
    last_sample: Address | None
    phases: list[PhaseFacts]


class PromptTimeline(Answer):
    """A prompt with its phases."""

    id: str
    number: int
    tune_id: str | None
    base: str
    text: str
    settings: dict[str, Any]
    status: str
    progress: float = Field(description="Percent of the batch it is rendered in; never falls.")
    images: list[Address]
    result: dict[str, Any] | None
    failure: Reason | None
    warnings: list[str] | None = Field(description="Wishes that could not be met, and what was done instead.")
    findings: list[str] = Field(
        description="What the work found out: pictures that are not used, and the like."
    )
    created_at: Moment
    done_at: Moment | None
    phases: list[PhaseFacts]


class Caption(Answer):
    """The caption of a picture."""

    picture: str
    name: str
    caption: str
    source: str


class Captions(Answer):
    """The captions of a tune."""

    version: Any
    captions: list[Caption]


class Entry(Answer):
    """A movement of the ledger."""

    at: Moment
    kind: str
    of: str | None
    memo: str | None
    usd: float


class AccountFacts(Answer):
    """What an account may spend, and what it did last."""

    account: str
    plan: str
    available_usd: float
    reserved_usd: float
    requests_per_minute: int
    tunes: dict[str, int] = Field(description="By status.")
    ledger: list[Entry]


class CallbackFacts(Answer):
    """A callback."""

    id: str
    event: str
    of: str
    url: str
    state: str
    attempts: int
    next_attempt_at: Moment | None
    delivered_at: Moment | None


class Delivery(Answer):
    """One attempt at a callback."""

    attempt: int
    at: Moment
    status: int | None
    error: str | None
    answer: str | None


class CallbackLog(CallbackFacts):
    """A callback with every attempt at it."""

    deliveries: list[Delivery]


class CompositionFacts(Answer):
    """A stored composition."""

    id: str
    name: str
    text: str

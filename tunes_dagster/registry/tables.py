"""The tables of the registry as SQLAlchemy 2 classes; their rows are also what the queries hand out, detached.

No relationships on purpose: every query says what it reads, so a list never turns into a query per row. A
change here needs a revision in `migrations/versions` (a test compares the two).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from tunes_dagster.core.recipe import UNTRAINED
from tunes_dagster.core.results import BatchResult, PromptResult, TuneResult
from tunes_dagster.core.wishes import Unmet, ended
from tunes_dagster.core.work import WorkKind, made_by

JsonType = JSON().with_variant(JSONB(), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite, which knows no time zones, keeps it as sortable text."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times, convert to UTC, and strip the zone where the database has none."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; use tunes_dagster.core.clock.now().")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give every time back as aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class UnmetType(TypeDecorator[list[Unmet]]):
    """Wishes that are not met, each by its parts; see `core/wishes.py`."""

    impl = JsonType
    cache_ok = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> list[Any] | None:
        """Keep the parts."""
        if value is None:
            return None
        return [one.as_row() if isinstance(one, Unmet) else one for one in value]

    def process_result_value(self, value: list[Any] | None, dialect: Dialect) -> list[Unmet] | None:
        """Put the sentences together; rows of earlier versions hold these."""
        return None if value is None else [Unmet.of_row(one) for one in value]


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {
        datetime: UtcDateTime(),
        dict[str, Any]: JsonType,
        list[str]: JsonType,
        str: Text(),
    }


class Account(Table):
    """Who asks.

    Attributes:
        callback_secret: Signs callbacks (Standard Webhooks, `whsec_…`) when set.
        callback_secret_old: Signs beside it while receivers move to a new one.
        callback_unknown: What becomes of a callback whose sender died before the answer was recorded:
            `resend`, or `hold` for receivers that cannot take a repeat.
        keep_tunes_hours: Age at which a ready tune expires; None is never. See `retention.py`.
        keep_outputs_hours: Age at which a prompt's pictures expire; None is never.
        auto_extend: What expires is kept for another period instead of deleted.
        warn_hours: How long before an expiry the callers are told.
        expiry_callback_url: Told of every expiry of the account, beside the callers' own addresses.
    """

    __tablename__ = "accounts"

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    name: Mapped[str]
    callback_secret: Mapped[str | None]
    callback_secret_old: Mapped[str | None]
    callback_unknown: Mapped[str] = mapped_column(String(20), default="resend")
    keep_tunes_hours: Mapped[float | None]
    keep_outputs_hours: Mapped[float | None]
    auto_extend: Mapped[bool] = mapped_column(default=False, server_default=false())
    warn_hours: Mapped[float] = mapped_column(default=24.0, server_default="24")
    expiry_callback_url: Mapped[str | None]
    created_at: Mapped[datetime]


class Tune(Table):
    """One request to fine-tune, and its result.

    Attributes:
        number: Counts tunes from 1; the integer id of dialects that need one. Orders the lists.
        base: The base as the caller named it.
        base_id: The catalog's entry that is really trained on.
        status: awaiting_images, queued, preparing, prepared, training, trained, finishing, ready, failed,
            cancelled, deleted.
        cancel: '' | 'cancel' | 'keep' (stop training, keep what was learned).
        progress: Percent over all phases; never falls while the tune is made. See `core/pace.py`.
        computed: Part of its training that was computed, 0 to 1; a repeated attempt does not take it back.
        warnings: What was wished for and is not met, a sentence each; see `core/wishes.py`.
        origin: The door it came through: cli, api, drop, ui, demo; `import` for weights of another program.
        auto_extend: Overrides the account's choice.
        kept_until: It does not expire before this, whatever the account's rule says.
        warned_at: When its caller was told that it will expire.
        blobs_named: Whether `blob_uses` holds what it needs; not so in rows of before, until `service/references.py`.
    """

    __tablename__ = "tunes"
    __table_args__ = (
        Index("ix_tunes_status", "status", "number"),
        Index("ix_tunes_account", "account_id", "number"),
        Index("ix_tunes_deleted", "deleted_at", "number"),
        Index("ix_tunes_title", "account_id", "title", "number"),
        Index("ix_tunes_ready", "account_id", "ready_at"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(80), unique=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    title: Mapped[str]
    class_name: Mapped[str]
    token: Mapped[str]
    base: Mapped[str]
    base_id: Mapped[str] = mapped_column("branch")
    status: Mapped[str] = mapped_column(String(20))
    phase: Mapped[str] = mapped_column(default="")
    message: Mapped[str] = mapped_column(default="")
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    seconds_left: Mapped[float | None]
    progress: Mapped[float] = mapped_column(default=0.0, server_default="0")
    computed: Mapped[float] = mapped_column(default=0.0, server_default="0")
    request: Mapped[dict[str, Any]]
    recipe: Mapped[dict[str, Any]]
    recipe_hash: Mapped[str]
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
    warnings: Mapped[list[Unmet]] = mapped_column(UnmetType(), default=list, server_default="[]")
    failure_code: Mapped[str | None]
    failure_message: Mapped[str | None]
    failure_detail: Mapped[str | None]
    failure_remedy: Mapped[str | None]
    cancel: Mapped[str] = mapped_column(String(10), default="")
    origin: Mapped[str] = mapped_column(String(20))
    callback_url: Mapped[str | None]
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ready_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    auto_extend: Mapped[bool | None]
    kept_until: Mapped[datetime | None]
    warned_at: Mapped[datetime | None]
    blobs_named: Mapped[bool] = mapped_column(default=True, server_default=false())

    @property
    def kind(self) -> str:
        """What is made: `lora`, `pti`, `checkpoint`, `faceid`."""
        return str(self.recipe.get("training", {}).get("kind", "lora"))

    @property
    def made_by(self) -> WorkKind:
        """The kind of work that makes it."""
        return made_by(self.kind not in UNTRAINED)

    @property
    def made(self) -> TuneResult:
        """What the work on it has left so far: `result`, read."""
        return TuneResult.read(self.result)

    @property
    def findings(self) -> list[str]:
        """What work found out that its owner should know, a sentence each, in the order of the work."""
        found = self.made.findings
        return [said for kind in WorkKind for said in found.get(kind, [])]

    @property
    def verdict(self) -> dict[str, Any] | None:
        """What the report card says of a tune that has one: its verdict in a word and a line, and the reasons."""
        card = self.made.report_card
        if self.status != "ready" or card is None:
            return None
        reasons = [f"{one.sentence} {one.remedy}".strip() for one in card.warnings]
        return {"verdict": card.verdict, "line": card.line, "reasons": reasons}


class Prompt(Table):
    """One text with its settings; yields `settings["num_images"]` pictures.

    Attributes:
        settings: Filled `RenderSettings`, the seed included.
        shape: What prompts must share to be rendered in one forward; see `prompts.shape_of`.
        status: waiting (for its tune), queued, rendering, done, failed, blocked, cancelled.
        images: Keys in the store.
        warnings: As those of a tune.
        queued_at: When it became renderable.
        kept_until: Its pictures do not expire before this, whatever the account's rule says.
        warned_at: When its caller was told that they will expire.
        expired_at: When they were deleted; `images` is empty from then on.
    """

    __tablename__ = "prompts"
    __table_args__ = (
        Index("ix_prompts_status", "status", "number"),
        Index("ix_prompts_tune", "tune_id", "number"),
        Index("ix_prompts_batch", "batch_id", "number"),
        Index("ix_prompts_account", "account_id", "number"),
        Index("ix_prompts_expiry", "account_id", "expired_at", "done_at"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(80), unique=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    tune_id: Mapped[str | None] = mapped_column(ForeignKey("tunes.id"))
    base: Mapped[str]
    base_id: Mapped[str] = mapped_column("branch")
    text: Mapped[str]
    settings: Mapped[dict[str, Any]]
    shape: Mapped[str]
    status: Mapped[str] = mapped_column(String(20))
    batch_id: Mapped[str | None] = mapped_column(ForeignKey("batches.id"))
    images: Mapped[list[str]] = mapped_column(default=list)
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
    warnings: Mapped[list[Unmet]] = mapped_column(UnmetType(), default=list, server_default="[]")
    failure_code: Mapped[str | None]
    failure_message: Mapped[str | None]
    failure_detail: Mapped[str | None]
    failure_remedy: Mapped[str | None]
    cancel: Mapped[str] = mapped_column(String(10), default="")
    callback_url: Mapped[str | None]
    origin: Mapped[str] = mapped_column(String(20))
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    done_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]
    kept_until: Mapped[datetime | None]
    warned_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]

    @property
    def made(self) -> PromptResult:
        """What its rendering has left: `result`, read."""
        return PromptResult.read(self.result)

    @property
    def findings(self) -> list[str]:
        """What its rendering found out that its owner should know, beside `warnings`, a sentence each."""
        known = ended(self.warnings or [])
        return [said for said in self.made.warnings if said not in known]


class Batch(Table):
    """Prompts of one base and shape that one run renders; status queued, rendering, done, failed, cancelled.

    Attributes:
        progress: Percent over all phases; never falls. See `core/pace.py`.
        computed: Part of its rendering that was computed, 0 to 1.
    """

    __tablename__ = "batches"
    __table_args__ = (Index("ix_batches_created", "created_at"),)

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    base_id: Mapped[str] = mapped_column("branch")
    shape: Mapped[str]
    status: Mapped[str] = mapped_column(String(20))
    phase: Mapped[str] = mapped_column(default="")
    message: Mapped[str] = mapped_column(default="")
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    seconds_left: Mapped[float | None]
    progress: Mapped[float] = mapped_column(default=0.0, server_default="0")
    computed: Mapped[float] = mapped_column(default=0.0, server_default="0")
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    done_at: Mapped[datetime | None]

    @property
    def made(self) -> BatchResult:
        """What is known of it: `result`, read."""
        return BatchResult.read(self.result)


class Cohort(Table):
    """Tunes of one base that one run trains; its members are the train rows in `work` that name it.

    Whether it is under way is not written down: it is while a member is open.
    """

    __tablename__ = "cohorts"

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    base_id: Mapped[str] = mapped_column("branch")
    created_at: Mapped[datetime]


class Work(Table):
    """The one owner of attempts: at most one row per kind and subject, reopened when work is done again.

    Attributes:
        kind: A `core.work.WorkKind`: prepare, train, embed, finish (subject: tune), render (subject: batch).
        state: queued, submitted, running, done, failed, cancelled.
        attempt: Label of the latest attempt; only ever grows, so files and run keys of attempts never mix.
        tries: Attempts that started since the row was last opened; compared with `max_attempts`.
        lost_launches: Submissions in a row that no run came of.
        waited: Seconds that it was put off for because the store, or what else it cannot do without, was away.
        run_key: `{id}:{attempt}` of the submitted attempt; empty when a run took the row without one.
        available_at: Not before this.
        origin: Who opened it; rows with `ui` owe nobody a callback.
    """

    __tablename__ = "work"
    __table_args__ = (
        UniqueConstraint("kind", "subject_id", name="uq_work_subject"),
        Index("ix_work_queue", "kind", "state", "available_at"),
        Index("ix_work_state", "state", "heartbeat_at"),
        Index("ix_work_subject", "subject_id"),
        Index("ix_work_cohort", "cohort_id"),
    )

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    subject_id: Mapped[str] = mapped_column(String(80))
    state: Mapped[str] = mapped_column(String(20))
    attempt: Mapped[int] = mapped_column(default=0)
    tries: Mapped[int] = mapped_column(default=0)
    lost_launches: Mapped[int] = mapped_column(default=0)
    waited: Mapped[float] = mapped_column(default=0.0)
    run_key: Mapped[str | None]
    run_id: Mapped[str | None]
    origin: Mapped[str] = mapped_column(String(20))
    cohort_id: Mapped[str | None] = mapped_column(ForeignKey("cohorts.id"))
    available_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    failure_code: Mapped[str | None]
    failure_message: Mapped[str | None]
    failure_detail: Mapped[str | None]
    created_at: Mapped[datetime]


class Callback(Table):
    """A notification owed to a caller, written in the transaction that caused it.

    Attributes:
        state: pending, delivered, dead (given up), held (sent by a process that died; outcome unknown).
        attempts: Deliveries so far, replays included.
        attempts_before: Deliveries before the last replay; backoff counts from there.
        lease_id: The sender that holds the row until `lease_until`.
        form: Dialect that the caller speaks; '' sends the project's own body.
        on_unknown: `hold` overrides the account's choice for receivers that cannot take a repeat.
    """

    __tablename__ = "callbacks"
    __table_args__ = (
        Index("ix_callbacks_due", "state", "next_attempt_at"),
        Index("ix_callbacks_turns", "state", "account_id", "next_attempt_at"),
        Index("ix_callbacks_subject", "subject_id"),
        Index("ix_callbacks_state", "state", "id"),
    )

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    event: Mapped[str]
    subject_id: Mapped[str] = mapped_column(String(80))
    url: Mapped[str]
    body: Mapped[dict[str, Any]]
    form: Mapped[str] = mapped_column(String(20), default="", server_default="")
    on_unknown: Mapped[str] = mapped_column(String(10), default="", server_default="")
    state: Mapped[str] = mapped_column(String(20), default="pending")
    attempts: Mapped[int] = mapped_column(default=0)
    attempts_before: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime | None]
    lease_id: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class Delivery(Table):
    """One attempt at a callback, recorded before it is sent; no `finished_at` means the outcome is unknown."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("ix_deliveries_callback", "callback_id", "attempt"),)

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    callback_id: Mapped[str] = mapped_column(ForeignKey("callbacks.id"))
    attempt: Mapped[int]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    status_code: Mapped[int | None]
    error: Mapped[str | None]
    response_head: Mapped[str | None]


class Event(Table):
    """One line of the timeline of a tune, prompt or batch."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_subject", "subject_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    subject_id: Mapped[str] = mapped_column(String(80))
    at: Mapped[datetime]
    phase: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Restore(Table):
    """A backup that was put back.

    Attributes:
        at: When.
        taken_at: The moment that the backup holds; None when nobody knows.
    """

    __tablename__ = "restores"

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    at: Mapped[datetime]
    taken_at: Mapped[datetime | None]


class Secret(Table):
    """A value that only this installation knows, such as what signs the addresses for operators."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[str]


class Drop(Table):
    """What the drop folder's sensor has seen of one dropped dataset."""

    __tablename__ = "drops"

    path: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[str]
    state: Mapped[str] = mapped_column(String(20))
    tune_id: Mapped[str | None] = mapped_column(String(80))
    message: Mapped[str] = mapped_column(default="")
    seen_at: Mapped[datetime]

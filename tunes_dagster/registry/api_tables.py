"""The tables of requests that came over HTTP: keys, wallets, the credit ledger, idempotency, packs.

What a tune or prompt *is* stands in `tables.py`; here stands who asked for it over the network, in which
dialect, at what price, and what that dialect has to give back.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from tunes_dagster.registry.tables import Table


class ApiKey(Table):
    """A key that proves who asks; only its SHA-256 is kept (keys hold 160 random bits, so no slow hash is needed).

    Attributes:
        hint: First and last characters, for people.
        revoked_at: From then on it is refused.
        expires_at: The same, known beforehand.
    """

    __tablename__ = "api_keys"
    __table_args__ = (Index("ix_api_keys_account", "account_id"),)

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str]
    name: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]


class Wallet(Table):
    """What an account may spend and how fast; amounts are micro-dollars.

    Attributes:
        plan: Name of the plan its limits were taken from.
        requests_per_minute: Limit of requests.
        monthly_grant: Credits given each calendar month (UTC); what is left of them then is taken back.
        available: What can be spent now; equals the ledger's postings on the book `account`.
        reserved: What open work holds; equals the postings on the book `reserved`.
        grant_left: Part of `available` that came from this month's grant; it is spent first.
        grant_month: `2026-03`: the month of the last grant.
        options: The account's choices (title idempotency, strictness, failure callbacks …).
    """

    __tablename__ = "wallets"

    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    plan: Mapped[str] = mapped_column(String(40))
    email: Mapped[str] = mapped_column(default="")
    requests_per_minute: Mapped[int] = mapped_column(Integer)
    monthly_grant: Mapped[int] = mapped_column(BigInteger, default=0)
    available: Mapped[int] = mapped_column(BigInteger, default=0)
    reserved: Mapped[int] = mapped_column(BigInteger, default=0)
    grant_left: Mapped[int] = mapped_column(BigInteger, default=0)
    grant_month: Mapped[str] = mapped_column(String(7), default="")
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)


class LedgerEntry(Table):
    """One movement of credits; its postings sum to zero.

    Attributes:
        kind: grant, expire, reserve, settle, return, adjust.
    """

    __tablename__ = "ledger_entries"
    __table_args__ = (
        Index("ix_ledger_account", "account_id", "id"),
        Index("ix_ledger_subject", "subject_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(20))
    subject_id: Mapped[str | None] = mapped_column(String(80))
    memo: Mapped[str] = mapped_column(default="")


class LedgerPosting(Table):
    """One side of an entry.

    Attributes:
        book: account, reserved, revenue, grants.
        amount: Micro-dollars; positive adds to the book.
    """

    __tablename__ = "ledger_postings"
    __table_args__ = (Index("ix_postings_entry", "entry_id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    entry_id: Mapped[int] = mapped_column(ForeignKey("ledger_entries.id"))
    book: Mapped[str] = mapped_column(String(20))
    amount: Mapped[int] = mapped_column(BigInteger)


class Reservation(Table):
    """What one tune or prompt holds of its account's credits.

    Attributes:
        from_grant: Part that came from the grant of `month`.
        settled: What was charged in the end.
        state: open, closed.
    """

    __tablename__ = "reservations"
    __table_args__ = (Index("ix_reservations_account", "account_id", "state"),)

    subject_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    amount: Mapped[int] = mapped_column(BigInteger)
    from_grant: Mapped[int] = mapped_column(BigInteger, default=0)
    month: Mapped[str] = mapped_column(String(7))
    settled: Mapped[int] = mapped_column(BigInteger, default=0)
    state: Mapped[str] = mapped_column(String(10), default="open")
    created_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]


class IdempotencyKey(Table):
    """A request that was answered once; the same key gives the same answer.

    Attributes:
        body_hash: SHA-256 of the method, path and body.
        body: The request's fields, to name the difference of another one (long values by their hash).
        claim: Of the server that answers it; whoever takes over from a dead one has another.
        subjects: Ids of what the request made, written in the transaction that made it; a repeat is answered with
            these, also when the server died before it could answer.
        status_code: Of the answer; None while the first request is still being answered.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_created", "created_at"),)

    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_hash: Mapped[str] = mapped_column(String(64))
    body: Mapped[dict[str, Any]] = mapped_column(default=dict)
    claim: Mapped[str] = mapped_column(String(40), default="", server_default="")
    subjects: Mapped[list[str] | None]
    status_code: Mapped[int | None] = mapped_column(Integer)
    answer: Mapped[str | None]
    created_at: Mapped[datetime]


class ApiObject(Table):
    """How the caller who asked for a tune or prompt over HTTP sees it.

    Attributes:
        id: Of the tune or prompt.
        dialect: The gateway's dialect that it came through; its callbacks have that form.
        public_id: Its id in that dialect, where it does not follow from the row's own.
        asked: What the dialect has to give back and the canonical request does not hold.
        events: Events whose callbacks this caller is told of.
        on_unknown: `hold` when the receiver cannot take a callback twice, '' for the account's choice.
        base_url: Public address under which the request came in.
        group_id: Prompts that are told of together.
        sameness: Hash of what a repeat is known by, for accounts that have repeats answered with the first one.
        upload_hash: SHA-256 of the token that lets its bearer send the pictures.
        upload_expires_at: After this a tune without pictures is cancelled.
    """

    __tablename__ = "api_objects"
    __table_args__ = (
        Index("ix_api_objects_public", "account_id", "public_id"),
        Index("ix_api_objects_group", "group_id"),
        Index("ix_api_objects_sameness", "account_id", "sameness"),
        Index("ix_api_objects_upload", "upload_expires_at"),
    )

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    dialect: Mapped[str] = mapped_column(String(20))
    public_id: Mapped[str | None] = mapped_column(String(80))
    asked: Mapped[dict[str, Any]] = mapped_column(default=dict)
    events: Mapped[list[str]] = mapped_column(default=list)
    on_unknown: Mapped[str] = mapped_column(String(10), default="")
    base_url: Mapped[str] = mapped_column(default="")
    group_id: Mapped[str | None] = mapped_column(String(80))
    sameness: Mapped[str | None] = mapped_column(String(64))
    upload_hash: Mapped[str | None] = mapped_column(String(64))
    upload_expires_at: Mapped[datetime | None]
    liked_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class ApiGroup(Table):
    """Prompts whose caller wants one callback when all of them have ended."""

    __tablename__ = "api_groups"

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    dialect: Mapped[str] = mapped_column(String(20))
    callback_url: Mapped[str]
    created_at: Mapped[datetime]
    done_at: Mapped[datetime | None]


class Pack(Table):
    """A list of prompts by class that is rendered for every tune made from it.

    Attributes:
        account_id: Owner; None for packs of the installation, which everybody sees.
        fields: Title, base, model type and whatever else its dialect keeps.
        prompts: Rows `{id, class, text, settings …}`.
    """

    __tablename__ = "packs"
    __table_args__ = (
        UniqueConstraint("slug", name="uq_packs_slug"),
        Index("ix_packs_account", "account_id", "number"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    slug: Mapped[str] = mapped_column(String(120))
    account_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id"))
    title: Mapped[str]
    fields: Mapped[dict[str, Any]] = mapped_column(default=dict)
    prompts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    public_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Workspace(Table):
    """A name under which an account keeps tunes and prompts apart; see the rows' `ApiObject.asked["workspace_id"]`.

    Attributes:
        fields: Whatever its dialect keeps.
    """

    __tablename__ = "workspaces"
    __table_args__ = (
        UniqueConstraint("slug", name="uq_workspaces_slug"),
        Index("ix_workspaces_account", "account_id", "number"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    slug: Mapped[str] = mapped_column(String(120))
    title: Mapped[str]
    fields: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

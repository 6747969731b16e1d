"""The tables of deletion: what is being deleted and was, and which rows name which files of the store."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from tunes_dagster.registry.tables import Table


class Deletion(Table):
    """Something that is being deleted, and later the record that it was: it stays when everything else is gone.

    Written in the transaction that makes the subject unreachable; `service/erase.py` drives it to its end.

    Attributes:
        kind: tune; prompt. Of a prompt whose `reason` is `expired` only the pictures go.
        label: Empty; records of earlier versions held a title.
        reason: asked, expired.
        rule: The rule that it expired by, or what was asked for (`asked over HTTP`).
        state: open; watched (all of it is gone, and what a late writer leaves is still looked for); done.
        step: The step that was finished last; empty before the first one.
        attempts: How often it was begun or gone on with.
        next_at: Nobody drives it before this: another one does, or it went wrong a moment ago.
        traces: What the steps after the next one need to know of what the next one removes; empty when done.
        files: Files removed from the store.
        bytes: Their size.
        what: Number of files by kind: pictures, captions, caches, weights, renders …; `left`: what could not go.
        at: When it was asked for.
        done_at: When nothing was left to do or look for.
    """

    __tablename__ = "deletions"
    __table_args__ = (
        Index("ix_deletions_account", "account_id", "at"),
        Index("ix_deletions_subject", "subject_id"),
        Index("ix_deletions_due", "state", "next_at"),
    )

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"))
    kind: Mapped[str] = mapped_column(String(20))
    subject_id: Mapped[str] = mapped_column(String(80))
    label: Mapped[str] = mapped_column(default="")
    reason: Mapped[str] = mapped_column(String(20))
    rule: Mapped[str] = mapped_column(default="")
    state: Mapped[str] = mapped_column(String(10), default="open", server_default="done")
    step: Mapped[str] = mapped_column(String(20), default="", server_default="")
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    next_at: Mapped[datetime | None]
    traces: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    files: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    what: Mapped[dict[str, Any]] = mapped_column(default=dict)
    at: Mapped[datetime]
    done_at: Mapped[datetime | None]

    @property
    def takes_words(self) -> bool:
        """Whether the subject's words go as well as its pictures."""
        return self.kind == "tune" or self.reason != "expired"


class Blob(Table):
    """A file of the store that several may name: content by hash, or an upload. Its lock decides who may remove it.

    Attributes:
        key: In the store.
        named_at: When somebody named it last.
        held_until: Until then it is about to be named: a request that comes with it is being accepted.
    """

    __tablename__ = "blobs"

    key: Mapped[str] = mapped_column(String(300), primary_key=True)
    named_at: Mapped[datetime]
    held_until: Mapped[datetime | None]


class BlobUse(Table):
    """A tune or prompt that needs a `Blob`.

    Attributes:
        ended_at: When the subject was deleted. The row stays until its deletion is done: what a late writer still
            writes there is found by it.
    """

    __tablename__ = "blob_uses"
    __table_args__ = (Index("ix_blob_uses_subject", "subject_id"),)

    key: Mapped[str] = mapped_column(ForeignKey("blobs.key"), primary_key=True)
    subject_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    ended_at: Mapped[datetime | None]

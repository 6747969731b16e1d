"""Idempotency keys: whether a request was asked already, and what it was answered."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tunes_dagster.core.ids import new_id
from tunes_dagster.registry.api_tables import IdempotencyKey
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock, lock_one
from tunes_dagster.registry.retrying import repeatable

# A first request that is this old and still unanswered died with its server; the next one takes over.
ABANDONED_SECONDS = 120.0


def bind_idempotent(session: Session, account_id: str, key: str, claim: str, subject_ids: list[str]) -> bool:
    """Write what a request makes into its key's row, in the transaction that makes it.

    Returns:
        False when the key was taken over by another request: then nothing may be made.
    """
    row = lock_one(session, IdempotencyKey, *_named(account_id, key))
    if row is None or row.claim != claim:
        return False
    row.subjects = [*(row.subjects or []), *subject_ids]
    return True


class Idempotency(Part):
    """Keys of requests, each with the claim of the request that answers it."""

    def begin(
        self, account_id: str, key: str, body_hash: str, body: dict[str, Any]
    ) -> tuple[str, IdempotencyKey | None]:
        """Claim a key for the request that is to be answered.

        Returns:
            The claim, and None, when the caller is the first and must answer. Else nothing, and the row of the first
            request: its `subjects` are there as soon as it made them, its `status_code` once it was answered.
        """
        now, claim = self.now(), new_id("claim")
        row = IdempotencyKey(
            account_id=account_id, key=key, body_hash=body_hash, body=body, claim=claim, created_at=now
        )
        try:
            with self.writing() as session:
                found = lock_one(session, IdempotencyKey, *_named(account_id, key))
                if found is None:
                    session.add(row)
                    return claim, None
                stale = now - found.created_at > timedelta(seconds=ABANDONED_SECONDS)
                if found.status_code is None and not found.subjects and stale:
                    found.created_at, found.body_hash, found.body, found.claim = now, body_hash, body, claim
                    return claim, None
                return "", found
        except IntegrityError:  # two firsts at once on PostgreSQL
            return "", self.get(account_id, key)

    def get(self, account_id: str, key: str) -> IdempotencyKey | None:
        """Return a key's row, or None."""
        with self.reading() as session:
            return session.get(IdempotencyKey, (account_id, key))

    @repeatable
    def end(self, account_id: str, key: str, claim: str, status_code: int | None, answer: str = "") -> None:
        """Keep the answer of the first request.

        Args:
            account_id: Who asks.
            key: The key.
            claim: Of the request; of one that was taken over nothing is kept.
            status_code: None gives the key free again, unless something was made under it.
            answer: Body of the answer.
        """
        with self.writing() as session:
            row = lock_one(session, IdempotencyKey, *_named(account_id, key))
            if row is None or row.claim != claim:
                return
            if status_code is not None:
                row.status_code, row.answer = status_code, answer
            elif not row.subjects:
                session.delete(row)

    def forget(self, older_than_seconds: float = 86_400.0) -> int:
        """Delete keys that nobody repeats any more; returns how many."""
        limit = self.now() - timedelta(seconds=older_than_seconds)
        with self.writing() as session:
            old = lock(session, IdempotencyKey, IdempotencyKey.created_at < limit, skip=True)
            for row in old:
                session.delete(row)
            return len(old)


def _named(account_id: str, key: str) -> tuple[ColumnElement[bool], ...]:
    return IdempotencyKey.account_id == account_id, IdempotencyKey.key == key

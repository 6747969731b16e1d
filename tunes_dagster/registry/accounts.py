"""API keys and idempotency keys: who asks, and whether they asked already."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry.api_tables import ApiKey, IdempotencyKey
from tunes_dagster.registry.engine import Database
from tunes_dagster.registry.locks import lock, lock_one
from tunes_dagster.registry.missing import no_account
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.tables import Account

# A first request that is this old and still unanswered died with its server; the next one takes over.
ABANDONED_SECONDS = 120.0


def key_hash(secret: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


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


class AccountQueries(Database):
    """Keys."""

    def add_key(
        self, account_id: str, prefix: str = "", name: str = "", days: float | None = None
    ) -> tuple[ApiKey, str]:
        """Make a key, good for so many days or for ever; the second value is the secret, which is never seen again."""
        secret = prefix + secrets.token_hex(20)
        ends = None if days is None else self.now() + timedelta(days=days)
        row = ApiKey(
            id=new_id("key"),
            account_id=account_id,
            hash=key_hash(secret),
            name=name,
            hint=f"{secret[: len(prefix) + 4]}…{secret[-4:]}",
            created_at=self.now(),
            expires_at=ends,
        )
        with self.writing() as session:
            if session.get(Account, account_id) is None:
                raise no_account(account_id)
            session.add(row)
        return row, secret

    def find_key(self, secret: str) -> ApiKey | None:
        """Return the row of a key, revoked ones included; None for a secret that was never given out."""
        with self.reading() as session:
            return session.scalars(select(ApiKey).where(ApiKey.hash == key_hash(secret))).first()

    def list_keys(self, account_id: str | None = None) -> list[ApiKey]:
        """Return keys, oldest first."""
        query = select(ApiKey).order_by(ApiKey.id)
        if account_id is not None:
            query = query.where(ApiKey.account_id == account_id)
        with self.reading() as session:
            return list(session.scalars(query))

    def revoke_key(self, key_id: str) -> ApiKey:
        """Refuse a key from now on.

        Raises:
            Failure: `INVALID_REQUEST` when there is none.
        """
        with self.writing() as session:
            row = lock_one(session, ApiKey, ApiKey.id == key_id)
            if row is None:
                raise Failure(
                    FailureCode.INVALID_REQUEST, f"There is no key {key_id!r}.", "See: tunes keys list"
                )
            row.revoked_at = row.revoked_at or self.now()
            return row

    def list_accounts(self) -> list[Account]:
        """Return all accounts by name."""
        with self.reading() as session:
            return list(session.scalars(select(Account).order_by(Account.id)))

    def begin_idempotent(
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
            return "", self.get_idempotent(account_id, key)

    def get_idempotent(self, account_id: str, key: str) -> IdempotencyKey | None:
        """Return a key's row, or None."""
        with self.reading() as session:
            return session.get(IdempotencyKey, (account_id, key))

    @repeatable
    def end_idempotent(
        self, account_id: str, key: str, claim: str, status_code: int | None, answer: str = ""
    ) -> None:
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

    def forget_idempotent(self, older_than_seconds: float = 86_400.0) -> int:
        """Delete keys that nobody repeats any more; returns how many."""
        limit = self.now() - timedelta(seconds=older_than_seconds)
        with self.writing() as session:
            old = lock(session, IdempotencyKey, IdempotencyKey.created_at < limit, skip=True)
            for row in old:
                session.delete(row)
            return len(old)


def _named(account_id: str, key: str) -> tuple[ColumnElement[bool], ...]:
    return IdempotencyKey.account_id == account_id, IdempotencyKey.key == key

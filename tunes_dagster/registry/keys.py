"""API keys: who asks."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from sqlalchemy import select

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry.api_tables import ApiKey
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock_one
from tunes_dagster.registry.missing import no_account
from tunes_dagster.registry.tables import Account


def key_hash(secret: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Keys(Part):
    """Keys."""

    def add(
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

    def find(self, secret: str) -> ApiKey | None:
        """Return the row of a key, revoked ones included; None for a secret that was never given out."""
        with self.reading() as session:
            return session.scalars(select(ApiKey).where(ApiKey.hash == key_hash(secret))).first()

    def rows(self, account_id: str | None = None) -> list[ApiKey]:
        """Return keys, oldest first."""
        query = select(ApiKey).order_by(ApiKey.id)
        if account_id is not None:
            query = query.where(ApiKey.account_id == account_id)
        with self.reading() as session:
            return list(session.scalars(query))

    def revoke(self, key_id: str) -> ApiKey:
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

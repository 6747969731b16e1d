"""Accounts: adding them, and the rules that hang on them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock_one
from tunes_dagster.registry.missing import no_account
from tunes_dagster.registry.retention import RULES
from tunes_dagster.registry.tables import Account


class Accounts(Part):
    """Everything about accounts but their keys and credits."""

    def add(self, id: str, name: str = "") -> Account:
        """Add an account, or return the one of this id.

        Raises:
            Failure: `INVALID_REQUEST` for an id that nobody could read or type.
        """
        if not id.strip() or not id.isprintable():
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"{id!r} cannot be the id of an account.",
                "Take letters and digits: ann",
            )
        with self.writing() as session:
            account = session.get(Account, id)
            if account is None:
                account = Account(id=id, name=name or id, callback_unknown="resend", created_at=self.now())
                session.add(account)
            return account

    def get(self, account_id: str) -> Account:
        """Return an account.

        Raises:
            Failure: `INVALID_REQUEST` when there is none.
        """
        with self.reading() as session:
            account = session.get(Account, account_id)
        if account is None:
            raise no_account(account_id)
        return account

    def set_callback_options(
        self, account_id: str, *, secret: str | None = None, unknown: str = "resend"
    ) -> Account:
        """Set how an account's callbacks are signed, and what becomes of those with unknown outcome.

        Args:
            account_id: The account.
            secret: `whsec_…` (base64), or None for unsigned callbacks.
            unknown: `resend` or `hold`.
        """
        if unknown not in ("resend", "hold"):
            raise Failure(FailureCode.INVALID_REQUEST, f"{unknown!r} is neither 'resend' nor 'hold'.")
        if secret is not None:
            from standardwebhooks import Webhook

            try:
                Webhook(secret)
            except Exception as error:
                raise Failure(
                    FailureCode.INVALID_REQUEST,
                    "The signing secret is not base64.",
                    "Use `whsec_` followed by 24-64 random bytes as base64.",
                ) from error
        with self.writing() as session:
            account = lock_one(session, Account, Account.id == account_id)
            if account is None:
                raise no_account(account_id)
            if account.callback_secret != secret:
                account.callback_secret_old = account.callback_secret if secret else None
            account.callback_secret, account.callback_unknown = secret, unknown
            return account

    def rows(self) -> list[Account]:
        """Return all accounts by name."""
        with self.reading() as session:
            return list(session.scalars(select(Account).order_by(Account.id)))

    def set_retention(self, account_id: str, **rules: Any) -> Account:
        """Change an account's rules; see `Account` for their names.

        Raises:
            Failure: `INVALID_REQUEST` when there is no such account.
        """
        unknown = set(rules) - set(RULES)
        if unknown:
            raise ValueError(f"{sorted(unknown)} are no rules.")
        self.get(account_id)
        with self.writing() as session:
            account = lock_one(session, Account, Account.id == account_id)
            assert account is not None
            for name, value in rules.items():
                setattr(account, name, value)
            return account

"""What is kept beside the work itself: accounts, the timeline, and what the drop folder's sensor has seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import select

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry.engine import Database
from tunes_dagster.registry.locks import lock_one
from tunes_dagster.registry.missing import no_account
from tunes_dagster.registry.tables import Account, Drop, Event
from tunes_dagster.registry.transitions import note


class JournalQueries(Database):
    """Accounts, events, drops."""

    def add_account(self, id: str, name: str = "") -> Account:
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

    def get_account(self, account_id: str) -> Account:
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

    def add_event(
        self, subject_id: str, phase: str, message: str, data: dict[str, Any] | None = None
    ) -> None:
        """Add a line to the timeline of a tune, prompt or batch."""
        with self.writing() as session:
            note(session, subject_id, phase, message, self.now(), **(data or {}))

    def events(self, subject_id: str, after: int = 0, limit: int = 500) -> list[Event]:
        """Return the timeline of a subject, oldest first, from after event number `after`."""
        query = select(Event).where(Event.subject_id == subject_id, Event.id > after)
        with self.reading() as session:
            return list(session.scalars(query.order_by(Event.id).limit(limit)))

    def list_drops(self, paths: Iterable[str] | None = None) -> dict[str, Drop]:
        """Return what is known about dropped datasets, by path."""
        query = select(Drop)
        if paths is not None:
            query = query.where(Drop.path.in_(list(paths)))
        with self.reading() as session:
            return {drop.path: drop for drop in session.scalars(query)}

    def record_drop(
        self, path: str, *, fingerprint: str, state: str, tune_id: str | None = None, message: str = ""
    ) -> Drop:
        """Write what the sensor saw and did about one dropped dataset."""
        with self.writing() as session:
            drop = lock_one(session, Drop, Drop.path == path)
            if drop is None:
                drop = Drop(path=path, fingerprint=fingerprint, state=state, seen_at=self.now())
                session.add(drop)
            drop.fingerprint, drop.state, drop.message = fingerprint, state, message
            drop.tune_id = tune_id or drop.tune_id
            drop.seen_at = self.now()
            return drop

    def forget_drop(self, path: str) -> None:
        """Forget a dropped dataset, so that it counts as new."""
        with self.writing() as session:
            drop = lock_one(session, Drop, Drop.path == path)
            if drop is not None:
                session.delete(drop)

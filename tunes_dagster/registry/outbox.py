"""The outbox: which callbacks are due, who is sending them, and what came of every attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, or_, select, update

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry.engine import Database
from tunes_dagster.registry.tables import Account, Callback, Delivery

UNKNOWN_OUTCOME = "The sender ended before the answer was recorded: it is not known whether this arrived."


@dataclass(frozen=True)
class Sending:
    """One attempt that is recorded and may now be sent.

    Attributes:
        delivery_id: Where its outcome belongs.
        callback_id: The receiver's idempotency key (`webhook-id`), the same in every attempt.
        event: `tune.ready`, …
        url: Receiver.
        body: JSON.
        secret: Signing secret of the account, or None.
        attempt: Counts from 1.
        secret_old: The account's secret before, which also signs while receivers move.
        subject_id: Tune, prompt or group.
        form: Dialect whose form it takes; see `callbacks/forms.py`.
        method: GET carries no body.
    """

    delivery_id: str
    callback_id: str
    event: str
    url: str
    body: Any
    secret: str | None
    attempt: int
    secret_old: str | None = None
    subject_id: str = ""
    form: str = ""
    method: str = "POST"


class OutboxQueries(Database):
    """Leases, attempts, outcomes, replay."""

    def lease_callbacks(self, lease_seconds: float, limit: int = 500) -> tuple[str, dict[str, str]]:
        """Take due callbacks for a while, so that no other sender takes them.

        Returns:
            The lease, and the addresses of the callbacks under it by their ids, longest due first.
        """
        now, lease_id = self.now(), new_id("lease")
        due = (
            select(Callback.id)
            .where(
                Callback.state == "pending",
                Callback.next_attempt_at <= now,
                or_(Callback.lease_until.is_(None), Callback.lease_until < now),
            )
            .order_by(Callback.next_attempt_at)
            .limit(limit)
        )
        with self.reading() as session:  # most ticks find nothing and need no write lock
            if session.scalars(due.limit(1)).first() is None:
                return lease_id, {}
        with self.writing() as session:
            ids = list(session.scalars(due.with_for_update(skip_locked=True)))
            leased = (
                update(Callback)
                .where(Callback.id.in_(ids))
                .values(lease_id=lease_id, lease_until=now + timedelta(seconds=lease_seconds))
                .returning(Callback.id, Callback.url)
                .execution_options(synchronize_session=False)
            )
            urls = {row[0]: row[1] for row in session.execute(leased)} if ids else {}
        return lease_id, {callback_id: urls[callback_id] for callback_id in ids}

    def begin_delivery(self, callback_id: str, lease_id: str) -> Sending | None:
        """Record an attempt before it is sent.

        Returns:
            What to send; None when the lease was lost, a 2xx is recorded, or the account wants callbacks of
            unknown outcome held.
        """
        now = self.now()
        with self.writing() as session:
            query = select(Callback).where(Callback.id == callback_id).with_for_update()
            row = session.scalars(query).first()
            if row is None or row.state != "pending" or row.lease_id != lease_id:
                return None
            account = session.get(Account, row.account_id)
            unknown = select(Delivery).where(
                Delivery.callback_id == callback_id, Delivery.finished_at.is_(None), Delivery.error.is_(None)
            )
            for delivery in session.scalars(unknown):
                delivery.error = UNKNOWN_OUTCOME
                if row.on_unknown == "hold" or (account is not None and account.callback_unknown == "hold"):
                    row.state, row.lease_id, row.lease_until = "held", None, None
            if row.state == "held":
                return None
            row.attempts += 1
            delivery_id = new_id("dlv")
            session.add(Delivery(id=delivery_id, callback_id=row.id, attempt=row.attempts, started_at=now))
            return Sending(
                delivery_id,
                row.id,
                row.event,
                row.url,
                row.body,
                account.callback_secret if account else None,
                row.attempts,
                account.callback_secret_old if account else None,
                row.subject_id,
                row.form,
            )

    def end_delivery(
        self,
        delivery_id: str,
        *,
        status_code: int | None = None,
        error: str | None = None,
        response_head: str | None = None,
        retry_after: float | None = None,
        final: bool = False,
    ) -> Callback:
        """Record what came of an attempt, and decide what becomes of the callback.

        Args:
            delivery_id: From `begin_delivery`.
            status_code: Of the answer, if there was one.
            error: Why there was none, or why it does not count.
            response_head: First bytes of the answer.
            retry_after: Seconds that the receiver asked for.
            final: Trying again is pointless.
        """
        now = self.now()
        with self.writing() as session:
            delivery = session.get_one(Delivery, delivery_id)
            query = select(Callback).where(Callback.id == delivery.callback_id).with_for_update()
            row = session.scalars(query).one()
            delivery.finished_at, delivery.status_code = now, status_code
            delivery.error, delivery.response_head = error, response_head
            ok = status_code is not None and 200 <= status_code < 300 and error is None
            newest = delivery.attempt == row.attempts
            if ok:
                row.state, row.delivered_at, row.next_attempt_at = "delivered", now, None
            elif newest and row.state == "pending":
                tried = row.attempts - row.attempts_before
                if final or tried > len(self.callback_backoff):
                    row.state, row.next_attempt_at = "dead", None
                else:
                    wait = max(self.callback_backoff[tried - 1], min(retry_after or 0.0, 86_400.0))
                    row.next_attempt_at = now + timedelta(seconds=wait)
            if ok or newest:
                row.lease_id = row.lease_until = None
            return row

    def release_lease(self, lease_id: str, callback_ids: Sequence[str]) -> None:
        """Give back callbacks of a lease that were not tried; one that is in the air keeps its lease."""
        flying = exists().where(
            Delivery.callback_id == Callback.id, Delivery.finished_at.is_(None), Delivery.error.is_(None)
        )
        with self.writing() as session:
            session.execute(
                update(Callback)
                .where(Callback.id.in_(callback_ids), Callback.lease_id == lease_id, ~flying)
                .values(lease_id=None, lease_until=None)
                .execution_options(synchronize_session=False)
            )

    def next_callback_at(self) -> datetime | None:
        """Return when the next pending callback is due, or None."""
        query = select(Callback.next_attempt_at).where(Callback.state == "pending")
        with self.reading() as session:
            return session.scalars(query.order_by(Callback.next_attempt_at).limit(1)).first()

    def get_callback(self, callback_id: str) -> Callback:
        """Return one callback.

        Raises:
            Failure: `INVALID_REQUEST` when there is none.
        """
        with self.reading() as session:
            row = session.get(Callback, callback_id)
        if row is None:
            raise Failure(FailureCode.INVALID_REQUEST, f"There is no callback {callback_id!r}.")
        return row

    def list_callbacks(
        self,
        state: str | Sequence[str] | None = None,
        subject_id: str | None = None,
        limit: int = 50,
        callback_id: str | None = None,
    ) -> list[Callback]:
        """Return callbacks, newest first."""
        query = select(Callback).order_by(Callback.id.desc()).limit(limit)  # ids sort by creation
        if isinstance(state, str):
            query = query.where(Callback.state == state)
        elif state is not None:
            query = query.where(Callback.state.in_(state))
        if subject_id is not None:
            query = query.where(Callback.subject_id == subject_id)
        if callback_id is not None:
            query = query.where(Callback.id == callback_id)
        with self.reading() as session:
            return list(session.scalars(query))

    def list_deliveries(self, callback_id: str) -> list[Delivery]:
        """Return every attempt at a callback, oldest first."""
        query = select(Delivery).where(Delivery.callback_id == callback_id).order_by(Delivery.attempt)
        with self.reading() as session:
            return list(session.scalars(query))

    def replay_callback(self, callback_id: str, *, force: bool = False) -> Callback:
        """Make a callback due now, with its whole backoff ahead of it again.

        Args:
            callback_id: The callback.
            force: Send it although it was delivered.

        Raises:
            Failure: `CONFLICT` when a 2xx is recorded and `force` is not given.
        """
        with self.writing() as session:
            query = select(Callback).where(Callback.id == callback_id).with_for_update()
            row = session.scalars(query).first()
            if row is None:
                raise Failure(FailureCode.INVALID_REQUEST, f"There is no callback {callback_id!r}.")
            if row.state == "delivered" and not force:
                raise Failure(
                    FailureCode.CONFLICT,
                    f"The callback {callback_id} was delivered at {row.delivered_at:%Y-%m-%d %H:%M:%S} UTC.",
                    "Use --force to send it once more.",
                )
            row.state, row.next_attempt_at, row.attempts_before = "pending", self.now(), row.attempts
            row.lease_id = row.lease_until = None
            return row

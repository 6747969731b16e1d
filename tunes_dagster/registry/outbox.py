"""The outbox: which callbacks are due, who is sending them, and what came of every attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Exists, exists, func, or_, select, update
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry.accepting import Claim, keep_claim
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import chunks, lock, lock_columns, lock_one
from tunes_dagster.registry.missing import no_callback
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.tables import Account, Callback, Delivery

# Rows that are looked at to let accounts take turns.
_LINES = 20_000
UNKNOWN_OUTCOME = "The sender ended before the answer was recorded: it is not known whether this arrived."


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True)
class Leased:
    """A callback under a lease: whose it is and where it goes, by which senders take turns."""

    account_id: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A callback that shows somebody's receiver what would come; the fields are those of `Callback`."""

    url: str
    body: dict[str, Any]
    event: str = "sample"
    subject_id: str = "sample"
    form: str = ""
    on_unknown: str = ""


class Outbox(Part):
    """Leases, attempts, outcomes, replay."""

    def lease(self, lease_seconds: float, limit: int = 500) -> tuple[str, dict[str, Leased]]:
        """Take due callbacks for a while, so that no other sender takes them; accounts take turns.

        Returns:
            The lease, and the callbacks under it by their ids: everybody's longest due first, then everybody's second.
        """
        now, lease_id = self.now(), new_id("lease")
        due = (
            Callback.state == "pending",
            Callback.next_attempt_at <= now,
            or_(Callback.lease_until.is_(None), Callback.lease_until < now),
        )
        with self.reading() as session:  # most ticks find nothing and need no write lock
            ids = _in_turns(session, due, limit)
        if not ids:
            return lease_id, {}
        with self.writing() as session:
            # By their ids alone, and looked at here: SQLite would rather walk through all that are due. Without their
            # bodies: one that cannot be read must not keep the others.
            looked = (Callback.next_attempt_at, Callback.lease_until)
            rows = lock_columns(
                session, Callback, looked, Callback.id.in_(ids), Callback.state == "pending", skip=True
            )
            free = [
                key
                for key, moment, until in rows
                if moment is not None and moment <= now and (until is None or until < now)
            ]
            leased = (
                update(Callback)
                .where(Callback.id.in_(free))
                .values(lease_id=lease_id, lease_until=now + timedelta(seconds=lease_seconds))
                .returning(Callback.id, Callback.account_id, Callback.url)
                .execution_options(synchronize_session=False)
            )
            taken = {row[0]: Leased(row[1], row[2]) for row in session.execute(leased)}
        return lease_id, {callback_id: taken[callback_id] for callback_id in ids if callback_id in taken}

    @repeatable
    def begin_delivery(
        self, callback_id: str, lease_id: str, delivery_id: str | None = None
    ) -> Sending | None:
        """Record an attempt before it is sent.

        Args:
            callback_id: Under the lease.
            lease_id: From `lease_callbacks`.
            delivery_id: The attempt's, made by the caller; the same one twice is one attempt.

        Returns:
            What to send; None when the lease was lost, a 2xx is recorded, or the account wants callbacks of
            unknown outcome held.
        """
        now = self.now()
        with self.writing() as session:
            row = lock_one(session, Callback, Callback.id == callback_id)
            if row is None or row.state != "pending" or row.lease_id != lease_id:
                return None
            account = session.get(Account, row.account_id)
            unknown = select(Delivery).where(
                Delivery.callback_id == callback_id, Delivery.finished_at.is_(None), Delivery.error.is_(None)
            )
            begun = False
            for delivery in session.scalars(unknown):
                if delivery.id == delivery_id:  # recorded the first time, and not sent yet
                    begun = True
                    continue
                delivery.error = UNKNOWN_OUTCOME
                if row.on_unknown == "hold" or (account is not None and account.callback_unknown == "hold"):
                    row.state, row.next_attempt_at = "held", None
                    row.lease_id = row.lease_until = None
            if row.state == "held":
                return None
            chosen = delivery_id or new_id("dlv")
            if not begun:
                row.attempts += 1
                session.add(Delivery(id=chosen, callback_id=row.id, attempt=row.attempts, started_at=now))
            return Sending(
                delivery_id=chosen,
                callback_id=row.id,
                event=row.event,
                url=row.url,
                body=row.body,
                secret=account.callback_secret if account else None,
                attempt=row.attempts,
                secret_old=account.callback_secret_old if account else None,
                subject_id=row.subject_id,
                form=row.form,
            )

    @repeatable
    def end_delivery(
        self,
        delivery_id: str,
        *,
        status_code: int | None = None,
        error: str | None = None,
        response_head: str | None = None,
        retry_after: float | None = None,
        final: bool = False,
    ) -> Callback | None:
        """Record what came of an attempt, and decide what becomes of the callback.

        An attempt that is not known any more changes nothing: its tune was deleted meanwhile, or a backup was put back
        that was made before it.

        Args:
            delivery_id: From `begin_delivery`.
            status_code: Of the answer, if there was one.
            error: Why there was none, or why it does not count.
            response_head: First bytes of the answer.
            retry_after: Seconds that the receiver asked for.
            final: Trying again is pointless.

        Returns:
            The callback; None when the attempt is not known any more.
        """
        now = self.now()
        with self.writing() as session:
            delivery = session.get(Delivery, delivery_id)
            row = lock_one(session, Callback, Callback.id == delivery.callback_id) if delivery else None
            if delivery is None or row is None:
                return None
            if delivery.finished_at is not None and delivery.error is None:
                return row  # it arrived; what a tick noted because it could not wait for the answer comes too late
            delivery.finished_at, delivery.status_code = now, status_code
            delivery.error, delivery.response_head = error, response_head
            ok = status_code is not None and 200 <= status_code < 300 and error is None
            newest = delivery.attempt == row.attempts
            if ok:
                row.state, row.delivered_at, row.next_attempt_at = "delivered", now, None
            elif newest and row.state == "pending":
                tried = row.attempts - row.attempts_before
                if final or tried > len(self.database.retries.callback_backoff):
                    row.state, row.next_attempt_at = "dead", None
                else:
                    wait = max(
                        self.database.retries.callback_backoff[tried - 1], min(retry_after or 0.0, 86_400.0)
                    )
                    row.next_attempt_at = now + timedelta(seconds=wait)
            if ok or newest:
                row.lease_id = row.lease_until = None
            return row

    def bury(self, callback_id: str, lease_id: str, reason: str) -> None:
        """Give up a callback that cannot even be read as a row, with an attempt that says why."""
        now = self.now()
        with self.writing() as session:
            buried = (
                update(Callback)
                .where(Callback.id == callback_id, Callback.lease_id == lease_id, Callback.state == "pending")
                .values(
                    state="dead",
                    next_attempt_at=None,
                    attempts=Callback.attempts + 1,
                    lease_id=None,
                    lease_until=None,
                )
                .returning(Callback.attempts)
                .execution_options(synchronize_session=False)
            )
            if (attempt := session.scalars(buried).first()) is not None:
                session.add(
                    Delivery(
                        id=new_id("dlv"),
                        callback_id=callback_id,
                        attempt=attempt,
                        started_at=now,
                        finished_at=now,
                        error=reason,
                    )
                )

    @repeatable
    def release_lease(self, lease_id: str, callback_ids: Sequence[str]) -> None:
        """Give back callbacks of a lease that were not tried; one that is in the air keeps its lease."""
        flying = _flying()
        with self.writing() as session:
            for part in chunks(sorted(callback_ids)):
                for row in lock(
                    session, Callback, Callback.id.in_(part), Callback.lease_id == lease_id, ~flying
                ):
                    row.lease_id = row.lease_until = None

    def next_at(self) -> datetime | None:
        """Return when the next pending callback is due, or None."""
        query = select(Callback.next_attempt_at).where(Callback.state == "pending")
        with self.reading() as session:
            return session.scalars(query.order_by(Callback.next_attempt_at).limit(1)).first()

    def get(self, callback_id: str) -> Callback:
        """Return one callback.

        Raises:
            Failure: `INVALID_REQUEST` when there is none.
        """
        with self.reading() as session:
            row = session.get(Callback, callback_id)
        if row is None:
            raise no_callback(callback_id)
        return row

    def rows(
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

    def deliveries(self, callback_id: str) -> list[Delivery]:
        """Return every attempt at a callback, oldest first."""
        query = select(Delivery).where(Delivery.callback_id == callback_id).order_by(Delivery.attempt)
        with self.reading() as session:
            return list(session.scalars(query))

    def replay(self, callback_id: str, *, force: bool = False) -> Callback:
        """Make a callback due now, with its whole backoff ahead of it again.

        While an attempt at it is in the air it stays with its sender: a second one beside it would be a repeat.

        Args:
            callback_id: The callback.
            force: Send it although it was delivered.

        Raises:
            Failure: `CONFLICT` when a 2xx is recorded and `force` is not given.
        """
        with self.writing() as session:
            row = lock_one(session, Callback, Callback.id == callback_id)
            if row is None:
                raise no_callback(callback_id)
            if row.state == "delivered" and not force:
                raise Failure(
                    FailureCode.CONFLICT,
                    f"The callback {callback_id} was delivered at {row.delivered_at:%Y-%m-%d %H:%M:%S} UTC.",
                    "Use --force to send it once more.",
                )
            now = self.now()
            row.state, row.next_attempt_at, row.attempts_before = "pending", now, row.attempts
            flying = _flying().where(Callback.id == callback_id)
            if row.lease_until is not None and row.lease_until >= now and session.scalar(select(flying)):
                # The attempt in the air is the first of them: another one beside it would repeat it.
                row.attempts_before -= 1
            else:
                row.lease_id = row.lease_until = None
            return row

    def add(self, account_id: str, sample: Sample, claim: Claim | None = None) -> Callback:
        """Owe a callback that no state change caused."""
        now = self.now()
        row = Callback(
            id=new_id("cb"),
            account_id=account_id,
            event=sample.event,
            subject_id=sample.subject_id,
            url=sample.url,
            body=sample.body,
            form=sample.form,
            on_unknown=sample.on_unknown,
            next_attempt_at=now,
            created_at=now,
        )
        with self.writing() as session:
            session.add(row)
            session.flush()
            keep_claim(session, account_id, claim, [row.id])
        return row

    def of_account(self, account_id: str, limit: int = 50) -> list[Callback]:
        """Return an account's callbacks, newest first."""
        query = (
            select(Callback)
            .where(Callback.account_id == account_id)
            .order_by(Callback.id.desc())
            .limit(limit)
        )
        with self.reading() as session:
            return list(session.scalars(query))


def _flying() -> Exists:
    """Return the condition that an attempt at a callback was begun, and that nothing was heard of it since."""
    return exists().where(
        Delivery.callback_id == Callback.id, Delivery.finished_at.is_(None), Delivery.error.is_(None)
    )


def _in_turns(session: Session, due: Sequence[ColumnElement[bool]], limit: int) -> list[str]:
    """Return the ids of due callbacks: everybody's longest due first, then everybody's second, and so on.

    The accounts are found by jumping from one to the next in the index: a backlog of one of them costs nothing.
    """
    pending = select(func.min(Callback.account_id)).where(Callback.state == "pending")
    found = pending.cte("found", recursive=True)
    following = pending.where(Callback.account_id > found.c[0]).scalar_subquery()
    found = found.union_all(select(following).where(found.c[0].is_not(None)))
    accounts = [one for one in session.scalars(select(found.c[0])) if one is not None]
    lines: list[tuple[int, datetime, str]] = []
    most = max(1, _LINES // max(1, len(accounts)))
    for account in accounts:
        line = select(Callback.id, Callback.next_attempt_at).where(Callback.account_id == account, *due)
        line = line.order_by(Callback.next_attempt_at).limit(min(limit, most))
        lines += [(turn, moment, key) for turn, (key, moment) in enumerate(session.execute(line))]
    return [key for _turn, _moment, key in sorted(lines)[:limit]]

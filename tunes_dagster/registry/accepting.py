"""What belongs into the transaction that accepts work, beside the work: how its caller sees it, and what its key made.

Whoever takes requests in hands it over; no row of it is written anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry.api_tables import ApiGroup, ApiObject, Reservation
from tunes_dagster.registry.idempotency import bind_idempotent
from tunes_dagster.registry.ledger import lock_account
from tunes_dagster.registry.tables import Prompt, Tune


@dataclass(frozen=True, kw_only=True)
class Seen:
    """How its caller will see a tune or prompt; the fields are those of `ApiObject`.

    Attributes:
        upload_minutes: How long its pictures may take that are sent afterwards.
    """

    dialect: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[str] = ()
    public_id: str | None = None
    on_unknown: str = ""
    base_url: str = ""
    group_id: str | None = None
    sameness: str | None = None
    upload_hash: str | None = None
    upload_minutes: float = 0.0

    def row(self, subject_id: str, account_id: str, price: int, now: datetime) -> ApiObject:
        """Return it as a row."""
        until = now + timedelta(minutes=self.upload_minutes)
        return ApiObject(
            id=subject_id,
            account_id=account_id,
            dialect=self.dialect,
            public_id=self.public_id,
            asked={**self.asked, "price": price},
            events=list(self.events),
            on_unknown=self.on_unknown,
            base_url=self.base_url,
            group_id=self.group_id,
            sameness=self.sameness,
            created_at=now,
            upload_hash=self.upload_hash,
            upload_expires_at=until if self.upload_hash else None,
        )


@dataclass(frozen=True)
class NewGroup:
    """Prompts that are told of together; see `ApiGroup`."""

    id: str
    dialect: str
    callback_url: str


@dataclass(frozen=True)
class Claim:
    """A request's hold of its `Idempotency-Key`; see `IdempotencyKey`."""

    key: str
    token: str


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What a request wants to be kept with its work.

    Attributes:
        seen: Of the tune and then its prompts, or of the prompts, in their order.
        group: They are told of together.
        claim: The key's row that is to name what was made.
        same_title: A tune of the account with the same title stands for this one.
        dry_run: Do everything, and keep nothing of it.
    """

    seen: Sequence[Seen]
    group: NewGroup | None = None
    claim: Claim | None = None
    same_title: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Accepted:
    """What came of it.

    Attributes:
        rows: The tune and then its prompts, or the prompts; after a rehearsal as they would be.
        prices: Micro-dollars that are held, by id; what holds nothing is left out.
        again: They were accepted before, by another request.
    """

    rows: Sequence[Tune | Prompt]
    prices: Mapping[str, int] = field(default_factory=dict)
    again: bool = False

    @property
    def tune(self) -> Tune:
        """The tune, where one was accepted."""
        (tune,) = (row for row in self.rows if isinstance(row, Tune))
        return tune

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts."""
        return [row for row in self.rows if isinstance(row, Prompt)]


class TakenOver(Failure):
    """Another request answers for the same key: this one must not make anything any more."""

    def __init__(self) -> None:
        said = "Another request with this Idempotency-Key has taken over; send it again for its answer"
        super().__init__(FailureCode.CONFLICT, said, "")


def keep_claim(session: Session, account_id: str, claim: Claim | None, subjects: list[str]) -> None:
    """Write what is made into the row of its request's key, if it has one.

    Raises:
        TakenOver: Nothing may be made then.
    """
    if claim is not None and not bind_idempotent(session, account_id, claim.key, claim.token, subjects):
        raise TakenOver


def same_tune(session: Session, account_id: str, title: str) -> Tune | None:
    """Return the newest tune of a title; who asks for another one at the same time waits."""
    lock_account(session, account_id)
    same = select(Tune).where(Tune.account_id == account_id, Tune.deleted_at.is_(None), Tune.title == title)
    return session.scalar(same.order_by(Tune.number.desc()).limit(1))


def same_prompt(session: Session, account_id: str, acceptance: Acceptance) -> Prompt | None:
    """Return the prompt that one of the same sameness made; who asks for another one at the same time waits."""
    same = [one.sameness for one in acceptance.seen if one.sameness]
    if not same:
        return None
    lock_account(session, account_id)
    known = select(Prompt).join(ApiObject, ApiObject.id == Prompt.id)
    known = known.where(
        ApiObject.account_id == account_id,
        ApiObject.sameness.in_(same),
        ApiObject.public_id.is_(None),  # one that was deleted is made again
    )
    return session.scalar(known.order_by(ApiObject.id).limit(1))


def keep(
    session: Session, account_id: str, acceptance: Acceptance, rows: Sequence[Tune | Prompt], now: datetime
) -> Accepted:
    """Write how the caller sees what is accepted, and what its key made.

    Raises:
        TakenOver: Nothing may be accepted then.
    """
    if (group := acceptance.group) is not None:
        row = ApiGroup(
            id=group.id,
            account_id=account_id,
            dialect=group.dialect,
            callback_url=group.callback_url,
            created_at=now,
        )
        session.add(row)
    session.flush()
    ids = [one.id for one in rows]
    held = select(Reservation.subject_id, Reservation.amount).where(Reservation.subject_id.in_(ids))
    prices = dict(session.execute(held).tuples().all())
    session.add_all(
        seen.row(one.id, account_id, prices.get(one.id, 0), now)
        for one, seen in zip(rows, acceptance.seen, strict=True)
    )
    if not acceptance.dry_run:
        made = [one.id for one in rows if isinstance(one, Tune)] or ids
        keep_claim(session, account_id, acceptance.claim, made)
    return Accepted(list(rows), prices)

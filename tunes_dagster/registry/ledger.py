"""Credits as a double-entry ledger in micro-dollars: granted, reserved on acceptance, settled or returned at the end.

The functions take the session of the transaction that also makes or ends the work, so that a price is held
exactly while its work is open. `Wallet.available` and `Wallet.reserved` repeat the sums of the postings, for
one-row reads under a lock; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry.api_tables import LedgerEntry, LedgerPosting, Reservation, Wallet
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock_each, lock_one
from tunes_dagster.registry.missing import no_wallet
from tunes_dagster.registry.tables import Account

MICRO = 1_000_000
# Most that one movement may carry, in micro-dollars: far above any, and far below what a column holds.
MOST = 10**15
# What the entry of a sign-up grant is called; it is no month's.
SIGN_UP = "sign-up"


def post(
    session: Session,
    wallet: Wallet,
    kind: str,
    postings: dict[str, int],
    now: datetime,
    subject_id: str | None = None,
    memo: str = "",
) -> None:
    """Write one entry and carry its postings into the wallet.

    Args:
        session: The caller's transaction; holds the wallet's lock.
        wallet: Whose credits move.
        kind: See `LedgerEntry`.
        postings: Book to amount; must sum to zero.
        now: Time of the entry.
        subject_id: Tune or prompt.
        memo: For people.
    """
    if sum(postings.values()) != 0 or any(type(n) is not int for n in postings.values()):
        raise ValueError(f"The postings {postings} are not whole numbers that sum to zero.")
    entry = LedgerEntry(account_id=wallet.account_id, at=now, kind=kind, subject_id=subject_id, memo=memo)
    session.add(entry)
    session.flush()
    session.add_all(
        LedgerPosting(entry_id=entry.id, book=book, amount=n) for book, n in postings.items() if n
    )
    wallet.available += postings.get("account", 0)
    wallet.reserved += postings.get("reserved", 0)


def lock_wallet(session: Session, account_id: str) -> Wallet | None:
    """Return an account's wallet, locked until the transaction ends; None when it never had one."""
    return lock_one(session, Wallet, Wallet.account_id == account_id)


def lock_wallets(session: Session, account_ids: Iterable[str]) -> list[Wallet]:
    """Lock the wallets of several accounts, before any of them changes."""
    return lock_each(session, Wallet, Wallet.account_id, account_ids)


def lock_account(session: Session, account_id: str) -> None:
    """Let those who would do the same for an account come one after another.

    Taken before any other lock, and in a mode that rows which refer to the account do not wait for.
    """
    lock_one(session, Account, Account.id == account_id)


def turn_month(session: Session, wallet: Wallet, now: datetime) -> None:
    """Take back what is left of last month's grant and give this month's."""
    month = f"{now:%Y-%m}"
    if wallet.grant_month >= month:
        return
    if wallet.grant_left:
        left = wallet.grant_left
        post(session, wallet, "expire", {"account": -left, "grants": left}, now, memo=wallet.grant_month)
    if wallet.monthly_grant:
        given = wallet.monthly_grant
        post(session, wallet, "grant", {"grants": -given, "account": given}, now, memo=month)
    wallet.grant_left, wallet.grant_month = wallet.monthly_grant, month


def _of_plan(plan: str, monthly: int) -> str:
    """Return what the grant of a better plan is called: never as the sign-up grant, whatever the plan's name."""
    return f"plan {plan}, ${monthly / MICRO:g} a month"


def granted_in_month(session: Session, wallet: Wallet) -> int:
    """Return what the wallet's month has brought so far by its plans, the sign-up grant not counted."""
    year, month = (int(part) for part in wallet.grant_month.split("-"))
    query = (
        select(func.sum(LedgerPosting.amount))
        .join(LedgerEntry, LedgerEntry.id == LedgerPosting.entry_id)
        .where(
            LedgerEntry.account_id == wallet.account_id,
            LedgerEntry.kind == "grant",
            LedgerEntry.memo != SIGN_UP,
            LedgerEntry.at >= datetime(year, month, 1, tzinfo=UTC),
            LedgerPosting.book == "account",
        )
    )
    return int(session.scalar(query) or 0)


def check_affordable(wallet: Wallet, amount: int) -> None:
    """Refuse a price that a wallet cannot pay.

    Raises:
        Failure: `OUT_OF_CREDITS`.
        ValueError: For a price below zero, which would add to the wallet.
    """
    if amount < 0:
        raise ValueError(f"A price of {amount} micro-dollars would add credits.")
    if amount > wallet.available:
        raise Failure(
            FailureCode.OUT_OF_CREDITS,
            f"This costs ${amount / MICRO:g}, but only ${wallet.available / MICRO:g} are left.",
            "Add credits, or wait for the next month's grant.",
            facts={"price": amount, "available": wallet.available},
        )


def reserve(session: Session, account_id: str, subject_id: str, amount: int, now: datetime) -> Wallet | None:
    """Hold the price of work that is being accepted in this transaction.

    Raises:
        Failure: `OUT_OF_CREDITS`; the caller's transaction must not be committed then.
    """
    wallet = lock_wallet(session, account_id)
    if wallet is None:
        return None
    turn_month(session, wallet, now)
    check_affordable(wallet, amount)
    from_grant = min(amount, wallet.grant_left)
    wallet.grant_left -= from_grant
    session.add(
        Reservation(
            subject_id=subject_id,
            account_id=account_id,
            amount=amount,
            from_grant=from_grant,
            month=wallet.grant_month,
            created_at=now,
        )
    )
    if amount:
        post(session, wallet, "reserve", {"account": -amount, "reserved": amount}, now, subject_id)
    return wallet


def reserve_many(
    session: Session, account_id: str, prices: Mapping[str, int], now: datetime, memo: str
) -> Wallet | None:
    """Hold the prices of many prompts that are being accepted together: one entry, one reservation each.

    Raises:
        Failure: `OUT_OF_CREDITS`; the caller's transaction must not be committed then.
    """
    wallet = lock_wallet(session, account_id)
    if wallet is None or not prices:
        return wallet
    turn_month(session, wallet, now)
    total = sum(prices.values())
    check_affordable(wallet, min(prices.values()))
    check_affordable(wallet, total)
    for subject_id, amount in prices.items():
        from_grant = min(amount, wallet.grant_left)
        wallet.grant_left -= from_grant
        session.add(
            Reservation(
                subject_id=subject_id,
                account_id=account_id,
                amount=amount,
                from_grant=from_grant,
                month=wallet.grant_month,
                created_at=now,
            )
        )
    if total:
        post(session, wallet, "reserve", {"account": -total, "reserved": total}, now, memo=memo)
    return wallet


def hold(
    session: Session, account_id: str, prices: Mapping[str, int | None], now: datetime, memo: str
) -> None:
    """Hold the prices of what is accepted in this transaction, by id; what has none is not charged.

    Raises:
        Failure: `OUT_OF_CREDITS`, with the price of all of it; the caller's transaction must not be committed then.
    """
    asked = {subject_id: price for subject_id, price in prices.items() if price is not None}
    if len(asked) > 1:
        reserve_many(session, account_id, asked, now, memo)
    for subject_id, price in asked.items() if len(asked) == 1 else ():
        reserve(session, account_id, subject_id, price, now)


def close_reservation(session: Session, subject_id: str, now: datetime, share: float) -> None:
    """Settle a share of what work held, and return the rest; nothing happens the second time.

    Args:
        session: The transaction that ends the work.
        subject_id: Tune or prompt.
        now: Time of the entries.
        share: 1 when all was delivered, 0 when nothing was.
    """
    held = session.get(Reservation, subject_id)
    if held is None or held.state != "open":
        return
    wallet = lock_wallet(session, held.account_id)
    if wallet is None:
        return
    session.refresh(held)
    if held.state != "open":
        return
    turn_month(session, wallet, now)
    charged = round(held.amount * min(1.0, max(0.0, share)))
    back = held.amount - charged
    held.state, held.closed_at, held.settled = "closed", now, charged
    if charged:
        post(session, wallet, "settle", {"reserved": -charged, "revenue": charged}, now, subject_id)
    if back:
        post(session, wallet, "return", {"reserved": -back, "account": back}, now, subject_id)
        # The grant was spent first, so what comes back of it comes back last.
        of_grant = max(0, held.from_grant - charged)
        if of_grant and held.month == wallet.grant_month:
            wallet.grant_left += of_grant
        elif of_grant:  # its month is over: grants do not roll over, also not through a reservation
            post(session, wallet, "expire", {"account": -of_grant, "grants": of_grant}, now, memo=held.month)


class Ledger(Part):
    """Wallets and their history."""

    def open_wallet(
        self,
        account_id: str,
        *,
        plan: str,
        requests_per_minute: int,
        monthly_grant: int = 0,
        sign_up_grant: int = 0,
        email: str = "",
    ) -> Wallet:
        """Give an account a wallet, or change the plan of the one it has; the sign-up grant comes once.

        A month brings what the best of its plans grants, however often the plan changes in it.
        """
        now = self.now()
        with self.writing() as session:
            lock_account(session, account_id)  # of two first openers, one waits
            wallet = lock_wallet(session, account_id)
            fresh = wallet is None
            if wallet is None:
                wallet = Wallet(
                    account_id=account_id,
                    plan=plan,
                    requests_per_minute=requests_per_minute,
                    monthly_grant=monthly_grant,
                    available=0,
                    reserved=0,
                    grant_left=0,
                    grant_month="",
                    options={},
                )
                session.add(wallet)
                session.flush()
            turn_month(session, wallet, now)
            more = monthly_grant - granted_in_month(session, wallet)
            if more > 0:  # a better plan counts from this month on
                post(
                    session,
                    wallet,
                    "grant",
                    {"grants": -more, "account": more},
                    now,
                    memo=_of_plan(plan, monthly_grant),
                )
                wallet.grant_left += more
            wallet.plan, wallet.requests_per_minute = plan, requests_per_minute
            wallet.monthly_grant, wallet.email = monthly_grant, email or wallet.email or ""
            if fresh and sign_up_grant:
                post(
                    session,
                    wallet,
                    "grant",
                    {"grants": -sign_up_grant, "account": sign_up_grant},
                    now,
                    memo=SIGN_UP,
                )
            return wallet

    def options_of(self, account_id: str) -> dict[str, Any]:
        """Return the options of an account; of one without a wallet there are none."""
        with self.reading() as session:
            wallet = session.get(Wallet, account_id)
            return dict(wallet.options) if wallet is not None else {}

    def wallet(self, account_id: str) -> Wallet:
        """Return an account's wallet, with this month's grant in it.

        Raises:
            Failure: `INVALID_REQUEST` when the account has none.
        """
        now = self.now()
        with self.reading() as session:
            wallet = session.get(Wallet, account_id)
        if wallet is None:
            raise no_wallet(account_id)
        if wallet.grant_month >= f"{now:%Y-%m}":
            return wallet
        with self.writing() as session:
            locked = lock_wallet(session, account_id)
            assert locked is not None
            turn_month(session, locked, now)
            return locked

    def adjust(self, account_id: str, amount: int, memo: str = "") -> Wallet:
        """Add credits that do not expire, or take some away, never below zero.

        Raises:
            Failure: `INVALID_REQUEST`, `OUT_OF_CREDITS`.
        """
        if abs(amount) > MOST:
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"${amount / MICRO:g} at a time are too much.",
                f"Move at most ${MOST // MICRO:,} at a time.",
            )
        now = self.now()
        with self.writing() as session:
            wallet = lock_wallet(session, account_id)
            if wallet is None:
                raise no_wallet(account_id)
            turn_month(session, wallet, now)
            if wallet.available + amount < 0:
                raise Failure(
                    FailureCode.OUT_OF_CREDITS, f"Only ${wallet.available / MICRO:g} are left.", "Take less."
                )
            post(session, wallet, "adjust", {"grants": -amount, "account": amount}, now, memo=memo)
            wallet.grant_left = min(wallet.grant_left, wallet.available)
            return wallet

    def set_options(self, account_id: str, **options: object) -> Wallet:
        """Change an account's options; None removes one."""
        with self.writing() as session:
            wallet = lock_wallet(session, account_id)
            if wallet is None:
                raise no_wallet(account_id)
            merged = {**wallet.options, **options}
            wallet.options = {name: value for name, value in merged.items() if value is not None}
            return wallet

    def entries(
        self, account_id: str, limit: int = 50, before: int | None = None
    ) -> list[tuple[LedgerEntry, int]]:
        """Return an account's entries with what each did to `available`, newest first."""
        moved = func.coalesce(
            select(func.sum(LedgerPosting.amount))
            .where(LedgerPosting.entry_id == LedgerEntry.id, LedgerPosting.book == "account")
            .scalar_subquery(),
            0,
        )
        query = select(LedgerEntry, moved).where(LedgerEntry.account_id == account_id)
        if before is not None:
            query = query.where(LedgerEntry.id < before)
        with self.reading() as session:
            rows = session.execute(query.order_by(LedgerEntry.id.desc()).limit(limit))
            return [(row[0], int(row[1])) for row in rows]

    def books(self, account_id: str) -> dict[str, int]:
        """Return the sum of every book of an account, from the postings themselves."""
        query = (
            select(LedgerPosting.book, func.sum(LedgerPosting.amount))
            .join(LedgerEntry, LedgerEntry.id == LedgerPosting.entry_id)
            .where(LedgerEntry.account_id == account_id)
            .group_by(LedgerPosting.book)
        )
        with self.reading() as session:
            return {row[0]: int(row[1]) for row in session.execute(query)}

    def prices_of(self, subject_ids: list[str]) -> dict[str, Reservation]:
        """Return what each tune or prompt was reserved and charged."""
        with self.reading() as session:
            rows = session.scalars(select(Reservation).where(Reservation.subject_id.in_(subject_ids)))
            return {row.subject_id: row for row in rows}

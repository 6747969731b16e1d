"""What earlier versions may have left behind in the rows: found by queries, changed by nobody.

Each fault was possible once and is not any more; a registry that was written meanwhile may still hold what it did.
`tunes doctor` shows what is found here. Money is held against the rule of `settling.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, String, and_, case, cast, exists, func, literal, or_, select
from sqlalchemy.orm import Session

from tunes_dagster.core.work import WorkKind
from tunes_dagster.registry.api_tables import ApiObject, LedgerEntry, LedgerPosting, Pack, Reservation, Wallet
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.settling import owed
from tunes_dagster.registry.tables import Prompt, Tune, Work
from tunes_dagster.registry.transitions import ENDED_TUNE, LOST_TUNE, OPEN_PROMPT, OPEN_WORK
from tunes_dagster.registry.uses import PromptTune, find_doubtful, used_and_not_ready

# Rows that one fault names; the rest is counted.
NAMED = 20
# Rows of one account that are looked at one by one.
_MOST = 100_000
_ENDED_PROMPT = ("done", "failed", "blocked", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What one kind of fault did to one account.

    Attributes:
        kind: A word for programs: `foreign_tune`, `pack_callback`, `held_for_nothing`, …
        account_id: Whose rows they are.
        says: One sentence.
        remedy: What to do.
        subjects: Ids of the rows, the first `NAMED` of them.
        count: How many there are.
    """

    kind: str
    account_id: str
    says: str
    remedy: str
    subjects: tuple[str, ...] = ()
    count: int = 0


@dataclass
class _Found:
    """Rows of one account, with what is said of them."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def fault(self, kind: str, account_id: str, says: str, remedy: str) -> Fault:
        """Return them as a fault; `{count}` and `{rows}` stand for their number and the first of them."""
        first = ", ".join(said for _id, said in self.rows[:NAMED])
        more = f" and {len(self.rows) - NAMED} more" if len(self.rows) > NAMED else ""
        ids = tuple(subject_id for subject_id, _said in self.rows[:NAMED])
        words = {"count": len(self.rows), "rows": first + more, "account": account_id}
        return Fault(
            kind=kind,
            account_id=account_id,
            says=says.format(**words),
            remedy=remedy.format(**words),
            subjects=ids,
            count=len(self.rows),
        )


class Audit(Part):
    """Looks for what earlier faults did."""

    def faults(self) -> list[Fault]:
        """Return every fault that is found, by kind and account."""
        looks: tuple[Callable[[Session], Sequence[Fault]], ...] = (
            _doubtful_uses,
            _pack_callbacks,
            _callbacks_of_packs,
            _stranded,
            _held_for_nothing,
            _nothing_works_on,
            _given_away,
            _charged_for_nothing,
            _charged_otherwise,
            _granted_twice,
            _books,
        )
        with self.reading() as session:
            return [fault for look in looks for fault in look(session)]


def _by_account(rows: Sequence[tuple[str, str, str]]) -> dict[str, _Found]:
    """Return (account, id, words) by account, in the order of the accounts."""
    found: dict[str, _Found] = {}
    for account_id, subject_id, said in sorted(rows, key=lambda row: row[0]):
        found.setdefault(account_id, _Found()).rows.append((subject_id, said))
    return found


def _faults(kind: str, rows: Sequence[tuple[str, str, str]], says: str, remedy: str) -> list[Fault]:
    return [one.fault(kind, account, says, remedy) for account, one in _by_account(rows).items()]


def _doubtful_uses(session: Session) -> list[Fault]:
    """Prompts that were rendered, or would be, with another account's tune, or that name one which was never clear.

    The operator's own pictures may show all: earlier versions let its account use every tune.
    """
    foreign, unclear = [], []
    for one in find_doubtful(session, _MOST):
        prompt = one.prompt
        said = f"prompt {prompt.number} ({prompt.status}, "
        if one.tune is None:
            unclear.append((prompt.account_id, prompt.id, f"{said}{one.word!r})"))
        elif prompt.account_id != "local" or prompt.status != "done":
            said += f"tune {one.tune.number} of {one.tune.account_id})"
            foreign.append((prompt.account_id, prompt.id, said))
    return [
        *_faults(
            "foreign_tune",
            foreign,
            "{count} prompts of {account} use a tune of another account: {rows}.",
            "Look at their pictures; tell both accounts, and delete the pictures that must not be there. Those that "
            "were not rendered yet will be refused.",
        ),
        *_faults(
            "unclear_tune",
            unclear,
            "{count} prompts of {account} name a tune that is none of the account's, or several: {rows}.",
            "Those that were not rendered yet will be refused: ask {account} to send them again with the tune's id. "
            "Pictures of the others are not found when a tune that they show is deleted: look at them.",
        ),
    ]


def _callbacks_in(pack: Pack) -> set[str]:
    """Return the callback addresses that a pack holds."""
    rows: list[dict[str, Any]] = [*(pack.prompts or {}).get("rows", []), pack.fields or {}]
    names = ("callback", "callback_url", "prompts_callback", "webhook_url")
    return {str(row[name]) for row in rows for name in names if row.get(name)}


def _pack_callbacks(session: Session) -> list[Fault]:
    """Packs that hold their author's callback: it would be told of the pictures of whoever uses the pack."""
    rows = [
        (pack.account_id or "", str(pack.number), f"{pack.slug} ({len(_callbacks_in(pack))})")
        for pack in session.scalars(select(Pack).order_by(Pack.number))
        if _callbacks_in(pack)
    ]
    return _faults(
        "pack_callback",
        rows,
        "{count} packs of {account} hold callback addresses, which are told of the pictures of whoever uses them: "
        "{rows}.",
        "Have {account} make the pack again without `callback`.",
    )


def _callbacks_of_packs(session: Session) -> list[Fault]:
    """Prompts whose callback came with another account's pack."""
    query = (
        select(Prompt.account_id, Prompt.id, Prompt.number, Prompt.callback_url, Pack)
        .join(ApiObject, ApiObject.id == Prompt.id)
        .join(Pack, cast(Pack.number, String) == ApiObject.asked["pack_id"].as_string())
        .where(Prompt.callback_url.is_not(None), Pack.account_id.is_not(None))
        .where(Pack.account_id != Prompt.account_id)
        .order_by(Prompt.number)
        .limit(_MOST)
    )
    found = list(session.execute(query))
    users: dict[str, set[str]] = {}
    for account, _id, _number, url, pack in found:
        users.setdefault(url, set()).update(
            (account, *([pack.account_id] if _used_by(session, pack, url) else []))
        )
    rows = [
        (account, prompt_id, f"prompt {number} (pack {pack.slug} of {pack.account_id})")
        for account, prompt_id, number, url, pack in found
        if url in _callbacks_in(pack) or len(users[url]) > 1
    ]
    return _faults(
        "callback_of_pack",
        rows,
        "{count} prompts of {account} have a callback that came with another account's pack, whose author is told of "
        "their pictures: {rows}.",
        "Tell {account}; `tunes callbacks list --json` shows what was delivered.",
    )


def _used_by(session: Session, pack: Pack, url: str) -> bool:
    """Whether a pack's author has this address at prompts of their own."""
    own = exists().where(Prompt.account_id == pack.account_id, Prompt.callback_url == url)
    return bool(session.scalar(select(own)))


def _stranded(session: Session) -> list[Fault]:
    """Prompts that wait for a tune that has ended."""
    query = (
        select(Prompt.account_id, Prompt.id, Prompt.number, Tune.number, Tune.status)
        .join(PromptTune, PromptTune.prompt_id == Prompt.id)
        .join(Tune, Tune.id == PromptTune.tune_id)
        .where(Prompt.status == "waiting", or_(Tune.status.in_(LOST_TUNE), ~used_and_not_ready()))
        .order_by(Prompt.number, PromptTune.place)
        .limit(_MOST)
    )
    rows = [
        (account, prompt_id, f"prompt {number} (tune {tune} is {status})")
        for account, prompt_id, number, tune, status in session.execute(query)
    ]
    return _faults(
        "stranded",
        rows,
        "{count} prompts of {account} wait for tunes that have ended: {rows}.",
        "Nothing to do: they follow their tunes as soon as the daemon runs (`tunes dev`).",
    )


def _held_for_nothing(session: Session) -> list[Fault]:
    """Open reservations of what has ended or is not there."""
    tune = select(Tune.status).where(Tune.id == Reservation.subject_id).scalar_subquery()
    prompt = select(Prompt.status).where(Prompt.id == Reservation.subject_id).scalar_subquery()
    status = func.coalesce(tune, prompt, literal("gone"))
    query = (
        select(Reservation.account_id, Reservation.subject_id, Reservation.amount, status)
        .where(Reservation.state == "open", status.in_(("gone", *ENDED_TUNE, *_ENDED_PROMPT)))
        .order_by(Reservation.created_at)
        .limit(_MOST)
    )
    rows = [
        (account, subject_id, f"{subject_id} ({said}, ${amount / 1e6:g})")
        for account, subject_id, amount, said in session.execute(query)
    ]
    return _faults(
        "held_for_nothing",
        rows,
        "Credits of {account} are still held for {count} tunes and prompts that have ended: {rows}.",
        "`tunes doctor --mend` settles them by the rule of docs/registry.md.",
    )


def idle_rows(session: Session) -> list[tuple[str, str, str]]:
    """Return (account, id, words) of tunes and prompts that have not ended and that no work is open for."""
    busy = exists().where(Work.subject_id == Tune.id, Work.state.in_(OPEN_WORK))
    tunes = select(Tune.account_id, Tune.id, Tune.number, Tune.status).where(
        Tune.status.not_in(("awaiting_images", *ENDED_TUNE)), ~busy
    )
    rendering = exists().where(
        Work.subject_id == Prompt.batch_id, Work.kind == WorkKind.RENDER, Work.state.in_(OPEN_WORK)
    )
    prompts = select(Prompt.account_id, Prompt.id, Prompt.number, Prompt.status).where(
        Prompt.status.in_(OPEN_PROMPT), Prompt.batch_id.is_not(None), ~rendering
    )
    return [
        (account, subject_id, f"{kind} {number} ({status})")
        for kind, query in (("tune", tunes), ("prompt", prompts))
        for account, subject_id, number, status in session.execute(query.limit(_MOST))
    ]


def _nothing_works_on(session: Session) -> list[Fault]:
    """Tunes that have not ended and that no work is open for, and prompts whose batch has ended without them."""
    return _faults(
        "nobody_works_on",
        idle_rows(session),
        "Nobody will ever work on {count} tunes and prompts of {account}: {rows}.",
        "`tunes doctor --mend` puts them back into the queue.",
    )


def _priced(*conditions: Any) -> Select[Any]:
    """Return what tunes held and were charged, as far as they fit and cost something."""
    return (
        select(Tune.account_id, Tune.id, Tune.number, Tune.status, Reservation.amount, Reservation.settled)
        .join(Reservation, Reservation.subject_id == Tune.id)
        .where(Reservation.state == "closed", Reservation.amount > 0, *conditions)
        .order_by(Tune.number)
        .limit(_MOST)
    )


def _given_away(session: Session) -> list[Fault]:
    """Tunes that were trained, then cancelled or deleted, and paid nothing, as it once was."""
    trained = Tune.result["weights_key"].as_string().is_not(None)
    query = _priced(
        Tune.status.in_(("cancelled", "deleted")), Tune.computed == 0, Reservation.settled == 0, trained
    )
    rows = [
        (account, tune_id, f"tune {number} (${amount / 1e6:g})")
        for account, tune_id, number, _status, amount, _settled in session.execute(query)
    ]
    return _faults(
        "given_away",
        rows,
        "{account} got all credits back for {count} tunes that were trained before they were cancelled: {rows}.",
        "Their weights are not served any more. Charge them, if you mean to: tunes accounts grant {account} -USD "
        "--memo TEXT.",
    )


def _charged_for_nothing(session: Session) -> list[Fault]:
    """Tunes and prompts that failed or were blocked, and were charged."""
    prompts = (
        select(
            Prompt.account_id,
            Prompt.id,
            Prompt.number,
            Prompt.status,
            Reservation.amount,
            Reservation.settled,
        )
        .join(Reservation, Reservation.subject_id == Prompt.id)
        .where(Prompt.status.in_(("failed", "blocked")), Reservation.settled > 0)
        .order_by(Prompt.number)
        .limit(_MOST)
    )
    rows = [
        (account, subject_id, f"{kind} {number} ({status}, ${settled / 1e6:g})")
        for kind, query in (
            ("tune", _priced(Tune.status == "failed", Reservation.settled > 0)),
            ("prompt", prompts),
        )
        for account, subject_id, number, status, _amount, settled in session.execute(query)
    ]
    return _faults(
        "charged_for_nothing",
        rows,
        "{account} was charged for {count} tunes and prompts that failed: {rows}.",
        "Give it back: tunes accounts grant {account} USD --memo TEXT.",
    )


def _charged_otherwise(session: Session) -> list[Fault]:
    """Tunes that are ready and prompts that are done, and were charged more or less than they owe."""
    rows = [
        (account, tune_id, f"tune {number} (${settled / 1e6:g} of ${amount / 1e6:g})")
        for account, tune_id, number, _status, amount, settled in session.execute(
            _priced(Tune.status == "ready", Reservation.settled != Reservation.amount)
        )
    ]
    prompts = (
        select(Prompt, Reservation)
        .join(Reservation, Reservation.subject_id == Prompt.id)
        .where(Prompt.status == "done", Prompt.expired_at.is_(None), Reservation.state == "closed")
        .where(Reservation.amount > 0, Reservation.settled != Reservation.amount)
        .order_by(Prompt.number)
        .limit(_MOST)
    )
    for prompt, held in session.execute(prompts):
        if held.settled != round(held.amount * min(1.0, owed(prompt, 0.0))):
            said = f"prompt {prompt.number} (${held.settled / 1e6:g} of ${held.amount / 1e6:g})"
            rows.append((prompt.account_id, prompt.id, said))
    return _faults(
        "charged_otherwise",
        rows,
        "{account} was charged another price than was held for {count} tunes and prompts that are there: {rows}.",
        "Settle the difference: tunes accounts grant {account} USD --memo TEXT (negative takes it away).",
    )


def _granted_twice(session: Session) -> list[Fault]:
    """Months in which a plan's grant was given more than once: by changing the plan down and up."""
    query = (
        select(LedgerEntry.account_id, LedgerEntry.at, LedgerEntry.memo, LedgerPosting.amount)
        .join(LedgerPosting, and_(LedgerPosting.entry_id == LedgerEntry.id, LedgerPosting.book == "account"))
        .where(LedgerEntry.kind == "grant")
        .order_by(LedgerEntry.id)
    )
    given: dict[tuple[str, str, str], list[int]] = {}
    for account, at, memo, amount in session.execute(query):
        given.setdefault((account, f"{at:%Y-%m}", memo), []).append(amount)
    rows = [
        (account, f"{month}/{memo}", f"{month} {memo} (${sum(amounts[1:]) / 1e6:g} too much)")
        for (account, month, memo), amounts in given.items()
        if len(amounts) > 1
    ]
    return _faults(
        "granted_twice",
        rows,
        "{account} was given the grant of a plan again after it had changed its plan: {rows}.",
        "Take it back, if you mean to: tunes accounts grant {account} -USD --memo TEXT.",
    )


def _books(session: Session) -> list[Fault]:
    """Wallets that say something else than their postings and open reservations."""
    posted = {
        account: (int(available or 0), int(reserved or 0))
        for account, available, reserved in session.execute(
            select(
                LedgerEntry.account_id,
                func.sum(case((LedgerPosting.book == "account", LedgerPosting.amount), else_=0)),
                func.sum(case((LedgerPosting.book == "reserved", LedgerPosting.amount), else_=0)),
            )
            .join(LedgerPosting, LedgerPosting.entry_id == LedgerEntry.id)
            .group_by(LedgerEntry.account_id)
        )
    }
    held = {
        account: int(amount)
        for account, amount in session.execute(
            select(Reservation.account_id, func.sum(Reservation.amount))
            .where(Reservation.state == "open")
            .group_by(Reservation.account_id)
        )
    }
    rows = []
    for wallet in session.scalars(select(Wallet)):
        available, reserved = posted.get(wallet.account_id, (0, 0))
        said = {
            "available": (wallet.available, available),
            "reserved": (wallet.reserved, reserved),
            "open reservations": (wallet.reserved, held.get(wallet.account_id, 0)),
        }
        wrong = [
            f"{name} ${says / 1e6:g}, not ${is_ / 1e6:g}" for name, (says, is_) in said.items() if says != is_
        ]
        rows += [(wallet.account_id, wallet.account_id, one) for one in wrong]
    return _faults(
        "books",
        rows,
        "The wallet of {account} says {rows}.",
        "Please report it with the output of `tunes doctor --json`; the postings of the ledger count.",
    )

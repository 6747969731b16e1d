"""The one order in which rows are locked, and the one way to lock them.

Two transactions that lock the same rows in different orders wait for each other until PostgreSQL ends one of them.
So a transaction locks table by table in the order of `ORDER`, and the rows of a table by rising primary key, all of
them in one call of `lock` or `lock_each`. Whoever will lock wallets or groups of several prompts locks them all before
the first one changes (`ledger.lock_wallets`, `transitions.lock_ends`).

What is written was locked before, or was made in the same transaction. Exempt are rows that only change under the lock
of another row (`GUARDED`), and a single row that one UPDATE changes by itself.

The locks are `FOR NO KEY UPDATE`: primary keys never change, so rows that refer to a locked one can be added beside it.
`tests/support/lock_order.py` watches every transaction of the tests for all of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import inspect, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from tunes_dagster.registry.api_tables import (
    ApiGroup,
    ApiKey,
    ApiObject,
    IdempotencyKey,
    LedgerEntry,
    LedgerPosting,
    Pack,
    Reservation,
    Wallet,
    Workspace,
)
from tunes_dagster.registry.campaign_tables import Campaign, CampaignDate, CampaignPrompt
from tunes_dagster.registry.deletion_tables import Blob, BlobUse, Deletion
from tunes_dagster.registry.session_tables import DeviceRun, DeviceRunLine, DeviceSession
from tunes_dagster.registry.tables import (
    Account,
    Batch,
    Callback,
    Cohort,
    Delivery,
    Drop,
    Event,
    Prompt,
    Table,
    Tune,
    Work,
)
from tunes_dagster.registry.uses import PromptTune

ORDER: tuple[type[Table], ...] = (
    Account,
    Campaign,
    CampaignDate,
    Tune,
    Batch,
    Work,
    ApiObject,
    Prompt,
    PromptTune,
    Wallet,
    ApiGroup,
    Callback,
    Event,
    Cohort,
    Pack,
    Workspace,
    ApiKey,
    Drop,
    Blob,
    IdempotencyKey,
    DeviceRun,
    Deletion,
    DeviceSession,
)

# Rows that change only while the row that guards them is locked: (their column, the guard).
GUARDED: dict[type[Table], tuple[str, type[Table]]] = {
    BlobUse: ("key", Blob),
    CampaignPrompt: ("date_id", CampaignDate),
    Delivery: ("callback_id", Callback),
    DeviceRunLine: ("device_run_id", DeviceRun),
    LedgerEntry: ("account_id", Wallet),
    LedgerPosting: ("entry_id", LedgerEntry),
    Reservation: ("account_id", Wallet),
}

# Values of one IN list; SQLite takes 32,766.
_CHUNK = 5_000

Row = TypeVar("Row", bound=Table)


def chunks(values: Iterable[Any], size: int = _CHUNK) -> Iterator[list[Any]]:
    """Cut values into lists that one statement takes."""
    rows = list(values)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def lock(session: Session, table: type[Row], *conditions: Any, skip: bool = False) -> list[Row]:
    """Return the rows that fit, as they are now, locked until the transaction ends.

    Args:
        session: The transaction.
        table: Which; its place in `ORDER` must not be before that of rows locked already.
        conditions: Of a WHERE clause.
        skip: Leave out rows that somebody else has locked, instead of waiting for them.
    """
    query = select(table).where(*conditions).order_by(*inspect(table).primary_key)
    query = query.with_for_update(key_share=True, skip_locked=skip)
    return list(session.scalars(query.execution_options(populate_existing=True, tunes_lock=table)))


def lock_columns(
    session: Session,
    table: type[Row],
    columns: Sequence[InstrumentedAttribute[Any]],
    *conditions: Any,
    skip: bool = False,
) -> list[tuple[Any, ...]]:
    """Return the key and some columns of the rows that fit, locked as by `lock`, without reading the whole rows."""
    keys = inspect(table).primary_key
    query = select(*keys, *columns).where(*conditions).order_by(*keys)
    query = query.with_for_update(key_share=True, skip_locked=skip)
    return [tuple(row) for row in session.execute(query, execution_options={"tunes_lock": table})]


def lock_one(session: Session, table: type[Row], *conditions: Any) -> Row | None:
    """Return the row that fits, locked, or None."""
    return next(iter(lock(session, table, *conditions)), None)


def lock_each(
    session: Session, table: type[Row], column: InstrumentedAttribute[Any], values: Iterable[Any]
) -> list[Row]:
    """Return the rows whose column has one of the values, locked in the order of their keys, however many they are."""
    (key,) = inspect(table).primary_key
    wanted = set(values)
    if column.key != key.key:
        wanted = {
            found for part in chunks(wanted) for found in session.scalars(select(key).where(column.in_(part)))
        }
    return [row for part in chunks(sorted(wanted)) for row in lock(session, table, key.in_(part))]

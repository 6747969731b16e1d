"""Watches every transaction for the order in which it locks rows; see `tunes_dagster.registry.locks`.

Listens to all sessions of the process. What breaks the rules raises at once, also on SQLite, which has no row locks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import ORMExecuteState, Session

from tunes_dagster.registry.locks import GUARDED, ORDER

RANK = {table: number for number, table in enumerate(ORDER)}


class LockOrderBroken(AssertionError):
    """A transaction that could wait for another one which waits for it."""


class Held:
    """What one transaction has locked.

    Attributes:
        rows: Table → keys of its locked rows, those that it made included.
        highest: Rank and key of the last lock it may have had to wait for.
    """

    def __init__(self) -> None:
        self.rows: dict[type, set[Any]] = defaultdict(set)
        self.highest: tuple[int, Any] = (-1, ())

    def take(self, table: type, keys: list[Any], waits: bool = True) -> None:
        """Note new locks.

        Raises:
            LockOrderBroken: When one of them is out of order.
        """
        fresh = sorted(set(keys) - self.rows[table])
        if not fresh:
            return
        if table not in RANK:
            raise LockOrderBroken(f"{table.__name__} has no place in registry.locks.ORDER, and is locked.")
        first = (RANK[table], fresh[0])
        if waits and first < self.highest:
            before = ORDER[self.highest[0]].__name__
            raise LockOrderBroken(
                f"{table.__name__} {fresh[0]} is locked after {before} {self.highest[1]}: see registry.locks."
            )
        self.rows[table].update(fresh)
        self.highest = max(self.highest, (RANK[table], fresh[-1]))


_IGNORED: list[bool] = []


@contextmanager
def unwatched() -> Iterator[None]:
    """Let a test write rows as it likes."""
    _IGNORED.append(True)
    try:
        yield
    finally:
        _IGNORED.pop()


def held(session: Session) -> Held:
    found: Held = session.info.setdefault("lock_order", Held())
    return found


def _table(entity: Any) -> Any:
    mapper = inspect(entity, raiseerr=False)
    return getattr(mapper, "class_", None)


def _key(row: Any) -> tuple[Any, ...]:
    return tuple(inspect(row).mapper.primary_key_from_instance(row))


def _on_execute(state: ORMExecuteState) -> Any:
    if _IGNORED or state.session.info.get("lock_order_asks"):
        return None
    statement: Any = state.statement
    if state.is_select and getattr(statement, "_for_update_arg", None) is not None:
        table = state.execution_options.get("tunes_lock")
        if table is None:
            raise LockOrderBroken(f"Rows are locked by registry.locks.lock, and not by {statement}.")
        result = state.invoke_statement().freeze()
        waits = not statement._for_update_arg.skip_locked
        count = len(inspect(table).primary_key)
        for row in result():
            key = _key(row[0]) if isinstance(row[0], table) else tuple(row)[:count]
            held(state.session).take(table, [key], waits)
        return result()
    if state.is_update or state.is_delete:
        _bulk(state.session, statement)
    return None


def _bulk(session: Session, statement: Any) -> None:
    """Judge an UPDATE or DELETE by the rows that it is about to change."""
    table = _table(statement.entity_description["entity"])
    mapper = inspect(table)
    columns = list(mapper.primary_key)
    if table in GUARDED:
        name, guard = GUARDED[table]
        columns = [mapper.columns[name]]
    session.flush()
    session.info["lock_order_asks"] = True
    try:
        query = select(*columns).where(*statement._where_criteria).distinct()
        keys = [tuple(row) for row in session.execute(query)]
    finally:
        session.info.pop("lock_order_asks")
    mine = held(session)
    if table in GUARDED:
        if loose := [key for key in keys if key not in mine.rows[guard]]:
            raise LockOrderBroken(
                f"{table.__name__} of {loose[0]} changes without a lock on {guard.__name__}."
            )
        return
    fresh = [key for key in keys if key not in mine.rows[table]]
    if len(fresh) > 1:
        raise LockOrderBroken(f"{len(fresh)} rows of {table.__name__} change at once that are not locked.")
    mine.take(table, fresh)


def _before_flush(session: Session, _context: Any, _instances: Any) -> None:
    if _IGNORED:
        return
    mine = held(session)
    changed = [row for row in session.dirty if session.is_modified(row)] + list(session.deleted)
    for row in changed:
        table, key = type(row), _key(row)
        if table in GUARDED:
            name, guard = GUARDED[table]
            if (getattr(row, name),) not in mine.rows[guard]:
                raise LockOrderBroken(f"{table.__name__} {key} changes without a lock on {guard.__name__}.")
        elif key not in mine.rows[table]:
            raise LockOrderBroken(f"{table.__name__} {key} changes and was not locked.")


def _after_flush(session: Session, _context: Any) -> None:
    mine = held(session)
    for row in session.new:
        mine.rows[type(row)].add(_key(row))


def watch() -> None:
    """Begin to watch all sessions of this process."""
    if event.contains(Session, "do_orm_execute", _on_execute):
        return
    event.listen(Session, "do_orm_execute", _on_execute)
    event.listen(Session, "before_flush", _before_flush)
    event.listen(Session, "after_flush", _after_flush)

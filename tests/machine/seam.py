"""Where histories go wrong: between any two statements, at a commit, and between a commit and its answer.

The seam lies in the dialect of one engine, below everything of the registry, above the driver.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Engine


class Died(BaseException):
    """The process that made a call is gone: nothing of ours runs after it, not even an `except Exception`."""


@dataclass(frozen=True)
class Trouble:
    """What befalls one call.

    Attributes:
        kind: The caller's process `dies`; the database is `away` for one moment, or `gone` for longer than anybody
            waits.
        at: Before a `statement`, before a `commit`, or before the `answer` to a commit that was kept.
        number: Which of them, from 0; a call with fewer goes well.
    """

    kind: Literal["dies", "away", "gone"]
    at: Literal["statement", "commit", "answer"]
    number: int


@dataclass(frozen=True)
class Meanwhile:
    """What another host does at the moment in which a call begins a transaction.

    Attributes:
        number: Of the transaction, from 0.
        deed: What is done.
    """

    number: int
    deed: Callable[[], object]


class Seam:
    """Wraps what an engine's dialect does with the driver."""

    def __init__(self, engine: Engine) -> None:
        self._dialect: Any = engine.dialect
        self._sqlite = engine.dialect.name == "sqlite"
        self._trouble: Trouble | None = None
        self._meanwhile: Meanwhile | None = None
        self._counts = {"statement": 0, "commit": 0, "answer": 0, "begin": 0}
        self.happened, self.commits = False, 0
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            self._wrap(name)
        kept = self._dialect.do_commit

        def commit(connection: Any) -> None:
            self._reach("commit")
            kept(connection)
            self.commits += 1
            self._reach("answer")

        self._dialect.do_commit = commit
        if not self._sqlite:
            begun = self._dialect.do_begin

            def begin(connection: Any) -> None:
                self._begins()
                begun(connection)

            self._dialect.do_begin = begin

    def _wrap(self, name: str) -> None:
        inner = getattr(self._dialect, name)

        def execute(cursor: Any, statement: str, *rest: Any, **more: Any) -> Any:
            if self._sqlite and statement.startswith("BEGIN"):
                self._begins()
            else:
                self._reach("statement")
            return inner(cursor, statement, *rest, **more)

        setattr(self._dialect, name, execute)

    def _begins(self) -> None:
        planned, number = self._meanwhile, self._counts["begin"]
        self._counts["begin"] += 1
        if planned is not None and planned.number == number:
            self._meanwhile = None
            with self.paused():
                planned.deed()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let nothing befall what is done inside: it is the test that looks."""
        trouble, meanwhile, counts = self._trouble, self._meanwhile, dict(self._counts)
        self._trouble = self._meanwhile = None
        try:
            yield
        finally:
            self._trouble, self._meanwhile, self._counts = trouble, meanwhile, counts

    def _reach(self, place: str) -> None:
        trouble = self._trouble
        if trouble is None:
            return
        number = self._counts[place]
        self._counts[place] += 1
        if place != trouble.at or number < trouble.number:
            return
        self.happened = True
        if trouble.kind != "gone":
            self._trouble = None
        if trouble.kind == "dies":
            raise Died
        raise self._lost()

    def _lost(self) -> Exception:
        if self._sqlite:
            return sqlite3.OperationalError("the connection was lost")
        return self._dialect.dbapi.OperationalError("server closed the connection unexpectedly")

    @contextmanager
    def armed(self, trouble: Trouble | None, meanwhile: Meanwhile | None = None) -> Iterator[None]:
        """Let something befall whatever is called inside."""
        self._trouble, self._meanwhile, self.happened = trouble, meanwhile, False
        self._counts = dict.fromkeys(self._counts, 0)
        try:
            yield
        finally:
            self._trouble = self._meanwhile = None

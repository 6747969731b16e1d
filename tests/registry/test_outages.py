"""A PostgreSQL that stops answering or is killed: every call ends in its time, and what was asked goes on later."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.orm import Session

from tests.support.databases import Server, new_database
from tests.support.registry import add_tune, prompt_request
from tunes_dagster.registry import Callback, Event, Registry, postgres
from tunes_dagster.registry.accepting import Acceptance, NewGroup, Seen
from tunes_dagster.registry.prompts import NewPrompt
from tunes_dagster.registry.retrying import DatabaseAway, Trouble, trouble_of

SECRET = "token-4711"


@pytest.fixture
def impatient(own_postgres: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry whose calls end soon."""
    monkeypatch.setattr(postgres, "PING_SECONDS", 0.3)
    monkeypatch.setattr(postgres, "_MARGIN_SECONDS", 0.2)
    monkeypatch.setitem(postgres._LIBPQ, "connect_timeout", 2)  # libpq takes no less
    registry = Registry(new_database(own_postgres.engine), patience=0.1, answer_seconds=0.6)
    yield registry
    registry.close()


def test_a_server_that_froze_is_noticed_by_every_call(impatient: Registry, own_postgres: Server) -> None:
    impatient.accounts.add("anna")
    own_postgres.freeze()
    for _ in range(2):  # with a connection from before, and without one
        with pytest.raises(DatabaseAway) as raised:
            impatient.accounts.get("anna")
        assert raised.value.trouble is Trouble.AWAY
    own_postgres.thaw()
    assert impatient.accounts.get("anna").name == "anna"


def test_a_server_that_freezes_in_the_middle_of_a_statement_or_a_commit(
    impatient: Registry, own_postgres: Server
) -> None:
    with pytest.raises(SQLAlchemyError) as in_commit, impatient.writing() as session:
        session.execute(text("SELECT pg_advisory_xact_lock(1)"))
        own_postgres.freeze()
    assert in_commit.value.__dict__["tunes_unknown"] and trouble_of(in_commit.value) is Trouble.AWAY
    own_postgres.thaw()
    with pytest.raises(SQLAlchemyError) as in_statement, impatient.writing() as session:
        session.execute(text("SELECT 1"))
        own_postgres.freeze()
        session.execute(text("SELECT 2"))
    assert trouble_of(in_statement.value) is Trouble.AWAY
    own_postgres.thaw()
    assert impatient.revision()


def test_a_statement_that_takes_too_long_is_ended_by_the_server_and_keeps_its_connection(
    impatient: Registry,
) -> None:
    with impatient.reading() as session:
        with pytest.raises(DBAPIError) as raised:
            session.execute(text("SELECT pg_sleep(30)"))
        assert trouble_of(raised.value) is Trouble.SLOW
        session.rollback()
        assert session.scalar(text("SELECT 1")) == 1


def test_the_clock_of_a_frozen_database_goes_on_and_is_not_asked_each_time(
    impatient: Registry, own_postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunes_dagster.registry import engine

    before = impatient.now()
    monkeypatch.setattr(engine, "_ASK_SECONDS", 0.0)
    asked = []
    monkeypatch.setattr(engine.DatabaseClock, "_ask", lambda self: asked.append(1))
    for _ in range(5):
        assert impatient.now() > before
    assert asked == [1]


def test_what_waits_goes_on_when_a_killed_server_is_back(own_postgres: Server) -> None:
    registry = Registry(new_database(own_postgres.engine), patience=60.0)
    tune = add_tune(registry)
    own_postgres.kill()
    with ThreadPoolExecutor(1) as pool:
        claimed = pool.submit(registry.work.claim, "prepare", tune.id, "run")
        while registry.outage.seconds_ago() > 10.0:
            time.sleep(0.01)
        own_postgres.start()
        assert claimed.result(60).run_id == "run"
    registry.close()


def test_no_log_line_of_a_failing_statement_holds_what_was_to_be_written(
    impatient: Registry, own_postgres: Server, caplog: pytest.LogCaptureFixture
) -> None:
    row = {
        "id": "cb",
        "account_id": "local",
        "event": "tune.ready",
        "subject_id": "t",
        "body": {"prompt": SECRET},
        "url": f"http://caller.test/{SECRET}",
        "created_at": impatient.now(),
        "state": "pending",
        "form": "",
    }
    event = {"subject_id": SECRET, "at": impatient.now(), "phase": SECRET, "message": SECRET, "data": {}}
    failing = [
        (insert(Callback), {**row, "account_id": SECRET}),  # IntegrityError, with a DETAIL
        (insert(Callback), {**row, "created_at": None}),
        (insert(Event), {**event, "at": "no time"}),  # StatementError, before the driver
        (
            text("INSERT INTO events (subject_id, data) VALUES (:a, CAST(:b AS json))"),
            {"a": SECRET, "b": SECRET},
        ),
        (text("SELECT CAST(:a AS integer)"), {"a": f"{SECRET} is\nno number"}),
        (text("SELECT :a FROM nowhere WHERE :a = 1"), {"a": SECRET}),  # ProgrammingError, with its LINE
        (text("SELECT pg_sleep(30), :a"), {"a": SECRET}),
    ]
    caplog.set_level(logging.DEBUG)
    for statement, values in failing:
        with pytest.raises((DBAPIError, StatementError)) as raised, impatient.writing() as session:
            session.execute(statement, [values] if statement.is_insert else values)
        logging.getLogger("test").error("unexpected", exc_info=raised.value)
    own_postgres.freeze()
    with pytest.raises(DatabaseAway) as away:
        impatient.accounts.add(SECRET)
    logging.getLogger("test").error("unexpected", exc_info=away.value)
    assert len(caplog.records) > len(failing)
    assert SECRET not in caplog.text


def test_the_watchdog_begins_anew_in_a_child_process(impatient: Registry) -> None:
    import os

    assert impatient.revision()
    assert any(one.name == "registry-watchdog" for one in threading.enumerate())
    child = os.fork()
    if not child:
        impatient.engine.dispose(close=False)
        os._exit(0 if impatient.revision() and postgres._watchdog._thread is not None else 1)
    assert os.waitpid(child, 0)[1] == 0


class AtCommit:
    """Does something to the server just before the next commit, and something else once that commit has failed."""

    def __init__(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._before, self._after = before, after
        self._thread: threading.Thread | None = None

    def __call__(self, session: Session) -> None:
        if self._thread is not None or session.bind.get_execution_options().get("tunes_writes") is None:
            return
        self._thread = threading.Timer(1.5, self._after)
        self._before()
        self._thread.start()

    def __enter__(self) -> AtCommit:
        event.listen(Session, "before_commit", self)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Session, "before_commit", self)
        assert self._thread is not None
        self._thread.join()


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "lost"])
def test_what_was_accepted_without_our_hearing_of_it_is_accepted_once(
    impatient: Registry, own_postgres: Server, kept: bool
) -> None:
    registry = impatient.with_patience(60.0)
    account = registry.accounts.add("anna").id
    registry.ledger.open_wallet(account, plan="pro", requests_per_minute=60)
    registry.ledger.adjust(account, 1_000)

    def crash() -> None:
        own_postgres.kill()
        own_postgres.start()

    def accept_tune() -> None:
        add_tune(registry, id="tune_one", account_id=account, price=100)

    def accept_prompts() -> None:
        new = [NewPrompt(request=prompt_request(), base_id="tiny-sdxl", price=10) for _ in range(2)]
        seen = [Seen(dialect="pixu", group_id="group_1") for _ in new]
        kept = Acceptance(seen=seen, group=NewGroup("group_1", "pixu", ""))
        registry.prompts.accept(new, kept, account_id=account)

    for accept in (accept_tune, accept_prompts):
        # What reached a server that froze is kept when it goes on; what a crash met before its commit is not.
        with AtCommit(own_postgres.freeze, own_postgres.thaw if kept else crash):
            accept()
    assert len(registry.tunes.rows(account_id=account)) == 1
    assert len(registry.prompts.rows(account_id=account)) == 2
    assert registry.ledger.wallet(account).reserved == 120

"""A database that is locked, away or on another clock: it is waited for, and no work is lost to it."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, text
from sqlalchemy.exc import IntegrityError

from tests.support.databases import new_database
from tests.support.registry import Clock, add_tune, run_stage
from tunes_dagster.core import clock as host_clock
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Silent
from tunes_dagster.registry import Callback, Registry
from tunes_dagster.registry.holders import writer_of
from tunes_dagster.registry.retrying import DatabaseAway, Trouble
from tunes_dagster.service.decide import Watch, find_stuck
from tunes_dagster.sessions.attempts import Attempt
from tunes_dagster.sessions.reporting import Member

SECRET = "token-4711"


def locked_for(path: Path, seconds: float) -> threading.Thread:
    """Hold the whole SQLite file from another connection for a while; returns once it is held."""
    held = threading.Event()

    def hold() -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        held.set()
        time.sleep(seconds)
        other.execute("ROLLBACK")
        other.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    return thread


def test_a_locked_file_is_unavailable_and_not_a_crash(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/registry.db", busy_seconds=0.05, patience=0.1)
    holder = locked_for(tmp_path / "registry.db", 1.5)
    with pytest.raises(DatabaseAway) as raised:
        registry.accounts.add("anna")
    assert (raised.value.code, raised.value.trouble) == (FailureCode.STORE_UNAVAILABLE, Trouble.BUSY)
    holder.join()
    registry.accounts.add("anna")


STOPPED_WRITER = """
import os, signal, sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN IMMEDIATE")
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux says who holds a lock.")
def test_who_waits_for_a_stopped_process_is_told_which(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/registry.db", busy_seconds=0.05, patience=0.1)
    other = subprocess.Popen([sys.executable, "-c", STOPPED_WRITER, str(tmp_path / "registry.db")])
    try:
        assert os.WIFSTOPPED(os.waitpid(other.pid, os.WUNTRACED)[1])
        with pytest.raises(DatabaseAway) as raised:
            registry.accounts.add("anna")
        assert f"{other.pid} (" in raised.value.detail and "is stopped" in raised.value.detail
        assert str(other.pid) not in raised.value.message + raised.value.remedy  # which callers read
        assert f"kill -CONT {other.pid}" in caplog.text
    finally:
        other.send_signal(signal.SIGCONT)
        other.wait()
    registry.accounts.add("anna")
    assert writer_of(tmp_path / "registry.db") is None
    registry.close()


@pytest.mark.parametrize("end", ["finish", "give_back", "fail"])
def test_finished_work_is_closed_once_its_database_is_back(tmp_path: Path, end: str) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/registry.db", busy_seconds=0.05, patience=60.0)
    tune = add_tune(registry)
    work = registry.work.claim("prepare", tune.id, "run")
    member = Member(registry, work.id, "run")
    mine = Attempt(registry, work, "run", Silent(), member)
    ends: dict[str, Callable[[], None]] = {
        "finish": lambda: mine.finish({"captions": 5}),
        "give_back": lambda: mine.give_back("stopped"),
        "fail": lambda: mine.fail(Failure(FailureCode.TOO_FEW_PICTURES, "one")),
    }
    holder = locked_for(tmp_path / "registry.db", 1.0)
    ends[end]()
    holder.join()
    assert member.closed and member.lost is None
    assert (
        registry.work.get(work.id).state == {"finish": "done", "give_back": "queued", "fail": "failed"}[end]
    )


def test_a_finish_that_never_reached_the_database_leaves_the_work_alive(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/registry.db", busy_seconds=0.05, patience=0.1)
    work = registry.work.claim("prepare", add_tune(registry).id, "run")
    member = Member(registry, work.id, "run")
    holder = locked_for(tmp_path / "registry.db", 1.0)
    with pytest.raises(DatabaseAway):
        Attempt(registry, work, "run", Silent(), member).finish({})
    assert not member.closed
    holder.join()
    Attempt(registry, work, "run", Silent(), member).finish({})
    assert registry.work.get(work.id).state == "done"


def test_connections_that_the_server_ended_are_made_anew(postgres: Engine) -> None:
    url = new_database(postgres)
    registry = Registry(url)
    tune = add_tune(registry)
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
    for kind in ("prepare", "train", "finish"):
        with postgres.connect() as connection:
            connection.execute(text(ended), {"name": url.rpartition("/")[2].partition("?")[0]})
        run_stage(registry, kind, tune.id)
    assert registry.tunes.get(tune.id).status == "ready"
    registry.close()


def test_what_was_to_be_written_is_in_no_error(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    row = {"id": "cb", "account_id": "local", "event": "tune.ready", "subject_id": "t", "body": {}}
    with pytest.raises(IntegrityError) as raised, registry.writing() as session:
        session.execute(
            insert(Callback), [{**row, "url": f"http://caller.test/{SECRET}", "created_at": None}]
        )
    with caplog.at_level(logging.ERROR):
        logging.getLogger("test").error("unexpected", exc_info=raised.value)
    assert SECRET not in caplog.text and SECRET not in str(raised.value)


def test_the_database_says_what_time_it_is(postgres: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    right = datetime.now(UTC)
    monkeypatch.setattr(host_clock, "now", lambda: right + timedelta(hours=5))
    registry = Registry(new_database(postgres))
    work = registry.work.claim("prepare", add_tune(registry).id, "run")
    assert work.heartbeat_at is not None and abs((work.heartbeat_at - right).total_seconds()) < 60
    assert find_stuck(registry, registry.now(), lambda _name: True) == []
    registry.close()


def test_silence_counts_only_while_somebody_listened(registry: Registry, clock: Clock) -> None:
    work = registry.work.claim("prepare", add_tune(registry).id, "run")
    watch = Watch.after(None, registry.now(), 60.0)
    clock.forward(600.0)  # the database, or the machine, was away

    def look() -> list[str]:
        nonlocal watch
        watch = Watch.after(Watch.read(str(watch)), registry.now(), 60.0)
        return [one.work.id for one in find_stuck(registry, registry.now(), lambda _name: True, watch=watch)]

    assert look() == []
    for _ in range(3):
        clock.forward(20.0)
        assert look() == []
    clock.forward(5.0)
    assert look() == [work.id]


def test_a_watch_that_cannot_be_read_is_none() -> None:
    assert Watch.read("nonsense") is None and Watch.read(None) is None

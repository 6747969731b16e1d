"""A bell rings for each commit of others, and after it was closed for whatever happened meanwhile."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import Engine, text

from tests.support.databases import new_database
from tests.support.registry import add_tune
from tunes_dagster.registry import Registry
from tunes_dagster.sessions import waking
from tunes_dagster.sessions.waking import Bell, listen


@pytest.fixture(params=["sqlite", "postgres"])
def rows(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(waking, "_SECONDS_WITHOUT_BELL", float("inf"))
    if request.param == "sqlite":
        return Registry(f"sqlite:///{tmp_path}/registry.db")
    return Registry(new_database(request.getfixturevalue("postgres")))


def test_a_bell_rings_once_for_what_others_committed(rows: Registry):
    bell = Bell(rows)
    assert (bell.rung(), bell.rung()) == (True, False)
    add_tune(rows)
    assert (bell.rung(), bell.rung()) == (True, False)


def test_a_bell_that_was_closed_rings_for_what_its_own_connection_committed_since(rows: Registry):
    bell = Bell(rows)
    assert (bell.rung(), bell.rung()) == (True, False)
    bell.close()
    add_tune(rows)  # by the connection that lay in the pool: its own commits are none of others
    assert bell.rung()


def test_whoever_listens_hears_what_is_committed_meanwhile(rows: Registry):
    answers = iter([[], ["a tune"]])
    looks = []

    def look() -> list[str]:
        looks.append(len(looks))
        if len(looks) == 1:
            Thread(
                target=add_tune, args=(Registry(rows.engine.url.render_as_string(hide_password=False)),)
            ).start()
        return next(answers)

    assert listen(rows, look, seconds=60.0) == ["a tune"]


def test_whoever_has_no_time_to_listen_looks_once(rows: Registry):
    looks: list[int] = []
    assert listen(rows, lambda: looks.append(0) or [], seconds=0.0) == []
    assert len(looks) == 1


def test_a_heartbeat_rings_nothing_on_a_server(postgres: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waking, "_SECONDS_WITHOUT_BELL", float("inf"))
    rows = Registry(new_database(postgres))
    tune = add_tune(rows)
    work = rows.work.claim("prepare", tune.id, "run-1", origin="cli")
    bell = Bell(rows)
    assert bell.rung()
    rows.work.heartbeat(work.id, "run-1")
    rows.work.progress(work.id, "run-1", phase="checking", message="", step=1, total=2, seconds_left=None)
    assert not bell.rung()
    rows.work.finish(work.id, "run-1", result={})
    assert bell.rung()


def test_a_bell_whose_connection_was_lost_leaves_a_look_a_second(
    postgres: Engine, monkeypatch: pytest.MonkeyPatch
):
    rows = Registry(new_database(postgres))
    bell = Bell(rows)
    assert bell.rung()
    with postgres.connect() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN tunes'")
        )
    monkeypatch.setattr(waking, "_SECONDS_WITHOUT_BELL", float("inf"))
    while bell._connection is not None:
        assert not bell.rung()
    monkeypatch.setattr(waking, "_SECONDS_WITHOUT_BELL", 0.0)
    assert bell.rung()

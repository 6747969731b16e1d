"""A bell rings for each commit of others, and after it was closed for whatever happened meanwhile."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest

from tests.support.registry import add_tune
from tunes_dagster.registry import Registry
from tunes_dagster.sessions import waking
from tunes_dagster.sessions.waking import Bell, listen


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(waking, "_SECONDS_WITHOUT_BELL", float("inf"))
    return Registry(f"sqlite:///{tmp_path}/registry.db")


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
            Thread(target=add_tune, args=(Registry(str(rows.engine.url)),)).start()
        return next(answers)

    assert listen(rows, look, seconds=60.0) == ["a tune"]


def test_whoever_has_no_time_to_listen_looks_once(rows: Registry):
    looks: list[int] = []
    assert listen(rows, lambda: looks.append(0) or [], seconds=0.0) == []
    assert len(looks) == 1

"""A process that works on what is not its own any more, and does not hear of it, is ended from within."""

from __future__ import annotations

import multiprocessing
import threading
import time
from typing import Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.sessions.reporting import Member, Pulse, runs_alone


class Elsewhere:
    """A registry in which all work belongs to another run; `yours` is still this one's."""

    @property
    def work(self) -> Elsewhere:
        return self

    def with_patience(self, _seconds: float) -> Elsewhere:
        return self

    def heartbeat(self, work_id: str, run_id: str) -> str:
        if work_id == "yours":
            return ""
        raise Failure(FailureCode.CONFLICT, "Another attempt owns it.")


def member(work_id: str) -> Member:
    made = Member(Elsewhere(), work_id, "run")  # type: ignore[arg-type]
    made._beaten = 0.0
    return made


def hang() -> None:
    """What a run does whose code never looks up: here it sleeps, there it waits for a device."""
    with Pulse(0.02, patience=0.1) as pulse:
        pulse.add(member("theirs"))
        time.sleep(240)


def test_a_run_that_hangs_without_work_is_killed() -> None:
    process = multiprocessing.get_context("spawn").Process(target=hang)
    process.start()
    process.join(200)
    assert process.exitcode == -9


def ended(*work_ids: str, closed: bool = False, **more: Any) -> bool:
    """Whether a pulse over some work ends its process within a few beats."""
    over = threading.Event()
    with Pulse(0.01, patience=0.0, end=over.set, **more) as pulse:
        members = [pulse.add(member(work_id)) for work_id in work_ids]
        if closed:
            members[0].close()
        return over.wait(20 if work_ids == ("theirs",) and not closed else 0.5)


def test_only_a_process_without_any_work_of_its_own_is_ended() -> None:
    assert ended("theirs")
    assert not ended("theirs", "yours"), "another member goes on"
    assert not ended("theirs", closed=True), "its row says how it ended; now it writes events"
    assert not ended()


def test_a_command_line_is_never_ended() -> None:
    """Where a run shares its process with a person's shell or a test, its end is left to them."""
    assert not runs_alone()
    assert Pulse(1.0)._end is None

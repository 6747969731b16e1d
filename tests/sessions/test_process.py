"""What a process that sees to sessions says of itself."""

from __future__ import annotations

import threading

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.sessions.process import beating


def test_somebody_is_said_to_be_there_until_they_leave_whatever_fails_meanwhile():
    said, often = [], threading.Event()

    def say(last):
        said.append(last)
        if len(said) > 3:
            often.set()
        if len(said) == 2:
            raise Failure(FailureCode.STORE_UNAVAILABLE, "The database is away.", "Wait.")

    with beating("keeper", 0.001, say):
        assert often.wait(20)
    assert not any(said[:-1]) and said[-1], "the last one says that they left"


def test_who_was_replaced_hears_it_once_and_says_no_more():
    said, heard = [], []

    def say(last):
        said.append(last)
        raise Failure(FailureCode.CONFLICT, "Another session has the device.", "Leave it.")

    with beating("session", 0.001, say, superseded=lambda: heard.append("stop")):
        threading.Event().wait(0.05)
    assert (said, heard) == ([False], ["stop"])

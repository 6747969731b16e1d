"""Which device a session takes, and that nobody computes on it beside it."""

from __future__ import annotations

import threading

import pytest

from tests.support.sessions import Workshop
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.service.installation import Installation
from tunes_dagster.sessions import hardware, hosting
from tunes_dagster.sessions import session as session_module
from tunes_dagster.sessions.hardware import Device
from tunes_dagster.sessions.hosting import host
from tunes_dagster.sessions.leases import lock_any

TWO = [Device("cpu", "float32", 8.0, "one"), Device("cpu:0", "float32", 8.0, "the other")]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    monkeypatch.setattr(hardware, "find_devices", lambda *_: TWO)
    return TWO


def test_sessions_share_the_devices_of_a_machine_and_one_too_many_is_refused(workshop: Workshop, two):
    held = []

    def third(_session) -> None:
        held.append(_session.device.name)
        with pytest.raises(Failure) as refused:
            host(workshop.installation, name="session_3", warm_seconds=0)
        assert refused.value.code == FailureCode.CONFLICT

    def second(session) -> None:
        held.append(session.device.name)
        host(workshop.installation, name="session_2", warm_seconds=0, ready=third)

    host(workshop.installation, name="session_1", warm_seconds=0, ready=second)
    assert held == ["cpu", "cpu:0"]


def test_a_session_begins_when_the_run_that_has_its_device_has_ended(workshop: Workshop, two, monkeypatch):
    settings = workshop.installation.settings
    got = lock_any(two[:1], settings, "run-1")
    assert got is not None
    waits, began = threading.Event(), threading.Event()

    def asked(*given):
        taken = lock_any(*given)
        if taken is None:
            waits.set()
        return taken

    monkeypatch.setattr(hosting, "lock_any", asked)

    def ready(_session) -> None:
        assert lock_any(two[:1], settings, "run-2") is None
        began.set()

    worker = threading.Thread(
        target=host, args=(workshop.installation,), kwargs={"warm_seconds": 0, "ready": ready}
    )
    worker.start()
    assert waits.wait(20) and not began.is_set() and workshop.registry.sessions.any_alive(60), (
        "it says that it is there"
    )
    got[1].release()
    assert began.wait(20)
    worker.join(20)
    assert not worker.is_alive()
    again = lock_any(two[:1], settings, "run-3")
    assert again is not None
    again[1].release()


@pytest.mark.parametrize(
    ("name", "said", "stays"), [("cpu", None, 120), ("cuda:1", None, 3600), ("cuda:1", 5, 5)]
)
def test_a_gpu_stays_warm_for_longer_than_a_laptop_unless_the_operator_says(
    workshop: Workshop, monkeypatch, name: str, said: float | None, stays: float
):
    now = [0.0]
    monkeypatch.setattr(session_module.time, "monotonic", lambda: now[0])
    settings = workshop.installation.settings.model_copy(update={"keep_warm_seconds": said})
    whole = Installation(settings, catalog=workshop.installation.catalog, works=True)
    one = session_module.Session(whole, Device(name, "float32", 8.0, "paper"))
    monkeypatch.setattr(one, "_work_once", lambda: False)
    monkeypatch.setattr(one.stopping, "wait", lambda _seconds: now.__setitem__(0, now[0] + 1.0))
    one.run()
    assert now[0] == stays

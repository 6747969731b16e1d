"""What keeps devices at hand: a session each while there is work, told once to end, none outliving its keeper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.support.sessions import Workshop
from tunes_dagster.sessions import hardware, keeping
from tunes_dagster.sessions.hardware import count_devices
from tunes_dagster.sessions.process import told_to_end

# A session that takes a while to end, as one does that writes a checkpoint, and says whether it could.
SLOW = """
import sys, threading, time
from pathlib import Path
from tunes_dagster.sessions.process import told_to_end
folder, name = Path(sys.argv[1]), sys.argv[2]
told = threading.Event()
with told_to_end(told.set, 0):
    (folder / "began").touch()
    told.wait(60)
    time.sleep(0.5)
    (folder / "in peace").write_text(name)
"""
KEEPER = f"""
import sys
from pathlib import Path
from tunes_dagster.core.settings import Settings
from tunes_dagster.service.installation import Installation
from tunes_dagster.sessions.keeping import keep
home, folder = sys.argv[1:]
keep(Installation(Settings(home=Path(home), heartbeat_seconds=0.2)), [sys.executable, "-c", {SLOW!r}, folder])
"""


def wait_for(met: Callable[[], object], what: str) -> None:
    until = monotonic() + 60
    while not met():
        assert monotonic() < until, f"{what} did not happen"
        sleep(0.02)


@pytest.mark.parametrize("how", ["Ctrl-C in its terminal", "kill -9"])
def test_a_session_ends_in_peace_with_its_keeper(workshop: Workshop, tmp_path: Path, how: str):
    workshop.prompt()
    home = workshop.installation.settings.home
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(home), str(tmp_path)], start_new_session=True
    )
    try:
        wait_for((tmp_path / "began").exists, "the session")
        if how == "kill -9":
            keeper.kill()
        else:
            os.killpg(keeper.pid, signal.SIGINT)  # as a terminal does, to all of its group
        status = keeper.wait(60)
        wait_for((tmp_path / "in peace").exists, "a peaceful end")
        assert status == (-signal.SIGKILL if how == "kill -9" else 0)
    finally:
        keeper.kill()


def test_a_signal_that_comes_by_two_roads_is_one(monkeypatch):
    asked, now = [], [0.0]
    monkeypatch.setattr("tunes_dagster.sessions.process.time.monotonic", lambda: now[0])
    # A shell has its jobs in the background ignore it, and so do the tests that one of them runs.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with told_to_end(lambda: asked.append("end")):
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
            now[0] = 3.0
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked == ["end"]


@pytest.mark.parametrize(("devices", "sessions"), [(1, 1), (2, 2)])
def test_what_waits_beside_a_session_gets_the_next_device_while_there_is_one(
    workshop: Workshop, tmp_path: Path, monkeypatch, devices: int, sessions: int
):
    monkeypatch.setattr(keeping, "CROWDED_SECONDS", 0.0)
    monkeypatch.setattr(keeping, "_SECONDS_BETWEEN_LOOKS", 0.0)
    workshop.prompt()
    began = "import sys; from pathlib import Path; Path(sys.argv[1], sys.argv[2]).touch(); sys.stdin.read()"
    told: list[Callable[[], None]] = []
    asked = threading.Event()

    def counted() -> int:
        asked.set()
        return devices

    def hears(stop, line=None):
        told.append(stop)
        return original(stop, line)

    original = keeping.told_to_end
    monkeypatch.setattr(keeping, "told_to_end", hears)
    keeper = threading.Thread(
        target=keeping.keep,
        args=(workshop.installation, [sys.executable, "-c", began, str(tmp_path)], counted),
    )
    keeper.start()
    wait_for(lambda: len(list(tmp_path.glob("session_*"))) == sessions and asked.is_set(), "the sessions")
    sleep(0.5)  # one too many would begin meanwhile
    told[0]()
    keeper.join(60)
    assert not keeper.is_alive() and len(list(tmp_path.glob("session_*"))) == sessions


def test_devices_are_counted_without_torch_where_no_driver_is(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(hardware, "_DRIVERS", (tmp_path / "none",))
    monkeypatch.setattr(hardware.subprocess, "run", lambda *_, **__: pytest.fail("a process for nothing"))
    assert count_devices("auto") == count_devices("cuda:3") == 1
    monkeypatch.setattr(hardware, "_DRIVERS", (tmp_path,))
    answer = subprocess.CompletedProcess([], 0, "a warning\n4\n")
    monkeypatch.setattr(hardware.subprocess, "run", lambda *_, **__: answer)
    assert (count_devices("auto"), count_devices("cpu")) == (4, 1)

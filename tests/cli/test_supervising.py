"""What `tunes dev` starts ends with it, however that ends: with real processes, some of which do not want to."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import Tunes
from tunes_dagster.cli.installation import Installation
from tunes_dagster.cli.supervising import Place, only_one

# A process that ends on SIGINT, and left a child in another session that wants to hear of nothing.
MAIN = """
import os, signal, subprocess, sys, time
deaf = "import signal, time\\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\\ntime.sleep(300)"
subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
open(sys.argv[1], "w").write("ready")
time.sleep(float(sys.argv[2]))
"""
SUPERVISE = """
import sys
from tunes_dagster.cli import supervising
supervising._LAST_SECONDS = 0.3
main, beside = ([sys.executable, "-c", {main!r}, place, seconds] for place, seconds in {places!r})
sys.exit(supervising.supervise([main, beside], patience={patience}))
"""


def started(tmp_path: Path, seconds: float = 300, **more: object) -> subprocess.Popen[bytes]:
    """Start a supervisor of two such processes and wait until they are there."""
    places = [(str(tmp_path / name), str(wait)) for name, wait in (("main", seconds), ("beside", 300))]
    code = SUPERVISE.format(main=MAIN, places=places, patience=5)
    process = subprocess.Popen([sys.executable, "-c", code], **more)  # type: ignore[call-overload]
    until(lambda: all(Path(place).exists() for place, _ in places), 60)
    return process


def until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def below(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_everything(tmp_path: Path, number: int) -> None:
    process = started(tmp_path)
    ours = below(process)
    assert len(ours) == 4
    process.send_signal(number)
    assert process.wait(30) == 0
    assert gone(ours)


def test_a_closed_terminal_ends_everything(tmp_path: Path) -> None:
    outer, inner = pty.openpty()
    process = started(tmp_path, start_new_session=True, stdin=inner, preexec_fn=lambda: _own(0))
    os.close(inner)
    ours = below(process)
    os.close(outer)  # the terminal is gone, which its session hears as SIGHUP
    process.wait(30)
    assert len(ours) == 4 and gone(ours)


def _own(terminal: int) -> None:
    """Make a terminal the one of this new session."""
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def test_the_end_of_the_main_process_is_the_end(tmp_path: Path) -> None:
    process = started(tmp_path, seconds=1.0)
    ours = below(process)
    assert process.wait(30) == 0 and gone(ours)


def test_a_place_is_announced_when_it_answers(tmp_path: Path) -> None:
    """A server that listens and refuses for a while, as one that still loads does."""
    port = free_port()
    server = f"""
import http.server, time
begun = time.monotonic()
class Late(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() - begun > 1.0 else 503); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", {port}), Late).serve_forever()
"""
    code = (
        "import sys; from tunes_dagster.cli.supervising import Place, supervise; "
        f"place = Place('It is there.', '127.0.0.1', {port}, '/'); "
        f"sys.exit(supervise([[sys.executable, '-c', {server!r}]], 5, [place]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    place = Place("", "127.0.0.1", port, "/")
    assert process.stdout and process.stdout.readline() == "It is there.\n"
    assert place.answers()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0 and not place.answers()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_tunes_dev_ends_with_its_terminal(tmp_path: Path) -> None:
    """Dagster's UI, its daemon and code servers, and the HTTP server."""
    ui, api = free_port(), free_port()
    call = "from tunes_dagster.cli import main; main()"
    command = [sys.executable, "-c", call, "dev", "--port", str(ui), "--api-port", str(api)]
    env = {**os.environ, "TUNES_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(below(process)) >= 5, 120)
    ours = below(process)
    process.send_signal(signal.SIGHUP)
    process.wait(60)
    assert gone(ours), [one.cmdline() for one in ours if not gone([one])]


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_taken_port_is_refused_before_anything_is_announced(tunes: Tunes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options in (
            ["serve", "--port"],
            ["dev", "--port"],
            ["dev", "--port", str(free_port()), "--api-port"],
        ):
            said = tunes(*options, port)
            assert said.code == 2 and said.out == ""
            assert f"listens on http://127.0.0.1:{port} already" in said.err
    assert "cannot listen" in tunes("serve", "--host", "192.0.2.1").err


def test_two_servers_on_one_port_are_refused_before_anything_starts(tunes: Tunes) -> None:
    port = str(free_port())
    said = tunes("dev", "--port", port, "--api-port", port)
    assert said.code == 2 and f"cannot both have port {port}" in said.err and said.out == ""


def test_a_second_dev_in_the_same_home_is_refused(tunes: Tunes, installation: Installation) -> None:
    with only_one(installation.settings.resolved_home / "dev.lock"):
        said = tunes("dev", "--port", str(free_port()), "--api-port", "0")
    assert said.code == 2 and "runs in this installation already" in said.err and said.out == ""

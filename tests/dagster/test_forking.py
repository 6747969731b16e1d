"""Processes of runs are forked from one that has loaded what they import, and that ends when there is nothing to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tunes_dagster.pipeline import dagster_private

CODE_SERVER = """
import inspect, multiprocessing, os, sys, time
import psutil
from dagster._grpc.server import DagsterApiServer
from tunes_dagster.pipeline import dagster_private, forking

def loaded(answers):
    # Of the forks, none forks others.
    assert not dagster_private.fork_runs(["colorsys"])
    answers.put((os.getppid(), "colorsys" in sys.modules))

def forked():
    server = object.__new__(DagsterApiServer)
    server._mp_ctx = multiprocessing.get_context("spawn")  # as it does when it is made
    answers = server._mp_ctx.Queue()
    process = server._mp_ctx.Process(target=loaded, args=(answers,))
    process.start()
    told = answers.get(timeout=30)
    process.join()
    return told

if __name__ == "__main__":
    used = inspect.getsource(DagsterApiServer)
    assert "self._mp_ctx.Process(" in used, "Dagster starts the processes of runs by something else"
    assert dagster_private.fork_runs(["colorsys"])
    (parent, knew), (again, _) = forked(), forked()
    assert knew and parent == again != os.getpid()
    while forking.end_idle(0.0):  # until the forks that have ended are gone
        time.sleep(0.01)
    assert psutil.Process(parent).status() != psutil.STATUS_ZOMBIE
    while psutil.Process(parent).status() != psutil.STATUS_ZOMBIE:  # until whoever began it asks for it
        forking.end_idle(1e9)
        time.sleep(0.01)
    (third, knew) = forked()
    assert knew and third != parent
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forked on Linux alone")
def test_a_code_server_forks_its_runs_and_the_parent_of_forks_ends_and_comes_back(tmp_path):
    program = tmp_path / "server.py"
    program.write_text(CODE_SERVER)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_is_no_code_server_is_left_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "dagster._grpc.server", raising=False)
    assert not dagster_private.fork_runs(["colorsys"])


def test_what_is_loaded_beforehand_starts_no_thread():
    """A process with threads cannot be forked from safely."""
    program = (
        "import importlib, sys\n"
        "from tunes_dagster.pipeline.forking import LOADED\n"
        "for name in LOADED: importlib.import_module(name)\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('Threads')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["Threads:", "1"], done.stderr

"""Doing and watching: the command line shows the rows, whoever moves them, and ends as they end."""

from __future__ import annotations

import json
import sys
import threading
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import Tunes
from tunes_dagster.cli.installation import Installation
from tunes_dagster.cli.watching import TUNE_OVER, Line, Watch, display
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.intake.verdict import verdict_key


@pytest.fixture
def driven(monkeypatch: pytest.MonkeyPatch, installation: Installation) -> Callable[..., None]:
    """Replace the pipeline: `drive` becomes what the test says, on the rows of the installation."""

    def use(work: Callable[[Sequence[str], Sequence[str]], None], daemon: bool = False) -> None:
        def drive(
            whole: Installation, until: Callable[[], bool], report: object, *, instance: object
        ) -> None:
            registry = whole.registry
            waiting = [row.id for row in registry.tunes.rows() if row.status not in TUNE_OVER]
            work(waiting, [row.id for row in registry.prompts.rows(status=["queued", "waiting"])])
            assert until() or not waiting

        module = types.ModuleType("tunes_dagster.pipeline.inprocess")
        module.open_instance = lambda settings: None  # type: ignore[attr-defined]
        module.daemon_is_alive = lambda instance: daemon  # type: ignore[attr-defined]
        module.drive = drive  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tunes_dagster.pipeline.inprocess", module)

    return use


def walk(installation: Installation, tune_id: str) -> None:
    """Move a tune to the end, reporting steps in between."""
    registry = installation.registry
    for kind in ("prepare", "train", "finish"):
        work = registry.work.claim(kind, tune_id, f"run-{kind}", origin="cli")
        if kind == "train":
            registry.work.progress(
                work.id,
                "run-train",
                phase="training",
                message="loss 0.12",
                step=7,
                total=20,
                seconds_left=65.0,
            )
            threading.Event().wait(1.2)
        registry.work.finish(work.id, f"run-{kind}", result={})


def test_training_here_shows_phases_and_what_to_do_next(
    tunes: Tunes, installation: Installation, photos: Path, driven: Callable[..., None]
) -> None:
    driven(lambda ids, prompts: walk(installation, ids[0]))
    said = tunes("train", str(photos), "--name", "woman")
    assert said.code == 0, said.err
    assert "woman: 30 % · training · 7/20 · loss 0.12 · 1 min 5 s left" in said.out
    assert "woman: ready" in said.out
    assert 'Next: tunes render "a photo of ohwx woman' in said.out


def test_a_running_daemon_gets_the_work(
    tunes: Tunes, installation: Installation, photos: Path, driven: Callable[..., None]
) -> None:
    driven(lambda ids, prompts: pytest.fail("the daemon does it"), daemon=True)

    def daemon() -> None:
        while not installation.registry.tunes.rows():
            threading.Event().wait(0.05)
        walk(installation, installation.registry.tunes.rows()[0].id)

    worker = threading.Thread(target=daemon)
    worker.start()
    said = tunes("train", str(photos), "--name", "woman", "--json")
    worker.join()
    assert said.code == 0, said.err
    assert json.loads(said.out)["status"] == "ready"


def test_a_daemon_that_dies_while_we_wait_leaves_the_work_to_us(
    tunes: Tunes,
    installation: Installation,
    photos: Path,
    driven: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tunes_dagster.cli import following

    driven(lambda ids, prompts: walk(installation, ids[0]))
    answers = iter([True, True, False])  # its last heartbeat is believed until it is too old
    monkeypatch.setattr(
        sys.modules["tunes_dagster.pipeline.inprocess"], "daemon_is_alive", lambda _: next(answers)
    )
    monkeypatch.setattr(following, "_ASK_SECONDS", 0.0)
    said = tunes("train", str(photos), "--name", "woman")
    assert said.code == 0, said.err
    assert "The daemon has fallen silent" in said.out
    assert "woman: ready" in said.out


def test_a_failed_tune_ends_with_its_sentence_and_code_1(
    tunes: Tunes, installation: Installation, photos: Path, driven: Callable[..., None]
) -> None:
    def fail(ids: Sequence[str], prompts: Sequence[str]) -> None:
        work = installation.registry.work.claim("prepare", ids[0], "run", origin="cli")
        failure = Failure(FailureCode.TOO_FEW_PICTURES, "Only 1 picture is usable.", "Add more pictures.")
        installation.registry.work.fail(work.id, "run", failure)

    driven(fail)
    said = tunes("train", str(photos), "--name", "woman")
    assert said.code == 1
    assert "Only 1 picture is usable." in said.err
    assert "Add more pictures." in said.err
    assert "Only 1 picture is usable." in tunes("status", "1").out


def test_ctrl_c_says_how_to_go_on_and_resume_does(
    tunes: Tunes, installation: Installation, photos: Path, driven: Callable[..., None]
) -> None:
    def stop(ids: Sequence[str], prompts: Sequence[str]) -> None:
        raise KeyboardInterrupt

    driven(stop)
    said = tunes("train", str(photos), "--name", "woman")
    assert said.code == 130
    assert "tunes resume 1" in said.out
    driven(lambda ids, prompts: walk(installation, ids[0]))
    assert tunes("resume").code == 0
    assert installation.registry.objects.tune_named("local", 1).status == "ready"
    assert "Nothing is waiting" in tunes("resume").out


def test_render_prints_and_copies_the_pictures(
    tunes: Tunes, installation: Installation, driven: Callable[..., None], tmp_path: Path
) -> None:
    registry, store = installation.registry, installation.store

    def paint(ids: Sequence[str], prompts: Sequence[str]) -> None:
        [batch] = registry.groups.make_batches(registry.now(), 0.0, 10)
        work = registry.work.claim("render", batch.id, "run", origin="cli")
        for prompt in prompts:
            key = store.write_bytes(f"batches/{batch.id}/1/{prompt}.png", b"png")
            registry.prompts.done(prompt, work.id, "run", [key])
        registry.work.finish(work.id, "run")

    driven(paint)
    out = tmp_path / "out"
    out.mkdir()
    (out / "00002-0.png").write_bytes(b"of another home")
    said = tunes("render", "a cat", "a dog", "--base", "tiny", "--seed", "5", "--out", str(out))
    assert said.code == 0, said.err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {
        "00001-0.png": b"png",
        "00002-0.png": b"of another home",
        "00002-0-2.png": b"png",
    }
    assert str(out / "00001-0.png") in said.out and str(out / "00002-0-2.png") in said.out
    assert registry.prompts.rows()[-1].settings["seed"] == 5


def test_the_moving_display_draws_every_state() -> None:
    from rich.console import Console

    target = Console(width=120, force_terminal=True, record=True)
    target.print(
        display(
            [
                Line(
                    name="Anna",
                    status="training",
                    phase="training",
                    message="loss 0.1",
                    step=5,
                    total=20,
                    seconds_left=61.0,
                ),
                Line(name="Ben", status="queued", phase="queued", message="Waiting for [others]."),
                Line(name="Cleo", status="ready", over=True),
            ]
        )
    )
    text = target.export_text()
    assert "5/20" in text
    assert "1 min 1 s left" in text
    assert "Waiting for [others]." in text
    assert "ready" in text


def test_a_watch_reads_rows_at_most_twice_a_second(
    installation: Installation, tunes: Tunes, photos: Path
) -> None:
    tunes("train", str(photos), "--name", "woman", "--no-wait")
    watch = Watch(installation.registry, [installation.registry.tunes.rows()[0].id])
    first = watch.lines()
    assert watch.lines() is first
    assert not watch.over


def test_pictures_from_elsewhere_are_told_of_once_when_they_are_there(
    installation: Installation, tunes: Tunes, driven: Callable[..., None]
) -> None:
    def work(waiting: Sequence[str], _prompts: Sequence[str]) -> None:
        installation.store.write_text(
            verdict_key(waiting[0]), "2 of 3 pictures are used.\n- c.png: [broken]\n"
        )
        walk(installation, waiting[0])

    driven(work)
    said = tunes("train", "--image-url", "https://pictures.example/a.png", "--name", "woman")
    lines = [line.strip() for line in said.out.splitlines()]
    assert lines.count("2 of 3 pictures are used.") == 1 and "- c.png: [broken]" in lines
    assert lines.index("- c.png: [broken]") < next(
        n for n, line in enumerate(lines) if line.startswith("Next:")
    )

"""A session does what waits: pictures at once, also between the steps of a training, which does not notice."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.sessions import Workshop, make_workshop, with_family
from tunes_dagster.core.progress import Phase
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.service.installation import Installation
from tunes_dagster.sessions.journal import Outcome
from tunes_dagster.sessions.session import Session


class Diary:
    """A journal that remembers."""

    def __init__(self) -> None:
        self.said: list[tuple] = []

    def began(self, work) -> None:
        self.said.append(("began", work.kind, work.subject_id))

    def line(self, work, text, level=20) -> None:
        pass

    def progress(self, work, phase, done, total) -> None:
        pass

    def materialized(self, work, result) -> None:
        self.said.append(("made", work.kind, type(result).__name__))

    def ended(self, work, outcome: Outcome) -> None:
        self.said.append(("ended", work.kind, outcome.state))


def test_prompts_of_two_bases_are_rendered_on_bases_that_stay_loaded(workshop: Workshop, monkeypatch):
    from tunes_dagster.families import base as bases

    loaded = []
    real = bases.load_family
    monkeypatch.setattr(
        bases, "load_family", lambda entry, *rest: loaded.append(entry.base_id) or real(entry, *rest)
    )
    diary = Diary()
    session = workshop.session(diary)
    first, second = workshop.prompt(1), workshop.prompt(2, base_id="tiny-flux")
    session.run(until_idle=True)
    third = workshop.prompt(3, num_images=3)
    session.run(until_idle=True)
    assert [workshop.status(one) for one in (first, second, third)] == ["done"] * 3
    assert len(workshop.registry.prompts.get(third.id).images) == 3
    assert sorted(loaded) == ["tiny-flux", "tiny-sdxl"]
    assert [one[0] for one in diary.said].count("made") == 3 and diary.said[-1] == ("ended", "render", "done")


def test_a_tune_is_trained_scored_and_ready(tmp_path: Path, base_folder: Path):
    workshop, diary = make_workshop(tmp_path, base_folder, report_checkpoints=1), Diary()
    tune = workshop.prepared()
    workshop.session(diary).run(until_idle=True)
    row = workshop.registry.tunes.get(tune.id)
    assert row.status == "ready", row.failure_message
    assert row.made.report_card is not None and all(row.made.checks.values())
    assert diary.said == [
        ("began", "train", tune.id),
        ("made", "train", "Trained"),
        ("ended", "train", "done"),
        ("began", "finish", tune.id),
        ("made", "finish", "Evaluated"),
        ("ended", "finish", "done"),
    ]


class AtStep:
    """Does something once, when a tune that trains has come so far."""

    def __init__(self, session: Session, step: int, do) -> None:
        self._step, self._do = step, do
        real = session._recruited

        def watched(work):
            trainee = real(work)
            trainee.mine.report.reporters = [self, *trainee.mine.report.reporters]
            return trainee

        session._recruited = watched

    def phase(self, phase: Phase, message: str = "") -> None:
        pass

    def step(self, done: int, total: int, **numbers: float) -> None:
        if "loss" in numbers and done >= self._step and self._do is not None:
            do, self._do = self._do, None
            do()

    def note(self, message: str) -> None:
        pass

    def finding(self, message: str) -> None:
        pass

    def check_cancelled(self) -> None:
        pass


# Names of tests/support/families.py → what else their bases' entries say.
FAMILIES = {"sd15": {}, "flux2-dev": {"guidance": "distilled", "max_sequence_length": 48}}


@pytest.mark.parametrize(
    ("base", "training"),
    [
        ("tiny", {}),
        ("tiny-flux", {}),
        pytest.param("sd15", {}, marks=pytest.mark.slow),
        pytest.param("flux2-dev", {}, marks=pytest.mark.slow),
        pytest.param("tiny", {"kind": "pti", "token_steps": 2, "token_vectors": 2}, marks=pytest.mark.slow),
    ],
)
def test_training_does_not_notice_pictures_between_its_steps(
    tmp_path: Path, workshop: Workshop, base: str, training: dict
):
    if base in FAMILIES:
        overlay = with_family(tmp_path / "catalog.yaml", base, **FAMILIES[base])
        catalog = load_catalog(extra=str(overlay))
        workshop = Workshop(Installation(workshop.installation.settings, catalog=catalog, works=True))
        base = f"random-{base}"
    base_id = workshop.installation.catalog.resolve(base).base_id
    alone, beside = workshop.prepared("alone", base=base, **training), None
    workshop.session().run(until_idle=True)
    quiet = workshop.prompt(7, base_id=base_id)
    workshop.session().run(until_idle=True)

    beside = workshop.prepared("beside", base=base, **training)
    prompts, seen = [], []
    session = workshop.session()

    def ask() -> None:
        prompts.append(workshop.prompt(7, base_id=base_id))
        session._looked = float("-inf")

    AtStep(session, 3, ask)
    watch = AtStep(session, 6, lambda: seen.extend(workshop.status(one) for one in prompts))
    session.run(until_idle=True)
    assert watch._do is None and seen == ["done"], "while the tune trained"
    assert _pixels(workshop.picture(prompts[0])) == _pixels(workshop.picture(quiet))
    expected, got = workshop.weights(alone), workshop.weights(beside)
    assert expected.keys() == got.keys() and len(got) > 4
    assert all(np.array_equal(expected[name], got[name]) for name in got)


def test_a_session_that_is_asked_to_stop_keeps_what_it_learned(workshop: Workshop):
    tune, diary = workshop.prepared(checkpoint_every=1000), Diary()
    session = workshop.session(diary)
    AtStep(session, 5, session.stop)
    session.run()
    (work,) = workshop.registry.work.of(tune.id, "train")
    assert (work.state, work.tries) == ("queued", 0) and diary.said[-1] == ("ended", "train", "returned")
    kept = [
        key for key in workshop.installation.store.list(f"tunes/{tune.id}/lora") if "/checkpoints/" in key
    ]
    assert kept, "a checkpoint of the step at which it stopped"
    workshop.session().run(until_idle=True)
    assert workshop.registry.tunes.get(tune.id).status == "ready"


@pytest.mark.slow
def test_a_tune_is_ready_before_those_that_train_on(workshop: Workshop):
    short, long = workshop.prepared("short", steps=4), workshop.prepared("long", steps=40)
    session, seen = workshop.session(), []
    AtStep(session, 36, lambda: seen.append(workshop.registry.tunes.get(short.id).status))
    session.run(until_idle=True)
    assert seen == ["ready"] and workshop.registry.tunes.get(long.id).status == "ready"


def test_a_session_hears_of_a_prompt_without_being_told(workshop: Workshop):
    session = workshop.session()
    worker = threading.Thread(target=session.run)
    worker.start()
    try:
        prompt = workshop.prompt()
        done = threading.Event()
        for _ in range(600):
            if workshop.status(prompt) == "done" or done.wait(0.1):
                break
        assert workshop.status(prompt) == "done"
    finally:
        session.stop()
        worker.join(60)
    assert not worker.is_alive()


def _pixels(data: bytes) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).tobytes()

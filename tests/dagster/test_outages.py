"""The registry's database dies at every stage of a tune and its prompts: all ends well, and nothing is done twice."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from tunes_dagster.core.progress import Phase
from tunes_dagster.pipeline import inprocess
from tunes_dagster.service.installation import Installation
from tunes_dagster.sessions import reporting
from tunes_dagster.sessions.batches import PromptWriter

STAGES = ("prepare", "train", "finish", "render")


@pytest.mark.slow
def test_a_database_that_is_killed_again_and_again_costs_no_work(
    house_on_postgres, own_postgres, monkeypatch
):
    house = house_on_postgres
    tune = house.submit(
        training={"steps": 4},
        prompts=[{"text": "a photo of ohwx mug", "settings": {"num_images": 2, "seed": 5}}],
    )
    killed: list[str] = []
    restarts: list[threading.Timer] = []
    steps: Counter[int] = Counter()
    rendered: Counter[str] = Counter()

    def kill(moment: str) -> None:
        if moment not in killed:
            killed.append(moment)
            for restart in restarts:
                restart.join()
            own_postgres.kill()
            restarts.append(threading.Timer(0.5, own_postgres.start))
            restarts[-1].start()

    execute, step, on_done = inprocess.execute, reporting.Member.step, PromptWriter.on_done

    def executed(definitions, instance, launch):
        kill(f"claiming {launch.kind}")
        return execute(definitions, instance, launch)

    def stepped(self, done, total, **numbers):
        step(self, done, total, **numbers)
        if self._progress["phase"] == str(Phase.TRAINING):
            steps[done] += 1
            if done in (2, total):  # in the middle, and before its end is told
                kill(f"step {done}")

    def written(self, result):
        kill("rendered")
        rendered[result.prompt_id] += 1
        on_done(self, result)

    monkeypatch.setattr(inprocess, "execute", executed)
    monkeypatch.setattr(reporting.Member, "step", stepped)
    monkeypatch.setattr(PromptWriter, "on_done", written)

    def over() -> bool:
        (prompt,) = house.registry.with_patience(60.0).prompts.rows(tune_id=tune.id)
        return prompt.status in ("done", "failed", "cancelled")

    inprocess.drive(Installation(house.settings, registry=house.registry), over, instance=house.instance)
    (prompt,) = house.registry.prompts.rows(tune_id=tune.id)
    assert (house.status(tune.id), prompt.status, len(prompt.images)) == ("ready", "done", 2)
    assert set(killed) >= {"claiming train", "step 2", "step 4", "claiming render", "rendered"}
    assert steps == {0: 1, 1: 1, 2: 1, 3: 1, 4: 1}
    assert rendered == {prompt.id: 1}
    works = house.registry.work.of(tune.id) + house.registry.work.of(prompt.batch_id)
    assert {work.kind: (work.state, work.tries) for work in works} == dict.fromkeys(STAGES, ("done", 1))

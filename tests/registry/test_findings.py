"""What work finds out stands in the row of its subject, for as long as it is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.registry import add_tune, around, make_ready, run_stage
from tunes_dagster.callbacks.bodies import tune_body
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.store import Store
from tunes_dagster.gateway.native import tune_facts
from tunes_dagster.registry import Registry
from tunes_dagster.service.erase import drive


def test_findings_stay_until_the_same_work_begins_anew(registry: Registry, tmp_path: Path) -> None:
    tune = add_tune(registry)
    work = registry.work.claim("prepare", tune.id, "run-1")
    registry.tunes.add_findings(work.id, "run-1", ["a.jpg: Too small.", "a.jpg: Too small."])
    registry.work.finish(work.id, "run-1")
    training = registry.work.claim("train", tune.id, "run-2")
    registry.tunes.add_findings(training.id, "run-2", ["No samples."])
    assert registry.tunes.get(tune.id).findings == ["a.jpg: Too small.", "No samples."]
    with pytest.raises(Failure):
        registry.tunes.add_findings(training.id, "somebody else", ["Nothing."])
    registry.work.finish(training.id, "run-2")
    run_stage(registry, "prepare", tune.id)
    assert registry.tunes.get(tune.id).findings == ["No samples."]
    registry.work.delete_tune(tune.id)
    drive(around(registry, Store(tmp_path)))
    assert registry.tunes.get(tune.id).findings == []


def test_the_verdict_stands_beside_ready(registry: Registry) -> None:
    tune = add_tune(registry)
    for kind in ("prepare", "train"):
        run_stage(registry, kind, tune.id)
    copies = {"code": "copies", "sentence": "It copies.", "remedy": "Train for fewer steps."}
    card = {"verdict": "bad", "line": "bad: likeness 0.10; copies", "warnings": [copies], "page_key": "page"}
    run_stage(registry, "finish", tune.id, result={"report_card": card})
    ready = registry.tunes.get(tune.id)
    verdict = {"verdict": "bad", "line": card["line"], "reasons": ["It copies. Train for fewer steps."]}
    assert ready.verdict == tune_facts(ready)["verdict"] == verdict
    assert tune_body("tune.ready", ready, registry.now())["data"]["verdict"] == verdict
    assert make_ready(registry, add_tune(registry)).verdict is None

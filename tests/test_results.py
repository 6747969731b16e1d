"""Documents of rows: written strictly, read whichever version wrote them."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from tunes_dagster.core.results import BatchResult, CardSummary, Machine, Reason, TuneResult
from tunes_dagster.evaluation.card import Card


def test_what_cannot_be_read_costs_its_own_field_only() -> None:
    kept = {
        "version": 7,
        "weights_key": "w",
        "steps": "many",
        "checkpoints": None,
        "of_tomorrow": {"x": 1},
        "report_card": {
            "verdict": "good",
            "leak": "none",
            "of_tomorrow": 1,
            "warnings": [{"code": "copies"}],
        },
    }
    made = TuneResult.read(kept)
    assert (made.version, made.weights_key, made.steps, made.checkpoints) == (7, "w", None, [])
    assert made.report_card == CardSummary(verdict="good", warnings=[Reason(code="copies")])
    assert TuneResult.read(None) == TuneResult.read({}) == TuneResult()
    assert BatchResult.read({"machine": "a fast one", "pictures": 2}).machine is None


def test_writing_keeps_what_others_wrote_and_touches_nothing_else() -> None:
    kept = {"steps": "many", "of_tomorrow": 1}
    assert TuneResult(stopped=True).written(kept) == {**kept, "stopped": True, "version": 1}
    assert TuneResult().written(kept) == kept
    machine = BatchResult(machine=Machine(kind="cuda", gib=24, dtype="bfloat16")).written({})
    assert machine["machine"] == {"kind": "cuda", "gib": 24.0, "dtype": "bfloat16"}


@pytest.mark.parametrize("said", [{"weigths_key": "w"}, {"steps": "many"}, {"report_card": {"tone": "good"}}])
def test_a_slip_is_refused_when_it_is_written(said: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TuneResult.of(said)


def test_one_kind_of_document_is_not_taken_for_another() -> None:
    with pytest.raises(ValidationError):
        TuneResult.of(BatchResult(pictures=1))


def test_a_card_of_another_version_is_read() -> None:
    card = Card(tune_id="t", called="ohwx dog")
    known = json.loads(card.model_dump_json())
    assert known["version"] == 1 and Card.read(known) == card
    assert (
        Card.read({**known, "of_tomorrow": 1, "leak": "much", "base": {"step": 0, "colour": 3}}).leak is None
    )

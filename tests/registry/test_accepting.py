"""What is kept with accepted work: how its caller sees it, what its key made; and nothing of a rehearsal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlalchemy import text

from tests.support.registry import prompt_request
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.wishes import Unmet
from tunes_dagster.registry import Registry
from tunes_dagster.registry.accepting import Acceptance, Claim, NewGroup, Seen, TakenOver
from tunes_dagster.registry.prompts import NewPrompt
from tunes_dagster.registry.tunes import NewTune


def new(tune_id: str = "tune_one") -> NewTune:
    request = TuneRequest.model_validate({"name": "dog", "prompts": [{"text": "a photo of ohwx dog"}]})
    asked = [NewPrompt(request=one, base_id="tiny-sdxl", price=20) for one in request.prompts]
    return NewTune(
        request=request, id=tune_id, base_id="tiny-sdxl", recipe={}, origin="api", prompts=asked, price=300
    )


def kept(*views: str, **more: object) -> Acceptance:
    seen = [Seen(dialect=one, asked={"word": 1}) for one in views]
    return Acceptance(seen=seen, **more)  # type: ignore[arg-type]


def test_a_rehearsal_says_what_it_would_hold_and_keeps_nothing(registry: Registry) -> None:
    registry.ledger.open_wallet("local", plan="pro", requests_per_minute=60)
    registry.ledger.adjust("local", 1_000)
    told = kept("astria", "astria", group=NewGroup("group_1", "astria", ""), dry_run=True)
    tried = registry.tunes.accept(new(), told)
    assert sum(tried.prices.values()) == 320 and [row.status for row in tried.rows] == ["queued", "waiting"]
    asked = [NewPrompt(request=prompt_request(), base_id="tiny-sdxl", price=5)]
    assert sum(registry.prompts.accept(asked, kept("pixu", dry_run=True)).prices.values()) == 5
    assert not registry.tunes.has("tune_one") and not registry.prompts.rows()
    assert registry.ledger.wallet("local").available == 1_000 and not registry.work.queued("prepare", limit=1)
    made = registry.tunes.accept(new(), replace(told, dry_run=False))
    seen = registry.objects.get(made.tune.id)
    assert seen is not None and seen.asked == {"word": 1, "price": 300}
    assert registry.ledger.wallet("local").available == 680


def test_a_request_whose_key_was_taken_over_makes_nothing(registry: Registry) -> None:
    token, _ = registry.idempotency.begin("local", "key", "hash", {})
    with pytest.raises(TakenOver):
        registry.tunes.accept(new(), kept("native", "native", claim=Claim("key", "another")))
    assert not registry.tunes.has("tune_one")
    registry.tunes.accept(new(), kept("native", "native", claim=Claim("key", token)))
    row = registry.idempotency.get("local", "key")
    assert row is not None and row.subjects == ["tune_one"]


def test_what_is_there_already_stands_for_what_is_asked_again(registry: Registry) -> None:
    first = registry.tunes.accept(new(), kept("pixazo", "pixazo", same_title=True))
    again = registry.tunes.accept(new("tune_two"), kept("pixazo", "pixazo", same_title=True))
    assert (first.again, again.again, again.tune.id) == (False, True, "tune_one")
    assert not registry.tunes.has("tune_two")


@pytest.mark.parametrize(
    "kept", [{"option": "training.rank", "said": "is 3: 4 is taken"}, "training.rank is 3: 4 is taken"]
)
def test_a_wish_that_is_not_met_is_kept_by_its_parts_and_rows_of_earlier_versions_are_read(
    registry: Registry, kept: object
) -> None:
    unmet = Unmet("training.rank", "is 3: 4 is taken")
    made = registry.tunes.accept(replace(new(), warnings=[unmet])).tune
    with registry.writing() as session:
        column = session.execute(text("SELECT warnings FROM tunes")).scalar_one()
        assert "training.rank is" not in str(column), "no sentence has to be taken apart"
        written = {"kept": json.dumps([kept]), "id": made.id}
        cast = ":kept" if registry.engine.dialect.name == "sqlite" else "CAST(:kept AS jsonb)"
        session.execute(text(f"UPDATE tunes SET warnings = {cast} WHERE id = :id"), written)
    (seen,) = registry.tunes.get(made.id).warnings
    assert (seen, seen.option, seen.called({})) == (unmet, "training.rank", "rank is 3: 4 is taken")

"""A tune that a text names may be asked for on the few-step sibling of its base."""

from __future__ import annotations

import pytest

from tests.gateway.conftest import House
from tests.support.registry import add_tune
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.families.catalog import Catalog
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.problems import Problem
from tunes_dagster.gateway.service import Caller


def test_the_sibling_stays_the_base_of_the_prompt_and_another_base_is_refused(house: House) -> None:
    house.key("ann")
    entries = dict(house.service.catalog.entries)
    quick = entries["tiny-sdxl"].model_copy(update={"branch": "quick", "embedded": "quick", "aliases": []})
    entries["tiny-sdxl"] = entries["tiny-sdxl"].model_copy(update={"renders_on": "quick"})
    house.service.catalog = Catalog({**entries, "quick": quick})
    tune = add_tune(house.registry, account_id="ann", base="tiny-sdxl")
    desk = Desk(house.service, Caller("ann", "", 60, {}), "http://testserver")

    def named(base: str | None) -> PromptRequest:
        return desk.with_own_tunes(PromptRequest(text=f"a <lora:{tune.id}:0.8> dog", base=base))

    assert (named("quick").tune, named("quick").base) == (tune.id, "quick")
    assert named("tiny-sdxl").base is None and named(None).base is None
    with pytest.raises(Problem, match="made on tiny-sdxl"):
        named("tiny-flux")

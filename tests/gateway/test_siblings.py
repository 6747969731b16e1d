"""A tune that a text names may be asked for on the few-step sibling of its base."""

from __future__ import annotations

import pytest

from tests.gateway.conftest import House
from tests.support.registry import add_tune
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.families.catalog import Catalog
from tunes_dagster.gateway.accepting import View
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.problems import HttpProblem
from tunes_dagster.gateway.service import Caller
from tunes_dagster.registry import Prompt


def test_the_sibling_renders_the_prompt_and_another_base_is_refused(house: House) -> None:
    house.key("ann")
    entries = dict(house.service.catalog.entries)
    quick = entries["tiny-sdxl"].model_copy(update={"base_id": "quick", "embedded": "quick", "aliases": []})
    changes = {"renders_on": "quick", "renders_on_by_default": False}
    entries["tiny-sdxl"] = entries["tiny-sdxl"].model_copy(update=changes)
    house.service.installation.catalog = Catalog({**entries, "quick": quick})
    tune = add_tune(house.registry, account_id="ann", base="tiny-sdxl")
    desk = Desk(house.service, Caller("ann", "", 60, {}), "http://testserver")

    def accepted(base: str | None) -> Prompt:
        asked = PromptRequest(text=f"a <lora:{tune.id}:0.8> dog", base=base)
        return desk.accept_prompt(asked, View(dialect="native"))

    assert (accepted("quick").tune_id, accepted("quick").base_id) == (tune.id, "quick")
    assert accepted("tiny-sdxl").base_id == "tiny-sdxl" == accepted(None).base_id
    with pytest.raises(HttpProblem, match="made on tiny-sdxl"):
        accepted("tiny-flux")

"""Tunes of a base with a few-step sibling are rendered there, unless the prompt says or needs otherwise."""

from __future__ import annotations

import pytest

from tests.registry.test_submit import Door, door, finished, refused
from tunes_dagster.core.failures import FailureCode
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.families.catalog import BaseModelEntry, Catalog, load_catalog
from tunes_dagster.service.completing import completed_prompt
from tunes_dagster.service.installation import Installation

__all__ = ["door"]  # the fixture


@pytest.fixture
def siblings(door: Door) -> Door:
    """A door whose base `tiny` has the sibling `quick`, which takes no guidance."""
    folder = door.pictures.with_name("quick")
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    quick = door.entries["tiny"].model_dump() | {
        "base_id": "quick",
        "repo_id": str(folder),
        "embedded": "quick",
        "guidance": "none",
        "rendering": {"steps": 4, "guidance_scale": 1.0, "scheduler": "euler"},
    }
    return told(
        door, quick=BaseModelEntry.model_validate(quick), tiny=changed(door, "tiny", renders_on="quick")
    )


def changed(door: Door, base_id: str, **fields: object) -> BaseModelEntry:
    return door.entries[base_id].model_copy(update=fields)


def told(door: Door, **entries: BaseModelEntry) -> Door:
    door.entries = door.entries | entries
    door.catalog = Catalog(door.entries)
    return door


def rendered_on(door: Door, **fields: object) -> tuple[str, int]:
    prompt = door.prompt(**fields)
    return prompt.base_id, prompt.settings["steps"]


def test_prompts_of_a_tune_are_rendered_on_the_sibling(siblings: Door) -> None:
    tune = finished(siblings, base="tiny", title="Rex", prompts=[{"text": "ohwx dog"}])
    assert (tune.base_id, rendered_on(siblings, tune="Rex")) == ("tiny", ("quick", 4))
    assert rendered_on(siblings, text="a <lora:Rex:1> dog", base="tiny") == ("quick", 4)
    (own, by_itself, _tagged) = sorted(siblings.registry.prompts.rows(), key=lambda one: one.number)
    assert (own.base_id, own.settings["steps"], own.base) == ("quick", 4, "tiny")
    for prompt in (own, by_itself):
        said = siblings.registry.events.of(prompt.id)[0].message
        assert "renders on quick, the few-step sibling of tiny" in said


def test_a_plain_base_and_the_tune_itself_stay_where_they_were_named(siblings: Door) -> None:
    assert rendered_on(siblings, base="tiny") == ("tiny", 20)
    assert rendered_on(siblings, base="quick") == ("quick", 4)
    assert rendered_on(siblings, base="tiny", settings={"renders_on": True}) == ("quick", 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"renders_on": False},
        {"steps": 9},
        {"guidance_scale": 5.0},
        {"scheduler": "euler"},
        {"baseline": "fast"},
        {"negative_prompt": "a hat"},
    ],
)
def test_what_is_meant_for_the_base_is_rendered_there(siblings: Door, settings: dict) -> None:
    finished(siblings, base="tiny", title="Rex")
    assert rendered_on(siblings, tune="Rex", settings=settings)[0] == "tiny"


def test_the_sibling_can_be_asked_for_by_name(siblings: Door) -> None:
    finished(siblings, base="tiny", title="Rex")
    told(siblings, tiny=changed(siblings, "tiny", renders_on_by_default=False))
    assert rendered_on(siblings, tune="Rex") == ("tiny", 20)
    assert rendered_on(siblings, tune="Rex", base="quick") == ("quick", 4)
    assert rendered_on(siblings, text="a <lora:Rex:1> dog", base="quick") == ("quick", 4)
    assert rendered_on(siblings, tune="Rex", settings={"renders_on": True, "steps": 6}) == ("quick", 6)


def test_what_the_sibling_cannot_do_is_refused_by_name(siblings: Door) -> None:
    finished(siblings, base="tiny", title="Rex")
    wanted = {"renders_on": True, "negative_prompt": "a hat"}
    said = refused(FailureCode.INVALID_REQUEST, siblings.prompt, tune="Rex", settings=wanted)
    assert "'quick'" in said and "negative_prompt" in said
    finished(siblings, base="tiny", title="whole", training={"kind": "checkpoint"})
    assert rendered_on(siblings, tune="whole")[0] == "tiny"
    assert rendered_on(siblings, text="a dog <lora:whole:1> <lora:Rex:1>", base="tiny")[0] == "tiny"
    refused(FailureCode.INVALID_REQUEST, siblings.prompt, text="a dog <lora:whole:1>", base="quick")
    wanted = {"renders_on": True}
    assert "checkpoint" in refused(
        FailureCode.INVALID_REQUEST, siblings.prompt, tune="whole", settings=wanted
    )


def test_a_base_without_a_sibling_says_so(door: Door) -> None:
    said = refused(FailureCode.INVALID_REQUEST, door.prompt, base="tiny", settings={"renders_on": True})
    assert "no sibling" in said


def test_a_sibling_that_is_not_installed_is_only_missed_when_asked_for(siblings: Door) -> None:
    finished(siblings, base="tiny", title="Rex")
    (siblings.pictures.with_name("quick") / "model_index.json").unlink()
    assert rendered_on(siblings, tune="Rex") == ("tiny", 20)
    wanted = {"renders_on": True}
    said = refused(FailureCode.BASE_NOT_INSTALLED, siblings.prompt, tune="Rex", settings=wanted)
    assert "tunes bases pull quick" in said


def test_a_sibling_has_the_same_layers(siblings: Door) -> None:
    finished(siblings, base="tiny", title="Rex")
    told(siblings, quick=changed(siblings, "quick", family="flux"))
    assert "family flux" in refused(FailureCode.UNKNOWN_BASE, siblings.prompt, tune="Rex")


def test_a_plan_looks_kinds_up_without_refusing(siblings: Door) -> None:
    """Campaigns are planned before the tunes that their texts name are ready."""
    siblings.tune(base="tiny", title="later", training={"kind": "checkpoint"})
    asked = PromptRequest(text="a <lora:later:1> dog", base="tiny")
    completed = completed_prompt(
        Installation(siblings.settings, registry=siblings.registry, catalog=siblings.catalog), asked, None
    )
    assert completed.entry.base_id == "tiny"


def test_siblings_of_the_shipped_catalog_exist() -> None:
    for profile in ("embedded", "production"):
        catalog = load_catalog(profile)
        for entry in catalog.entries.values():
            catalog.sibling(catalog.real(entry))

"""A run of campaigns alone gives way to whoever waits for a single prompt, and loses nothing by it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace

from tests.support.registry import add_prompt, prompt_request
from tunes_dagster.core.settings import get_settings
from tunes_dagster.definitions import build_defs
from tunes_dagster.pipeline.inprocess import execute
from tunes_dagster.service import decide
from tunes_dagster.service.installation import Installation

SMALL = {"width": 64, "height": 64, "steps": 1}


def test_a_campaign_gives_way_between_parts_and_goes_on(house, monkeypatch):
    monkeypatch.setenv("TUNES_CAMPAIGN_TURN_SECONDS", "0")
    monkeypatch.setattr(sys.modules["tunes_dagster.assets.renders"], "run_batch", _as_if_loaded_at_once())
    get_settings.cache_clear()
    settings, registry, defs = get_settings(), house.registry, build_defs(campaigns=[])
    for seed in range(20):
        add_prompt(registry, prompt_request(seed=seed, **SMALL), base_id="tiny-sdxl", origin="campaign")
    (campaign,) = decide.render_launches(Installation(settings, registry=registry))
    assert campaign.patient

    def stands() -> Counter[str]:
        return Counter(one.status for one in registry.prompts.rows(batch_id=campaign.partition))

    def single(seed: int) -> str:
        return add_prompt(
            registry, prompt_request(seed=seed, **{**SMALL, "steps": 2}), base_id="tiny-sdxl"
        ).id

    first = single(100)
    assert execute(defs, house.instance, campaign) and stands() == {"queued": 20}, "before anything is loaded"
    (work,) = registry.work.of(campaign.partition, "render")
    assert (work.state, work.attempt, work.tries) == ("queued", 1, 0)
    launches = {
        launch.patient: launch for launch in decide.render_launches(Installation(settings, registry=registry))
    }
    assert execute(defs, house.instance, launches[False])
    assert registry.prompts.get(first).status == "done"

    second = single(101)
    assert execute(defs, house.instance, launches[True])
    assert stands() == {"done": 7, "queued": 13}, "one of three parts was rendered, and kept"
    launches = {
        launch.patient: launch for launch in decide.render_launches(Installation(settings, registry=registry))
    }
    assert execute(defs, house.instance, launches[False]) and registry.prompts.get(second).status == "done"
    assert execute(defs, house.instance, launches[True]) and stands() == {"done": 20}
    (work,) = registry.work.of(campaign.partition, "render")
    assert (work.state, work.attempt) == ("done", 3)
    assert registry.groups.last_machine().kind == "cpu"


def _as_if_loaded_at_once():
    """Return `run_batch` that says that loading took no time: a turn lasts at least as long as that."""
    from tunes_dagster.rendering import run

    real = run.run_batch

    def quick(*arguments):
        *others, delivery, aids = arguments
        return real(*others, replace(delivery, between=lambda _loaded: delivery.between(0.0)), aids)

    return quick

"""Planning while the world moves: what ends between drawing a plan and writing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.registry.conftest import clock, migrated_file, registry  # noqa: F401 - fixtures
from tests.support.registry import add_tune, make_ready
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.registry import Registry

YAML = b"name: looks\ncron: '0 7 * * 1'\nstart: 2026-02-02\ntunes: [anna, bob]\nprompts: looks.csv\n"
TABLE = b"text,seeds,tunes\n{{subject}} in the snow,1-2,\nboth <lora:bob:1>,3,anna\n"


@pytest.mark.parametrize("registry", ["sqlite"], indirect=True)
def test_a_plan_is_drawn_again_when_a_tune_of_it_ends_meanwhile(
    registry: Registry,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_ready(registry, add_tune(registry, title="anna"))
    bob = add_tune(registry, title="bob")
    keeper = Keeper(registry, Store(tmp_path / "store"), load_catalog(), Settings(home=tmp_path))
    campaign, _ = keeper.add(Source("looks.yaml", YAML, {"looks.csv": TABLE}), registry.now())
    written = registry.plan_date

    def late(*args: Any, **more: Any) -> Any:
        registry.request_cancel(bob.id)
        return written(*args, **more)

    monkeypatch.setattr(registry, "plan_date", late)
    date, drawn = keeper.plan(campaign, "2026-02-23")
    assert {(one.line, one.reason) for one in drawn.left_out} == {
        (2, "The tune bob was cancelled."),
        (3, "The text names the tune 'bob', which cannot be used: it is cancelled."),
    }
    assert (date.plan["prompts"], date.plan["new"], len(date.plan["left_out"])) == (2, 2, 3)
    assert registry.date_counts(date.id) == {"queued": 2} and date.message == ""

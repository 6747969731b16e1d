"""Planning while the world moves: what ends between drawing a plan and writing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tests.registry.conftest import clock, migrated_file, registry  # noqa: F401 - fixtures
from tests.support.lock_order import unwatched
from tests.support.registry import add_tune, make_ready
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.campaigns.plan import Sketch
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.registry import Campaign, Prompt, Registry
from tunes_dagster.service.installation import Installation

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
    keeper = Keeper(
        Installation(
            Settings(home=tmp_path),
            registry=registry,
            store=Store(tmp_path / "store"),
            catalog=load_catalog(),
        )
    )
    campaign, _ = keeper.add(Source("looks.yaml", YAML, {"looks.csv": TABLE}), registry.now())
    written = registry.dates.plan

    def late(*args: Any, **more: Any) -> Any:
        registry.work.cancel_tune(bob.id)
        return written(*args, **more)

    monkeypatch.setattr(registry.dates, "plan", late)
    date, drawn = keeper.plan(campaign, "2026-02-23")
    assert {(one.line, one.reason) for one in drawn.left_out} == {
        (2, "The tune bob was cancelled."),
        (3, "The text names the tune 'bob', which cannot be used: it is cancelled."),
    }
    assert (date.plan["prompts"], date.plan["new"], len(date.plan["left_out"])) == (2, 2, 3)
    assert registry.dates.counts(date.id) == {"queued": 2} and date.message == ""


DATE = "2026-02-23"


class Capped:
    """A campaign of one tune whose date may cost three pictures and a half."""

    def __init__(self, registry: Registry, folder: Path) -> None:  # noqa: F811
        self.registry = registry
        make_ready(registry, add_tune(registry, title="anna"))
        self.keeper = Keeper(
            Installation(
                Settings(home=folder),
                registry=registry,
                store=Store(folder / "store"),
                catalog=load_catalog(),
            )
        )
        _, drawn = self.add("1-2")
        self.price = drawn.planned[0].price
        assert self.price > 0

    def add(self, seeds: str, cap: float = 100.0) -> tuple[Campaign, Sketch]:
        yaml = YAML.replace(b", bob", b"") + f"cost_cap: {cap}\n".encode()
        table = f'text,seeds\n{{{{subject}}}},"{seeds}"\n'.encode()
        return self.keeper.add(Source("looks.yaml", yaml, {"looks.csv": table}), self.registry.now())

    def plan(self, seeds: str, **more: Any) -> list[str]:
        """Plan the date with some seeds; returns how each of its prompts stands."""
        campaign, _ = self.add(seeds, 3.5 * self.price / 1e6)
        date, _ = self.keeper.plan(campaign, DATE, **more)
        return [prompt.status for _, prompt in self.registry.dates.prompts(date.id)]

    def render(self) -> None:
        """Render everything that is queued."""
        for batch in self.registry.groups.make_batches(wait_seconds=0, max_prompts=10):
            work = self.registry.work.claim("render", batch.id, f"run-{batch.id}")
            for prompt in self.registry.prompts.rows(batch_id=batch.id):
                self.registry.prompts.done(prompt.id, work.id, f"run-{batch.id}", [f"{prompt.id}.png"])
            self.registry.work.finish(work.id, f"run-{batch.id}")


@pytest.fixture
def capped(registry: Registry, tmp_path: Path) -> Capped:  # noqa: F811
    return Capped(registry, tmp_path)


@pytest.mark.parametrize("registry", ["sqlite"], indirect=True)
def test_a_cap_is_for_all_plans_of_a_date_together(capped: Capped) -> None:
    assert capped.plan("1-2") == ["queued"] * 2
    with pytest.raises(Failure, match="more, with the .* of its earlier plans above the cap"):
        capped.plan("1-4")
    assert capped.plan("2-4") == ["queued"] * 3, "nobody had begun the first one, so it costs nothing"
    capped.render()
    with pytest.raises(Failure, match="above the cap"):
        capped.plan("9")  # the others are paid for, wanted or not
    assert capped.plan("2-3") == ["done"] * 2
    with pytest.raises(Failure, match="above the cap"):
        capped.plan("2-3,9")
    assert len(capped.registry.prompts.rows(limit=100, status="queued")) == 0


@pytest.mark.parametrize("registry", ["sqlite"], indirect=True)
def test_what_fails_while_a_plan_is_drawn_counts_with_what_replaces_it(
    capped: Capped, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = capped.registry  # noqa: F811
    capped.plan("1-3")
    capped.render()
    capped.plan("1-3")
    written = registry.dates.plan

    def late(*args: Any, **more: Any) -> Any:
        with unwatched(), registry.writing() as session:
            session.execute(update(Prompt).values(expired_at=registry.now()))
        return written(*args, **more)

    monkeypatch.setattr(registry.dates, "plan", late)
    with pytest.raises(Failure, match="above the cap"):
        capped.plan("1-3")
    assert not registry.prompts.rows(limit=100, status="queued")

"""Every field of a campaign's file and column of its table, naming what is another account's.

The fields are the pydantic models' own: one without a case below fails the test. Campaign files are an operator's;
whatever they name is looked up within the account that they say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from sqlalchemy import select

from tests.attack.tenants import ALFA, BRAVO, SECRET, Tenants, Word, populate, same, words_of
from tests.gateway.conftest import House
from tests.support.lock_order import unwatched
from tunes_dagster.campaigns.files import CampaignFile, Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.campaigns.tables import KNOWN
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.registry import Tune
from tunes_dagster.service.installation import Installation

FILE: dict[str, Any] = {
    "name": "bravos looks",
    "account": BRAVO,
    "cron": "0 7 * * 1",
    "start": "2026-02-02",
    "base": "fast",
    "prompts": [{"text": "a cat", "seeds": 1}],
}
WORDS, PICTURES = "tune word", "picture"


def row(**cells: Any) -> dict[str, Any]:
    """Return a campaign of one row."""
    return {"prompts": [{"text": "a cat", "seeds": 1, **cells}]}


# Field → (kind of the names that are tried, what the file says). No kind: the field names nothing.
FIELDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "name": [("campaign", {"name": "WORD"})],
    "tunes": [(WORDS, {"tunes": ["WORD"]}), (WORDS, {"tunes": ["anna", "WORD"]})],
    "labels": [("label", {"labels": {"person": "WORD"}})],
    "tag": [("label", {"tag": "WORD"})],
    "base": [(WORDS, {"base": "WORD"})],
    "prompts": [(WORDS, row(text="a cat <lora:WORD:1>")), (WORDS, row(text="a cat <faceid:WORD:1>"))],
    "variables": [(WORDS, {**row(text="a cat {{more}}"), "variables": {"more": "<lora:WORD:1>"}})],
    "settings": [(PICTURES, {"settings": {"input_image": "WORD"}})],
    "account": [("account", {"account": "WORD"})],
    "description": [("", {"description": "x"})],
    "cron": [("", {"cron": "0 8 * * 1"})],
    "timezone": [("", {"timezone": "Europe/Berlin"})],
    "start": [("", {"start": "2026-02-09"})],
    "active": [("", {"active": False})],
    "sheet": [("", {"sheet": "x"})],
    "seeds": [("", {"seeds": "fixed"})],
    "cost_cap": [("", {"cost_cap": 1.0})],
}
SETTINGS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "input_image": [(PICTURES, {"settings": {"input_image": "WORD"}}), (PICTURES, row(input_image="WORD"))],
    "mask_image": [(PICTURES, {"settings": {"input_image": "WORD", "mask_image": "WORD"}})],
    "composition": [(WORDS, {"settings": {"composition": "WORD"}})],
    "scheduler": [(WORDS, {"settings": {"scheduler": "WORD"}})],
    "negative_prompt": [(WORDS, row(negative_prompt="<lora:WORD:1>"))],
}
COLUMNS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "text": FIELDS["prompts"],
    "tunes": [(WORDS, row(tunes="WORD")), (WORDS, row(tunes="anna; WORD"))],
    "base": [(WORDS, row(base="WORD"))],
    "label": [("", row(label="x"))],
    "sizes": [("", row(sizes="64x64"))],
    "seeds": [("", row(seeds="1-2"))],
}


def names_something(model: Any, field: str) -> bool:
    """Whether a field takes any text, and not one of a few words, a number or a choice."""
    kind = model.model_fields[field].annotation
    inner = [one for one in (kind, *get_args(kind)) if get_origin(one) is not Literal]
    return str in inner


@pytest.fixture
def both(house: House) -> Tenants:
    found = populate(house)
    keeper = keeper_of(found)
    campaign, _ = keeper.add(source({**FILE, "account": ALFA, "name": f"{SECRET} looks", **row(text=SECRET)}))
    keeper.plan(campaign, keeper.dates(campaign)[-1])
    found.name("campaign", campaign.name)
    found.name("account", ALFA)
    with unwatched(), house.registry.writing() as session:
        for tune in session.scalars(select(Tune).where(Tune.account_id == ALFA)):
            tune.labels = {"person": SECRET, SECRET: "yes"}
    found.name("label", SECRET)
    house.render_all()
    return found


def keeper_of(both: Tenants) -> Keeper:
    """Return what campaigns are kept with."""
    return Keeper(
        Installation(
            both.house.settings, registry=both.house.registry, store=both.house.store, catalog=load_catalog()
        )
    )


def source(content: dict[str, Any]) -> Source:
    """Return a campaign's file."""
    return Source("looks.yaml", yaml.safe_dump(content).encode())


def with_word(value: Any, word: str) -> Any:
    """Return what a file says, with a name in it."""
    if isinstance(value, dict):
        return {name: with_word(one, word) for name, one in value.items()}
    if isinstance(value, list):
        return [with_word(one, word) for one in value]
    return value.replace("WORD", word) if isinstance(value, str) else value


def attacks() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (field, kind, content) of every case."""
    for some in (FIELDS, SETTINGS, COLUMNS):
        for field, cases in some.items():
            yield from ((field, kind, content) for kind, content in cases)


def told(keeper: Keeper, content: dict[str, Any]) -> str:
    """Return what is said of a campaign, and of adding and planning it."""
    drawn = keeper.check(source(content))
    said = [str(one) for one in drawn.problems]
    said += [f"{one.request.text} {one.tune_id} {one.recipe_hash in drawn.known}" for one in drawn.planned]
    try:
        campaign, _ = keeper.add(source(content))
        date, drawn = keeper.plan(campaign, keeper.dates(campaign)[-1])
        said += [date.message, *(f"{one.tune} {one.reason}" for one in drawn.left_out)]
    except Failure as failure:
        said.append(str(failure))
    return "\n".join(said)


def test_every_field_is_known() -> None:
    assert set(FIELDS) == set(CampaignFile.model_fields), "a field without a case in this test"
    texts = {name for name in RenderSettings.model_fields if names_something(RenderSettings, name)}
    assert texts <= set(SETTINGS), "a setting that takes any text has no case in this test"
    assert set(COLUMNS) | set(RenderSettings.model_fields) >= KNOWN, "a column without a case in this test"


@pytest.mark.slow
def test_campaigns_find_nothing_of_another_account(both: Tenants) -> None:
    before, keeper = both.alfas(), keeper_of(both)
    for field, kind, content in attacks():
        for word in words_of(both, kind) if kind else [Word("", "")]:
            if field == "account":
                continue  # who the operator says it is for; below
            attack = (field, kind, content, word.real)
            said = told(keeper, {**FILE, **with_word(content, word.real)})
            both.named |= {word.real, word.twin}
            both.check_silent(said, attack, word.real)
            if word.real and field != "name":
                nobody = told(keeper, {**FILE, **with_word(content, word.twin)})
                assert same(said, word.real) == same(nobody, word.twin), attack
        both.check(before, (field, content))


def test_a_name_that_another_account_has_is_refused_and_shows_nothing(both: Tenants) -> None:
    """Names of campaigns are the installation's: Alfa's is neither replaced nor brought back as Bravo's."""
    before, keeper, name = both.alfas(), keeper_of(both), both.words["campaign"][0].real
    with pytest.raises(Failure, match="taken by a campaign of another account"):
        keeper.add(source({**FILE, "name": name}))
    with pytest.raises(Failure, match="taken by a campaign of another account"):
        both.house.registry.campaigns.put(name, account_id=BRAVO)
    both.check(before, "taking a name")
    both.house.registry.campaigns.remove(both.house.registry.campaigns.get(name).id)
    with pytest.raises(Failure, match="taken by a campaign of another account"):
        keeper.add(source({**FILE, "name": name}))


def test_words_that_both_have_mean_the_account_of_the_file(both: Tenants) -> None:
    keeper, registry = keeper_of(both), both.house.registry
    for number, word in enumerate(both.words["colliding"]):
        for account in (ALFA, BRAVO):
            tune = registry.objects.tune_named(account, word.real)
            if tune.kind == "faceid":
                continue
            rows = [
                {"text": "a", "tunes": word.real, "seeds": 1},
                {"text": f"b <lora:{word.real}:1>", "seeds": 2},
            ]
            content = {**FILE, "name": f"{account} {number}", "account": account, "prompts": rows}
            campaign, _ = keeper.add(source(content))
            date, _ = keeper.plan(campaign, keeper.dates(campaign)[-1])
            prompts = [prompt for _link, prompt in registry.dates.prompts(date.id)]
            uses = registry.uses.of([prompt.id for prompt in prompts])
            assert [[use.tune_id for use in uses[one.id]] for one in prompts] == [[tune.id]] * 2, (
                account,
                word,
            )
    assert both.strays() == []

"""Packs travel between accounts: what their author wrote into them goes no further than it may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, text

from tests.gateway.conftest import House
from tests.support.databases import new_database
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.gateway.dialects.astria.packs import OWN, SHARED
from tunes_dagster.gateway.dialects.astria.wire import PromptFields
from tunes_dagster.registry import Registry
from tunes_dagster.registry.engine import make_engine
from tunes_dagster.registry.migrate import alembic_config
from tunes_dagster.registry.packs import Packs
from tunes_dagster.rendering.records import optional_settings

SECRET = "https://mallory.example/hook?secret=1"
# Everything that a prompt may hold and that names its author, their server, or what is theirs.
THEIRS = {
    "callback": SECRET,
    "input_image_url": SECRET,
    "mask_image_url": SECRET,
    "input_image_base64": "aGVsbG8=",
    "input_image": SECRET,
    "workspace_id": "mallory",
    "pack_id": 7,
    "base_pack_id": "mallory",
    "orig_prompt_id": "mallory",
    "community": "mallory",
    "order_id": "mallory",
    "user_id": "mallory",
    "anything_new": SECRET,
}
PLAIN = {"text": "{{token}} {{name}} as a queen", "num_images": 2, "cfg_scale": 4.0, "seed": 7, "ar": "3:2"}
TUNE = {"title": "Ann", "name": "woman", "image_urls": ["https://files.example/a.png"]}


def made(house: House, account: str = "mallory", **fields: Any) -> Any:
    pack = {"title": "Queens", "prompts_per_class": {"woman": [{**PLAIN, **THEIRS}]}, **fields}
    return house.client.post("/packs", json={"pack": pack}, headers=house.auth(account))


def used(house: House, slug: str, account: str = "ann") -> list[Any]:
    answer = house.client.post(f"/p/{slug}/tunes", json={"tune": TUNE}, headers=house.auth(account))
    assert answer.status_code == 201, answer.text
    return house.registry.prompts.rows(account_id=account)


def test_a_public_pack_hands_out_how_pictures_are_made_and_nothing_else(house: House) -> None:
    answer = made(house, public=True)
    assert answer.status_code == 201
    for name in THEIRS:
        assert name in answer.headers["x-tunes-warnings"], name
    slug = answer.json()["slug"]
    assert "mallory" not in json.dumps(Packs(house.registry).find("mallory", slug).prompts)
    (prompt,) = used(house, slug)
    assert prompt.callback_url is None and prompt.settings["input_image"] is None
    assert (prompt.settings["num_images"], prompt.settings["seed"]) == (2, 7)
    everything = [
        house.client.get(path, headers=house.auth()).text
        for path in ("/prompts", "/gallery/packs", f"/p/{slug}")
    ]
    seen = house.registry.objects.get(prompt.id)
    everything += [
        json.dumps(seen.asked, default=str),
        json.dumps(prompt.request if hasattr(prompt, "request") else {}),
    ]
    assert not any("mallory" in one or "secret" in one for one in everything)


def test_rows_of_before_are_read_through_the_same_list(house: House) -> None:
    """Somebody wrote the row before there was a list, or past it."""
    house.key("mallory")
    rows = [{"id": 1, "class": "woman", **PLAIN, **THEIRS}]
    facts = {"base_tune_id": 99, "cover_url": SECRET, "owner": "mallory"}
    Packs(house.registry).add("old", "Old", account_id="mallory", public=True, prompts=rows, fields=facts)
    (prompt,) = used(house, "old")
    assert prompt.callback_url is None and prompt.settings["input_image"] is None
    for path in ("/gallery/packs", "/p/old", "/prompts", "/tunes"):
        said = house.client.get(path, headers=house.auth()).text
        assert "mallory" not in said and '"base_tune_id":99' not in said, path
    tune = house.client.get("/tunes", headers=house.auth()).json()[0]["id"]
    answer = house.client.post("/p/old/tunes", json={"tune": {"tune_ids": [tune]}}, headers=house.auth())
    assert answer.status_code == 201
    assert [one.callback_url for one in house.registry.prompts.rows(account_id="ann")] == [None, None]


def test_a_pack_of_ones_own_keeps_what_is_ones_own(house: House) -> None:
    answer = made(house, "ann")
    slug = answer.json()["slug"]
    assert "callback" not in answer.headers["x-tunes-warnings"]
    (prompt,) = used(house, slug)
    assert prompt.callback_url == SECRET and prompt.settings["input_image"] == SECRET
    assert house.client.get(f"/p/{slug}", headers=house.auth("bob")).status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"base_tune_id": 5},
        {"prompts_per_class": {"woman": [{"text": "<lora:5:1> a queen"}]}},
        {"prompts_per_class": {"woman": [{"text": "<faceid:mallory:1> a queen"}]}},
    ],
)
def test_what_names_the_authors_tunes_is_not_published(house: House, fields: dict[str, Any]) -> None:
    answer = made(house, public=True, **fields)
    assert answer.status_code == 422 and set(answer.json()) <= {"base_tune_id", "prompts_per_class", "error"}
    assert made(house, **fields).status_code == 201


def test_every_field_of_a_prompt_is_decided_on() -> None:
    """A new field is not shared until somebody says that it can be."""
    undecided = set(PromptFields.model_fields) - {*SHARED, *OWN}
    assert undecided == {"input_image_base64"}  # too large for a row


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_packs_that_are_there_already_are_cleaned(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    if database == "postgres":
        url = new_database(request.getfixturevalue("postgres"))
    engine: Engine = make_engine(url).execution_options(tunes_writes=True)
    rows = json.dumps({"rows": [{"id": 1, "class": "woman", **PLAIN, **THEIRS}]})
    insert = (
        "INSERT INTO packs (slug, account_id, title, fields, prompts, public_at, created_at, updated_at) "
        "VALUES (:slug, 'local', 'x', '{}', :rows, :public, '2026-01-01', '2026-01-01')"
    )
    with engine.connect() as connection, connection.begin():
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
        for slug, public in (("open", "2026-01-01"), ("closed", None)):
            connection.execute(text(insert), {"slug": slug, "rows": rows, "public": public})
    engine.dispose()
    registry = Registry(url, migrate=False)
    registry.migrate(older=True)
    public = Packs(registry).find("local", "open")
    private = Packs(registry).find("local", "closed")
    assert public is not None and public.prompts == {"rows": [{"id": 1, "class": "woman", **PLAIN}]}
    assert private is not None and private.prompts["rows"][0]["callback"] == SECRET
    registry.close()


def test_a_picture_does_not_carry_the_signature_of_what_it_was_made_from() -> None:
    settings = RenderSettings(
        input_image="https://me:word@files.example/a.png?X-Amz-Signature=secret", seed=1
    )
    used = optional_settings(settings)
    assert used["input_image"] == "https://files.example/a.png?…"
    assert optional_settings(RenderSettings(input_image="blobs/ab/c.png"))["input_image"] == "blobs/ab/c.png"


@pytest.mark.parametrize(("name", "value"), [("tune_ids", []), ("tune_ids", 0), ("prompt_ids", [])])
def test_a_choice_of_nothing_costs_nothing(house: House, name: str, value: Any) -> None:
    """It was taken for no choice: for another tune, or for all prompts."""
    slug = made(house, account="ann").json()["slug"]
    before = house.registry.ledger.books("ann")
    answer = house.client.post(
        f"/p/{slug}/tunes", json={"tune": {**TUNE, name: value}}, headers=house.auth("ann")
    )
    assert answer.status_code in (404, 422), answer.text
    assert house.registry.ledger.books("ann") == before and not house.registry.tunes.rows(account_id="ann")

"""A prompt that breaks a rule is refused on every road by which one comes, in that road's form, and costs nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.conftest import House
from tests.gateway.test_astria import create as astria_tune
from tests.gateway.test_pixelapi import TRAIN
from tests.gateway.test_pixu import call, create
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import PromptRequest, TuneRequest
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.submit import submit_prompt, submit_tune

SAID = "The prompt was blocked by the rule 'explicit sex'. Ask for something else; nothing was charged."
BAD = "p0rn, ohwx woman"


def answer(house: House, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    got = house.client.post(path, json=body, headers=house.auth())
    return got.status_code, got.json()


def test_every_api_refuses_in_its_own_form_before_anything_is_charged(house: House) -> None:
    tune = astria_tune(house)
    job = answer(house, "/v1/tunes/train", TRAIN)[1]["job_id"]
    create(house)
    for row in house.registry.tunes.rows(account_id="ann"):
        if row.status != "awaiting_images":
            house.finish_tune(row)
    uid = call(house, "create_model", face_base64="iVBORw0KGgo=").json()["response"]["modelUid"]
    before = house.registry.ledger.wallet("ann").available, house.registry.objects.count_prompts("ann")
    detail = (422, {"detail": SAID})
    assert answer(house, "/v1/image/generate", {"prompt": BAD}) == detail
    assert SAID.partition(".")[0] in str(
        answer(house, "/v1/image/generate", {"prompt": BAD, "dry_run": True})[1]
    )
    assert answer(house, "/v1/tunes/infer", {"tune_id": job, "prompt": BAD}) == detail
    astria = (422, {"error": SAID})
    assert answer(house, f"/tunes/{tune['id']}/prompts", {"prompt": {"text": BAD}}) == astria
    pictures = {"image_urls": ["https://example.com/x.jpg"]}
    asked = {"title": "x", "name": "woman", **pictures, "prompts_attributes": [{"text": BAD}]}
    assert answer(house, "/tunes", {"tune": asked}) == astria
    refused = call(house, "txt2img_strict_portrait", model_uid=uid, positive=BAD)
    assert SAID in refused.text and refused.status_code == 422
    assert (
        house.registry.ledger.wallet("ann").available,
        house.registry.objects.count_prompts("ann"),
    ) == before


def test_campaigns_tunes_and_the_command_line_are_told_before_anything_is_queued(house: House) -> None:
    house.key()
    service, registry = house.service, house.registry
    keeper = Keeper(
        Installation(service.settings, registry=registry, store=house.store, catalog=service.catalog)
    )
    text = "name: looks\ncron: '0 7 * * 1'\nstart: 2026-02-02\naccount: ann\nbase: sdxl\nprompts: t.csv\n"
    table = f'text\na beach\n"{BAD}"\n'
    drawn = keeper.check(Source("looks.yaml", text.encode(), {"t.csv": table.encode()}))
    assert [(one.line, SAID.startswith(one.message)) for one in drawn.problems if one.level == "error"] == [
        (3, True)
    ]
    for work in (
        lambda: submit_prompt(
            Installation(service.settings, registry=registry, catalog=service.catalog),
            PromptRequest(text=BAD, base="sdxl"),
            account_id="ann",
        ),
        lambda: submit_tune(
            Installation(service.settings, registry=registry, store=house.store, catalog=service.catalog),
            TuneRequest.model_validate(
                {
                    "name": "dog",
                    "sources": {"image_urls": ["https://e.org/x.jpg"]},
                    "prompts": [{"text": BAD}],
                }
            ),
            account_id="ann",
        ),
    ):
        with pytest.raises(Failure) as refused:
            work()
        assert refused.value.code == FailureCode.BLOCKED and refused.value.facts["rule"] == "explicit sex"
    assert registry.objects.count_prompts("ann") == 0 and not registry.tunes.rows(account_id="ann")

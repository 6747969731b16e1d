"""The same work costs the same on every road by which an account can ask for it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.attack.test_rehearsals import TRAINER, changing
from tests.gateway.conftest import House
from tests.gateway.test_astria import create as astria_tune
from tests.gateway.test_imports import send as imported
from tests.gateway.test_pixelapi import TRAIN
from tests.gateway.test_pixu import FACE, call
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.prices import PriceList, load_prices
from tunes_dagster.core.recipe import PromptRequest, TuneRequest
from tunes_dagster.gateway.rehearsal import is_rehearsable
from tunes_dagster.intake.captions import CaptionTable
from tunes_dagster.intake.training_set import TrainingSet
from tunes_dagster.registry import Prompt, Tune
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.rerun import rerun
from tunes_dagster.service.submit import submit_prompt, submit_tune

PICTURES = {"image_urls": ["https://example.com/x.jpg"]}
# Every call that makes work; each is made below, so that a new one fails here until it is.
MADE = {
    "/tunes",
    "/tunes/import",  # trains nothing: it has a price of its own
    "/tunes/{tune_id}/prompts",
    "/prompts/{prompt_id}/duplicate",
    "/p/{pack_id}/tunes",
    "/v1/tunes/train",
    "/v1/tunes/infer",
    "/v1/image/generate",
    "/v1/image/upscale",
    "/v1/image/batch",
    "/v1/video/generate",
    TRAINER,
    "/pixu/api/create_model",
    "/pixu/api/create_model_from_url",
    "/pixu/api/txt2img_strict_portrait",
    "/pixu/api/txt2img_composition",
}


def _rehearsable(routes: Any) -> set[str]:
    found = set()
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            found |= _rehearsable(inner.routes)
        elif is_rehearsable(getattr(route, "endpoint", len)):
            found.add(route.path.removesuffix(".json"))
    return found


def _send(house: House, path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {**house.auth(credits=1_000_000_000), "Ocp-Apim-Subscription-Key": house.key()}
    answer = house.client.post(path, json=body, headers=headers)
    assert answer.status_code in (200, 201), (path, answer.text)
    return answer.json()


def _ready(house: House, tune_id: str) -> Tune:
    row = house.registry.tunes.get(tune_id)
    if row.status == "awaiting_images":
        house.registry.tunes.release(tune_id)
    return house.finish_tune(row)


def _over_http(house: House) -> None:
    """Ask for work on bases of every family through every call that makes some."""
    for model in ("sdxl", "flux"):
        job = _send(house, "/v1/tunes/train", {**TRAIN, "model": model})["job_id"]
        for count in (1, 4):
            _send(house, "/v1/tunes/infer", {"tune_id": job, "prompt": "ohwx", "num_images": count})
    tags = house.registry.tunes.get(job).number
    _send(house, "/v1/image/generate", {"prompt": "a cat"})
    sdxl = house.registry.tunes.rows(account_id="ann")[-1]
    _send(house, "/v1/image/generate", {"prompt": f"a cat <lora:{sdxl.number}:1>"})
    _send(house, TRAINER, {"image_data_url": "https://example.com/x.zip"})
    for branch, number in (("sdxl1", 666678), ("flux1", 1504944), ("sd15", 690204), ("fast", None)):
        tune = astria_tune(house, branch=branch, prompts_attributes=[{"text": "ohwx woman", "num_images": 2}])
        prompt = _send(house, f"/tunes/{tune['id']}/prompts", {"prompt": {"text": "ohwx woman"}})
        _send(house, f"/prompts/{prompt['id']}/duplicate", {"prompt": {"num_images": 3}})
        _send(house, "/p/corporate-headshots/tunes", {"tune": {"tune_ids": [tune["id"]]}})
        if number is not None:
            _send(house, f"/tunes/{number}/prompts", {"prompt": {"text": "a cat"}})
            _send(house, f"/tunes/{number}/prompts", {"prompt": {"text": f"ohwx <lora:{tune['id']}:1>"}})
        plain = {"title": f"p {branch}", "name": "woman", "branch": branch, **PICTURES}
        _send(house, "/p/corporate-headshots/tunes", {"tune": plain})
    assert tags
    uid = call(house, "create_model", face_base64=FACE).json()["response"]["modelUid"]
    _send(
        house, "/pixu/api/create_model_from_url", {"api_key": house.key(), "url": "https://example.com/x.jpg"}
    )
    for name in ("txt2img_strict_portrait", "txt2img_composition"):
        assert call(house, name, model_uid=uid, num_images=2).status_code == 200
        assert call(house, name).status_code == 200


def _by_hand(house: House) -> None:
    """Ask for the same as the command line and the UI do, and as a campaign does."""
    service = house.service
    for base in ("sdxl", "flux", "sd15", "flux2", "fast"):
        request = TuneRequest.model_validate({"name": "dog", "base": base, "sources": PICTURES})
        tune = submit_tune(
            Installation(
                service.settings, registry=house.registry, store=house.store, catalog=service.catalog
            ),
            request,
            account_id="ann",
            tune_id=f"by-hand-{base}",
        )
        asks = [PromptRequest(text="ohwx dog", tune=tune.id), PromptRequest(text="a dog", base=base)]
        for ask in asks:
            submit_prompt(
                Installation(
                    service.settings, registry=house.registry, store=house.store, catalog=service.catalog
                ),
                ask,
                account_id="ann",
            )
    for base in ("sdxl", "sd15"):  # of every kind, as the command line and as Astria's clients ask for them
        for kind in (
            {"kind": "pti"},
            {"kind": "checkpoint"},
            {"kind": "faceid"},
            {"kind": "lora", "dora": True},
        ):
            asked = {"name": "woman", "base": base, "sources": PICTURES, "training": kind}
            submit_tune(
                Installation(
                    service.settings, registry=house.registry, store=house.store, catalog=service.catalog
                ),
                TuneRequest.model_validate(asked),
                account_id="ann",
            )
    for kind_word in ("lora", "pti", "checkpoint", "faceid"):
        astria_tune(house, branch="sd15", model_type=kind_word)
    ready = _ready(house, "by-hand-sdxl")
    keep_dataset(house, ready.id)
    rerun(
        Installation(service.settings, registry=house.registry, store=house.store, catalog=service.catalog),
        ready,
    )
    keeper = Keeper(
        Installation(service.settings, registry=house.registry, store=house.store, catalog=service.catalog)
    )
    text = (
        "name: looks\ncron: '0 7 * * 1'\nstart: 2026-02-02\naccount: ann\ntunes: [by-hand-sdxl]\nbase: sdxl\n"
        "prompts: t.csv\n"
    )
    table = (
        "text,tunes,seeds,num_images\n{{subject}} at sea,,1-2,3\na beach,none,3,1\n"
        "a beach <lora:by-hand-sdxl:1>,none,4,1\n"
    )
    campaign, _ = keeper.add(Source("looks.yaml", text.encode(), {"t.csv": table.encode()}))
    keeper.plan(campaign, keeper.dates(campaign)[-1])


def _more_roads(house: House) -> None:
    """Ask for what has a price of its own: pictures that are enlarged, clips, weights that are taken in."""
    folder = house.service.catalog.resolve("cogvideo-2b").location(house.settings.bases_folder)
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    given, clip = {"image_url": "https://example.com/x.jpg"}, {"prompt": "a dog", "model": "cogvideo-2b"}
    _send(house, "/v1/image/upscale", given)
    _send(house, "/v1/image/generate", {"model": "upscale-4x", **given})
    _send(house, "/v1/image/batch", {"operation": "upscale", "images": ["https://example.com/x.jpg"] * 2})
    _send(house, "/v1/image/generate", clip)
    _send(house, "/v1/video/generate", clip)
    for base, settings in (
        ("upscale-4x", {"input_image": "https://example.com/x.jpg"}),
        ("cogvideo-2b", {}),
    ):
        ask = PromptRequest.model_validate({"text": "a dog", "base": base, "settings": settings})
        submit_prompt(house.service.installation, ask, account_id="ann")
    for base in ("sdxl", "sd15", "fast"):
        assert imported(house, base=base).status_code == 201


def keep_dataset(house: House, tune_id: str) -> None:
    """Leave what preparing a tune leaves, as far as asking for it again looks for it."""
    TrainingSet(tune_id=tune_id, class_name="dog", resolution=64, seed=0).save(house.store)
    CaptionTable(tune_id=tune_id, token="ohwx", class_name="dog").save(house.store, "made")


def _work_of(house: House, row: Tune | Prompt) -> tuple[Any, ...]:
    """Return what was asked for, as one who pays for it sees it."""
    catalog = house.service.catalog
    if isinstance(row, Tune):
        what = "embed" if row.kind == "faceid" else "train"
        if "imported" in row.recipe:
            what = "import"
        return what, catalog.resolve(row.base).family, row.base == "fast"
    uses = house.registry.uses.of([row.id]).get(row.id, [])
    home = house.registry.tunes.get(row.tune_id).base if row.tune_id else row.base
    entry = catalog.resolve(home)
    return ("tuned" if uses else "plain"), entry.family, entry.base_id == "tiny-sdxl"


def test_no_road_is_cheaper_than_another(house: House) -> None:
    assert _rehearsable(house.client.app.routes) == MADE  # type: ignore[attr-defined]
    served = {path.removesuffix(".json") for _method, path in changing(house.client.app.routes)}  # type: ignore[attr-defined]
    assert [path for path in MADE if not any(one.endswith(path) for one in served)] == []
    house.key(credits=1_000_000_000)
    _over_http(house)
    _by_hand(house)
    _more_roads(house)
    rows: list[Tune | Prompt] = [
        *house.registry.tunes.rows(account_id="ann", limit=1000),
        *house.registry.prompts.rows(account_id="ann", limit=1000),
    ]
    held = house.registry.ledger.prices_of([row.id for row in rows])
    found: dict[tuple[Any, ...], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        pictures = row.settings["num_images"] if isinstance(row, Prompt) else 1
        assert row.id in held, f"{row.id} ({row.origin}) cost nothing at all"
        found[_work_of(house, row)][held[row.id].amount // pictures].append(f"{row.origin} {row.id}")
    for work, prices in found.items():
        assert len(prices) == 1, (work, dict(prices))
        assert (0 in prices) == work[-1], (work, "only the shipped bases are free")
    assert len(found) == 3 * 5 + 2 + 3 + 2, sorted(found)
    kinds = {(row.kind, bool(row.recipe["training"].get("dora"))) for row in rows if isinstance(row, Tune)}
    assert kinds == {*((kind, False) for kind in ("lora", "pti", "checkpoint", "faceid")), ("lora", True)}
    origins = {row.origin for row in rows}
    assert origins == {"api", "cli", "campaign", "import"}


def test_a_tune_that_is_sold_is_worn_for_its_price_also_on_a_free_base(house: House) -> None:
    house.key(credits=1_000_000_000)
    sold, free = (astria_tune(house, branch=branch) for branch in ("sdxl1", "fast"))
    text = f"ohwx <lora:{sold['id']}:1>"
    request = PromptRequest(text=text, base="fast")
    prompts = [submit_prompt(house.service.installation, request, account_id="ann")]
    before = house.registry.ledger.wallet("ann").reserved
    _send(house, f"/tunes/{free['id']}/prompts", {"prompt": {"text": text}})
    assert house.registry.ledger.wallet("ann").reserved - before == 2_000
    [held] = house.registry.ledger.prices_of([prompts[0].id]).values()
    assert held.amount == 2_000
    table, file = (
        f"text,tunes,seeds\n{text},none,3\n",
        ("name: worn\ncron: '0 7 * * 1'\nstart: 2026-02-02\naccount: ann\nbase: fast\nprompts: t.csv\n"),
    )
    keeper = Keeper(house.service.installation)
    campaign, _ = keeper.add(Source("worn.yaml", file.encode(), {"t.csv": table.encode()}))
    before = house.registry.ledger.wallet("ann").reserved
    keeper.plan(campaign, keeper.dates(campaign)[-1])
    assert house.registry.ledger.wallet("ann").reserved - before == 2_000


def test_a_list_without_imports_takes_them_like_what_trains_nothing() -> None:
    shipped = load_prices()
    assert shipped.importing("sdxl1", "sdxl") == shipped.training("sdxl1", "sdxl", "faceid") == 10_000
    assert shipped.importing("tiny-sdxl", "sdxl") == 0
    named = PriceList.model_validate(
        {**shipped.model_dump(), "work": {**shipped.work, "import": 0.5, "import_sdxl": 0.25}}
    )
    assert (named.importing("sdxl1", "sdxl"), named.importing("x", "flux")) == (250_000, 500_000)


def test_each_api_shows_what_was_held(house: House) -> None:
    house.key(credits=1_000_000_000)

    def held() -> int:
        return house.registry.ledger.wallet("ann").reserved

    before = held()
    told = _send(house, "/v1/tunes/train", TRAIN)
    assert told["credits_cost"] * 1000 == held() - before == 100_000
    before = held()
    told = _send(house, "/v1/tunes/infer", {"tune_id": told["job_id"], "prompt": "x", "num_images": 3})
    assert told["credits_cost"] * 1000 == held() - before == 6_000
    before = held()
    assert (
        _send(house, "/v1/image/generate", {"prompt": "x"})["credits_used"] * 1000 == held() - before == 1_000
    )
    before = held()
    tune = astria_tune(house, branch="sdxl1")
    assert held() - before == 100_000
    before = held()
    prompt = _send(house, f"/tunes/{tune['id']}/prompts", {"prompt": {"text": "ohwx", "num_images": 2}})
    assert prompt["cost_mc"] * 10 == held() - before == 4_000
    listed = house.client.get("/prompts", headers=house.auth()).json()
    assert [one["cost_mc"] for one in listed][:1] == [400]
    pack = house.client.get("/p/corporate-headshots", headers=house.auth()).json()["costs"]["man"]
    given = {"tune": {"title": "t", "name": "man", **PICTURES}}
    before = held()
    _send(house, "/p/corporate-headshots/tunes", given)
    assert pack["cost"] * 10 == held() - before


@pytest.mark.parametrize("model", ["sdxl", "flux"])
def test_a_poor_account_is_refused_on_every_road(house: House, model: str) -> None:
    service = house.service
    headers = house.auth("poor", credits=1_000)
    assert (
        house.client.post("/v1/tunes/train", json={**TRAIN, "model": model}, headers=headers).status_code
        == 402
    )
    branch = {"sdxl": "sdxl1", "flux": "flux1"}[model]
    body = {"tune": {"title": "t", "name": "man", "branch": branch, **PICTURES}}
    assert house.client.post("/tunes", json=body, headers=headers).status_code == 422
    request = TuneRequest.model_validate({"name": "dog", "base": model, "sources": PICTURES})
    with pytest.raises(Failure) as refused:
        submit_tune(
            Installation(
                service.settings, registry=house.registry, store=house.store, catalog=service.catalog
            ),
            request,
            account_id="poor",
            origin="cli",
        )
    assert refused.value.code == FailureCode.OUT_OF_CREDITS
    assert house.registry.tunes.rows(account_id="poor") == [] and list(house.store.list("tunes")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"work": None, "prices": {"pixelapi": {"train_sdxl": 0.1}}},
            "`prices` by API are not read any more",
        ),
        ({"work": {"train": 1, "picture": 1}}, "has no price for tuned"),
        ({"work": {"train": -1, "picture": 1, "tuned": 1}}, "train is -1"),
        ({"work": {"train": float("nan"), "picture": 1, "tuned": 1}}, "train is nan"),
        ({"work": {"train": 1, "picture": 1, "tuned": 1, "tunde_sdxl": 1}}, "tunde_sdxl begins with none"),
        ({"plans": {"pro": {"requests_per_minute": 1, "monthly_usd": -5}}}, "plans.pro.monthly_usd"),
    ],
)
def test_a_price_list_that_would_give_work_away_is_refused_with_its_file(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    shipped = load_prices().model_dump()
    path = tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**shipped, **change}.items() if v is not None}))
    with pytest.raises(Failure) as refused:
        load_prices(str(path))
    assert said in refused.value.message and str(path) in refused.value.detail


def test_prices_are_looked_for_from_the_closest_to_the_general_one() -> None:
    plans = load_prices().model_dump()["plans"]
    work = {
        "train": 1,
        "train_sdxl": 2,
        "train_faceid": 3,
        "train_faceid_mine": 4,
        "train_yours": 5,
        "picture": 0.1,
        "picture_upscale": 0.2,
        "tuned": 0.3,
        "tuned_flux": 0.4,
        "tuned_flux_pro": 0.5,
    }
    prices = PriceList.model_validate({"plans": plans, "work": work})
    asked = [
        ("mine", "sdxl", "lora"),
        ("mine", "flux", "lora"),
        ("mine", "flux", "faceid"),
        ("a", "sdxl", "faceid"),
        ("yours", "sdxl", "faceid"),
    ]
    assert [prices.training(*one) // 10**6 for one in asked] == [2, 1, 4, 3, 5]
    assert prices.picture("a", "sdxl", tuned=False) == 100_000
    assert prices.picture("a", "sdxl", tuned=False, enlarged=True) == 300_000
    assert prices.picture("a", "flux", tuned=True, quality="pro") == 500_000

"""A request is accepted once: servers that die between accepting and answering, repeats, races, and half-kept packs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, func, select

from tests.attack.test_rehearsals import TRAINER, TUNE
from tests.gateway.conftest import House
from tests.gateway.test_astria import create as astria_tune
from tests.gateway.test_pixelapi import TRAIN, train
from tests.gateway.test_pixu import FACE
from tests.gateway.test_pixu import create as pixu_model
from tests.support.databases import new_database
from tests.support.registry import Clock
from tunes_dagster.registry import ApiGroup, Callback, Pack, Prompt, Registry, Reservation, Tune
from tunes_dagster.registry.idempotency import ABANDONED_SECONDS, bind_idempotent

MAKING = (Tune, Prompt, Pack, Reservation, Callback, ApiGroup)
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "pixelapi train": ("/v1/tunes/train", TRAIN),
    "pixelapi infer": ("/v1/tunes/infer", {"tune_id": "JOB", "prompt": "ohwx"}),
    "pixelapi image": ("/v1/image/generate", {"prompt": "a cat"}),
    "pixazo": (TRAINER, {"image_data_url": "https://example.com/x.zip"}),
    "pixu model": ("/pixu/api/create_model", {"face_base64": FACE}),
    "pixu portrait": ("/pixu/api/txt2img_strict_portrait", {"model_uid": "UID"}),
    "pixu composition": ("/pixu/api/txt2img_composition", {}),
    "astria tune": (
        "/tunes",
        {"tune": {**TUNE, "auto_extend": True, "prompts_attributes": [{"text": "ohwx"}]}},
    ),
    "astria prompt": ("/tunes/TUNE/prompts", {"prompt": {"text": "ohwx woman"}}),
    "astria duplicate": ("/prompts/PROMPT/duplicate", {"prompt": {"seed": 3}}),
    "astria pack": (
        "/p/corporate-headshots/tunes",
        {"tune": {**TUNE, "prompts_callback": "https://a.example.com/x"}},
    ),
    "astria pack for tunes": (
        "/p/corporate-headshots/tunes",
        {"tune": {"tune_ids": ["TUNE"], "prompts_callback": "https://a.example.com/x"}},
    ),
    "astria new pack": ("/packs", {"pack": {"title": "p"}}),
    "native import": (
        "/native/v1/tunes/import",
        {"url": "https://example.com/x.safetensors", "base": "sdxl", "prompts": [{"text": "ohwx"}]},
    ),
    "native sample": ("/native/v1/callbacks/sample", {"url": "https://a.example.com/x"}),
}


def count(house: House) -> list[int]:
    with house.registry.reading() as session:
        return [int(session.scalar(select(func.count()).select_from(table)) or 0) for table in MAKING]


@pytest.fixture
def send(house: House) -> Callable[..., httpx.Response]:
    """Return what makes a call of the list under a key, with Ann's own ids in it."""
    house.key(credits=1_000_000_000)
    tune = astria_tune(house, prompts_attributes=[{"text": "ohwx woman"}])
    ids = {
        "JOB": train(house)["job_id"],
        "UID": pixu_model(house),
        "TUNE": str(tune["id"]),
        "PROMPT": str(house.client.get("/prompts", headers=house.auth()).json()[0]["id"]),
    }

    def call(name: str, key: str = "order-1") -> httpx.Response:
        path, body = CALLS[name]
        text = json.dumps(body)
        for word, value in ids.items():
            path, text = path.replace(word, value), text.replace(f'"{word}"', f'"{value}"')
        given = json.loads(text)
        if path.startswith("/pixu"):
            given = {"api_key": house.key(), "app_uid": "api", **given}
        headers = {**house.auth(), "Ocp-Apim-Subscription-Key": house.key(), "Idempotency-Key": key}
        return house.client.post(path, json=given, headers=headers)

    return call


@pytest.mark.parametrize("name", CALLS)
def test_a_repeat_after_a_server_died_gets_what_it_made(
    house: House, send: Callable[..., httpx.Response], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first server dies after the work is accepted and before the answer is remembered."""
    remember = house.registry.idempotency.end

    def die(*_: Any) -> None:
        raise SystemError("the power went")

    monkeypatch.setattr(house.registry.idempotency, "end", die)
    assert send(name).status_code == 500
    made = count(house)
    monkeypatch.setattr(house.registry.idempotency, "end", remember)
    second, third = send(name), send(name)
    assert second.status_code < 300, second.text
    assert second.json() == third.json() and count(house) == made
    assert second.headers["idempotent-replayed"] == third.headers["idempotent-replayed"] == "true"
    books, wallet = house.registry.ledger.books("ann"), house.registry.ledger.wallet("ann")
    assert (books["account"], books["reserved"]) == (wallet.available, wallet.reserved)
    other = send(name, "order-2")
    assert other.status_code < 300 and count(house) != made and "idempotent-replayed" not in other.headers


def test_an_answer_that_could_not_be_written_does_not_give_the_key_free(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {**house.auth(), "Idempotency-Key": "order-1"}
    read = house.registry.ledger.wallet
    house.client.get("/v1/models", headers=headers)
    monkeypatch.setattr(house.registry.ledger, "wallet", lambda _account: 1 / 0)
    assert house.client.post("/v1/tunes/train", json=TRAIN, headers=headers).status_code == 500
    monkeypatch.setattr(house.registry.ledger, "wallet", read)
    again = house.client.post("/v1/tunes/train", json=TRAIN, headers=headers)
    (tune,) = house.registry.tunes.rows(account_id="ann")
    assert again.json()["job_id"] == tune.id and house.registry.ledger.wallet("ann").reserved == 100_000


def test_the_upload_address_of_a_repeat_leads_to_the_job(
    house: House, send: Callable[..., httpx.Response], pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.registry.idempotency, "end", lambda *_: 1 / 0)
    send("pixelapi train")
    monkeypatch.undo()
    told = send("pixelapi train").json()
    sent = house.client.post(told["upload_url"], files=pictures(5))
    assert sent.status_code == 200 and sent.json()["job_id"] == told["job_id"]


def test_files_of_a_repeat_are_not_kept_beside_the_first_ones(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {**house.auth(), "Idempotency-Key": "files"}

    def send() -> httpx.Response:
        files = [("tune[images][]", ("a.png", b"\x89PNG one", "image/png"))]
        return house.client.post(
            "/tunes", data={"tune[title]": "N", "tune[name]": "man"}, files=files, headers=headers
        )

    monkeypatch.setattr(house.registry.idempotency, "end", lambda *_: 1 / 0)
    send()
    monkeypatch.undo()
    before = sorted(house.store.list("tunes"))
    assert send().status_code == 201 and sorted(house.store.list("tunes")) == before and len(before) == 1


def test_what_was_deleted_meanwhile_is_not_made_again(
    house: House, send: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.registry.idempotency, "end", lambda *_: 1 / 0)
    send("astria tune")
    monkeypatch.undo()
    tune = house.registry.tunes.rows(account_id="ann")[0]
    house.registry.work.delete_tune(tune.id, by_caller=True)
    made = count(house)
    assert [send("astria tune").status_code for _ in range(2)] == [404, 404] and count(house) == made


def test_a_server_that_was_taken_over_makes_nothing(tmp_path: Any) -> None:
    clock = Clock()
    registry = Registry(f"sqlite:///{tmp_path}/registry.db", now=clock)
    registry.accounts.add("ann")
    slow, none = registry.idempotency.begin("ann", "k", "hash", {})
    assert slow and none is None and registry.idempotency.begin("ann", "k", "hash", {})[0] == ""
    clock.forward(ABANDONED_SECONDS + 1)
    next_one, none = registry.idempotency.begin("ann", "k", "hash", {})
    assert next_one not in ("", slow) and none is None
    with registry.writing() as session:
        assert not bind_idempotent(session, "ann", "k", slow, ["tune_a"])
        assert bind_idempotent(session, "ann", "k", next_one, ["tune_b"])
    registry.idempotency.end("ann", "k", slow, 200, "{}")
    registry.idempotency.end("ann", "k", next_one, None)
    clock.forward(ABANDONED_SECONDS + 1)
    claim, row = registry.idempotency.begin("ann", "k", "hash", {})
    assert claim == "" and row is not None and (row.subjects, row.status_code) == (["tune_b"], None)
    registry.close()


DYING = """
import os, sys
from tunes_dagster.registry.idempotency import Idempotency
if "die" in sys.argv:
    Idempotency.end = lambda *_: os._exit(9)
from tunes_dagster.core.settings import get_settings
from tunes_dagster.gateway.app import create_app
from tunes_dagster.gateway.serving import run
run(create_app(get_settings()), "127.0.0.1", int(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_server_that_is_killed_between_accepting_and_answering(house: House) -> None:
    """The same with processes: the first server ends by `_exit` in that very moment, another one answers the repeat."""
    headers = {**house.auth(), "Idempotency-Key": "order-1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def serve(*more: str) -> subprocess.Popen[bytes]:
        server = subprocess.Popen([sys.executable, "-c", DYING, str(port), *more], env=os.environ.copy())
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return server
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    address = f"http://127.0.0.1:{port}/v1/tunes/train"
    first = serve("die")
    with pytest.raises(httpx.HTTPError):
        httpx.post(address, json=TRAIN, headers=headers, timeout=60)
    assert first.wait(30) == 9
    second = serve()
    try:
        again = httpx.post(address, json=TRAIN, headers=headers, timeout=60)
    finally:
        second.send_signal(signal.SIGTERM)
        second.wait(30)
    (tune,) = house.registry.tunes.rows(account_id="ann")
    assert again.status_code == 200 and again.json()["job_id"] == tune.id, again.text
    assert house.registry.ledger.wallet("ann").reserved == 100_000


@pytest.fixture(params=["sqlite", "postgres"])
def anywhere(house: House, request: pytest.FixtureRequest) -> Iterator[House]:
    """The house on either database."""
    if request.param == "sqlite":
        yield house
        return
    engine: Engine = request.getfixturevalue("postgres")
    house.service.registry.close()
    house.service.installation.registry = Registry(new_database(engine))
    from tunes_dagster.gateway.app import load_dialect

    load_dialect("astria").start(house.registry)  # type: ignore[misc]
    yield house
    house.service.registry.close()


def test_of_many_repeats_at_once_one_is_accepted(anywhere: House) -> None:
    house, headers = anywhere, {**anywhere.auth(), "Idempotency-Key": "once"}
    with ThreadPoolExecutor(6) as pool:
        sent = list(
            pool.map(lambda _: house.client.post("/v1/tunes/train", json=TRAIN, headers=headers), range(12))
        )
    assert {one.status_code for one in sent} == {200} and len({one.json()["job_id"] for one in sent}) == 1
    assert len(house.registry.tunes.rows(account_id="ann")) == 1
    assert house.registry.ledger.wallet("ann").reserved == 100_000


def test_of_many_tunes_of_one_title_at_once_one_is_accepted(anywhere: House) -> None:
    house, headers = anywhere, anywhere.auth()
    house.registry.ledger.set_options("ann", title_idempotency=True)
    bodies = [{"tune": {**TUNE, "branch": "sdxl1"}}] * 6 + [
        {"tune": {**TUNE, "title": "other", "branch": "sdxl1"}}
    ]
    with ThreadPoolExecutor(7) as pool:
        sent = list(pool.map(lambda body: house.client.post("/tunes", json=body, headers=headers), bodies))
    assert {one.status_code for one in sent} == {201} and len({one.json()["id"] for one in sent}) == 2
    assert house.registry.ledger.wallet("ann").reserved == 2 * 100_000
    tried = house.client.post("/tunes?dry_run=1", json=bodies[0], headers=headers).json()
    assert tried["dry_run"] and tried["price_usd"] == 0 and tried["already_made"].startswith("tune_")


def test_prompts_are_known_by_their_fields_for_those_who_want_it(anywhere: House) -> None:
    house = anywhere
    tune = astria_tune(house)["id"]

    def ask(**fields: Any) -> int:
        answer = house.client.post(
            f"/tunes/{tune}/prompts", json={"prompt": {"text": "ohwx woman", **fields}}, headers=house.auth()
        )
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    assert ask() != ask(), "unless the account asks for it"
    house.registry.ledger.set_options("ann", prompt_idempotency=True)
    house.service._seen.clear()
    with ThreadPoolExecutor(6) as pool:
        ids = set(pool.map(lambda _: ask(seed=0), range(6)))
    assert len(ids) == 1, "also of six at once"
    # A picture or a style is not in Astria's list: two prompts that differ in nothing else are one.
    assert ask(seed=0, style="Cinematic") in ids
    assert len({*ids, ask(seed=1), ask(seed=0, cfg_scale=0), ask(seed=0, num_images=2), ask()}) == 5
    (known,) = ids
    house.client.delete(f"/prompts/{known}", headers=house.auth())
    assert ask(seed=0) not in ids, "what was deleted is made again"


def test_prompts_of_a_pack_for_several_tunes_are_all_kept_or_none(anywhere: House) -> None:
    house = anywhere
    tunes = [astria_tune(house, account="bob", title=str(n), branch="sd15")["id"] for n in range(4)]
    pack = {"title": "p", "prompts_per_class": {"woman": [{"text": "ohwx woman", "num_images": 3}]}}
    slug = house.client.post("/packs", json={"pack": pack}, headers=house.auth("bob")).json()["slug"]
    wallet = house.registry.ledger.wallet("bob")
    house.registry.ledger.adjust("bob", 3 * 3_000 - wallet.available)  # three of four
    given = {"tune": {"tune_ids": tunes, "prompts_callback": "https://a.example.com/x"}}
    before = count(house)
    answer = house.client.post(f"/p/{slug}/tunes", json=given, headers=house.auth("bob"))
    assert answer.status_code == 422 and "left" in answer.text and count(house) == before
    assert house.registry.ledger.wallet("bob").available == 9_000
    gone = {"tune": {**given["tune"], "tune_ids": [*tunes[:2], tunes[3]]}}
    house.registry.work.cancel_tune(house.registry.objects.find_tune("bob", tunes[3])[0].id)  # type: ignore[index]
    answer = house.client.post(f"/p/{slug}/tunes", json=gone, headers=house.auth("bob"))
    assert answer.status_code == 422 and count(house) == before
    good = {"tune": {**given["tune"], "tune_ids": tunes[:3]}}
    assert house.client.post(f"/p/{slug}/tunes", json=good, headers=house.auth("bob")).status_code == 201
    assert house.registry.ledger.wallet("bob").available == 50_000  # that of the cancelled tune

"""Bodies of any size: long texts go to files while they arrive, and the slow way gives the same."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import State

from tests.gateway.conftest import House
from tests.gateway.test_pixazo import PATH as TRAINER
from tests.gateway.test_pixazo import headers
from tests.gateway.test_pixelapi import train
from tests.gateway.test_pixu import call as pixu_call
from tunes_dagster.core.failures import Failure
from tunes_dagster.gateway.bodies import LONG_TEXT, MAX_REST, Body, LongTexts, body_of
from tunes_dagster.gateway.problems import HttpProblem
from tunes_dagster.intake.payloads import Base64File, decode_payload

ZIP = b"PK\x03\x04" + random.Random(0).randbytes(900_000)


def resolved(value: Any, files: dict[str, Any]) -> Any:
    """Put the long texts back where they were."""
    if isinstance(value, dict):
        return {resolved(key, files): resolved(inner, files) for key, inner in value.items()}
    if isinstance(value, list):
        return [resolved(inner, files) for inner in value]
    if value in files if isinstance(value, str) else False:
        files[value].seek(0)
        return files[value].read().decode("utf-8", "surrogatepass")
    return value


@pytest.mark.parametrize("seed", range(8))
def test_a_document_in_pieces_is_the_document(seed: int) -> None:
    """Against `json.loads` of the whole, with every escape cut in every place."""
    dice = random.Random(seed)
    alphabet = ['"', "\\", "/", "\n", "é", "\u2028", "😀", "+", "A", "=", "\\u", "x" * 50]

    def text(length: int) -> str:
        return "".join(dice.choice(alphabet) for _ in range(length))

    document = {
        "image_data_url": "".join(dice.choice("AB+/=\n\\") for _ in range(LONG_TEXT * 2)),
        "nested": [{"image": "A" * (LONG_TEXT + dice.randrange(-3, 4))}, text(30), dice.random(), None, True],
        text(20): {"empty": "", "many": [text(9) for _ in range(20)]},
    }
    raw = json.dumps(document, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    if seed % 2:
        raw = raw.replace(b"/", b"\\/").replace(b"+", b"\\u002B")
    texts = LongTexts()
    at = 0
    while at < len(raw):
        size = dice.choice((1, 2, 3, 7, 500, 20_000))
        texts.feed(raw[at : at + size])
        at += size
    assert resolved(json.loads(texts.rest), texts.files) == document
    assert len(texts.rest) < 120_000 and 1 <= len(texts.files) <= 2
    texts.close()


@pytest.mark.parametrize(
    "broken", [b'{"a": "' + b"A" * 100_000 + b"\\x", b'["' + b"A" * 100_000 + b'\\uZZZZ"]']
)
def test_broken_escapes_are_refused(broken: bytes) -> None:
    texts = LongTexts()
    with pytest.raises(HttpProblem) as refused:
        texts.feed(broken)
    assert refused.value.status == 400
    texts.close()


@pytest.mark.parametrize("kind", ["plain", "lines", "url-safe", "unpadded", "data uri"])
@pytest.mark.parametrize("size", [1, 2, 3, 100_000, 100_001])
def test_base64_in_pieces_is_base64(kind: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    text = base64.b64encode(data).decode()
    if kind == "lines":
        text = "\r\n".join(text[n : n + 76] for n in range(0, len(text), 76)) + "\n"
    elif kind == "url-safe":
        text = base64.urlsafe_b64encode(data).decode()
    elif kind == "unpadded":
        text = text.rstrip("=")
    elif kind == "data uri":
        text = " data:application/zip;base64," + text
    for step in (4, 1000, 1 << 20):
        file = Base64File(io.BytesIO(text.encode()), "x")
        read = b"".join(iter(lambda file=file, step=step: file.read(step), b""))  # type: ignore[misc]
        assert read == data == decode_payload(text)[0] and file.suffix == (
            ".zip" if kind == "data uri" else ""
        )


@pytest.mark.parametrize("text", ["AAAA!AAA", "AA=AAAAA", "data:text/plain,AAAA", "ключ"])
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(Failure, match="not base64"):
        file = Base64File(io.BytesIO(text.encode()), "x")
        while file.read():
            pass


def _request(chunks: list[bytes], kind: type[Body], **state: Any) -> Body:
    left = iter([{"type": "http.request", "body": one, "more_body": True} for one in chunks])

    async def receive() -> dict[str, Any]:
        return next(left, {"type": "http.request", "body": b"", "more_body": False})

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "state": State(state)._state}
    return kind(scope, receive)


def test_a_large_body_is_never_whole_in_memory() -> None:
    piece = base64.b64encode(os.urandom(48 * 1024))
    request = _request(
        [b'{"image_data_url": "', *[piece] * 600, b'"}'],
        body_of(payloads=frozenset({"image_data_url"})),
        account="ann",
    )
    tracemalloc.start()
    body = asyncio.run(request.body())
    whole = request.long_texts[json.loads(body)["image_data_url"]].tell()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    request.drop()
    assert whole == 600 * len(piece) > 39e6 and peak < 8e6, (whole, peak)


def test_what_is_left_beside_long_texts_is_bounded() -> None:
    for chunks in ([b"[" + b'"x",' * 20_000] * 60, [b'["%d' % n + b"A" * 70_000 + b'",' for n in range(110)]):
        request = _request(chunks, Body, account="ann")
        with pytest.raises(HttpProblem) as refused:
            asyncio.run(request.body())
        assert refused.value.status == 413
        request.drop()
    many = _request([b"a=" + b"x" * 100_000] * 60, Body, account="ann")
    many.scope["headers"] = [(b"content-type", b"application/x-www-form-urlencoded")]
    with pytest.raises(HttpProblem, match="form"):
        asyncio.run(many.body())
    assert MAX_REST < 6_000_000


def test_a_dataset_as_base64_goes_to_the_store_whole(house: House) -> None:
    text = base64.b64encode(ZIP).decode()
    key = {**headers(house), "Idempotency-Key": "once"}
    for given in (text, "data:application/zip;base64," + text):
        key["Idempotency-Key"] += "x"
        first = house.client.post(TRAINER, json={"image_data_url": given}, headers=key)
        assert first.status_code == 200, first.text
        uploads = house.registry.tunes.get(first.json()["request_id"]).request["sources"]["uploads"]
        assert [house.store.read_bytes(one) for one in uploads] == [ZIP]
        again = house.client.post(TRAINER, json={"image_data_url": given}, headers=key)
        assert again.json() == first.json() and again.headers["idempotent-replayed"] == "true"
        other = house.client.post(TRAINER, json={"image_data_url": given[:-8] + "AAAAAAA="}, headers=key)
        assert other.status_code == 409 and "image_data_url was 'text:sha256" in other.json()["error"]
        house.registry.ledger.adjust("ann", 10_000_000)
    dry = house.client.post(f"{TRAINER}?dry_run=true", json={"image_data_url": text}, headers=headers(house))
    assert dry.json()["would_be_refused"] == [] and len(list(house.store.list("tunes"))) == 2
    wrong = house.client.post(TRAINER, json={"image_data_url": "!" * 400_000}, headers=headers(house))
    assert wrong.status_code == 400 and wrong.json()["error"] == "Invalid parameters"
    assert "base64" in wrong.json()["detail"] and len(list(house.store.list("tunes"))) == 2


def test_long_pictures_of_every_api(house: House) -> None:
    text = base64.b64encode(ZIP).decode()
    model = pixu_call(house, "create_model", face_base64=text)
    (tune,) = house.registry.tunes.rows(account_id="ann")
    assert model.status_code == 200 and house.store.read_bytes(tune.request["sources"]["uploads"][0]) == ZIP
    drawn = house.client.post("/v1/image/generate", json={"prompt": "x", "image": text}, headers=house.auth())
    fields = {"text": "x", "input_image_base64": text, "denoising_strength": 0.5}
    painted = house.client.post("/tunes/690204/prompts", json={"prompt": fields}, headers=house.auth())
    assert (drawn.status_code, painted.status_code) == (200, 201), painted.text
    for prompt in house.registry.prompts.rows(account_id="ann"):
        assert house.store.read_bytes(prompt.settings["input_image"]) == ZIP
    kept = set(house.store.list("uploads"))
    refused = {"text": "x", "input_image_base64": text, "style": "Baroque"}
    for query, body in (("", refused), ("?dry_run=1", fields)):
        house.client.post(f"/tunes/690204/prompts{query}", json={"prompt": body}, headers=house.auth())
    assert len(kept) == 2 and set(house.store.list("uploads")) == kept  # what is not accepted leaves nothing


def test_json_is_understood_whatever_type_it_is_sent_as(house: House) -> None:
    """`curl -d` calls everything a form."""
    for path, body in (
        ("/v1/image/generate", {"prompt": "x"}),
        ("/tunes/690204/prompts", {"prompt": {"text": "x"}}),
    ):
        for kind in (
            "application/x-www-form-urlencoded",
            "application/json; charset=utf-8",
            "text/plain",
            "",
        ):
            headers = {**house.auth(), **({"Content-Type": kind} if kind else {})}
            answer = house.client.post(path, content=json.dumps(body).encode(), headers=headers)
            assert answer.status_code < 300, (path, kind, answer.text)


def test_long_texts_elsewhere_are_refused_by_name(house: House) -> None:
    long = "x" * 500_000
    answer = house.client.post("/v1/image/generate", json={"prompt": long}, headers=house.auth())
    assert answer.status_code == 422 and answer.json()["detail"] == "prompt is too long"
    answer = house.client.post("/tunes/690204/prompts", json={"prompt": {"text": long}}, headers=house.auth())
    assert answer.status_code == 422 and answer.json()["text"] == ["is too long"]
    answer = house.client.post("/v1/image/generate", json={long: 1, "prompt": "x"}, headers=house.auth())
    assert answer.status_code == 422
    assert house.registry.prompts.rows(account_id="ann") == []


def test_limits_hold_before_a_body_is_read(house: House) -> None:
    """An account's own limit ends a body while it arrives, in the vendor's form; without a key little is read."""
    house.key()
    house.registry.ledger.set_options("ann", max_upload_mb=0.5)
    sent = 0

    def drip() -> Any:
        nonlocal sent
        yield b'{"image_data_url": "'
        for _ in range(400):
            sent += 10_000
            yield b"A" * 10_000

    answer = house.client.post(TRAINER, content=drip(), headers=headers(house))
    assert answer.status_code == 413 and "0.5 MB, this account's limit" in answer.json()["error"]
    nobody = house.client.post(TRAINER, content=drip())
    assert nobody.status_code == 401 and "error" in nobody.json()
    job = train(house)
    files = [("images", (f"{n}.png", b"x" * 200_000, "image/png")) for n in range(5)]
    answer = house.client.post(job["upload_url"], files=files)
    assert answer.status_code == 413 and "detail" in answer.json()


def test_many_small_files_are_not_kept_in_memory(tmp_path: Path) -> None:
    part = (
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
        + b"y" * 500_000
        + b"\r\n"
    )
    request = _request([part] * 40 + [b"--x--\r\n"], Body, account="ann")
    request.scope["headers"] = [(b"content-type", b"multipart/form-data; boundary=x")]

    async def read() -> int:
        form = await request.fields(max_files=100, max_fields=10)
        size = sum(file.size for _name, file in form.multi_items())  # type: ignore[union-attr,misc]
        await form.close()
        return size

    tracemalloc.start()
    assert asyncio.run(read()) == 20_000_000
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()

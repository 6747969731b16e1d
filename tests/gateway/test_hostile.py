"""Requests that nobody sends by mistake: none is a server error, and none spoils a list for those who come after."""

from __future__ import annotations

import json

import pytest

from tests.gateway.conftest import House
from tests.gateway.test_astria import create, told
from tunes_dagster.core import clock
from tunes_dagster.gateway.desk import desk_for

DIGITS = "9" * 5000
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TUNE = '{"tune":{"title":"t","name":"man","image_urls":["https://example.com/x"],MORE}}'
PROMPT = '{"prompt":{"text":"x",MORE}}'
PACK = "/p/corporate-headshots/tunes"
PATHS = [
    f"/tunes/{DIGITS}",
    f"/prompts/{DIGITS}",
    f"/tunes/{DIGITS}/prompts",
    f"/p/{DIGITS}",
    f"/native/v1/tunes/{DIGITS}",
    f"/tunes?before_id={10**30}",
    f"/prompts?before_id=-{10**30}",
    f"/prompts?offset={10**30}",
    f"/prompts?limit={10**30}",
    "/tunes?title=%00",
    "/native/v1/tunes/%00",
    "/prompts?text=a%00b",
    f"/prompts?pack_id={DIGITS}",
    "/prompts?liked=maybe&today=x&expand[]=x",
    f"/files/a/{DIGITS}/b/c",
    "/files/x/1/%ff/z",
]
BODIES = [
    *[
        ("/tunes/690204/prompts", PROMPT.replace("MORE", more))
        for more in (
            '"cfg_scale":NaN',
            '"cfg_scale":-Infinity',
            f'"seed":{DIGITS}',
            '"community":"\\ud800"',
            '"w":1e400',
            '"community":{"a":NaN}',
            '"backend_version":1e400',
            '"community":' + "[" * 900 + "]" * 900,
            '"pack_id":{"a":[1]}',
            '"community":"' + "x" * 5000 + '"',
        )
    ],
    ("/tunes/690204/prompts", '{"prompt":{"text":"a\\u0000b"}}'),
    *[
        ("/tunes", TUNE.replace("MORE", more))
        for more in (
            '"characteristics":{"a":NaN}',
            '"characteristics":{"\\ud800":"\\udfff"}',
            f'"base_tune_id":{DIGITS}',
            '"base_tune_id":' + "9" * 40,
            '"prompts_attributes":["x",1]',
            '"characteristics":{"a":{"b":[1e999]}}',
        )
    ],
    ("/tunes", '{"tune":{"title":"t","name":"man","image_urls":[null,1,{},"https://[::1/x"]}}'),
    (PACK, '{"tune":{"tune_ids":[[1],{}],"prompt_ids":5}}'),
    (PACK, '{"tune":{"tune_ids":["\\u0000"]}}'),
    (PACK, TUNE.replace("MORE", '"prompt_ids":{"a":1},"prompts_callback":["x"]')),
    ("/packs", '{"pack":{"title":"\\u0000","prompts_per_class":{"\\u0000":[{"text":"x"}]}}}'),
    ("/prompts/1/duplicate", f'{{"image_index":"{DIGITS}"}}'),
    ("/prompts/1/duplicate", '{"image_index":{"a":1}}'),
    ("/native/v1/callbacks/sample", '{"url":"https://exa mple.com/\\u0000"}'),
    ("/v1/tunes/train", '{"model":"sdxl","trigger_word":"ohwx","learning_rate":NaN}'),
    ("/v1/tunes/infer", '{"tune_id":"\\u0000","prompt":"x"}'),
    ("/v1/image/generate", '{"prompt":"x\\u0000"}'),
    ("/v1/image/generate", '{"prompt":"x","guidance_scale":NaN}'),
]
FORMS = [
    f"tune[prompts_attributes][{DIGITS}][text]=x&tune[title]=t",
    "tune[title]=a%00b&tune[name]=man",
    "tune[title]=t&tune[name]=man&tune[image_urls][]=https://example.com/x&tune[callback]=https://exa%00mple.com",
]


def test_hostile_requests_are_refused_and_spoil_nothing(house: House) -> None:
    create(house, prompts_attributes=[{"text": "ohwx woman"}])

    def send(method: str, path: str, body: str | None, kind: dict[str, str]) -> None:
        headers = {**house.auth(), **kind, "Idempotency-Key": str(hash(body))}
        answer = house.client.request(method, path, content=body, headers=headers)
        shown = (method, path[:80], (body or "")[:120], answer.status_code, answer.text[:200])
        assert answer.status_code < 500, shown
        if body is not None:
            assert answer.status_code >= 400, shown

    for path in PATHS:
        send("GET", path, None, {})
    for path, body in BODIES:
        send("POST", path, body, JSON)
    for body in FORMS:
        send("POST", "/tunes", body, FORM)
    send("PATCH", "/tunes/1", '{"tune":{"characteristics":{"a":NaN}}}', JSON)
    send("PATCH", "/prompts/1", '{"prompt":{"community":{"a":1}}}', JSON)
    for path in ("/tunes", "/prompts", "/packs", "/native/v1/account", "/v1/account/usage"):
        answer = house.client.get(path, headers=house.auth())
        assert answer.status_code == 200, path
        json.dumps(answer.json(), allow_nan=False).encode("utf-8")


def test_callers_learn_nothing_of_the_inside_of_a_bug(house: House) -> None:
    hook = "https://app.example.com/x"
    house.key()
    house.registry.ledger.set_options("ann", failure_callbacks=True)
    shown = create(house, callback=hook, prompts_attributes=[{"text": "ohwx woman", "callback": hook}])
    tune = house.tune(shown["id"])
    error = KeyError("/srv/secret/path of 'Sizes'")
    for attempt in range(3):
        assert house.registry.tunes.get(tune.id).status == "queued" and attempt < 3
        house.registry.work.fail(house.registry.work.claim("prepare", tune.id, "run").id, "run", error)
        said = house.client.get(f"/native/v1/tunes/{tune.id}/timeline", headers=house.auth()).text
        assert "Something went wrong on our side." in said
        for path in (
            f"/native/v1/tunes/{tune.id}/timeline",
            f"/tunes/{tune.number}",
            "/prompts",
            f"/v1/tunes/{tune.id}",
            f"/v2/requests/status/{tune.id}",
        ):
            headers = {**house.auth(), "Ocp-Apim-Subscription-Key": house.key()}
            answer = house.client.get(path, headers=headers)
            for inside in ("KeyError", "secret", "Sizes", "traceback"):
                assert inside not in answer.text, (path, answer.text)
    for one in told(house):
        assert "KeyError" not in json.dumps(one.body) and "secret" not in json.dumps(one.body)
    row = house.registry.tunes.get(tune.id)
    assert (
        row.failure_detail.startswith("KeyError") and "secret" in row.failure_detail
    )  # the operator sees it


def test_emoji_and_small_exponents_are_no_attack(house: House) -> None:
    body = r'{"prompt": {"text": "a \ud83d\ude00 NaN Infinity e1234", "cfg_scale": 7e0}}'
    answer = house.client.post("/tunes/690204/prompts", content=body, headers={**house.auth(), **JSON})
    assert answer.status_code == 201 and "😀" in answer.json()["text"], answer.text


@pytest.mark.parametrize("charset", ["punycode", "utf-7", "unicode_escape", "rot13"])
def test_forms_are_not_decoded_by_whatever_codec_a_caller_names(house: House, charset: str) -> None:
    """Some decode in quadratic time, some make half characters."""
    kind = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    body = (
        b'--x\r\nContent-Disposition: form-data; name="tune[title]"\r\n\r\n'
        + b"a-" * 50_000
        + b"\r\n--x--\r\n"
    )
    answer = house.client.post("/tunes", content=body, headers={**house.auth(), **kind})
    assert answer.status_code == 400 and "charset" in answer.json()["error"]


RANGES = [
    "bytes=-5",
    "bytes=100-",
    "bytes=0-999999999",
    "bytes=5-2",
    "bytes=a-b",
    "bytes=",
    "items=0-1",
    "bytes=-0",
    f"bytes={DIGITS}-",
    "bytes=0-0",
    "bytes=" + ",".join(f"{n}-{n}" for n in range(2000)),
]


@pytest.mark.parametrize("asked", RANGES, ids=[one[:20] for one in RANGES])
def test_odd_ranges(house: House, asked: str) -> None:
    data = bytes(range(100))
    house.store.write_bytes("batches/b/1/p-0.png", data)
    house.key()
    url = desk_for(house.service, "ann", "").url("batches/b/1/p-0.png", clock.now(), 1)
    answer = house.client.get(url, headers={"Range": asked})
    assert answer.status_code in (200, 206, 400, 416) and len(answer.content) < 5000
    if answer.status_code == 206:
        start, _, end = answer.headers["content-range"].removeprefix("bytes ").split("/")[0].partition("-")
        assert answer.content == data[int(start) : int(end) + 1]


def test_signed_addresses_lead_nowhere_else(house: House) -> None:
    house.store.write_bytes("batches/b/1/p-0.png", b"x")
    house.key()
    url = desk_for(house.service, "ann", "").url("batches/b/1/p-0.png", clock.now(), 1)
    _, _, signature, until, packed, name = url.split("/")
    other = desk_for(house.service, "ann", "").url("registry.db", clock.now(), 1).split("/")
    for path in (
        f"/files/{signature}/{until}/{other[4]}/{name}",
        f"/files/{signature}/{int(until) + 1}/{packed}/{name}",
        f"/files/{signature[:-1]}/{until}/{packed}/{name}",
        f"/files/{signature}/{until}/{packed}%00/{name}",
    ):
        assert house.client.get(path).status_code == 403, path
    assert house.client.get(f"/files/{signature}/{until}/{packed}/another-name").status_code == 200
    for key in ("../registry.db", "/etc/passwd", "a/../../registry.db"):  # should one ever be signed
        outside = desk_for(house.service, "ann", "").url(key, clock.now(), 1)
        assert house.client.get(outside).status_code == 404

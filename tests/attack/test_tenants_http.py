"""Every route of the application, attacked by one tenant with the other's ids, numbers, titles, tags and keys.

The routes are the application's own: one without a case below fails the test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.attack.tenants import ALFA, BRAVO, SECRET, URLS, Tenants, Word, populate, same, words_of
from tests.attack.test_rehearsals import TRAINER
from tests.gateway.conftest import House
from tunes_dagster.registry import Prompt

PICTURES = [("images", (f"{n}.png", b"\x89PNG" + bytes([n] * 50), "image/png")) for n in range(5)]
TUNE = {"title": "anna", "name": "woman", "branch": "fast", "image_urls": URLS}


@dataclass(frozen=True)
class Case:
    """One way to attack a route.

    Attributes:
        kind: Of the names that are tried; empty when the route names nothing and is only looked at.
        path: Parameter of the path → what it is; `WORD` is the name, `tune` and the like are Bravo's own.
        body: JSON; `WORD` stands in it for the name.
        query: The same in the query string.
        bearer: Whether Bravo shows a key.
    """

    kind: str = ""
    path: dict[str, str] | None = None
    body: dict[str, Any] | None = None
    query: dict[str, str] | None = None
    bearer: bool = True


def below(kind: str, parameter: str, body: dict[str, Any] | None = None, **others: str) -> Case:
    """Return the attack that names something in the path."""
    return Case(kind, {parameter: "WORD", **others}, body)


def within(kind: str, body: dict[str, Any], **path: str) -> Case:
    """Return the attack that names something in the body."""
    return Case(kind, path or None, body)


LOOK = [Case()]
TUNES, PROMPTS = "tune number+tune id", "prompt number+prompt id"
ANY = "tune word+colliding"
TAGS = ("<lora:WORD:1>", "<faceid:WORD:0.5>", "ohwx <lora:WORD:0.5> <lora:anna:0.5>", "< LoRA : WORD >")
_OF_A_PROMPT = [
    below(PROMPTS, "prompt_id"),
    below("tune number", "tune_id", prompt_id="prompt"),
    below("prompt number", "prompt_id", tune_id="tune"),
]
_PIXU = {"api_key": "KEY", "app_uid": "api"}


def _texts(wrapper: str, field: str, forms: int = 1, **more: Any) -> list[Case]:
    """Return attacks that name tunes in a text, by so many forms of tags."""
    found = []
    for tag in TAGS[:forms]:
        body = {**more, field: f"a photo {tag}"}
        found.append(within(ANY, {wrapper: body} if wrapper else body))
    return found


def _at(cases: list[Case], **path: str) -> list[Case]:
    return [Case(case.kind, {**(case.path or {}), **path}, case.body, case.query) for case in cases]


IMPORT = {"url": "https://example.com/x.safetensors", "base": "sdxl"}
CASES: dict[str, list[Case]] = {
    "POST /native/v1/tunes/import": [
        *(within(ANY, {**IMPORT, "prompts": [{"text": f"x {tag}"}]}) for tag in TAGS[:2]),
        within(ANY, {**IMPORT, "prompts": [{"text": "x", "tune": "WORD"}]}),
        within("picture", {**IMPORT, "prompts": [{"text": "x", "settings": {"input_image": "WORD"}}]}),
        within("picture", {**IMPORT, "image_urls": ["WORD"]}),
    ],
    "GET /": LOOK,
    "GET /health": LOOK,
    "GET /docs": LOOK,
    "GET /openapi": LOOK,
    "GET /docs/{name}": LOOK,
    "GET /openapi/{name}.json": LOOK,
    "GET /native/v1/health": LOOK,
    "GET /native/v1/metrics": LOOK,
    "GET /native/v1/compositions": LOOK,
    "GET /native/v1/account": LOOK,
    "GET /native/v1/callbacks": LOOK,
    "GET /v1/tunes/config": LOOK,
    "GET /v1/models": LOOK,
    "GET /v1/tunes/models": LOOK,
    "GET /v1/account/balance": LOOK,
    "GET /v1/usage": LOOK,
    "GET /v1/account/credits": LOOK,
    "GET /v1/account/usage": LOOK,
    "GET /users": LOOK,
    "GET /users/self": LOOK,
    "GET /gallery/tunes": LOOK,
    "GET /gallery/packs": LOOK,
    "POST /themes": [Case(body={})],
    "GET /packs": [Case(), Case(query={"public": "true"}), Case(query={"listed": "true"})],
    "GET /files/{signature}/{expires}/{packed}/{name}": [],  # below, by itself
    "GET /operator/{signature}/{packed}/{name}": [],  # tests/gateway/test_operator.py
    "GET /tunes": [
        Case(),
        Case("tune word", query={"title": "WORD"}),
        Case("text", query={"name[]": "WORD"}),
        Case("cursor", query={"before_id": "WORD"}),
    ],
    "POST /tunes": [
        within("tune number", {"tune": {**TUNE, "branch": None, "base_tune_id": "WORD"}}),
        *(within(ANY, {"tune": {**TUNE, "prompts_attributes": [{"text": f"x {tag}"}]}}) for tag in TAGS[:2]),
        within(
            "prompt number",
            {"tune": {**TUNE, "prompts_attributes": [{"text": "x", "orig_prompt_id": "WORD"}]}},
        ),
        within("picture", {"tune": {**TUNE, "prompts_attributes": [{"text": "x", "input_image": "WORD"}]}}),
        within("picture", {"tune": {**TUNE, "image_urls": ["WORD"]}}),
    ],
    "GET /tunes/{tune_id}": [below(TUNES, "tune_id")],
    "PATCH /tunes/{tune_id}": [below(TUNES, "tune_id", {"tune": {"title": "taken"}})],
    "DELETE /tunes/{tune_id}": [below(TUNES, "tune_id")],
    "GET /tunes/{tune_id}/prompts": [
        below(TUNES, "tune_id"),
        Case("text", {"tune_id": "tune"}, query={"text": "WORD"}),
        Case("text", {"tune_id": "690204"}, query={"text": "WORD"}),
    ],
    "POST /tunes/{tune_id}/prompts": [
        below(TUNES, "tune_id", {"prompt": {"text": "ohwx woman"}}),
        *_at(_texts("prompt", "text", forms=4), tune_id="tune"),
        *_at(_texts("prompt", "text"), tune_id="690204"),
        within("prompt number", {"prompt": {"text": "x", "orig_prompt_id": "WORD"}}, tune_id="tune"),
        within("picture", {"prompt": {"text": "x", "input_image": "WORD"}}, tune_id="tune"),
        within("picture", {"prompt": {"text": "x", "input_image_url": "WORD"}}, tune_id="tune"),
        within("pack", {"prompt": {"text": "x", "pack_id": "WORD"}}, tune_id="tune"),
    ],
    "GET /prompts": [
        Case(),
        Case("tune number", query={"tune_id": "WORD"}),
        Case("text", query={"text": "WORD"}),
        Case("cursor", query={"before_id": "WORD"}),
        Case("kept", query={"pack_id": "WORD"}),
        Case("kept", query={"orig_prompt_id": "WORD"}),
    ],
    "GET /prompts/{prompt_id}": [below(PROMPTS, "prompt_id")],
    "GET /tunes/{tune_id}/prompts/{prompt_id}": _OF_A_PROMPT[1:],
    "DELETE /prompts/{prompt_id}": [below(PROMPTS, "prompt_id")],
    "DELETE /tunes/{tune_id}/prompts/{prompt_id}": _OF_A_PROMPT[1:],
    "PATCH /prompts/{prompt_id}": [below(PROMPTS, "prompt_id", {"prompt": {"community": "x"}})],
    "PATCH /tunes/{tune_id}/prompts/{prompt_id}": [
        below("prompt number", "prompt_id", {"prompt": {"community": "x"}}, tune_id="tune"),
        below("tune number", "tune_id", {"prompt": {"community": "x"}}, prompt_id="prompt"),
    ],
    "POST /prompts/{prompt_id}/duplicate": [
        below(PROMPTS, "prompt_id", {}),
        below("prompt number", "prompt_id", {"image_index": 0}),
        *_at(_texts("prompt", "text"), prompt_id="prompt"),
        within("tune number", {"prompt": {"tune_id": "WORD"}}, prompt_id="prompt"),
    ],
    **{
        f"{method} /prompts/{{prompt_id}}/{word}": [below(PROMPTS, "prompt_id")]
        for method in ("POST", "DELETE")
        for word in ("like", "likes")
    },
    "POST /packs": [
        within("tune number", {"pack": {"title": "mine", "base_tune_id": "WORD"}}),
        within("pack", {"pack": {"title": "WORD", "slug": "WORD"}}),
    ],
    "GET /p/{pack_id}": [below("pack", "pack_id")],
    "POST /p/{pack_id}/tunes": [
        below("pack", "pack_id", {"tune": TUNE}),
        within(TUNES, {"tune": {"tune_ids": ["WORD"]}}, pack_id="headshots"),
        within("tune number", {"tune": {"tune_ids": ["tune", "WORD"]}}, pack_id="headshots"),
        within(
            "tune number", {"tune": {**TUNE, "branch": None, "base_tune_id": "WORD"}}, pack_id="headshots"
        ),
        within(
            ANY, {"tune": {**TUNE, "prompt_attributes": {"text": "<lora:WORD:1> x"}}}, pack_id="headshots"
        ),
    ],
    "GET /cli/models": LOOK,
    "GET /workspaces": LOOK,
    "POST /workspaces": [Case(body={"workspace": {"title": "mine"}})],
    "GET /workspaces/{workspace_id}": [below("workspace", "workspace_id")],
    "PATCH /workspaces/{workspace_id}": [
        below("workspace", "workspace_id", {"workspace": {"brief": "mine"}})
    ],
    "POST /images/inspect": [within("picture", {"file_url": "WORD"})],
    "POST /v1/tunes/train": [within(ANY, {"model": "sdxl", "trigger_word": "ohwx", "base_tune_id": "WORD"})],
    "POST /v1/tunes/infer": [
        within("tune id+uid+job+prompt id", {"tune_id": "WORD", "prompt": "x"}),
        *_texts("", "prompt", tune_id="tune id"),
    ],
    "POST /v1/tunes/{job_id}/upload": [Case("job", {"job_id": "WORD"}, query={"token": "no"}, bearer=False)],
    "GET /v1/tunes/{job_id}": [below("job+prompt id+uid", "job_id")],
    "DELETE /v1/tunes/{tune_id}": [below("job+uid", "tune_id")],
    "POST /v1/image/generate": [
        *_texts("", "prompt"),
        within("picture", {"prompt": "x", "image_url": "WORD"}),
        within("picture", {"prompt": "x", "image": "WORD"}),
    ],
    **{
        f"GET /v1/{word}/{{generation_id}}": [below("prompt id+uid", "generation_id")]
        for word in ("image", "jobs", "generation", "image/upscale", "video")
    },
    "POST /v1/video/generate": _texts("", "prompt"),
    "POST /v1/image/upscale": [
        within("picture", {"image_url": "WORD"}),
        within("picture", {"image": "WORD"}),
    ],
    "POST /v1/image/batch": [within("picture", {"operation": "upscale", "images": ["WORD"]})],
    "GET /v1/image/batch/{batch_id}": [below("prompt id+job", "batch_id")],
    "POST /v1/image/{operation}": [Case(path={"operation": "remove-background"}, body={})],
    f"POST {TRAINER}": [
        within("picture", {"image_data_url": "WORD"}),
        within(
            "tune id", {"image_data_url": URLS[0], "default_caption": "<lora:WORD:1>", "base_tune_id": "WORD"}
        ),
    ],
    f"POST {TRAINER}-result": [within("job+uid+prompt id", {"request_id": "WORD"})],
    "GET /v2/requests/status/{request_id}": [below("job+uid+prompt id", "request_id")],
    "POST /pixu/api/create_model": [within("picture", {**_PIXU, "face_base64": "WORD"})],
    "POST /pixu/api/create_model_from_url": [within("picture", {**_PIXU, "url": "WORD"})],
    **{
        f"POST /pixu/api/txt2img_{word}": [
            within("uid+tune id", {**_PIXU, "model_uid": "WORD"}),
            *_texts("", "positive", **_PIXU, model_uid="tune id"),
            *_texts("", "positive", **_PIXU),
        ]
        for word in ("strict_portrait", "composition")
    },
    "POST /pixu/api/txt2img_results": [within("request+prompt id+uid", {**_PIXU, "request_uid": "WORD"})],
    "GET /native/v1/tunes/{key}": [below("tune number+uid+job", "key")],
    "GET /native/v1/tunes/{key}/timeline": [below("tune number+uid+job", "key")],
    "POST /native/v1/tunes/{key}/cancel": [
        below("tune number+uid+job", "key", {}),
        below("job", "key", {"keep": True}),
    ],
    "GET /native/v1/tunes/{key}/weights/{form}": [
        below("tune number+uid+job", "key", form=form) for form in ("diffusers", "kohya", "embeddings")
    ],
    "GET /native/v1/tunes/{key}/captions": [below("tune number+uid", "key")],
    "PUT /native/v1/tunes/{key}/captions": [below("tune number+uid", "key", {"captions": {"a.png": "mine"}})],
    "GET /native/v1/prompts/{key}/timeline": [below(PROMPTS, "key")],
    "GET /native/v1/callbacks/{callback_id}": [below("callback", "callback_id")],
    "POST /native/v1/callbacks/{callback_id}/replay": [below("callback", "callback_id", {})],
    "POST /native/v1/callbacks/sample": [
        Case(body={"url": "https://bravo.example.com", "dialect": one})
        for one in ("native", "pixelapi", "pixu", "astria")
    ],
}


@pytest.fixture
def both(house: House) -> Tenants:
    return populate(house)


def routes(some: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield method and path of every route of an application."""
    for route in some:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes(inner.routes, prefix + route.include_context.prefix)
            continue
        for method in sorted((getattr(route, "methods", None) or set()) - {"HEAD", "OPTIONS"}):
            yield method, prefix + route.path


def filled(value: Any, word: str, both: Tenants) -> Any:
    """Return a body with the name in it, and what is Bravo's own."""
    if isinstance(value, dict):
        return {name: filled(one, word, both) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [filled(one, word, both) for one in value]
    if not isinstance(value, str):
        return value
    if value == "WORD" and word.isdecimal():
        return int(word)
    if value == "KEY":
        return both.house.key(BRAVO)
    return both.own.get(value, value).replace("WORD", word)


def ask(both: Tenants, method: str, path: str, case: Case, word: str) -> Any:
    """Return what Bravo is answered."""
    chosen = {name: filled(value, word, both) for name, value in (case.path or {}).items()}
    headers = {}
    if case.bearer:
        headers = {**both.house.auth(BRAVO), "Ocp-Apim-Subscription-Key": both.house.key(BRAVO)}
    query = {name: value.replace("WORD", word) for name, value in (case.query or {}).items()}
    more: dict[str, Any] = {}
    if path.endswith("/upload"):
        more["files"] = PICTURES
    elif case.body is not None:
        more["json"] = filled(case.body, word, both)
    return both.house.client.request(method, path.format(**chosen), params=query, headers=headers, **more)


def case_of(method: str, path: str) -> str:
    """Return the name under which a route has its cases."""
    if path.startswith(("/docs/", "/openapi/")):
        head, _, tail = path.removeprefix("/").partition("/")
        return f"{method} /{head}/{{name}}{'.json' if tail.endswith('.json') else ''}"
    return f"{method} {path.removesuffix('.json')}"


@pytest.mark.slow
def test_every_route_keeps_the_tenants_apart(both: Tenants) -> None:
    before, attacks = both.alfas(), 0
    for method, path in routes(both.house.client.app.routes):  # type: ignore[attr-defined]
        name = case_of(method, path)
        assert name in CASES, f"{method} {path} has no case in this test"
        cases = CASES[name]
        for case in cases[:2] if path.endswith(".json") else cases:  # another address of the same endpoint
            for word in words_of(both, case.kind) if case.kind else [Word("", "")]:
                attack = (method, path, case, word.real)
                answer = ask(both, method, path, case, word.real)
                attacks += 1
                assert answer.status_code < 500, (attack, answer.text)
                both.check_silent(answer.text + json.dumps(dict(answer.headers)), attack, word.real)
                if word.real == word.twin:
                    continue
                both.named.add(word.twin)
                nobody = ask(both, method, path, case, word.twin)
                assert answer.status_code == nobody.status_code, (attack, answer.text, nobody.text)
                if answer.status_code >= 400 or method == "GET":
                    assert same(answer.text, word.real) == same(nobody.text, word.twin), attack
            both.check(before, (method, path, case))
    assert attacks > 250


def test_words_that_both_have_mean_ones_own(both: Tenants) -> None:
    """By number, title and tag, in every door, Bravo gets Bravo's tunes, and Alfa Alfa's."""
    for word in both.words["colliding"]:
        meant = {
            account: both.house.registry.objects.tune_named(account, word.real) for account in (ALFA, BRAVO)
        }
        assert meant[ALFA].id != meant[BRAVO].id
        for account, tune in meant.items():
            if tune.kind == "faceid":
                continue
            made = both.prompt(account, "/tunes/690204/prompts", text=f"x <lora:{word.real}:1>")
            assert _uses(both, made) == [tune.id]
            made = both.prompt(account, "/tunes/690204/prompts", text=f"<lora:{word.real}:1> <lora:anna:1> x")
            assert tune.id in _uses(both, made) and both.strays() == []


def _uses(both: Tenants, prompt: Prompt) -> list[str | None]:
    return [use.tune_id for use in both.house.registry.uses.of([prompt.id])[prompt.id]]


def test_what_one_does_to_ones_own_touches_nothing_of_the_other(both: Tenants) -> None:
    """Renaming, rendering, continuing and deleting tunes that are titled like Alfa's, and like Alfa's numbers."""
    before, house = both.alfas(), both.house
    auth = house.auth(BRAVO)
    for word in both.words["colliding"]:
        tune = house.registry.objects.tune_named(BRAVO, word.real)
        both.prompt(BRAVO, f"/tunes/{tune.number}/prompts", text="ohwx woman")
        house.client.patch(f"/tunes/{tune.number}", json={"tune": {"title": f"zoe {SECRET}"}}, headers=auth)
        more = {"base_tune_id": tune.number, "branch": None}
        house.client.post("/tunes", json={"tune": {**TUNE, **more}}, headers=auth)
        house.client.patch(f"/tunes/{tune.number}", json={"tune": {"title": word.real}}, headers=auth)
    house.render_all()
    for tune in house.registry.tunes.rows(account_id=BRAVO, limit=1000):
        assert house.client.delete(f"/tunes/{tune.number}", headers=auth).status_code == 200
    both.check(before, "deleting")
    assert not house.registry.tunes.rows(account_id=BRAVO)
    left = [prompt for prompt in house.registry.prompts.rows(account_id=BRAVO, limit=1000) if prompt.images]
    assert not left, "and all of Bravo's pictures went"


def test_addresses_of_files_lead_to_no_other_file(both: Tenants) -> None:
    auth = both.house.auth(BRAVO)
    shown = both.house.client.get(f"/prompts/{both.own['prompt']}", headers=auth).json()["images"][0]
    _, _, signature, expires, packed, name = shown.split("example.com", 1)[1].split("/")[-6:]
    assert both.house.client.get(f"/files/{signature}/{expires}/{packed}/{name}").status_code == 200
    from base64 import urlsafe_b64encode

    for word in [*both.words["picture"], Word("registry.db", "registry.dc")]:
        said = []
        for key in (word.real, word.twin):
            other = urlsafe_b64encode(key.encode()).decode().rstrip("=")
            answer = both.house.client.get(f"/files/{signature}/{expires}/{other}/{name}")
            said.append((answer.status_code, answer.text))
        assert said[0] == said[1] and said[0][0] == 403

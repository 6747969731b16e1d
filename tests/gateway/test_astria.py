"""Astria: objects, lists, every way a body is nested, packs, callbacks, and headshots-starter's flow."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.gateway.conftest import PUBLIC, House
from tunes_dagster.callbacks.forms import in_form
from tunes_dagster.core.urls import parse_url
from tunes_dagster.gateway.nesting import nested

URLS = [f"https://example.com/{n}.jpg" for n in range(4)]
TUNE = {"title": "Natalie", "name": "woman", "branch": "fast", "image_urls": URLS}


@pytest.fixture(autouse=True)
def _public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNES_GATEWAY_PUBLIC_URL", PUBLIC)


def create(house: House, account: str = "ann", **changes: object) -> dict:
    answer = house.client.post("/tunes", json={"tune": {**TUNE, **changes}}, headers=house.auth(account))
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_steps_are_those_of_the_training_in_every_phase(house: House) -> None:
    """Five pictures that are checked are no five steps."""
    number = create(house, steps=700)["id"]
    path, tune = f"/tunes/{number}", house.tune(number)
    work = house.registry.work.claim("prepare", tune.id, "run")
    house.registry.work.progress(work.id, "run", phase="checking", step=2, total=5)
    assert house.client.get(path, headers=house.auth()).json()["steps"] == 700
    house.registry.work.finish(work.id, "run")
    work = house.registry.work.claim("train", tune.id, "run")
    house.registry.work.finish(work.id, "run", result={"weights_key": "w", "steps": 650})
    assert house.client.get(path, headers=house.auth()).json()["steps"] == 650


def told(house: House) -> list:
    lease, urls = house.registry.outbox.lease(60)
    found = []
    for callback in urls:
        sending = house.registry.outbox.begin_delivery(callback, lease)
        assert sending is not None
        found.append(in_form(house.service.installation, sending))
        house.registry.outbox.end_delivery(sending.delivery_id, status_code=200)
    return found


def test_a_tune_and_its_prompts(house: House) -> None:
    tune = create(house, characteristics={"eye_color": "green eyes"})
    assert isinstance(tune["id"], int) and tune["trained_at"] is None and tune["token"] == "ohwx"
    assert tune["url"] == f"{PUBLIC}/tunes/{tune['id']}.json" and tune["orig_images"] == URLS
    path = f"/tunes/{tune['id']}/prompts"
    body = {
        "prompt": {
            "text": "portrait of ohwx woman, {{eye_color}}",
            "num_images": 2,
            "cfg_scale": 3,
            "w": 512,
            "h": 640,
        }
    }
    prompt = house.client.post(path, json=body, headers=house.auth())
    assert prompt.status_code == 201
    made = prompt.json()
    assert (
        made["text"].endswith("green eyes") and made["cfg_scale"] == "3.0" and made["tune_id"] == tune["id"]
    )
    assert made["images"] == [] and made["trained_at"] is None and made["num_images"] == 2

    house.finish_tune(house.tune(tune["id"]))
    house.render_all()
    for suffix in ("", ".json"):
        done = house.client.get(f"{path}/{made['id']}{suffix}", headers=house.auth()).json()
        assert len(done["images"]) == 2 and done["trained_at"]
    assert house.client.get(urlsplit(done["images"][0]).path).status_code == 200
    shown = house.client.get(f"/tunes/{tune['id']}.json", headers=house.auth()).json()
    assert shown["trained_at"] and shown["expires_at"] > shown["trained_at"] and len(shown["ckpt_urls"]) == 1
    assert [p["id"] for p in house.client.get(path, headers=house.auth()).json()] == [made["id"]]

    again = house.client.post(
        f"/prompts/{made['id']}/duplicate", json={"prompt": {"seed": 5}}, headers=house.auth()
    )
    assert again.status_code == 201 and again.json()["seed"] == 5 and again.json()["cfg_scale"] == "3.0"
    assert house.client.post(f"/prompts/{made['id']}/like", headers=house.auth()).status_code == 201
    liked = house.client.get("/prompts?liked=true", headers=house.auth()).json()
    assert [p["id"] for p in liked] == [made["id"]]
    gone = house.client.delete(f"{path}/{made['id']}", headers=house.auth())
    assert gone.json() == {"message": "Prompt successfully deleted"}
    assert house.client.get(f"/prompts/{made['id']}", headers=house.auth()).status_code == 404


def test_a_lora_in_the_text_of_a_base(house: House) -> None:
    tune = create(house, branch="flux1")
    path = "/tunes/1504944/prompts"
    text = f"<lora:{tune['id']}:0.8> ohwx woman in a cafe"
    made = house.client.post(path, json={"prompt": {"text": text}}, headers=house.auth()).json()
    assert made["tune_id"] == 1504944 and made["text"] == text
    row = house.prompt(made["id"])
    assert row.tune_id and row.settings["lora_scale"] == 0.8 and "<lora" not in row.text
    bad = {"text": text, "cfg_scale": "7.5", "negative_prompt": "x"}
    answer = house.client.post(path, json={"prompt": bad}, headers=house.auth())
    said = {"cfg_scale": ["must be less than 5"], "error": "cfg_scale must be less than 5"}
    assert answer.status_code == 422 and answer.json() == said
    other = house.client.post(path, json={"prompt": {"text": text}}, headers=house.auth("bob"))
    assert other.status_code == 422 and "does not exist" in other.json()["text"][0]
    house.client.patch(f"/tunes/{tune['id']}", json={"tune": {"title": "Ada"}}, headers=house.auth())
    named = house.client.post(
        path, json={"prompt": {"text": "ohwx <lora:Ada:1>"}}, headers=house.auth()
    ).json()
    house.client.patch(f"/tunes/{tune['id']}", json={"tune": {"title": "Eve"}}, headers=house.auth())
    create(house, branch="flux1", title="Ada")
    again = house.client.post(f"/prompts/{named['id']}/duplicate", json={}, headers=house.auth()).json()
    assert again["text"] == "ohwx <lora:Ada:1>"
    for word in (tune["id"], "Eve"):
        twice = {"prompt": {"text": f"ohwx <lora:Eve:2> <lora:{word}:2>"}}
        refused = house.client.post(path, json=twice, headers=house.auth())
        assert refused.status_code == 422 and "with 4 in all" in str(refused.json()["text"])
    assert house.prompt(again["id"]).tune_id == row.tune_id, "a copy means what the first one meant"


FORMS = [
    [
        ("tune[title]", "N"),
        ("tune[name]", "woman"),
        ("tune[branch]", "fast"),
        ("tune[callback]", ""),
        ("tune[image_urls][]", URLS[0]),
        ("tune[image_urls][]", URLS[1]),
        ("tune[face_crop]", "true"),
        ("tune[characteristics][eye_color]", "blue eyes"),
        ("tune[prompts_attributes][0][text]", "a"),
        ("tune[prompts_attributes][0][num_images]", "2"),
        ("tune[prompts_attributes][1][text]", "b"),
    ],
    [
        ("tune[title]", "N"),
        ("tune[name]", "woman"),
        ("tune[branch]", "fast"),
        ("tune[image_urls][0]", URLS[0]),
        ("tune[image_urls][1]", URLS[1]),
        ("tune[face_crop]", "1"),
        ("tune[characteristics]", '{"eye_color":"blue eyes"}'),
        ("tune[prompts_attributes][][text]", "a"),
        ("tune[prompts_attributes][][num_images]", "2"),
        ("tune[prompts_attributes][][text]", "b"),
    ],
]


@pytest.mark.parametrize("multipart", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=["numbered", "empty brackets"])
def test_all_nestings_parse_alike(house: House, form: list, multipart: bool) -> None:
    if multipart:
        answer = house.client.post(
            "/tunes.json", files=[(name, (None, value)) for name, value in form], headers=house.auth()
        )
    else:
        from urllib.parse import urlencode

        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = house.client.post("/tunes", content=urlencode(form), headers={**house.auth(), **kind})
    assert answer.status_code == 201, answer.text
    row = house.tune(answer.json()["id"])
    assert row.request["sources"]["image_urls"] == URLS[:2] and row.request["dataset"]["face_crop"]
    assert row.callback_url is None and answer.json()["characteristics"] == {"eye_color": "blue eyes"}
    prompts = sorted(house.registry.prompts.rows(tune_id=row.id), key=lambda p: p.number)
    assert [(p.text, p.settings["num_images"]) for p in prompts] == [("a", 2), ("b", 1)]


def test_uploaded_files(house: House) -> None:
    files = [("tune[images][]", (f"{n}/../x{n}.png", b"\x89PNG", "image/png")) for n in range(3)]
    data = {"tune[title]": "N", "tune[name]": "man"}
    answer = house.client.post("/tunes", data=data, files=files, headers=house.auth())
    assert answer.status_code == 201, answer.text
    row = house.tune(answer.json()["id"])
    assert len(row.request["sources"]["uploads"]) == 3 and row.status == "queued"
    assert row.base == "realistic-vision" and row.token == "sks"  # what Astria trains without a branch
    assert house.client.get(urlsplit(answer.json()["orig_images"][0]).path).status_code == 200


def test_nesting_that_contradicts_itself_is_refused(house: House) -> None:
    assert nested([("a[b][][c]", 1), ("a[b][][d]", 2), ("a[b][][c]", 3)]) == {
        "a": {"b": [{"c": 1, "d": 2}, {"c": 3}]}
    }
    for name in ("tune[a]=1&tune[a][b]=2", "tune=1", "tune" + "[x]" * 50 + "=1"):
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = house.client.post("/tunes", content=name, headers={**house.auth(), **kind})
        assert answer.status_code == 400, name


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"title": ""}, "title"),
        ({"name": None}, "name"),
        ({"branch": "flux"}, "branch"),
        ({"image_urls": []}, "images"),
        ({"base_tune_id": 99999}, "base_tune_id"),
        ({"model_type": "faceid", "branch": "flux1"}, "model_type"),
        ({"characteristics": "no json"}, "characteristics"),
    ],
)
def test_422_names_the_field(house: House, changes: dict, field: str) -> None:
    answer = house.client.post("/tunes", json={"tune": {**TUNE, **changes}}, headers=house.auth())
    assert answer.status_code == 422 and field in answer.json() and isinstance(answer.json()[field], list)


def test_a_faceid_tune_is_named_by_its_own_tag(house: House) -> None:
    tune = create(house, model_type="faceid", branch="fast")
    assert tune["model_type"] == "faceid" and tune["args"] is None
    row = house.finish_tune(house.tune(tune["id"]))
    assert row.kind == "faceid"
    other = house.finish_tune(house.tune(create(house, title="LoRA", model_type="lora")["id"]))
    assert house.client.get(f"/tunes/{tune['id']}", headers=house.auth()).json()["trained_at"]

    def ask(text: str) -> tuple[int, dict]:
        body = {"prompt": {"text": text}}
        answer = house.client.post(f"/tunes/{other.number}/prompts", json=body, headers=house.auth())
        return answer.status_code, answer.json()

    status, made = ask(f"ohwx woman <faceid:{tune['id']}:0.6>")
    assert status == 201, made
    (prompt,) = house.registry.prompts.rows(tune_id=other.id)
    assert prompt.text == f"ohwx woman <faceid:{tune['id']}:0.6>"
    uses = house.registry.uses.of([prompt.id])[prompt.id]
    assert [(use.kind, use.tune_id, use.scale) for use in uses] == [
        ("tune", other.id, None),
        ("faceid", row.id, 0.6),
    ]
    status, refused = ask(f"ohwx woman <lora:{tune['id']}:0.6>")
    assert status == 422 and "<faceid:" in refused["text"][0]
    status, refused = ask(f"ohwx woman <faceid:{other.number}:0.6>")
    assert status == 422 and "<lora:" in refused["text"][0]
    assert ask(f"ohwx woman <faceid:{tune['id']}:3>")[0] == 422


def test_lists_page_by_id_and_by_offset(house: House) -> None:
    ids = [create(house, title=f"t{n}")["id"] for n in range(3)]
    assert [t["id"] for t in house.client.get("/tunes", headers=house.auth()).json()] == ids[::-1]
    before = house.client.get(f"/tunes?before_id={ids[2]}&limit=1", headers=house.auth()).json()
    assert [t["id"] for t in before] == [ids[1]]
    assert len(house.client.get("/tunes?offset=2&limit=500", headers=house.auth()).json()) == 1
    assert house.client.get("/tunes?offset=201", headers=house.auth()).status_code == 400
    assert house.client.get("/prompts?offset=10001", headers=house.auth()).status_code == 400
    assert [t["title"] for t in house.client.get("/tunes?title=t1", headers=house.auth()).json()] == ["t1"]


def test_update_delete_gallery_and_account(house: House) -> None:
    tune = create(house)
    changed = house.client.patch(
        f"/tunes/{tune['id']}", json={"tune": {"title": "New"}}, headers=house.auth()
    )
    assert changed.json()["title"] == "New"
    refused = house.client.patch(f"/tunes/{tune['id']}", json={"tune": {"steps": 5}}, headers=house.auth())
    assert refused.status_code == 422 and "steps" in refused.json()
    assert house.client.delete(f"/tunes/{tune['id']}", headers=house.auth()).status_code == 200
    assert house.client.get(f"/tunes/{tune['id']}", headers=house.auth()).status_code == 404
    assert {g["id"] for g in house.client.get("/gallery/tunes", headers=house.auth()).json()} == {
        690204,
        666678,
        1504944,
    }
    me = house.client.get("/users/self", headers=house.auth()).json()
    assert me["usd_balance_mc"] == 1_000_000 and isinstance(me["id"], int)
    assert house.client.post("/themes", json={"theme": "x"}, headers=house.auth()).status_code == 422


def test_titles_are_idempotent_only_for_those_who_want_it(house: House) -> None:
    assert create(house)["id"] != create(house)["id"]
    house.registry.ledger.set_options("ann", title_idempotency=True)
    house.service._seen.clear()
    assert create(house)["id"] == create(house)["id"]


def test_titles_of_packs_are_idempotent_as_well(house: House) -> None:
    house.key()
    house.registry.ledger.set_options("ann", title_idempotency=True)
    fields = {
        "title": "Natalie",
        "name": "woman",
        "image_urls": URLS,
        "prompts_callback": "https://app.example.com/x",
    }
    made = [
        house.client.post("/p/corporate-headshots/tunes", json={"tune": fields}, headers=house.auth()).json()
        for _ in range(2)
    ]
    assert made[0]["id"] == made[1]["id"] and len(house.registry.tunes.rows(account_id="ann")) == 1


def test_headshots_starter_in_pack_mode(house: House) -> None:
    """Section 6 of the contracts: rows 2 and 3b, and both webhooks."""
    both = [house.client.get(path, headers=house.auth()).json() for path in ("/packs", "/gallery/packs")]
    assert both[0] == [] and {"id", "slug", "title", "cover_url"} <= set(both[1][0])
    slug = both[1][0]["slug"]
    query = "user_id=3f2b-1&model_id=7&webhook_secret=s%2Bx=/[|]'%c3"
    train = f"https://app.example.com/astria/train-webhook?{query}"
    prompt = f"https://app.example.com/astria/prompt-webhook?{query}"
    body = {
        "tune": {
            "title": "Natalie",
            "name": "woman",
            "callback": train,
            "characteristics": {},
            "prompt_attributes": {"callback": prompt},
            "image_urls": URLS,
        }
    }
    answer = house.client.post(f"/p/{slug}/tunes", json=body, headers=house.auth())
    assert answer.status_code == 201 and isinstance(answer.json()["id"], int)
    assert (
        house.client.post(f"/p/{slug}/tunes", json=body, headers=house.auth()).json()["id"]
        != answer.json()["id"]
    )
    house.finish_tune(house.tune(answer.json()["id"]))
    house.render_all()
    sent = told(house)
    assert [one.url for one in sent] == [train, prompt, prompt]
    assert parse_url(sent[0].url).target == f"/astria/train-webhook?{query}"
    assert sent[0].body["tune"]["id"] == answer.json()["id"] and sent[0].body["tune"]["trained_at"]
    for one in sent[1:]:
        assert one.method == "POST" and len(one.body["prompt"]["images"]) == 1
        assert "ohwx" not in one.body["prompt"]["text"] and "sks woman" in one.body["prompt"]["text"]
        assert house.client.get(urlsplit(one.body["prompt"]["images"][0]).path).status_code == 200
    assert told(house) == []


def test_headshots_starter_in_tune_mode(house: House) -> None:
    """Row 3a, as it stands in the route: two prompts of eight pictures."""
    hook = "https://app.example.com/astria/prompt-webhook?user_id=1"
    prompts = [{"text": f"portrait of ohwx man {n}", "callback": hook, "num_images": 8} for n in range(2)]
    tune = create(
        house,
        name="man",
        base_tune_id=690204,
        branch="sd15",
        token="ohwx",
        characteristics={},
        callback="https://app.example.com/astria/train-webhook?user_id=1",
        prompts_attributes=prompts,
    )
    assert tune["base_tune_id"] == 690204 and tune["token"] == "ohwx"
    house.finish_tune(house.tune(tune["id"]))
    house.render_all()
    sent = told(house)
    assert [sorted(one.body) for one in sent] == [["tune"], ["prompt"], ["prompt"]]
    assert [len(one.body["prompt"]["images"]) for one in sent[1:]] == [8, 8]
    assert {one.body["prompt"]["tune_id"] for one in sent[1:]} == {tune["id"]}


def test_no_callback_for_a_failure_unless_the_account_wants_it(house: House) -> None:
    hook = "https://app.example.com/train-webhook"
    first = create(house, callback=hook)
    house.registry.work.cancel_tune(house.tune(first["id"]).id)
    assert told(house) == []
    shown = house.client.get(f"/tunes/{first['id']}", headers=house.auth()).json()
    assert shown["error"] and shown["trained_at"] is None
    house.registry.ledger.set_options("ann", failure_callbacks=True)
    house.service._seen.clear()
    second = create(house, callback=hook)
    house.registry.work.cancel_tune(house.tune(second["id"]).id)
    assert told(house)[0].body["tune"]["error"]


def test_a_group_of_prompts_is_told_of_once(house: House) -> None:
    tune = create(house)
    house.finish_tune(house.tune(tune["id"]))
    body = {"tune": {"tune_ids": [tune["id"]], "prompts_callback": "https://app.example.com/all"}}
    answer = house.client.post("/p/corporate-headshots/tunes", json=body, headers=house.auth())
    assert answer.status_code == 201 and answer.json()["message"] == "Prompts created"
    house.render_all()
    (one,) = told(house)
    assert one.url == "https://app.example.com/all" and len(one.body) == 2 and one.body[0]["images"]


def test_own_packs(house: House) -> None:
    pack = {
        "title": "Mine",
        "prompts_per_class": {"dog": [{"text": "{{token}} {{name}} as a king", "num_images": 2}]},
    }
    made = house.client.post("/packs", json={"pack": pack}, headers=house.auth()).json()
    shown = house.client.get(f"/p/{made['slug']}", headers=house.auth()).json()
    assert shown["costs"]["dog"]["num_images"] == 2
    assert house.client.get(f"/p/{made['slug']}", headers=house.auth("bob")).status_code == 404
    wrong = {"tune": {**TUNE, "name": "cat"}}
    answer = house.client.post(f"/p/{made['id']}/tunes", json=wrong, headers=house.auth())
    assert answer.status_code == 422 and "name" in answer.json()


def test_inspect_answers_in_strings_and_booleans(house: House) -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.effect_noise((300, 300), 80).convert("RGB").save(buffer, "PNG")
    files = {"file": ("blob", buffer.getvalue(), "image/png")}
    answer = house.client.post("/images/inspect", data={"name": "woman"}, files=files, headers=house.auth())
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["name"] == "woman" and body["ethnicity"] == "" and body["includes_multiple_people"] is False
    assert all(isinstance(value, (str, bool)) for value in body.values())
    broken = house.client.post("/images/inspect", files={"file": ("x", b"no")}, headers=house.auth())
    assert broken.status_code == 422 and "file" in broken.json()


def test_what_the_renderer_can_do_is_passed_on(house: House) -> None:
    tune = create(house)
    ready = house.finish_tune(house.tune(tune["id"]))
    path = f"/tunes/{tune['id']}/prompts"
    fields = {
        "text": "ohwx woman",
        "style": "cinematic",
        "film_grain": "1",
        "hires_fix": True,
        "num_images": 2,
        "color_grading": "Ektar",
        "input_image_url": "https://example.com/a.png",
        "denoising_strength": 0.5,
        "use_lpw": True,
        "backend_version": 1,
    }
    made = house.client.post(path, json={"prompt": fields}, headers=house.auth()).json()
    settings = house.prompt(made["id"]).settings
    assert settings["style"] == "Cinematic" and settings["film_grain"] and settings["hires_fix"], made
    assert settings["input_image"] == "https://example.com/a.png" and settings["denoising_strength"] == 0.5
    assert made["hires_fix"] is True and made["style"] == "cinematic" and made["use_lpw"] is True
    for wrong, field in (
        ({"controlnet": "ipadapter", "input_image_url": "https://example.com/a.png"}, "controlnet"),
        ({"mask_image_url": "https://example.com/a.png"}, "mask_image"),
        ({"style": "Baroque"}, "style"),
        ({"face_swap": True}, "face_swap"),
    ):
        answer = house.client.post(path, json={"prompt": {"text": "x", **wrong}}, headers=house.auth())
        assert answer.status_code == 422 and field in answer.json(), answer.text
    house.render_all()
    again = {"image_index": 1, "prompt": {"text": "ohwx woman at sea"}}
    second = house.client.post(f"/prompts/{made['id']}/duplicate", json=again, headers=house.auth()).json()
    copied = house.prompt(second["id"])
    assert copied.text == "ohwx woman at sea"
    assert copied.settings["input_image"] == house.prompt(made["id"]).images[1]
    listed = house.client.get(f"/prompts?orig_prompt_id={made['id']}", headers=house.auth()).json()
    assert [one["id"] for one in listed] == [second["id"]]
    far = house.client.post(f"/prompts/{made['id']}/duplicate", json={"image_index": 9}, headers=house.auth())
    assert far.status_code == 422 and "image_index" in far.json()
    assert ready.status == "ready"


def test_a_prompt_is_updated_and_a_tune_continued(house: House) -> None:
    tune = create(house, prompts_attributes=[{"text": "ohwx woman"}])
    (prompt,) = house.client.get("/prompts", headers=house.auth()).json()
    body = {"prompt": {"community": "x"}}
    changed = house.client.patch(
        f"/tunes/{tune['id']}/prompts/{prompt['id']}", json=body, headers=house.auth()
    )
    assert changed.json()["community"] == "x"
    refused = house.client.patch(
        f"/prompts/{prompt['id']}", json={"prompt": {"text": "y"}}, headers=house.auth()
    )
    assert refused.status_code == 422 and "text" in refused.json()
    early = {"tune": {**TUNE, "branch": "", "base_tune_id": tune["id"]}}
    assert house.client.post("/tunes", json=early, headers=house.auth()).status_code == 422
    house.finish_tune(house.tune(tune["id"]))
    more = create(house, branch="", base_tune_id=tune["id"], auto_extend=True)
    row = house.tune(more["id"])
    assert row.recipe["continues"]["tune_id"] == house.tune(tune["id"]).id and row.auto_extend
    assert more["base_tune_id"] == tune["id"]

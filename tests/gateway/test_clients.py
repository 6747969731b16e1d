"""What clients of others send, as they send it: method, path, headers and body, where they cannot be installed here.

Each request was read from the code of a public client; the comment beside it names the client.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.conftest import House
from tunes_dagster.families.catalog import BaseModelEntry, Catalog

PICTURE = b"\x89PNG" + bytes(range(60))
BOUNDARY = "------------------------d74496d66958873e"


class Cli:
    """Requests of astria-cli 1.11.0 (Python over curl): `--form-string` fields, files by `@`, one header for scopes."""

    def __init__(self, house: House) -> None:
        self.house = house

    def __call__(
        self,
        method: str,
        path: str,
        form: list[tuple[str, str]] | None = None,
        body: Any = None,
        auth: bool = True,
        workspace: str = "",
    ) -> Any:
        headers = {
            "User-Agent": "astria-cli/1.11.0 (Linux; 6.1.0; x86_64; Python/3.11.2)",
            "Accept": "application/json",
            **(self.house.auth() if auth else {}),
            **({"X-Workspace-Id": workspace} if workspace else {}),
        }
        content = b""
        if form is not None:
            headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
            content = b"".join(_part(name, value) for name, value in form) + f"--{BOUNDARY}--\r\n".encode()
        elif body is not None:
            headers["Content-Type"], content = "application/json", json.dumps(body).encode()
        answer = self.house.client.request(method, path, content=content, headers=headers)
        assert answer.status_code < 400, (path, answer.text)
        return answer.json()


def _part(name: str, value: str) -> bytes:
    """One field as curl writes it."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
    if not value.startswith("@"):
        return f"{head}\r\n\r\n{value}\r\n".encode()
    kind = f'; filename="{value[1:]}"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head.encode() + kind.encode() + PICTURE + b"\r\n"


TUNE_FORM = [
    ("tune[title]", "Other shot"),
    ("tune[name]", "woman"),
    ("tune[model_type]", "faceid"),
    ("tune[base_tune_id]", "666678"),
    ("tune[images][]", "@face3.jpg"),
]


@pytest.fixture
def cli(house: House) -> Cli:
    return Cli(house)


def test_the_tour_of_astrias_command_line(house: House, cli: Cli) -> None:
    """`astria models`, `whoami`, `tunes …`, `generate`, `prompts …`, `packs …` of its reference, in that order."""
    catalog = cli("GET", "/cli/models", auth=False)
    default = catalog["models"][catalog["default"]]["tune_id"]
    assert catalog["default"] == "sdxl" and default == "666678" and catalog["video_models"] == {}
    assert catalog["models"]["gemini"]["tune_id"] == default, "what `tunes create` asks for by itself"
    assert {"id", "name", "email", "usd_balance_mc"} <= set(cli("GET", "/users"))
    # tunes create --title --name --description --image --image
    form = [
        ("tune[title]", "Studio shot"),
        ("tune[name]", "woman"),
        ("tune[model_type]", "faceid"),
        ("tune[base_tune_id]", default),
        ("tune[characteristics]", '{"short_description": "in a studio"}'),
        ("tune[images][]", "@face1.jpg"),
        ("tune[images][]", "@face2.jpg"),
    ]
    tune = cli("POST", "/tunes", form)
    assert tune["model_type"] == "faceid" and len(tune["orig_images"]) == 2
    assert [one["id"] for one in cli("GET", "/tunes?title=udio+SHOT")] == [tune["id"]], (
        "a part of it, in any case"
    )
    assert cli("GET", "/tunes?title=dress&name%5B%5D=shoes&name%5B%5D=sandals") == []
    assert cli("GET", "/gallery/tunes?limit=200&branch=flux1")[0]["id"] == 1504944
    assert cli("GET", f"/tunes/{tune['id']}")["id"] == tune["id"]
    form = [("tune[title]", "Gold ring"), ("tune[name]", "woman")]
    assert cli("PATCH", f"/tunes/{tune['id']}", form)["title"] == "Gold ring"
    house.finish_tune(house.tune(tune["id"]))
    # generate --text … --aspect-ratio 3:4 (the default), without --model
    text = f"<faceid:{tune['id']}:1> woman, clean white studio background"
    form = [("prompt[text]", text), ("prompt[num_images]", "2"), ("prompt[aspect_ratio]", "3:4")]
    made = cli("POST", f"/tunes/{default}/prompts", form)
    shown = cli("GET", f"/prompts/{made['id']}.json")
    assert shown["images"] == [] and shown["user_error"] is None, "not settled yet"
    house.render_all()
    assert len(cli("GET", f"/prompts/{made['id']}.json")["images"]) == 2
    assert [one["id"] for one in cli("GET", "/prompts?text=white&today=true&limit=100&offset=0")] == [
        made["id"]
    ]
    assert cli("GET", f"/tunes/{default}/prompts/{made['id']}?expand%5B%5D=debug_images")["id"] == made["id"]
    pack = cli(
        "POST", "/packs", body={"pack": {"title": "Spring", "base_tune_id": 666678, "model_type": "faceid"}}
    )
    assert pack["slug"].startswith("spring")
    form = [("prompt[pack_id]", str(pack["id"]))]
    assert cli("PATCH", f"/tunes/{default}/prompts/{made['id']}", form)["pack_id"] == str(pack["id"])
    assert "subtitle" in cli("GET", "/packs?limit=5")[0] and "main_class_name" in cli("GET", "/packs")[0]
    # packs run SLUG --tune-id …: the prompt that was put there, for another tune of its class
    house.finish_tune(house.tune(cli("POST", "/tunes", TUNE_FORM)["id"]))
    other = [("tune[tune_ids][]", "2")]
    ran = cli("POST", f"/p/{pack['slug']}/tunes", other)
    again = cli("POST", f"/p/{pack['id']}/tunes", other)
    row = house.prompt(ran["prompt_ids"][0])
    assert row.tune_id == house.tune(2).id and row.text == "woman, clean white studio background"
    assert len(ran["prompt_ids"]) == len(again["prompt_ids"]) == 1, "what it renders is no template"
    answer = house.client.post(
        f"/p/{pack['id']}/tunes", json={"tune": {"tune_ids": [2], "prompt_ids": [99]}}, headers=house.auth()
    )
    assert answer.status_code == 422 and str(made["id"]) in answer.json()["prompt_ids"][0]
    body = {"prompt": {"pack_id": None, "base_pack_id": pack["id"], "orig_prompt_id": None}}
    assert cli("PATCH", f"/prompts/{made['id']}?view=board", body=body)["pack_id"] is None
    # packs run corporate-headshots --tune-id … --num-images 1 --inpaint-faces
    form = [
        ("tune[tune_ids][]", str(tune["id"])),
        ("tune[prompt_attributes][num_images]", "1"),
        ("tune[prompt_attributes][inpaint_faces]", "true"),
    ]
    ran = cli("POST", "/p/corporate-headshots/tunes", form)
    assert ran["tune_ids"] == [str(tune["id"])] and ran["prompt_ids"]
    assert cli("GET", f"/prompts/{ran['prompt_ids'][0]}.json")["inpaint_faces"] is True


def test_workspaces_of_astrias_command_line(house: House, cli: Cli) -> None:
    """`astria workspaces …`, `astria landing …`, and `-w` with other commands."""
    assert cli("GET", "/workspaces.json") == []
    made = cli("POST", "/workspaces.json", body={"workspace": {"title": "Acme Store"}})
    number = str(made["id"])
    assert [one["slug"] for one in cli("GET", "/workspaces.json")] == [made["slug"]]
    page = {"workspace": {"landing_page_html": "<h1>Shoes</h1>"}}
    assert cli("PATCH", f"/workspaces/{number}.json", body=page, workspace=number)["title"] == "Acme Store"
    cli("PATCH", f"/workspaces/{number}.json", body={"workspace": {"brief": "golden hour"}}, workspace=number)
    seen = cli("GET", f"/workspaces/{made['slug']}.json", workspace=number)
    assert seen["landing_page_html"] == "<h1>Shoes</h1>" and seen["brief"] == "golden hour"
    form = [("prompt[text]", "a hat"), ("prompt[num_images]", "1")]
    inside = cli("POST", "/tunes/666678/prompts", form, workspace=number)
    outside = cli("POST", "/tunes/666678/prompts", form)
    assert [one["id"] for one in cli("GET", "/prompts", workspace=number)] == [inside["id"]]
    everything = [outside["id"], inside["id"]]
    assert [one["id"] for one in cli("GET", "/prompts", workspace="all")] == everything
    assert [one["id"] for one in cli("GET", "/prompts")] == everything
    other = {**house.auth("bob"), "X-Workspace-Id": number}
    for path in (f"/workspaces/{number}.json", "/prompts"):
        answer = house.client.get(path, headers=other)
        assert answer.status_code == 404 and "GET /workspaces" in answer.json()["error"], path


def test_astrias_mcp_client(house: House) -> None:
    """astria-mcp-server 1.0.0: `create_tune`, `list_tunes`, `create_prompt` and its two resources, by axios."""
    headers = {**house.auth(), "Accept": "application/json", "User-Agent": "axios/1.8.4"}
    tune = {
        "title": "Ann 1",
        "name": "woman",
        "image_urls": [f"https://example.com/{n}.jpg" for n in range(4)],
        "base_tune_id": 1504944,
        "model_type": "lora",
        "preset": "flux-lora-portrait",
    }
    made = house.client.post("/tunes", json={"tune": tune}, headers=headers)
    assert made.status_code == 201, made.text
    number = made.json()["id"]
    assert [one["id"] for one in house.client.get("/tunes?offset=0", headers=headers).json()] == [number]
    prompt = {"text": f"<lora:{number}:1.0> ohwx woman", "super_resolution": True, "inpaint_faces": True}
    answer = house.client.post("/tunes/1504944/prompts", json={"prompt": prompt}, headers=headers)
    assert answer.status_code == 201, answer.text
    path = f"/tunes/1504944/prompts/{answer.json()['id']}"
    assert house.client.get(path, headers=headers).json()["tune_id"] == 1504944


def test_a_production_fork_of_the_headshots_starter(house: House) -> None:
    """Its 45 prompts, five at a time, by axios on the Flux LoRA itself: none was accepted once."""
    tune = {
        "title": "Kim 7",
        "name": "woman",
        "base_tune_id": 1504944,
        "model_type": "lora",
        "preset": "flux-lora-portrait",
        "image_urls": ["https://example.com/1.jpg"],
    }
    number = house.client.post("/tunes", json={"tune": tune}, headers=house.auth()).json()["id"]
    options = {
        "super_resolution": True,
        "inpaint_faces": False,
        "face_correct": False,
        "face_swap": False,
        "style": "Photographic",
        "negative_prompt": "blurry face, watermark, plastic skin",
    }
    for n in range(45):
        prompt = {
            "text": f"ohwx woman portrait {n}",
            "callback": "https://example.com/astria/prompt-webhook?user_id=1&webhook_secret=s",
            "num_images": 2,
            "seed": (number * 10_000 + n + 1) % 2_147_483_647,
            **options,
        }
        answer = house.client.post(f"/tunes/{number}/prompts", json={"prompt": prompt}, headers=house.auth())
        assert answer.status_code == 201, answer.text


def test_the_first_sample_of_astrias_documents(house: House, cli: Cli) -> None:
    """docs.astria.ai, "Create a tune", curl with files, on Flux."""
    form = [
        ("tune[title]", "Jane Doe - UUID - 1234-6789-1234-56789"),
        ("tune[name]", "woman"),
        ("tune[base_tune_id]", "1504944"),
        ("tune[model_type]", "lora"),
        ("tune[token]", "ohwx"),
        *(("tune[images][]", f"@{n}.jpg") for n in range(1, 5)),
        ("tune[prompts_attributes][][text]", "ohwx woman holding flowers"),
        ("tune[prompts_attributes][][inpaint_faces]", "true"),
        ("tune[prompts_attributes][][super_resolution]", "true"),
    ]
    tune = cli("POST", "/tunes", form)
    assert tune["branch"] == "flux1" and tune["model_type"] == "lora" and len(tune["orig_images"]) == 4
    (prompt,) = cli("GET", f"/tunes/{tune['id']}/prompts")
    assert (
        prompt["super_resolution"]
        and prompt["inpaint_faces"]
        and prompt["text"] == "ohwx woman holding flowers"
    )


def test_bases_have_the_numbers_that_an_operator_gives_them(house: House) -> None:
    known = house.service.catalog
    entry = known.entries["sdxl1"].model_dump() | {
        "base_id": "house-xl",
        "aliases": [712345],
        "title": "House XL",
    }
    entries = {**known.entries, **known.auxiliary, "house-xl": BaseModelEntry.model_validate(entry)}
    house.service.installation.catalog = Catalog(entries, known.profile)
    shown = house.client.get("/tunes/712345", headers=house.auth()).json()
    listed = house.client.get("/gallery/tunes?limit=200", headers=house.auth()).json()
    assert shown in listed and (shown["branch"], shown["title"]) == ("sdxl1", "House XL")
    assert (
        house.client.get("/tunes/690204.json", headers=house.auth()).json()["title"]
        == "Realistic Vision v5.1"
    )
    made = house.client.post("/tunes/712345/prompts", json={"text": "a hat"}, headers=house.auth())
    assert made.status_code == 201 and made.json()["tune_id"] == 712345
    for path, body in (
        ("/tunes/3618064/prompts", {"text": "a hat"}),
        ("/tunes", {"title": "t", "name": "man", "image_urls": ["https://e.com/1"], "base_tune_id": 3618064}),
    ):
        answer = house.client.post(path, json=body, headers=house.auth())
        assert answer.status_code in (404, 422) and "GET /gallery/tunes" in answer.text, answer.text
        assert "aliases in the catalog" in answer.text

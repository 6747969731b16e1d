"""Bodies of programs that strangers have published, with their oddities: fields of other APIs, blanks, odd quoting.

Each is what the program sends after its address and key were changed; the name says what it is.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.gateway.conftest import House

PICTURE = b"\x89PNG" + bytes(range(60))
ADDRESS = "https://example.com/1.jpg"
FLUX = "/tunes/1504944/prompts"
FORM = "application/x-www-form-urlencoded"

TUNES: dict[str, dict[str, Any]] = {
    "a headshot shop, urlencoded": {
        "content": [
            ("tune[title]", "headshot-user"),
            ("tune[name]", "man"),
            ("tune[base_tune_id]", "1504944"),
            ("tune[preset]", "flux-lora-portrait"),
            ("tune[face_detection]", "true"),
            ("tune[steps]", "1000"),
            ("tune[image_urls][]", ADDRESS),
            ("tune[image_urls][]", ADDRESS),
            *(
                (f"tune[prompts_attributes][][{name}]", value)
                for text in ("corporate", "outdoor")
                for name, value in {
                    "text": text,
                    "negative_prompt": "beard, waxy skin",
                    "num_images": "3",
                    "w": "768",
                    "h": "1024",
                    "super_resolution": "true",
                    "face_correct": "true",
                    "steps": "30",
                }.items()
            ),
            ("tune[callback]", "https://example.com/hook"),
        ]
    },
    "a chat bot, httpx with nameless files": {
        "data": {
            "tune[title]": "4f0c",
            "tune[name]": "woman",
            "tune[base_tune_id]": 1504944,
            "tune[model_type]": "lora",
            "tune[preset]": "flux-lora-portrait",
            "tune[training_face_correct]": "true",
            "tune[steps]": 400,
            "tune[callback]": "https://webhook.site/x",
        },
        "files": [("tune[images][]", ("tune[images][]", PICTURE)) for _ in range(2)],
    },
    "a provider of an agency, FormData": {
        "data": {
            "tune[name]": "Maria Silva",
            "tune[title]": "Maria Silva",
            "tune[model_type]": "lora",
            "tune[token]": "ohwx",
            "tune[class_word]": "woman",
            "tune[branch]": "flux1",
            "tune[preset]": "flux-lora-portrait",
            "tune[base_tune]": "Flux.1 dev",
        },
        "files": [("tune[images][]", ("image_1.jpg", PICTURE, "image/jpeg"))],
    },
    "a no-code bridge, bracketed names as JSON": {
        "json": {
            "tune[title]": "Customer Luxury Model (Flux)",
            "tune[name]": "woman",
            "tune[branch]": "flux1",
            "tune[token]": "ohwx",
            "tune[model_type]": "lora",
            "tune[image_urls]": [ADDRESS, ADDRESS],
        }
    },
    "an avatar script, SD 1.5": {
        "data": {
            "tune[title]": "AshleyGraham",
            "tune[name]": "woman",
            "tune[branch]": "sd15",
            "tune[callback]": "https://example.com/webhooks/astria?user_id=1&tune_id=1",
            "tune[token]": "sks",
            "tune[prompts_attributes][0][callback]": "https://example.com/webhooks/astria?prompt_id=1",
            "tune[prompts_attributes][0][text]": "Sample prompt text",
        },
        "files": [("tune[images][]", ("a.jpg", PICTURE, "image/jpeg"))],
    },
    "a FaceID bot": {
        "data": {
            "tune[name]": "woman",
            "tune[title]": "face 1",
            "tune[model_type]": "faceid",
            "tune[face_crop]": "true",
            "tune[training_face_correct]": "true",
            "tune[base_tune_id]": "690204",
        },
        "files": [("tune[images][]", ("face.png", PICTURE, "image/png"))],
    },
    "a film studio's tool, style and steps": {
        "data": {
            "tune[title]": "look",
            "tune[name]": "style",
            "tune[branch]": "flux1",
            "tune[model_type]": "lora",
            "tune[face_crop]": "true",
            "tune[training_face_correct]": "false",
            "tune[base_tune_id]": "1504944",
            "tune[prompts_attributes][][text]": "a street in ohwx style",
            "tune[prompts_attributes][][inpaint_faces]": "true",
            "tune[prompts_attributes][][super_resolution]": "true",
        },
        "files": [("tune[images][]", ("1.png", PICTURE, "image/png"))],
    },
    "the documents' JSON, its blank filled in": {
        "json": {
            "tune": {
                "title": "Jane Doe",
                "name": "cat",
                "branch": "fast",
                "callback": "https://example.com/to-your-service-when-ready?user_id=1&tune_id=1",
                "image_urls": [ADDRESS] * 4,
                "prompts_attributes": [{"text": "ohwx woman holding flowers"}],
            }
        }
    },
}
PROMPTS: dict[str, dict[str, Any]] = {
    "a form with every switch, nothing to start from": {
        "text": "ohwx man",
        "tune_id": "1504944",
        "control_net": "",
        "color_grading": "",
        "super_resolution": "true",
        "hires_fix": "false",
        "inpaint_faces": "true",
        "face_correct": "false",
        "face_swap": "false",
        "aspect_ratio": "1:1",
        "denoising_strength": "0.8",
        "conditioning_scale": "0.5",
        "num_images": "1",
        "w": "1024",
        "h": "1024",
        "backend_version": "0",
    },
    "a route of a shop, fields of other APIs": {
        "text": "ohwx man",
        "style": "Enhance",
        "cfg_scale": "3",
        "class": "man",
        "scheduler": "dpm++2m_karras",
        "num_inference_steps": "30",
        "hires_fix": "true",
        "backend_version": "0",
        "num_images": "4",
    },
    "a signature maker, blanks": {
        "text": "a man",
        "negative_prompt": "text, watermark",
        "seed": "",
        "steps": "50",
        "cfg_scale": "",
        "controlnet": "",
        "mask_image_url": "",
        "denoising_strength": "",
        "controlnet_conditioning_scale": "",
        "controlnet_txt2img": "true",
        "use_lpw": "true",
        "face_correct": "true",
        "hires_fix": "true",
        "w": "512",
        "h": "768",
        "scheduler": "dpm++sde_karras",
    },
    "a python SDK, an empty callback": {"text": "a man", "steps": "50", "seed": "100", "callback": ""},
    "a pet shop, quality and size": {
        "text": "ohwx dog",
        "num_images": "3",
        "super_resolution": "true",
        "face_correct": "true",
        "output_quality": "95",
        "w": "1024",
        "h": "1024",
    },
}


@pytest.mark.parametrize("name", TUNES)
def test_a_tune_of_a_public_program(house: House, name: str) -> None:
    sent = dict(TUNES[name])
    headers = house.auth()
    if "content" in sent:
        sent["content"], headers["Content-Type"] = urlencode(sent["content"]), FORM
    answer = house.client.post("/tunes", headers=headers, **sent)
    assert answer.status_code == 201 and isinstance(answer.json()["id"], int), answer.text
    row = house.tune(answer.json()["id"])
    assert row.title and (row.request["sources"]["uploads"] or row.request["sources"]["image_urls"])


@pytest.mark.parametrize("path", [FLUX, "/tunes/690204/prompts"])
@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_of_a_public_program(house: House, name: str, path: str) -> None:
    fields = {f"prompt[{field}]": value for field, value in PROMPTS[name].items()}
    answer = house.client.post(path, data=fields, headers=house.auth())
    assert answer.status_code == 201, answer.text
    parts = {field: (None, value) for field, value in fields.items()}
    for kind in ({"files": parts}, {"json": {"prompt": PROMPTS[name]}}):
        assert house.client.post(path, headers=house.auth(), **kind).status_code == 201


def test_a_multipart_body_as_dotnet_writes_it(house: House) -> None:
    """`MultipartFormDataContent`: names without quotes, a type and a charset with every text, quoted boundary."""
    boundary = "f6c9e2a4-1b1c-4c57-9a1a-5c1c0f6a7b11"
    texts = {"tune[title]": "A b", "tune[name]": "man", "tune[preset]": "flux-lora-portrait"}
    texts |= {"tune[base_tune_id]": "1504944", "tune[model_type]": "lora"}
    parts = [
        f"--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Disposition: form-data; name={name}\r\n\r\n{value}\r\n"
        for name, value in texts.items()
    ]
    file = (
        f"--{boundary}\r\nContent-Type: image/jpeg\r\nContent-Disposition: form-data; name=tune[images][]; "
        "filename=a.jpg; filename*=utf-8''a.jpg\r\n\r\n"
    )
    body = "".join(parts).encode() + file.encode() + PICTURE + f"\r\n--{boundary}--\r\n".encode()
    headers = {**house.auth(), "Content-Type": f'multipart/form-data; boundary="{boundary}"'}
    answer = house.client.post("/tunes", content=body, headers=headers)
    assert answer.status_code == 201 and answer.json()["title"] == "A b", answer.text
    assert len(answer.json()["orig_images"]) == 1


def test_pixazos_skill_for_agents(house: House) -> None:
    """Its helper posts `{apiId}/v1/{operation}` with a data set by address, and polls by GET until COMPLETED."""
    path = "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request"
    headers = {"Ocp-Apim-Subscription-Key": house.key(), "Cache-Control": "no-cache"}
    body = {
        "image_data_url": "https://example.com/a.zip",
        "steps": "1000",
        "learning_rate": "0.00005",
        "model": "x",
    }
    made = house.client.post(path, content=json.dumps(body), headers=headers)
    assert made.status_code == 200 and made.json()["status"] == "IN_QUEUE", made.text
    polled = house.client.get(
        made.json()["polling_url"].removeprefix("https://tunes.example.com"), headers=headers
    )
    assert polled.json()["status"] == "IN_QUEUE"

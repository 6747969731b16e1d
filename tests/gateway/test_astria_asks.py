"""Astria: filters of lists, what is refused by name, pictures at addresses, and who is told when nothing came out."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.gateway.conftest import House
from tests.gateway.test_astria import create, told


def test_filters_count_before_the_page_is_cut(house: House) -> None:
    plain = {"branch": "", "model_type": "lora"}
    made = [create(house, title=f"t{n}", **(plain if n % 3 == 0 else {}))["id"] for n in range(7)]

    def listed(query: str) -> list[int]:
        return [one["id"] for one in house.client.get(f"/tunes?{query}", headers=house.auth()).json()]

    assert listed("branch=sd15&limit=2") == [made[6], made[3]]
    assert listed(f"branch=sd15&limit=2&before_id={made[3]}") == [made[0]]
    assert listed("model_type=lora&limit=9") == [made[6], made[3], made[0]] and listed("model_type=pti") == []


def test_prompts_by_origin_and_bases_by_type(house: House) -> None:
    create(house, prompts_attributes=[{"text": "ohwx woman"}])

    def count(path: str) -> int:
        return len(house.client.get(path, headers=house.auth()).json())

    assert count("/prompts?is_api=true") == 1 and count("/prompts?is_api=false") == 0
    assert count("/gallery/tunes?model_type=lora") == 0 and count("/gallery/tunes?model_type=checkpoint") == 3


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"text": "ohwx woman --mask_prompt hair"}, "text"),
        ({"text": "x", "video_seconds": 5}, "video_seconds"),
        ({"text": "x", "video_model": "k"}, "video_model"),
        ({"text": "x", "face_swap": "1"}, "face_swap"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(house: House, fields: dict, name: str) -> None:
    answer = house.client.post("/tunes/690204/prompts", json={"prompt": fields}, headers=house.auth())
    assert answer.status_code == 422 and list(answer.json()) == [name, "error"], answer.text
    inside = {
        "title": "t",
        "name": "man",
        "image_urls": ["https://example.com/x"],
        "prompts_attributes": [fields],
    }
    answer = house.client.post("/tunes", json={"tune": inside}, headers=house.auth())
    assert answer.status_code == 422 and name in str(answer.json())
    plain = {"prompt": {"text": "a dash -- and --words that are no flags"}}
    assert house.client.post("/tunes/690204/prompts", json=plain, headers=house.auth()).status_code == 201


def test_a_group_of_which_nothing_came_is_not_told_as_a_success(house: House) -> None:
    tune = create(house)
    house.finish_tune(house.tune(tune["id"]))
    body = {"tune": {"tune_ids": [tune["id"]], "prompts_callback": "https://app.example.com/all"}}
    house.client.post("/p/corporate-headshots/tunes", json=body, headers=house.auth())
    house.render_all(fail=True)
    assert told(house) == []


@pytest.fixture
def site() -> Iterator[str]:
    """A web server of this test: `/picture`, `/inside` leads to a private address, `/big` never ends."""

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            buffer = io.BytesIO()
            Image.effect_noise((300, 200), 80).convert("RGB").save(buffer, "PNG")
            body = b"x" * (21 * 2**20) if self.path == "/big" else buffer.getvalue()
            self.send_response(302 if self.path == "/inside" else 200)
            if self.path == "/inside":
                self.send_header("Location", "http://169.254.169.254/latest")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_picture_is_inspected_at_its_address(house: House, site: str) -> None:
    def ask(address: str) -> tuple[int, dict]:
        fields = {"name": "woman", "file_url": address}
        answer = house.client.post("/images/inspect", data=fields, headers=house.auth())
        return answer.status_code, answer.json()

    code, said = ask(f"{site}/picture")
    assert code == 422 and "loopback" in str(said["file_url"])  # nobody is led inside
    house.settings.allow_hosts.append("127.0.0.1")
    code, said = ask(f"{site}/picture")
    assert code == 200 and said["name"] == "woman" and said["low_resolution"] is True
    for path, why in (("/inside", "metadata"), ("/big", "larger than 20 MB")):
        code, said = ask(site + path)
        assert code == 422 and why in str(said["file_url"]), said
    places = house.service._outward
    while places.acquire(blocking=False):
        pass
    answer = house.client.post("/images/inspect", data={"file_url": site}, headers=house.auth())
    assert answer.status_code == 503 and answer.headers["retry-after"] == "5" and "error" in answer.json()

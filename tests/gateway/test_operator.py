"""What Dagster's UI shows by address: to whoever has the address, while it exists."""

from __future__ import annotations

import io

from PIL import Image

from tests.gateway.conftest import House
from tests.support.registry import add_tune, around, make_ready
from tunes_dagster.service.erase import drive


def test_an_operators_address_shows_a_file_until_it_is_deleted(house: House) -> None:
    registry = house.registry
    tune = make_ready(registry, add_tune(registry, callback_url=None))
    whole = house.service.installation
    sheet = whole.store.write_bytes(f"tunes/{tune.id}/source/sheet.png", b"\x89PNG\r\npicture")
    words = whole.store.write_text(f"tunes/{tune.id}/captions/captions.csv", "name,caption\n")
    whole.store.write_text(f"tunes/{tune.id}/other.png", "nobody's")
    shown, read = (whole.address(key).removeprefix("http://127.0.0.1:8000") for key in (sheet, words))
    assert house.client.get(shown).content == b"\x89PNG\r\npicture"
    assert (
        house.client.get(f"{shown}?width=100").content == b"\x89PNG\r\npicture"
    )  # as it is, when it cannot be scaled
    assert house.client.get(read).headers["content-type"].startswith("text/plain")
    forged = shown.replace(shown.split("/")[3], whole.address(words).split("/")[-2])
    assert house.client.get(forged).status_code == 404
    registry.work.delete_tune(tune.id)
    assert house.client.get(shown).status_code == house.client.get(read).status_code == 404
    drive(around(registry, whole.store))
    assert house.client.get(shown).status_code == 404


def test_a_picture_is_scaled_to_the_page(house: House) -> None:
    store, drawn = house.service.installation.store, io.BytesIO()
    Image.new("RGB", (900, 300), "teal").save(drawn, "PNG")
    key = store.write_bytes("batches/batch_1/1/contact_sheet.png", drawn.getvalue())
    address = house.service.installation.address(key).removeprefix("http://127.0.0.1:8000")
    for width, size in ((300, (300, 100)), (2000, (900, 300))):
        answer = house.client.get(f"{address}?width={width}")
        assert Image.open(io.BytesIO(answer.content)).size == size
    assert house.client.get(f"{address}?width=9999999").status_code in (400, 422)

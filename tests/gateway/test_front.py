"""What is answered where no API is: the root, the health, and paths as clients join them."""

from __future__ import annotations

from tests.gateway.conftest import House


def test_the_root_says_what_is_here(house: House) -> None:
    said = house.client.get("/").json()
    assert set(said["apis"]) == {"pixelapi", "pixazo", "pixu", "astria", "native"}
    for api in said["apis"].values():
        assert house.client.get(api["openapi"]).json()["openapi"]
        assert house.client.get(api["docs"]).status_code == 200
    assert house.client.get(said["health"]).json()["status"] == "ok"


def test_slashes_that_a_base_address_leaves_change_nothing(house: House) -> None:
    for path in ("//v1/account/balance", "/v1//account///balance"):
        answer = house.client.get(f"http://testserver{path}", headers=house.auth())
        assert answer.status_code == 200 and answer.json()["plan"] == "pro"

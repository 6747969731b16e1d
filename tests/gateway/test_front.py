"""What is answered where no API is: the root, the health, and paths as clients join them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.gateway.conftest import House
from tunes_dagster.core.failures import Failure
from tunes_dagster.gateway.options import GatewayOptions, read_options


@pytest.mark.parametrize("options", [{"cors_origins": ["https://app.example.com"]}, {}])
def test_scripts_of_the_pages_that_are_named_may_call(house: House, options: dict[str, Any]) -> None:
    asked = {
        "Origin": "https://app.example.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    first = house.client.options("/v1/image/generate", headers=asked)
    refused = house.client.post("/v1/image/generate", json={"prompt": "x"}, headers=asked)
    assert refused.status_code == 401  # which the page has to be able to read
    allowed = "https://app.example.com" if options else None
    for answer in (first, refused):
        assert answer.headers.get("access-control-allow-origin") == allowed
    if options:
        assert first.status_code == 200 and "authorization" in first.headers["access-control-allow-headers"]
        assert "X-RateLimit-Remaining" in refused.headers["access-control-expose-headers"]
        other = house.client.get("/v1/tunes/config", headers={"Origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origin", ["app.example.com", "https://a.example/path", "null", "file://x"])
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        GatewayOptions(cors_origins=[origin])


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://x.example", "https://", "https://u:p@x.example", "http://x/?a=1"]
)
def test_what_no_url_can_begin_with_is_refused_at_the_start(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNES_GATEWAY_PUBLIC_URL", url)
    with pytest.raises(Failure, match="TUNES_GATEWAY_PUBLIC_URL"):
        read_options()


def test_a_public_url_may_have_a_port_and_a_path() -> None:
    assert GatewayOptions(public_url="https://x.example:8443/api").public_url == "https://x.example:8443/api"


def test_the_root_says_what_is_here(house: House) -> None:
    said = house.client.get("/").json()
    for path in ("/docs", "/docs/", "/openapi"):
        assert house.client.get(path).json() == said
    assert set(said["apis"]) == {"pixelapi", "pixazo", "pixu", "astria", "native"}
    for api in said["apis"].values():
        assert house.client.get(api["openapi"]).json()["openapi"]
        assert house.client.get(api["docs"]).status_code == 200
    assert house.client.get(said["health"]).json()["status"] == "ok"


def test_slashes_that_a_base_address_leaves_change_nothing(house: House) -> None:
    for path in ("//v1/account/balance", "/v1//account///balance"):
        answer = house.client.get(f"http://testserver{path}", headers=house.auth())
        assert answer.status_code == 200 and answer.json()["plan"] == "pro"

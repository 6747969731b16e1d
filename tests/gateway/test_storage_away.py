"""A registry that is locked answers 503 with `Retry-After`, in every dialect's form, and says nothing of the inside."""

from __future__ import annotations

import sqlite3

import pytest

from tests.gateway.conftest import House
from tunes_dagster.gateway.dialects import pixazo
from tunes_dagster.registry import Registry

PATHS = {
    "pixelapi": "/v1/tunes/train",
    "pixazo": pixazo._PATH,
    "pixu": "/pixu/api/txt2img_results",
    "astria": "/tunes",
    "native": "/native/v1/callbacks/sample",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_a_registry_that_is_locked_is_a_passing_refusal(house: House, path: str) -> None:
    auth = {**house.auth(), "Ocp-Apim-Subscription-Key": house.key()}
    impatient = Registry(house.registry.url, busy_seconds=0.05, patience=0.1)
    house.service.registry = impatient
    other = sqlite3.connect(impatient.engine.url.database or "", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        answer = house.client.post(
            path, headers={**auth, "Idempotency-Key": f"one-{path}"}, json={"api_key": house.key()}
        )
    finally:
        other.execute("ROLLBACK")
        other.close()
        impatient.close()
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert "registry.db" not in answer.text and "locked" not in answer.text

"""Schemathesis against every dialect: no server error, and no answer that its OpenAPI document does not have.

A few calls per endpoint by default. The long run: `python -m pytest tests/gateway/test_openapi.py -m proof`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.gateway.conftest import PUBLIC, Documented, House
from tests.gateway.test_astria import create as astria_tune
from tests.gateway.test_pixelapi import train
from tests.gateway.test_pixu import call as pixu_call
from tests.gateway.test_pixu import create as pixu_model

schemathesis = pytest.importorskip("schemathesis")

NAMES = ("pixelapi", "pixazo", "pixu", "astria", "native")


@pytest.fixture
def options() -> dict[str, object]:
    """A rate that the test does not reach."""
    return {"body_seconds": 5}


@pytest.fixture(autouse=True)
def _every_field_is_documented(monkeypatch: pytest.MonkeyPatch, house: House) -> None:
    monkeypatch.setattr(Documented, "exact", True)


def _known(house: House) -> dict[str, list[str]]:
    """Make one of everything; return ids that generated calls may hit, by parameter."""
    job = train(house)["job_id"]
    tune = str(astria_tune(house, prompts_attributes=[{"text": "ohwx woman"}])["id"])
    uid = pixu_model(house)
    prompt = str(house.client.get("/prompts", headers=house.auth()).json()[0]["id"])
    request = pixu_call(house, "txt2img_composition").json()["response"]
    return {
        "job_id": [job],
        "tune_id": [tune, job, job.replace("tune_", "lora_"), "666678"],
        "prompt_id": [prompt],
        "pack_id": ["corporate-headshots", "1"],
        "key": [tune, uid, job, prompt],
        "model_uid": [uid],
        "request_uid": [request],
        "request_id": [job],
        "form": ["kohya"],
    }


def _operations(house: House, name: str) -> Iterator[Any]:
    schema = schemathesis.openapi.from_asgi(f"/openapi/{name}.json", house.client.app)
    for found in schema.get_all_operations():
        yield found.ok()


def _hammer(house: House, name: str, examples: int) -> None:
    """Send so many right and as many wrong calls to every endpoint."""
    from schemathesis.checks import Failure, FailureGroup, not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    known, seen, wrong = _known(house), {"calls": 0, "accepted": 0}, list[str]()
    auth = {**house.auth(), "Ocp-Apim-Subscription-Key": house.key()}
    for operation in _operations(house, name):
        for mode in schemathesis.GenerationMode:
            given_more = operation.body or operation.query
            if mode is schemathesis.GenerationMode.NEGATIVE and not given_more:
                continue  # nothing to make wrong: any text is a path
            strategy = operation.as_strategy(generation_mode=mode)

            @settings(
                max_examples=examples,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(strategy)
            def run(case: Any) -> None:
                for parameter, values in known.items():
                    if parameter in case.path_parameters and seen["calls"] % 2:
                        case.path_parameters[parameter] = values[seen["calls"] // 2 % len(values)]
                if isinstance(case.body, dict) and "api_key" in case.body:
                    case.body["api_key"] = house.key()
                answer = case.call(headers=auth)
                case.validate_response(answer, checks=checks)
                seen["calls"] += 1
                seen["accepted"] += answer.status_code < 300

            try:
                run()
            except (Failure, FailureGroup) as found:
                wrong.append(f"{operation.label}: {getattr(found, 'exceptions', [found])}")
    assert not wrong, "\n\n".join(wrong)
    assert seen["accepted"] > seen["calls"] / 20, seen  # it is not only refusals that were looked at


@pytest.mark.parametrize("name", NAMES)
def test_schemathesis_finds_nothing(house: House, name: str) -> None:
    _hammer(house, name, examples=4)


@pytest.mark.proof
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_schemathesis_finds_nothing_in_a_long_run(house: House, name: str) -> None:
    _hammer(house, name, examples=int(os.environ.get("EXAMPLES", "300")))


def test_the_samples_are_on_the_pages(house: House) -> None:
    from tunes_dagster.gateway.documents import samples

    for name in NAMES:
        document = house.client.get(f"/openapi/{name}.json").json()
        assert document["servers"][0]["url"].startswith(PUBLIC)
        for sample in samples(name):
            method, path = sample["call"].split(" ")
            operation = document["paths"][path][method.lower()]
            text = json.dumps(operation)
            for part in ("request", "answer"):
                if part in sample and (part == "answer" or "requestBody" in operation):
                    assert json.dumps(sample[part]) in text, sample["call"]


def test_every_operation_says_what_it_is_what_it_answers_and_how_a_key_is_shown(house: House) -> None:
    for name in NAMES:
        document = house.client.get(f"/openapi/{name}.json").json()
        assert document["info"]["description"] and document["security"]
        names = [key for one in document["security"] for key in one]
        assert set(names) == set(document["components"]["securitySchemes"])
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                where = (name, method, path)
                assert len(operation["summary"]) > 9 and "same" not in operation["summary"], where
                for parameter in operation.get("parameters", []):
                    assert parameter.get("description"), (*where, parameter["name"])
                for status, answer in operation["responses"].items():
                    schema = answer.get("content", {}).get("application/json", {}).get("schema")
                    if path.endswith(("/likes", "/themes", "/{form}")) and status in ("200", "201"):
                        continue  # nothing, never, and a file
                    assert schema or status in ("206", "307", "416"), (*where, status)
                    assert not schema or {"$ref", "anyOf", "items"} & set(schema), (*where, status)
    assert document["paths"]["/health"]["get"]["security"] == []  # the last one is the native one


@pytest.mark.parametrize("name", NAMES)
def test_the_page_needs_no_other_server(house: House, name: str) -> None:
    page = house.client.get(f"/docs/{name}")
    loaded = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page.text)
    assert len(loaded) == 4 and not any("//" in one for one in loaded), loaded
    for address in loaded:
        assert house.client.get(f"/docs/{address}").status_code == 200, address
    assert "script-src 'self'" in page.headers["content-security-policy"]


def test_every_refusal_is_documented(house: House) -> None:
    for name in NAMES:
        document = house.client.get(f"/openapi/{name}.json").json()
        for path, methods in document["paths"].items():
            for operation in methods.values():
                refusals = [code for code in operation["responses"] if re.match("[45]", code)]
                assert "401" in refusals and "404" in refusals, (name, path)

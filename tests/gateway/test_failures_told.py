"""What callers learn of faults of the store, the database, the disk, memory and models: nothing of the inside."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from tests.gateway.conftest import House
from tests.gateway.test_astria import create, told
from tests.gateway.test_pixu import call as call_pixu
from tests.support.registry import add_prompt
from tunes_dagster.callbacks.bodies import prompt_body, tune_body
from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.core.recipe import PromptRequest

HOOK = "https://app.example.com/hook"
# Words that stand in every fault below, and in no answer.
INSIDE = ("minio.internal", "10.1.2.3", "/srv/", "Errno", "Error", "Traceback", "s3cret", "most recent call")


def store(_folder: Path) -> Exception:
    class EndpointConnectionError(Exception):
        """Named and worded as botocore's."""

    return EndpointConnectionError('Could not connect to the endpoint URL: "http://minio.internal:9000/b/k"')


def database(_folder: Path) -> Exception:
    from tunes_dagster.registry.retrying import away, trouble_of

    class DriverError(Exception):
        """As psycopg's."""

    driver = type("OperationalError", (DriverError,), {})(
        'connection to "10.1.2.3", port 5432 failed: s3cret'
    )
    error = OperationalError("SELECT 1", {}, driver)
    trouble = trouble_of(error)
    assert trouble is not None
    return away(error, trouble, "postgresql://tunes@10.1.2.3/srv", False)


def disk(_folder: Path) -> Exception:
    return OSError(errno.ENOSPC, "No space left on device", "/srv/tunes/batches/1.png")


def rights(_folder: Path) -> Exception:
    return PermissionError(errno.EACCES, "Permission denied", "/srv/tunes/batches/1.png")


def memory(_folder: Path) -> Exception:
    return RuntimeError("[enforce fail at /srv/alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def model(folder: Path) -> Exception:
    from tunes_dagster.evaluation.scorers import ScorerEntry, load_scorer

    entry = ScorerEntry(name="clip", kind="clip", repo_id="/srv/models/s3cret")
    with pytest.raises(Failure) as raised:
        load_scorer(entry, folder)
    return raised.value


def weights(folder: Path) -> Exception:
    from tunes_dagster.training.verify import read_weights

    broken = folder / "srv" / "s3cret" / "weights.safetensors"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no weights")
    with pytest.raises(Failure) as raised:
        read_weights(broken)
    assert "s3cret" in raised.value.detail
    return raised.value


def bug(_folder: Path) -> Exception:
    try:
        return {}["/srv/s3cret"]
    except KeyError as error:
        return error


FAULTS: dict[str, Callable[[Path], Exception]] = {
    made.__name__: made for made in (store, database, disk, rights, memory, model, weights, bug)
}


def until_it_fails(house: House, tune_id: str, fault: Exception) -> None:
    while house.registry.tunes.get(tune_id).status != "failed":
        work = house.registry.work.claim("prepare", tune_id, "run")
        house.registry.work.fail(work.id, "run", fault)


def render_badly(house: House, fault: Exception) -> None:
    for batch in house.registry.groups.make_batches(wait_seconds=0):
        work = house.registry.work.claim("render", batch.id, "run")
        for prompt in house.registry.prompts.rows(batch_id=batch.id):
            house.registry.prompts.failed(prompt.id, work.id, "run", as_failure(fault))
        house.registry.work.finish(work.id, "run")


def answers(house: House, tune: Any, prompts: list[Any]) -> dict[str, str]:
    """Return everything that every dialect says of a tune and its prompts."""
    headers = {**house.auth(), "Ocp-Apim-Subscription-Key": house.key()}
    paths = [
        "/native/v1/health",
        f"/native/v1/tunes/{tune.id}",
        f"/native/v1/tunes/{tune.id}/timeline",
        "/native/v1/callbacks",
        "/tunes",
        f"/tunes/{tune.number}",
        "/prompts",
        f"/v1/tunes/{tune.id}",
        f"/v2/requests/status/{tune.id}",
    ]
    for prompt in prompts:
        short = prompt.id.removeprefix("prompt_")
        paths += [
            f"/native/v1/prompts/{prompt.id}/timeline",
            f"/prompts/{prompt.number}",
            f"/v1/image/gen_{short}",
            f"/v1/tunes/inf_{short}",
        ]
    found = {}
    for path in paths:
        answer = house.client.get(path, headers=headers)
        assert answer.status_code == 200, (path, answer.text)
        found[path] = answer.text
    for prompt in prompts:
        answer = call_pixu(house, "txt2img_results", request_uid=prompt.id)
        assert answer.status_code == 200, answer.text
        found[f"pixu {prompt.id}"] = answer.text
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_no_caller_sees_a_path_a_host_or_an_exception(house: House, tmp_path: Path, fault: str) -> None:
    error = FAULTS[fault](tmp_path)
    house.key()
    house.registry.ledger.set_options("ann", failure_callbacks=True)
    shown = create(house, callback=HOOK, prompts_attributes=[{"text": "ohwx woman", "callback": HOOK}])
    tune = house.tune(shown["id"])
    request = PromptRequest.model_validate(
        {"text": "a hat", "base": "sdxl", "callback_url": HOOK, "settings": {"seed": 1, "num_images": 1}}
    )
    other = add_prompt(house.registry, request, account_id="ann", base_id="tiny-sdxl", origin="api")
    until_it_fails(house, tune.id, error)
    render_badly(house, error)
    tune = house.registry.tunes.get(tune.id)
    prompts = house.registry.prompts.rows(account_id="ann")
    assert {prompt.status for prompt in prompts} == {"failed"} and other.id in {one.id for one in prompts}

    said = answers(house, tune, prompts)
    said |= {f"callback {n}": json.dumps([one.body, one.url]) for n, one in enumerate(told(house))}
    said["body"] = json.dumps(tune_body("tune.failed", tune, clock.now()), default=str)
    said |= {
        one.id: json.dumps(prompt_body("prompt.failed", one, clock.now()), default=str) for one in prompts
    }
    leaks = {where: word for where, text in said.items() for word in INSIDE if word in text}
    assert not leaks, leaks

    rows = [tune, *prompts]
    assert all(row.failure_message and row.failure_detail for row in rows)  # the operator sees what it was
    assert any(word in tune.failure_detail for word in INSIDE)
    assert FailureCode(tune.failure_code) is as_failure(error).code

"""The same pipeline with everything in an S3 bucket, against a real S3 protocol server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tunes_dagster.assets.housekeeping import prune_cache
from tunes_dagster.pipeline.inprocess import drive
from tunes_dagster.service.installation import Installation


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket that the settings name as the store."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="tunes")
    options = {"endpoint_url": endpoint, "key": "test", "secret": "test"}
    monkeypatch.setenv("TUNES_STORE_URL", "s3://tunes/house")
    monkeypatch.setenv("TUNES_STORE_OPTIONS", json.dumps(options))
    yield "s3://tunes/house"
    server.stop()


def test_a_tune_is_made_and_rendered_in_a_bucket(bucket, house):
    assert not house.store.is_local
    tune = house.submit(
        training={"steps": 6, "checkpoint_every": 3},
        prompts=[{"text": "a photo of ohwx mug", "settings": {"seed": 1}}],
    )

    def finished() -> bool:
        (prompt,) = house.registry.prompts.rows(tune_id=tune.id)
        return house.status(tune.id) in ("failed", "cancelled") or prompt.status in ("done", "failed")

    drive(Installation(house.settings, registry=house.registry), finished, instance=house.instance)
    assert house.status(tune.id) == "ready", house.registry.tunes.get(tune.id).failure_message
    (prompt,) = house.registry.prompts.rows(tune_id=tune.id)
    assert prompt.status == "done", prompt.failure_message
    assert house.store.url(prompt.images[0]).startswith(bucket)
    assert house.store.read_bytes(prompt.images[0]).startswith(b"\x89PNG")
    assert not (house.home / "store").exists()
    assert prune_cache(house.store, 1).count == 0
    assert prune_cache(house.store, -1).count > 0 and not list(house.store.list("cache"))

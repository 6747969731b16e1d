"""Files in a bucket: the server leads to presigned addresses, which deliver ranges and end by themselves."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import httpx
import pytest

from tests.gateway.conftest import House
from tunes_dagster.core import clock
from tunes_dagster.core.store import Store
from tunes_dagster.gateway.desk import desk_for


@pytest.fixture
def bucket() -> Iterator[Store]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="tunes")
    yield Store(f"s3://tunes/{uuid.uuid4().hex}", {"endpoint_url": endpoint, "key": "test", "secret": "test"})
    server.stop()


def test_a_picture_in_a_bucket_is_delivered_by_the_bucket(house: House, bucket: Store) -> None:
    house.key()
    house.service.installation.store = bucket
    bucket.write_bytes("batches/b/1/p-0.png", bytes(range(100)))
    url = desk_for(house.service, "ann", "").url("batches/b/1/p-0.png", clock.now(), 1)
    lead = house.client.get(url, follow_redirects=False)
    assert lead.status_code == 307 and lead.content == b""
    target = lead.headers["location"]
    assert "Signature" in target or "X-Amz-Signature" in target
    assert httpx.get(target).content == bytes(range(100))
    part = httpx.get(target, headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == bytes(range(10, 20))
    old = desk_for(house.service, "ann", "").url("batches/b/1/p-0.png", clock.now(), -1)
    assert house.client.get(old, follow_redirects=False).status_code == 403


def test_uploads_stream_into_a_bucket(house: House, bucket: Store) -> None:
    house.key()
    house.service.installation.store = bucket
    files = [("tune[images][]", (f"{n}.png", b"\x89PNG" + bytes(50), "image/png")) for n in range(3)]
    data = {"tune[title]": "N", "tune[name]": "man"}
    answer = house.client.post("/tunes", data=data, files=files, headers=house.auth())
    assert answer.status_code == 201, answer.text
    assert len([key for key in bucket.list("tunes") if key.endswith(".png")]) == 3
    house.client.delete(f"/tunes/{answer.json()['id']}", headers=house.auth())
    house.service.settle()
    assert list(bucket.list("tunes")) == []


def test_a_range_of_a_local_file(house: House) -> None:
    house.key()
    house.store.write_bytes("batches/b/1/p-0.png", bytes(range(100)))
    url = desk_for(house.service, "ann", "").url("batches/b/1/p-0.png", clock.now(), 1)
    part = house.client.get(url, headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == bytes(range(10, 20))

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.store import Store
from tunes_dagster.intake.folders import check_folder, list_files, open_folder
from tunes_dagster.intake.payloads import check_upload_key, decode_payload, move_payloads, store_upload


@given(st.binary(min_size=1, max_size=200), st.booleans(), st.booleans(), st.booleans())
def test_base64_as_people_paste_it(data: bytes, url_safe: bool, bare: bool, lines: bool) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(data).decode()
    text = text.rstrip("=") if bare else text
    text = "\r\n ".join(text[i : i + 40] for i in range(0, len(text), 40)) if lines else text
    assert decode_payload(text) == (data, "")
    assert decode_payload(f"data:image/jpeg;base64,{text}") == (data, ".jpg")


def test_other_data_uris() -> None:
    assert decode_payload("data:,hello%20you") == (b"hello you", "")
    assert decode_payload("DATA:image/png;charset=x;BASE64,eA==") == (b"x", ".png")


@pytest.mark.parametrize("text", ["", "!!!!", "data:image/png;base64,", "data:image/png;base64,???", "x"])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(Failure, match="images_base64") as caught:
        decode_payload(text)
    assert caught.value.code == FailureCode.INVALID_REQUEST


def test_one_bad_payload_keeps_none(store: Store) -> None:
    request = TuneRequest.model_validate({"name": "mug", "sources": {"images_base64": ["eA==", "!"]}})
    with pytest.raises(Failure, match=r"images_base64\[1\] is not base64"):
        move_payloads(request, store, "tune_1")
    assert list(store.list("tunes")) == []


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b\\c.png", "..", "", "x" * 500 + ".png", "a\x00b.png", ".hidden"]
)
def test_upload_names_are_made_harmless(store: Store, name: str) -> None:
    key = store_upload(store, "tune_1", 7, name, b"x")
    assert check_upload_key(key, "tune_1") == key
    assert key.startswith("tunes/tune_1/uploads/0007-")
    assert key.count("/") == 3
    assert store.read_bytes(key) == b"x"


@pytest.mark.parametrize(
    "key", ["tunes/tune_2/uploads/0000-a.png", "tunes/tune_1/uploads/../../tune_2/a", "/etc/passwd"]
)
def test_keys_that_may_not_be_named(key: str) -> None:
    with pytest.raises(Failure, match="not an upload"):
        check_upload_key(key, "tune_1")


@pytest.mark.parametrize(
    "folder",
    ["http://x/a", "https://x/a", "ssh://x/a", "zip::http://x/a", "simplecache::s3://b/a", "github://o:r@/x"],
)
def test_filesystems_that_are_not_for_folders(folder: str) -> None:
    with pytest.raises(Failure) as caught:
        open_folder(folder)
    assert caught.value.code == FailureCode.SOURCE_REFUSED


def test_a_folder_must_be_inside_by_whole_names(tmp_path: Path) -> None:
    allowed = [str(tmp_path / "a"), "s3://bucket/in"]
    for fine in (str(tmp_path / "a"), str(tmp_path / "a" / "b"), "s3://bucket/in", "s3://bucket/in/x"):
        assert check_folder(fine, allowed) == fine
    for bad in (
        str(tmp_path),
        str(tmp_path / "ab"),
        "s3://bucket/inner",
        "s3://bucket",
        "s3://bucket/in/../out",
    ):
        with pytest.raises(Failure, match="may name|cannot be|can be read"):
            check_folder(bad, allowed)


def test_listing_skips_junk_and_hidden_files(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.png", ".git/x", "__MACOSX/y", "Thumbs.db", "a/.z.png"):
        path = tmp_path / "f" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert [f.name for f in list_files(open_folder(str(tmp_path / "f")))] == ["a/c.png", "b.png"]
    assert [f.name for f in list_files(open_folder(str(tmp_path / "f" / "b.png")))] == ["b.png"]

"""Files of weights that strangers hand in: looked through in a child, refused by name, with nothing read twice."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from tunes_dagster.core.failures import Failure
from tunes_dagster.intake.weights import fetch_weights, look_at, on_this_machine

np = pytest.importorskip("numpy")


def written(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def good(**fields: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}


def test_a_whole_file_is_described(tmp_path):
    file = tmp_path / "theirs.safetensors"
    tensors = {f"layer{i}.lora_down.weight": np.ones((2, i), np.float16) for i in range(1200)}
    save_file(tensors, file, {"ss_network_alpha": "4", "ss_tag_frequency": "x" * 300_000})
    seen = look_at(file, "theirs.safetensors", 100)
    assert len(seen.tensors) == 1200 and seen.tensors["layer7.lora_down.weight"] == ("F16", (2, 7))
    assert dict(seen.metadata) == {"ss_network_alpha": "4"}  # what is too long for a message stays behind


NAN = struct.pack("<ff", 1.0, float("nan"))
BAD = {
    "a PyTorch pickle": lambda path: path.write_bytes(b"PK\x03\x04" + b"0" * 100),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04" + b"0" * 100),
    "a web page": lambda path: path.write_bytes(b"<html>" + b"0" * 100),
    "no sensible length": lambda path: path.write_bytes(b"\xff" * 100),
    "cannot be read": lambda path: written(path, b"[" * 5000),
    "header cannot be read": lambda path: written(path, b'{"a":1,"a":2}'),
    "holds no tensors": lambda path: written(path, {}),
    "nothing sensible of the tensor": lambda path: written(path, {"a": good(shape=[-1])}, b"0" * 8),
    "another number of bytes": lambda path: written(path, {"a": good(shape=[3])}, b"0" * 8),
    "the type 'F8_E4M3'": lambda path: written(path, {"a": good(dtype="F8_E4M3")}, b"0" * 8),
    "overlap": lambda path: written(path, {"a": good(), "b": good()}, b"0" * 8),
    "goes on behind": lambda path: written(path, {"a": good()}, b"0" * 16),
    "not finite, at 'a'": lambda path: written(path, {"a": good()}, NAN),
    "metadata that is no text": lambda path: written(path, {"__metadata__": {"a": 1}, "a": good()}, b"0" * 8),
}


@pytest.mark.parametrize("why", BAD)
def test_what_is_no_such_file_is_refused_by_name(tmp_path, why):
    file = tmp_path / "theirs.safetensors"
    BAD[why](file)
    with pytest.raises(Failure, match="theirs.safetensors") as refused:
        look_at(file, "theirs.safetensors", 100)
    assert why in refused.value.message, refused.value.message


def test_infinity_in_bfloat16_is_seen(tmp_path):
    file = written(
        tmp_path / "a", {"a": good(dtype="BF16", shape=[2], data_offsets=[0, 4])}, b"\x80\x3f\x80\x7f"
    )
    with pytest.raises(Failure, match="not finite"):
        look_at(file, "a", 100)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    file = tmp_path / "large.safetensors"
    with file.open("wb") as sparse:
        sparse.truncate(3 * 2**20)
    with pytest.raises(Failure, match="has 3 MB, and 2 MB are taken"):
        look_at(file, "large.safetensors", 2)


def test_a_folder_of_pefts_is_found_with_its_configuration(tmp_path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(
        '{"lora_alpha": 32, "r": 4, "base_model_name_or_path": "x"}'
    )
    found = on_this_machine(tmp_path)
    assert found.path.name == "adapter_model.safetensors" and found.config == {"lora_alpha": 32, "r": 4}
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "other.safetensors")
    assert on_this_machine(tmp_path).path.name == "adapter_model.safetensors"
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "third.safetensors")
    with pytest.raises(Failure, match="other.safetensors, third.safetensors"):
        on_this_machine(tmp_path)


class _Hub:
    """Answers like the hub, in place of the fetcher's connections."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked = files, []

    def fetch(self, url: str, path: Path, kind: str) -> object:
        from tunes_dagster.intake.fetch import Fetched

        self.asked.append((url, kind))
        path.write_bytes(self.files[url])
        return Fetched(url, path, url.rpartition("/")[2], 1, "")


def test_a_repository_of_the_hub_is_asked_for_its_one_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.test")
    listed = json.dumps(
        {"siblings": [{"rfilename": "README.md"}, {"rfilename": "a/adapter_model.safetensors"}]}
    )
    hub = _Hub(
        {
            "https://hub.test/api/models/me/it/revision/v1": listed.encode(),
            "https://hub.test/me/it/resolve/v1/a/adapter_model.safetensors": b"weights",
            "https://hub.test/me/it/resolve/v1/a/adapter_config.json": b'{"lora_alpha": 8}',
        }
    )
    found = fetch_weights("hf://me/it@v1", tmp_path, hub)
    assert found.path.read_bytes() == b"weights" and found.config == {"lora_alpha": 8}
    with pytest.raises(Failure, match="names no file"):
        fetch_weights("hf://me", tmp_path, hub)


def test_a_header_may_have_any_length(tmp_path):
    for length in (0x80, 0x3C + 0x100, 0x4B50):  # as pickles, web pages and zips begin
        head = {"a": good(), "__metadata__": {"x": ""}}
        head["__metadata__"]["x"] = " " * (length - len(json.dumps(head)))
        seen = look_at(written(tmp_path / "a.safetensors", head, b"\0" * 8), "a.safetensors", 100)
        assert set(seen.tensors) == {"a"}

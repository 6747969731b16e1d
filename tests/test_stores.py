"""A store that fails once and then works: no reader takes that for a word about the file, and all may ask again.

The readers are found in the code: one that could swallow the store's failure has a case here, or a reason.
"""

from __future__ import annotations

import ast
import errno
import inspect
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save

from tests.test_rooms import modules
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.store import Store

BYTES = save({"embeds": torch.zeros(1, 2), "nothing": torch.zeros(1, 2), "a": torch.ones(2)}, {"x": "y"})
KEY = "tunes/t/lora/1/step-000003.checkpoint.safetensors"


class Flaky(Store):
    """A store whose next operation fails when `broken` names an error."""

    broken: Exception | None = None

    def path(self, key: str) -> Any:
        if self.broken is not None:
            error, self.broken = self.broken, None
            raise error
        return super().path(key)


@pytest.fixture
def store(tmp_path: Path) -> Flaky:
    made = Flaky(tmp_path / "store")
    made.write_bytes(KEY, BYTES)
    return made


def carriers() -> list[Exception]:
    """Return what libraries raise when an object store cannot be reached, or says that it is overloaded."""
    import aiohttp
    from botocore.exceptions import EndpointConnectionError, IncompleteReadError, ReadTimeoutError
    from fsspec.exceptions import FSTimeoutError
    from s3fs.errors import translate_boto_error

    answered = type("Answered", (Exception,), {})("slow down")
    answered.response = {"Error": {"Code": "SlowDown", "Message": "Reduce your request rate"}}  # type: ignore[attr-defined]
    return [
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError(),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Forbidden"),
        EndpointConnectionError(endpoint_url="http://minio.internal"),
        ReadTimeoutError(endpoint_url="http://minio.internal"),
        IncompleteReadError(actual_bytes=1, expected_bytes=2),
        aiohttp.ClientOSError("broken"),
        aiohttp.ClientPayloadError("broken"),
        FSTimeoutError(),
        translate_boto_error(answered),
    ]


def entered(opened: Any) -> Any:
    with opened as given:
        return given


class Note(BaseModel):
    """What the note in the store is read as."""


OPERATIONS: dict[str, Callable[[Store], Any]] = {
    "exists": lambda store: store.exists(KEY),
    "size": lambda store: store.size(KEY),
    "changed": lambda store: store.changed(KEY),
    "read_bytes": lambda store: store.read_bytes(KEY),
    "read_text": lambda store: store.read_text("tunes/t/note.json"),
    "read_json": lambda store: store.read_json("tunes/t/note.json"),
    "read_model": lambda store: store.read_model("tunes/t/note.json", Note, "The note"),
    "write_bytes": lambda store: store.write_bytes("new", b"x"),
    "write_text": lambda store: store.write_text("new", "x"),
    "write_json": lambda store: store.write_json("new", {}),
    "write_file": lambda store: store.write_file("new", Path(__file__)),
    "write_stream": lambda store: store.write_stream("new", io.BytesIO(b"x")),
    "write_blob": lambda store: store.write_blob(b"x", ".png"),
    "writing": lambda store: entered(store.writing("new")),
    "open_read": lambda store: entered(store.open_read(KEY)),
    "list": lambda store: list(store.list("tunes")),
    "folders": lambda store: store.folders("tunes"),
    "delete": lambda store: store.delete("new"),
    "delete_prefix": lambda store: store.delete_prefix("new"),
    "local": lambda store: entered(store.local(KEY)),
    "local_folder": lambda store: entered(store.local_folder("tunes")),
}
SAYS_ADDRESSES = {"path", "url", "address", "addressed", "naming", "need"}  # which ask nothing of the store
OF_THE_FOLDER = {"free_bytes", "require", "remove_unfinished"}  # which ask its disk


def test_every_operation_has_its_case():
    public = {name for name, _ in inspect.getmembers(Store, inspect.isfunction) if not name.startswith("_")}
    assert public == OPERATIONS.keys() | SAYS_ADDRESSES | OF_THE_FOLDER


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_failed_may_be_asked_again(store, name):
    store.write_json("tunes/t/note.json", {})
    for error in carriers():
        store.broken = error
        with pytest.raises(Failure) as raised:
            OPERATIONS[name](store)
        failure = raised.value
        assert failure.code == FailureCode.STORE_UNAVAILABLE and failure.retryable, error
        told = f"{failure.message} {failure.remedy}"
        assert "minio" not in told and "Errno" not in told and failure.detail, error
        full = getattr(error, "errno", None) == errno.ENOSPC
        assert ("no space" in told) == full
        OPERATIONS[name](store)


def test_what_is_not_there_is_not_there(store):
    for read in (store.read_bytes, store.size, store.changed, store.open_read):
        with pytest.raises(FileNotFoundError):
            read("tunes/t/nothing")
    for give in (store.local, store.local_folder):
        with pytest.raises(FileNotFoundError), give("tunes/t/nothing"):
            pass


def test_a_stream_that_breaks_off_says_so(store, monkeypatch):
    with store.open_read(KEY) as file:
        assert file.read(8) == BYTES[:8] and file.seek(2) == 2 and file.read() == BYTES[2:]

    class Broken(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(store, "path", lambda _key: SimpleNamespace(open=lambda _mode: Broken()))
    with store.open_read(KEY) as file, pytest.raises(Failure) as raised:
        file.read(8)
    assert raised.value.code == FailureCode.STORE_UNAVAILABLE


# Readers: what is called, and what it answers when the store works.


def lora_shelf(store: Store) -> Any:
    from tunes_dagster.rendering import loras

    use = SimpleNamespace(key=KEY)
    return loras.LoraShelf(store, [(use,)], torch.nn.Linear(1, 1))  # type: ignore[list-item]


def face_shelf(store: Store) -> Any:
    from tunes_dagster.rendering import faceid

    kind = next(
        one
        for name, one in vars(faceid).items()
        if inspect.isclass(one) and "find_adapter" in str(inspect.signature(one))
    )
    adapter = SimpleNamespace(check_fits=lambda _network: None)
    return kind(store, [(SimpleNamespace(key=KEY),)], None, lambda: adapter)


def newest(store: Store) -> Any:
    from tunes_dagster.training.checkpoints import find_newest

    return find_newest(store, KEY, "hash")


def cached(store: Store) -> Any:
    from tunes_dagster.training.cache import read_tensors

    return read_tensors(store, KEY)


def stored(store: Store) -> Any:
    from tunes_dagster.training.cache import open_stored

    return open_stored(store, KEY, "The picture")


def face(store: Store) -> Any:
    from tunes_dagster.training.faceid import read_face

    return read_face(store, KEY)


def words(store: Store) -> Any:
    from tunes_dagster.training import words

    return words.load(store, KEY)


def weights(store: Store) -> Any:
    from tunes_dagster.rendering.loras import read_weights

    return read_weights(store, KEY)


def restored(store: Store) -> Any:
    from tunes_dagster.service.restore import _dataset_is_there

    return _dataset_is_there(store, SimpleNamespace(has=lambda _key: True), SimpleNamespace(id="t"))  # type: ignore[arg-type]


def campaign(store: Store) -> Any:
    from tunes_dagster.campaigns.keeping import Keeper

    keeper = Keeper(SimpleNamespace(registry=None, store=store, catalog=None, settings=None))  # type: ignore[arg-type]
    return keeper.source_of(SimpleNamespace(name="looks", file=KEY))  # type: ignore[arg-type]


def looked_at(store: Store) -> Any:
    from tunes_dagster.campaigns.keeping import Keeper

    keeper = Keeper(SimpleNamespace(registry=None, store=store, catalog=None, settings=None))  # type: ignore[arg-type]
    return keeper.look(SimpleNamespace(name="looks", file=KEY, state="good", version=""))  # type: ignore[arg-type]


def report_picture(store: Store) -> Any:
    from tunes_dagster.campaigns import report

    kind = next(one for _, one in vars(report).items() if inspect.isclass(one) and hasattr(one, "_reduced"))
    return kind._reduced(SimpleNamespace(store=store), KEY)


def checkpoint_info(store: Store) -> Any:
    from tunes_dagster.training.checkpoints import read_info

    return read_info(store, KEY)


def checkpoint_weights(store: Store) -> Any:
    from tunes_dagster.training.checkpoints import load_weights

    return load_weights(store, KEY)


def header_fields(store: Store) -> Any:
    from tunes_dagster.training.files import read_fields

    return read_fields(store, KEY)


def scaled_picture(store: Store) -> Any:
    from tunes_dagster.gateway.operator import _scaled

    return _scaled(store, KEY, 8)


CASES: dict[str, Callable[[Store], Any]] = {
    "tunes_dagster/gateway/operator.py _scaled": scaled_picture,
    "tunes_dagster/campaigns/keeping.py source_of": campaign,
    "tunes_dagster/campaigns/keeping.py look": looked_at,
    "tunes_dagster/campaigns/report.py _reduced": report_picture,
    "tunes_dagster/rendering/faceid.py __init__": face_shelf,
    "tunes_dagster/rendering/loras.py __init__": lora_shelf,
    "tunes_dagster/rendering/loras.py read_weights": weights,
    "tunes_dagster/service/restore.py _dataset_is_there": restored,
    "tunes_dagster/training/cache.py open_stored": stored,
    "tunes_dagster/training/checkpoints.py find_newest": newest,
    "tunes_dagster/training/checkpoints.py read_info": checkpoint_info,
    "tunes_dagster/training/checkpoints.py _read": checkpoint_weights,
    "tunes_dagster/training/faceid.py read_face": face,
    "tunes_dagster/training/files.py read_fields": header_fields,
    "tunes_dagster/training/words.py load": words,
}
ELSEWISE = {
    "tunes_dagster/sessions/scoring.py evaluate": "tries again, and at last publishes without a card",
    "tunes_dagster/sessions/inspecting.py _samples": "a tune is ready without its sheet of samples, and a note says so",
    "tunes_dagster/cli/checkup.py _store": "tells the operator that the store does not work",
    "tunes_dagster/gateway/accepting.py _submit_tune": "tidies up and passes on what was raised",
    "tunes_dagster/gateway/files.py serve": "answers 503, see test_a_file_is_not_gone_when_the_store_is_away",
    "tunes_dagster/gateway/app.py _lifespan": "as its `chores`",
    "tunes_dagster/gateway/app.py chores": "what it could not do is done a minute later",
    "tunes_dagster/gateway/operator.py show": "answers 503",
    "tunes_dagster/service/importing.py accept_weights": "tidies up and passes on what was raised",
    "tunes_dagster/gateway/accepting.py _submit_prompts": "passes on what was raised",
    "assets/attempt.py attempt": "ends the attempt with it, which is tried again",
    "assets/cohort.py recruited": "ends the tune's attempt with it, which is tried again",
    "tunes_dagster/sessions/session.py _recruited": "the same",
    "tunes_dagster/sessions/session.py _refill": "the same",
    "tunes_dagster/callbacks/deliver.py _deliver": "the callback is tried again",
    "tunes_dagster/sessions/keeping.py _deliver": "is logged and tried at the next look",
    "tunes_dagster/sessions/cohorts.py _taken_in": "ends the tune's attempt with it, which is tried again",
    "tunes_dagster/service/erase.py drive": "goes on later, see test_a_store_that_is_away_holds_up_nobody",
    "tunes_dagster/service/drops.py _taken_in": "see test_a_drop_is_taken_in_once_the_store_is_back",
    "tunes_dagster/service/looking.py look_over": "goes on after TOO_FEW_PICTURES alone",
    "tunes_dagster/service/looking.py rehearsed": "says in the dry run that they could not be looked at",
    "tunes_dagster/cli/making.py _say_verdict": "the work meets it again, and says it with its tune",
    "tunes_dagster/training/cache.py read_tensors": "what is cached is made again",
    "tunes_dagster/training/loop.py _prepare": "ends the tune's attempt with it, which is tried again",
}
READS = {name for name in OPERATIONS if not name.startswith(("write", "delete"))}
STORES = {"store", "kept", "_store", "installation", "whole"}


def last_name(node: ast.AST) -> str:
    return ast.unparse(node).rpartition(".")[2]


def reads_the_store(node: ast.AST) -> bool:
    """Whether a call reads a store, or hands one on to what may."""
    if not isinstance(node, ast.Call):
        return False
    func = node.func
    direct = isinstance(func, ast.Attribute) and func.attr in READS and last_name(func.value) in STORES
    return direct or any(last_name(given) in STORES for given in node.args)


def swallows(handler: ast.ExceptHandler) -> bool:
    """Whether a handler gets a failure."""
    said = "Exception" if handler.type is None else ast.unparse(handler.type)
    return any(
        name in said.replace("(", " ").replace(",", " ").replace(")", " ").split()
        for name in ("Exception", "BaseException", "Failure")
    )


def readers() -> Iterator[str]:
    """Yield `path function` of all functions that read the store where they could swallow its failure."""
    for _room, path, tree in modules():
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Try)
                    and any(map(swallows, node.handlers))
                    and any(reads_the_store(inner) for part in node.body for inner in ast.walk(part))
                ):
                    yield f"{path} {function.name}"


def test_every_reader_that_could_swallow_it_has_its_case():
    found = set(readers()) - {one for one in readers() if one.startswith("tunes_dagster/core/store.py")}
    assert not (new := found - CASES.keys() - ELSEWISE.keys()), new
    assert not (gone := ELSEWISE.keys() - found), gone


@pytest.mark.parametrize("name", CASES)
def test_a_reader_passes_on_that_the_store_is_away(store, name):
    for error in carriers()[:2]:
        store.broken = error
        with pytest.raises(Failure) as raised:
            CASES[name](store)
        assert raised.value.code == FailureCode.STORE_UNAVAILABLE, raised.value
        try:
            CASES[name](store)
        except Exception as failure:  # the file itself is no picture, for example
            assert getattr(failure, "code", None) != FailureCode.STORE_UNAVAILABLE


def test_a_cache_that_is_away_is_empty(store):
    store.broken = carriers()[0]
    assert cached(store) is None
    assert cached(store)["a"].shape == (2,)


def test_damaged_lists_of_a_tune_are_named_without_a_word_of_theirs(tmp_path: Path) -> None:
    from tunes_dagster.intake.captions import CaptionTable
    from tunes_dagster.intake.manifest import Manifest
    from tunes_dagster.intake.training_set import TrainingSet

    plain = Store(tmp_path)
    for model, key in (
        (Manifest, Manifest.store_key("t")),
        (TrainingSet, TrainingSet.store_key("t")),
        (CaptionTable, "tunes/t/captions/captions.json"),
    ):
        for damage in (b"", b"<html>", b"\xff\xfe\x00", b'{"rows": "a photo of anna"}', b"[" * 100_000):
            plain.write_bytes(key, damage)
            with pytest.raises(Failure) as raised:
                model.load(plain, "t")
            assert raised.value.code == FailureCode.PICTURE_UNREADABLE
            assert key in raised.value.message and "anna" not in f"{raised.value}{raised.value.detail}"


@pytest.mark.parametrize(
    "damage", [b"", b"<html>", b"\xff\xfe\x00", b"[" * 100_000, b'{"items": [{"key": 1}, 7], "rows": [[]]}']
)
def test_what_is_damaged_stops_no_deletion_and_is_named_elsewhere(tmp_path: Path, damage: bytes) -> None:
    from tunes_dagster.service.erase import cached_of
    from tunes_dagster.service.references import entries
    from tunes_dagster.training.export import RECIPE_FILE, recipe_beside

    plain = Store(tmp_path)
    for key in ("training_set/training_set.json", "cached/1.json", "captions/captions.csv"):
        plain.write_bytes(f"tunes/t/{key}", damage)
    long = b'caption\n"' + b"x" * 200_000  # longer than a cell may be
    plain.write_bytes("tunes/t/captions/1.csv", long)
    assert cached_of(plain, "t") == set()
    assert entries(plain, "tunes/t/training_set/training_set.json", "rows") == []
    plain.write_bytes(f"tunes/t/lora/1/{RECIPE_FILE}", damage)
    if not damage.startswith(b"{"):
        with pytest.raises(Failure, match="The recipe in tunes/t/lora/1/") as raised:
            recipe_beside(plain, "tunes/t/lora/1/weights.safetensors")
        assert raised.value.code == FailureCode.WEIGHTS_UNUSABLE


class FullFile(io.BytesIO):
    """A file on a disk that is full: what is held back is refused when it is written out."""

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("way", ["bytes", "pieces", "stream", "file"])
def test_a_full_disk_is_named_with_its_place_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    store, source = Store(tmp_path / "store"), tmp_path / "source"
    source.write_bytes(b"x" * 10)
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
        file = opened(self, mode, *args, **named)
        return FullFile() if "w" in mode and self.suffix == ".part" else file

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr("shutil.copyfile", refuse)
    with pytest.raises(Failure, match="no space left") as refused:  # noqa: PT012 - the block writes
        if way == "bytes":
            store.write_bytes("a/b.bin", b"x")
        elif way == "file":
            store.write_file("a/b.bin", source)
        elif way == "stream":
            store.write_stream("a/b.bin", io.BytesIO(b"x"))
        else:
            with store.writing("a/b.bin") as file:
                file.write(b"x")
    failure = refused.value
    assert failure.code == FailureCode.STORE_UNAVAILABLE and failure.retryable
    assert str(tmp_path / "store" / "a" / "b.bin") in failure.detail and "room" in failure.remedy
    assert str(tmp_path) not in str(failure)  # which leaves the house
    monkeypatch.undo()
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_space_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    store.require(1e6, "Training")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    with pytest.raises(Failure, match="Training needs about 9 MB of space, and 5 MB are free") as refused:
        store.require(9e6, "Training")
    assert refused.value.code == FailureCode.STORE_UNAVAILABLE and str(tmp_path) in refused.value.detail


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_store_whose_folder_is_gone_is_away_and_not_empty(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "store")
    store.write_json("tunes/t/note.json", {})
    store.write_bytes(KEY, BYTES)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    for one in (store, Store(tmp_path / "store")):
        with pytest.raises(Failure, match="The store is not there") as refused:
            OPERATIONS[name](one)
        assert refused.value.code == FailureCode.STORE_UNAVAILABLE and str(tmp_path) in refused.value.detail
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    OPERATIONS[name](store)


def test_what_is_deleted_while_a_store_is_listed_is_left_out(tmp_path: Path, monkeypatch) -> None:
    store = Store(tmp_path)
    for key in ("tunes/a/1.txt", "tunes/b/1.txt", "tunes/c/1.txt"):
        store.write_bytes(key, b"1")
    scandir, gone = os.scandir, tmp_path / "tunes/b"

    def deleting(folder):
        if Path(folder) == gone:
            (gone / "1.txt").unlink()
            gone.rmdir()
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", deleting)
    assert list(store.list("tunes")) == ["tunes/a/1.txt", "tunes/c/1.txt"] and not gone.exists()

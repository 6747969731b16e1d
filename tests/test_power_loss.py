"""A power loss takes what was not synced: nothing that a committed row may name is among it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tunes_dagster.core import disk
from tunes_dagster.core.store import Store


class Disk:
    """Remembers what was synced: contents of files by their names, and names in folders."""

    def __init__(self) -> None:
        self.contents: dict[Path, bytes] = {}
        self.names: dict[Path, set[str]] = {}

    def sync_file(self, file: object, path: Path) -> None:
        file.flush()  # type: ignore[attr-defined]
        self.contents[path] = Path(file.name).read_bytes()  # type: ignore[attr-defined]

    def sync_folder(self, path: Path) -> None:
        self.names[path] = {one.name for one in path.iterdir()}

    def lose_power(self, root: Path) -> None:
        """Leave below a folder what a disk holds that keeps nothing but what was synced."""
        for path in sorted(root.rglob("*"), reverse=True):
            kept = path.name in self.names.get(path.parent, ())
            if path.is_dir():
                if not kept:
                    for inner in sorted(path.rglob("*"), reverse=True):
                        inner.rmdir() if inner.is_dir() else inner.unlink()
                    path.rmdir()
            elif not kept:
                path.unlink()
            else:
                path.write_bytes(self.contents.get(path, b""))


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(disk, "sync_file", made.sync_file)
    monkeypatch.setattr(disk, "sync_folder", made.sync_folder)
    return made


def test_every_way_of_writing_lasts_but_that_of_the_cache(tmp_path: Path, synced: Disk) -> None:
    store = Store(tmp_path / "store")
    synced.names[tmp_path] = {"store"}
    given = tmp_path / "given"
    given.write_bytes(b"copied")
    wrote = {
        store.write_bytes("tunes/a/source/manifest.json", b"{}"): b"{}",
        store.write_blob(b"picture", ".png"): b"picture",
        store.write_file("uploads/up_1/a.zip", given): b"copied",
        store.write_stream("tunes/b/uploads/0.png", io.BytesIO(b"streamed")): b"streamed",
    }
    with store.writing("tunes/a/lora/1/lora.safetensors") as file:
        file.write(b"weights")
    wrote["tunes/a/lora/1/lora.safetensors"] = b"weights"
    store.write_bytes("tunes/a/source/manifest.json", b"{}")  # once more, in its place
    store.write_bytes("cache/text/x.safetensors", b"made again")
    synced.lose_power(tmp_path / "store")
    for key, data in wrote.items():
        assert store.read_bytes(key) == data, key
    assert not store.exists("cache/text/x.safetensors")

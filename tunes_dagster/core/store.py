"""The store: every file of every tune and render, in a local folder or any fsspec filesystem such as S3.

Nothing passes between runs by local path: a run writes here under a key and another one reads it back by
the key. Keys are relative, `/`-separated, and laid out as

    blobs/ab/abcdef….png                     pictures by content hash, shared by all tunes
    tunes/<tune>/source/manifest.json        what came in, one row per picture
    tunes/<tune>/training_set/…              crops, buckets, contact sheet
    tunes/<tune>/captions/captions.csv       what a person edits; versions beside it
    tunes/<tune>/lora/<attempt>/…            weights, checkpoints, curve, samples
    batches/<batch>/<attempt>/…              renders and their contact sheet
    cache/…                                  latents and embeddings by content hash; may be deleted any time
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from upath import UPath

from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    from _typeshed import SupportsRead


def check_key(key: str) -> str:
    """Return the key when it is safe to join to a root.

    Raises:
        Failure: `INVALID_REQUEST` for absolute keys, `..`, backslashes, and control characters.
    """
    parts = PurePosixPath(key).parts
    bad = not parts or key.startswith("/") or ".." in parts or "\\" in key or any(ord(c) < 32 for c in key)
    if bad:
        raise Failure(
            FailureCode.INVALID_REQUEST, f"{key!r} is not a key of the store.", "Use a relative key."
        )
    return key


class Store:
    """Reads and writes files by key below one root.

    Local writes go through a temporary file and a rename, S3 writes through one upload: a reader never sees
    half a file.
    """

    def __init__(self, root: str | Path | UPath, options: dict[str, Any] | None = None) -> None:
        self.root = UPath(root, **(options or {}))
        self.is_local = self.root.protocol in ("", "file", "local")
        if self.is_local:
            self.root = UPath(Path(str(self.root)).expanduser().resolve())
            Path(str(self.root)).mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> UPath:
        """Return the full path of a key."""
        return self.root / check_key(key)

    def url(self, key: str) -> str:
        """Return an address of a key for people: a local path or `s3://…`."""
        return str(self.path(key))

    def exists(self, key: str) -> bool:
        """Whether a file lies under the key."""
        return self.path(key).exists()

    def size(self, key: str) -> int:
        """Return the size in bytes."""
        return int(self.path(key).stat().st_size)

    def read_bytes(self, key: str) -> bytes:
        """Return the content.

        Raises:
            FileNotFoundError: When nothing lies under the key.
        """
        return self.path(key).read_bytes()

    def read_text(self, key: str) -> str:
        """Return the content as UTF-8 text."""
        return self.read_bytes(key).decode("utf-8")

    def read_json(self, key: str) -> Any:
        """Return the content parsed as JSON."""
        return json.loads(self.read_bytes(key))

    def write_bytes(self, key: str, data: bytes) -> str:
        """Write the content and return the key."""
        path = self.path(key)
        if not self.is_local:
            path.write_bytes(data)
            return key
        local = Path(str(path))
        local.parent.mkdir(parents=True, exist_ok=True)
        part = local.with_name(f".{local.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
        part.write_bytes(data)
        part.replace(local)
        return key

    def write_text(self, key: str, text: str) -> str:
        """Write UTF-8 text and return the key."""
        return self.write_bytes(key, text.encode("utf-8"))

    def write_json(self, key: str, value: Any) -> str:
        """Write JSON, indented so that a person can read it, and return the key."""
        return self.write_text(key, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")

    def write_file(self, key: str, source: Path) -> str:
        """Copy a local file into the store without reading it whole, and return the key."""
        path = self.path(key)
        if not self.is_local:
            path.fs.put_file(str(source), path.path)
            return key
        local = Path(str(path))
        local.parent.mkdir(parents=True, exist_ok=True)
        part = local.with_name(f".{local.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
        shutil.copyfile(source, part)
        part.replace(local)
        return key

    def write_stream(self, key: str, source: SupportsRead[bytes]) -> str:
        """Copy an open file into the store piece by piece, and return the key."""
        path = self.path(key)
        if not self.is_local:
            with path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            return key
        with self.writing(key) as file:
            shutil.copyfileobj(source, file, 1 << 20)
        return key

    def write_blob(self, data: bytes, suffix: str) -> str:
        """Write content under its SHA-256 and return the key; the same content is kept once.

        Args:
            data: The bytes.
            suffix: With the dot: `.png`.
        """
        digest = hashlib.sha256(data).hexdigest()
        key = f"blobs/{digest[:2]}/{digest}{suffix}"
        if not self.exists(key):
            self.write_bytes(key, data)
        return key

    @contextmanager
    def writing(self, key: str) -> Iterator[IO[bytes]]:
        """Give an open file whose content lies under the key once the block ends; nothing when it raises.

        For files that are made piece by piece. On other stores than a local folder they are made in a temporary file.
        """
        path = self.path(key)
        if not self.is_local:
            with tempfile.TemporaryFile(prefix="tunes-store-") as made:
                yield made
                made.seek(0)
                self.write_stream(key, made)
            return
        local = Path(str(path))
        local.parent.mkdir(parents=True, exist_ok=True)
        part = local.with_name(f".{local.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
        try:
            with part.open("wb") as target:
                yield target
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)

    def open_read(self, key: str) -> IO[bytes]:
        """Open for streaming reads."""
        return self.path(key).open("rb")

    def list(self, prefix: str) -> Iterator[str]:
        """Yield every key below a prefix, sorted, without the temporary files of writers."""
        base = self.path(prefix)
        if not base.exists():
            return
        if self.is_local:
            root = Path(str(self.root))
            found = [p.relative_to(root).as_posix() for p in Path(str(base)).rglob("*") if p.is_file()]
        else:
            root_path = self.root.path.rstrip("/")
            found = [p.removeprefix(root_path).lstrip("/") for p in base.fs.find(base.path)]
        yield from sorted(key for key in found if not key.endswith(".part"))

    def delete(self, key: str) -> None:
        """Delete one file; a missing one is fine."""
        self.path(key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> Sequence[str]:
        """Delete everything below a prefix and return the keys that went."""
        keys = list(self.list(prefix))
        for key in keys:
            self.delete(key)
        if self.is_local:
            shutil.rmtree(str(self.path(prefix)), ignore_errors=True)
        return keys

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        """Give a local file with the content of a key: the file itself, or a copy for the while."""
        path = self.path(key)
        if self.is_local:
            if not path.exists():
                raise FileNotFoundError(str(path))
            yield Path(str(path))
            return
        with tempfile.TemporaryDirectory(prefix="tunes-store-") as folder:
            target = Path(folder) / PurePosixPath(key).name
            path.fs.get_file(path.path, str(target))
            yield target

    @contextmanager
    def local_folder(self, prefix: str) -> Iterator[Path]:
        """Give a local folder with every file below a prefix: the folder itself, or a copy for the while."""
        path = self.path(prefix)
        if self.is_local:
            if not path.is_dir():
                raise FileNotFoundError(str(path))
            yield Path(str(path))
            return
        with tempfile.TemporaryDirectory(prefix="tunes-store-") as folder:
            for key in self.list(prefix):
                target = Path(folder) / PurePosixPath(key).relative_to(prefix.rstrip("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                path.fs.get_file(self.path(key).path, str(target))
            yield Path(folder)

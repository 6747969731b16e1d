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

What is not there is a `FileNotFoundError`. A store that cannot be reached, refuses or breaks off is a `Failure` of the
code `STORE_UNAVAILABLE`, whatever its library raises: whoever wanted a file may want it again, and nothing is said
about the file.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from upath import UPath

from tunes_dagster.core import disk
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.store_files import Reading, Writing, files_below, reaching

if TYPE_CHECKING:
    from _typeshed import SupportsRead
    from pydantic import BaseModel

_Model = TypeVar("_Model", bound="BaseModel")


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


# Keys of what can be made again: a power loss may take it.
_MADE_AGAIN = ("cache/",)


def _mark(folder: Path) -> Path:
    """Return the file beside a store's folder that says that there was one."""
    return folder.with_name(f".{folder.name}.is-here")


class Store:
    """Reads and writes files by key below one root.

    Local writes go through a temporary file and a rename, S3 writes through one upload: a reader never sees
    half a file.
    """

    def __init__(self, root: str | Path | UPath, options: dict[str, Any] | None = None) -> None:
        self.root = UPath(root, **(options or {}))
        self._name: Callable[[str], None] | None = None
        self._address: Callable[[str], str] | None = None
        self.is_local = self.root.protocol in ("", "file", "local")
        if self.is_local:
            folder = Path(str(self.root)).expanduser().resolve()
            self.root = UPath(folder)
            self._settle(folder)

    def _settle(self, folder: Path) -> None:
        """Make the folder of a new store; one that was there and is not (moved, not mounted) is not begun anew."""
        mark = _mark(folder)
        if not folder.is_dir() and not mark.exists():
            folder.mkdir(parents=True, exist_ok=True)
        if folder.is_dir() and not mark.exists():
            with suppress(OSError):  # a read-only place holds no new store either
                mark.touch()

    def naming(self, name: Callable[[str], None]) -> Store:
        """Return the same store for somebody whose need of shared content is written down before it is.

        Args:
            name: Called with the key of each blob before it is looked for or written; raising writes nothing.
        """
        view = copy.copy(self)
        view._name = name
        return view

    def addressed(self, address: Callable[[str], str]) -> Store:
        """Return the same store for somebody who shows files by addresses of the server."""
        view = copy.copy(self)
        view._address = address
        return view

    def address(self, key: str) -> str:
        """Return where an operator sees a file while it exists; its path where no server is known."""
        return self.url(key) if self._address is None else self._address(check_key(key))

    def need(self, key: str) -> None:
        """Write down that a file is needed, before it is looked for; see `naming`."""
        if self._name is not None:
            self._name(check_key(key))

    def path(self, key: str) -> UPath:
        """Return the full path of a key."""
        whole: UPath = self.root / check_key(key)
        return whole

    @contextmanager
    def _reaching(self, key: str) -> Iterator[None]:
        """Translate what keeps us from a file; without the store's folder nothing is said about the file."""
        if self.is_local and not Path(str(self.root)).is_dir():
            raise Failure(
                FailureCode.STORE_UNAVAILABLE,
                "The store is not there.",
                "The operator should bring its folder back; it goes on by itself then.",
                f"{self.root}; to begin with an empty one, make the folder",
            )
        with reaching(f"{self.root}/{key}"):
            yield

    def url(self, key: str) -> str:
        """Return an address of a key for people: a local path or `s3://…`."""
        return str(self.path(key))

    def exists(self, key: str) -> bool:
        """Whether a file lies under the key."""
        with self._reaching(key):
            return self.path(key).exists()

    def size(self, key: str) -> int:
        """Return the size in bytes."""
        with self._reaching(key):
            return int(self.path(key).stat().st_size)

    def changed(self, key: str) -> float:
        """Return when the file was written, in seconds since 1970 by the store's clock."""
        with self._reaching(key):
            return float(self.path(key).stat().st_mtime)

    def read_bytes(self, key: str) -> bytes:
        """Return the content.

        Raises:
            FileNotFoundError: When nothing lies under the key.
            Failure: `STORE_UNAVAILABLE` when it cannot be reached; the same goes for all that follows.
        """
        with self._reaching(key):
            return self.path(key).read_bytes()

    def read_text(self, key: str) -> str:
        """Return the content as UTF-8 text."""
        return self.read_bytes(key).decode("utf-8")

    def read_json(self, key: str) -> Any:
        """Return the content parsed as JSON."""
        return json.loads(self.read_bytes(key))

    def read_model(self, key: str, model: type[_Model], what: str) -> _Model:
        """Return the content as the model that was written there.

        Args:
            key: Where it lies.
            model: Checks it.
            what: Begins the sentence about a damaged file: `The list of pictures`.

        Raises:
            FileNotFoundError: When there is nothing.
            Failure: `PICTURE_UNREADABLE` when it is damaged. It quotes nothing: these files hold people's words.
        """
        data = self.read_bytes(key)
        try:
            return model.model_validate_json(data)
        except ValueError as error:
            raise Failure(
                FailureCode.PICTURE_UNREADABLE,
                f"{what} {key} is damaged.",
                "Put the file back from a backup, or hand the pictures in again as a new tune.",
            ) from error

    def write_bytes(self, key: str, data: bytes) -> str:
        """Write the content and return the key."""
        with self._reaching(key):
            path = self.path(key)
            if not self.is_local:
                path.write_bytes(data)
                return key
            local, part = self._beside(key, path)
            try:
                part.write_bytes(data)
                self._put(key, part, local)
            finally:
                part.unlink(missing_ok=True)
        return key

    def _put(self, key: str, part: Path, local: Path) -> None:
        """Put a file that is whole in its place: on the disk, content and name, if it is to last."""
        lasts = not key.startswith(_MADE_AGAIN)
        if lasts:
            with part.open("rb") as file:
                disk.sync_file(file, local)
        part.replace(local)
        if lasts:
            disk.sync_folder(local.parent)

    def _beside(self, key: str, path: UPath) -> tuple[Path, Path]:
        """Return a local path in a folder that is there, and one beside it to write to first."""
        local = Path(str(path))
        disk.make_folder(local.parent, not key.startswith(_MADE_AGAIN))
        return local, local.with_name(f".{local.name}.{os.getpid()}.{secrets.token_hex(4)}.part")

    def write_text(self, key: str, text: str) -> str:
        """Write UTF-8 text and return the key."""
        return self.write_bytes(key, text.encode("utf-8"))

    def write_json(self, key: str, value: Any) -> str:
        """Write JSON, indented so that a person can read it, and return the key."""
        return self.write_text(key, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")

    def write_file(self, key: str, source: Path) -> str:
        """Copy a local file into the store without reading it whole, and return the key."""
        with self._reaching(key):
            path = self.path(key)
            if not self.is_local:
                path.fs.put_file(str(source), path.path)
                return key
            local, part = self._beside(key, path)
            try:
                shutil.copyfile(source, part)
                self._put(key, part, local)
            finally:
                part.unlink(missing_ok=True)
        return key

    def write_stream(self, key: str, source: SupportsRead[bytes]) -> str:
        """Copy an open file into the store piece by piece, and return the key."""
        with self._reaching(key):
            path = self.path(key)
        if not self.is_local:
            with self._reaching(key), path.open("wb") as target:
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
        self.need(key)
        if not self.exists(key):
            self.write_bytes(key, data)
        return key

    @contextmanager
    def writing(self, key: str) -> Iterator[IO[bytes]]:
        """Give an open file whose content lies under the key once the block ends; nothing when it raises.

        For files that are made piece by piece. On other stores than a local folder they are made in a temporary file.
        """
        with self._reaching(key):
            path = self.path(key)
        if not self.is_local:
            with tempfile.TemporaryFile(prefix="tunes-store-") as made:
                yield made
                made.seek(0)
                self.write_stream(key, made)
            return
        with self._reaching(key):
            local, part = self._beside(key, path)
        try:
            with part.open("wb") as target:
                writing = Writing(target, str(local))
                yield cast("IO[bytes]", writing)
                writing.flush()
            with reaching(str(local)):
                self._put(key, part, local)
        finally:
            part.unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        """Return how much can still be written; None where nobody can say, as in an object store."""
        if not self.is_local:
            return None
        with self._reaching(""):
            return shutil.disk_usage(str(self.root)).free

    def require(self, needed: float, what: str) -> None:
        """Refuse to begin what there is no room for.

        Args:
            needed: Bytes that it will write, about.
            what: It, as a sentence begins: `Training`.

        Raises:
            Failure: `STORE_UNAVAILABLE`, as when it is away: there may be room later.
        """
        free = self.free_bytes()
        if free is None or free >= needed:
            return
        raise Failure(
            FailureCode.STORE_UNAVAILABLE,
            f"{what} needs about {needed / 1e6:,.0f} MB of space, and {free / 1e6:,.0f} MB are free.",
            "The operator should make room; it goes on by itself then, and nothing that was done is lost.",
            str(self.root),
        )

    def open_read(self, key: str) -> IO[bytes]:
        """Open for streaming reads."""
        with self._reaching(key):
            return io.BufferedReader(Reading(self.path(key).open("rb"), f"{self.root}/{key}"), 1 << 18)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield every key below a prefix, sorted, without the temporary files of writers."""
        with self._reaching(prefix):
            base = self.path(prefix)
            if not base.exists():
                return
            if self.is_local:
                root = Path(str(self.root))
                found = [p.relative_to(root).as_posix() for p in files_below(Path(str(base)))]
            else:
                root_path = self.root.path.rstrip("/")
                found = [p.removeprefix(root_path).lstrip("/") for p in base.fs.find(base.path)]
        yield from sorted(key for key in found if not key.endswith(".part"))

    def folders(self, prefix: str) -> Sequence[str]:
        """Return the names of the folders directly below a prefix, without looking into them."""
        with self._reaching(prefix):
            base = self.path(prefix)
            if not base.exists():
                return []
            if self.is_local:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    return sorted(one.name for one in Path(str(base)).iterdir() if one.is_dir())
                return []
            base.fs.invalidate_cache(base.path)
            found = base.fs.ls(base.path, detail=True)
        return sorted(PurePosixPath(one["name"]).name for one in found if one["type"] == "directory")

    def remove_unfinished(self, before: float) -> int:
        """Remove the temporary files of writers that died, if older than a moment; returns how many."""
        if not self.is_local:
            return 0  # an upload to an object store is there as a whole, or not at all
        done = 0
        with self._reaching(""):
            for path in files_below(Path(str(self.root))):
                try:
                    if path.suffix == ".part" and path.stat().st_mtime < before:
                        path.unlink()
                        done += 1
                except FileNotFoundError:
                    continue
        return done

    def delete(self, key: str) -> None:
        """Delete one file; a missing one is fine."""
        with self._reaching(key):
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
        with self._reaching(key):
            path = self.path(key)
        if self.is_local:
            if not path.exists():
                raise FileNotFoundError(str(path))
            yield Path(str(path))
            return
        with tempfile.TemporaryDirectory(prefix="tunes-store-") as folder:
            target = Path(folder) / PurePosixPath(key).name
            with self._reaching(key):
                path.fs.get_file(path.path, str(target))
            yield target

    @contextmanager
    def local_folder(self, prefix: str) -> Iterator[Path]:
        """Give a local folder with every file below a prefix: the folder itself, or a copy for the while."""
        with self._reaching(prefix):
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
                with self._reaching(key):
                    path.fs.get_file(self.path(key).path, str(target))
            yield Path(folder)

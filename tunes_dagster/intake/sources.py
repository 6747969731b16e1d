"""Every kind of source as a list of origins: things that can be read, examined and resumed one by one."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from upath import UPath

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import Sources
from tunes_dagster.core.store import Store
from tunes_dagster.core.urls import show_url
from tunes_dagster.intake.archives import ArchiveLimits, archive_kind
from tunes_dagster.intake.fetch import MB, Fetcher, SourceKind
from tunes_dagster.intake.folders import FolderFile, check_settled, list_files, may_not_be_read, open_folder
from tunes_dagster.intake.names import shown
from tunes_dagster.intake.payloads import check_upload_key, decode_payload
from tunes_dagster.intake.pictures import SUFFIXES
from tunes_dagster.intake.sidecars import Sidecars, is_sidecar
from tunes_dagster.intake.tune_file import NAMES

MAX_SIDECAR = 8 * MB
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


@dataclass(frozen=True)
class Local:
    """An origin's file on this machine for the while: its path and the name it goes by."""

    path: Path
    name: str


@dataclass
class Origin:
    """One thing to read: a picture or an archive.

    Attributes:
        id: Names the origin and its version; an origin that was examined is not read again.
        source: For people.
        kind: What it is expected to be, which decides limits.
        load: Brings it to a path on this machine; called from worker threads, ends early when told to stop.
        group: Its captions lie in the sidecars of this group.
    """

    id: str
    source: str
    kind: SourceKind
    load: Callable[[Path, threading.Event], Local]
    group: str = ""

    @property
    def record_name(self) -> str:
        """Name of its record in the store."""
        return hashlib.sha256(self.id.encode(errors="surrogateescape")).hexdigest()[:32]


@dataclass
class SourceList:
    """What a request's sources come down to.

    Attributes:
        origins: In the order of the request.
        sidecars: Captions by group, from folders and uploads; an archive has its own inside.
        ignored: Names of files that are neither pictures, archives nor captions.
        notes: What was left out and why, in sentences.
    """

    origins: list[Origin] = field(default_factory=list)
    sidecars: dict[str, Sidecars] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_picture_name(name: str) -> bool:
    """Whether a file is a picture by its name."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def looks_like_picture(name: str, head: bytes) -> bool:
    """Whether a file is worth decoding, by its suffix or its first bytes."""
    if is_picture_name(name):
        return True
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\x00", b"MM\x00*", b"BM")
    return head.startswith(starts) or head[8:12] == b"WEBP" or head[4:8] == b"ftyp"


def is_archive_name(name: str) -> bool:
    """Whether a file is an archive by its name."""
    return name.lower().endswith(_ARCHIVE_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class SourceRules:
    """What of the places that a request names may be read, and how.

    Attributes:
        allow_folders: When given, the request's folder must lie inside one of them.
        folder_options: Options of the folder's filesystem; None takes the store's when both are on S3.
        archives: What an archive may unpack to.
    """

    allow_folders: Sequence[str] | None = None
    folder_options: Mapping[str, Any] | None = None
    archives: ArchiveLimits = ArchiveLimits()


def list_sources(
    sources: Sources,
    tune_id: str,
    store: Store,
    fetcher: Fetcher,
    rules: SourceRules = SourceRules(),
) -> SourceList:
    """Return the origins of a request without reading any picture.

    Args:
        sources: What the request names.
        tune_id: Whose uploads may be named.
        store: Holds the uploads.
        fetcher: Downloads URLs when an origin is loaded.
        rules: How a folder is read.

    Raises:
        Failure: When a folder cannot be read or an upload is not this tune's.
    """
    listed = SourceList()
    if sources.archive_url:
        listed.origins.append(_url(sources.archive_url, "archive", fetcher))
    for url in dict.fromkeys(sources.image_urls):
        listed.origins.append(_url(url, "picture", fetcher))
    for index, text in enumerate(sources.images_base64):
        listed.origins.append(_base64(index, text))
    if sources.uploads:
        _add_uploads(listed, sources.uploads, tune_id, store)
    if sources.folder:
        _add_folder(listed, sources.folder, store, rules.folder_options)
    return listed


def _url(url: str, kind: SourceKind, fetcher: Fetcher) -> Origin:
    def load(path: Path, stop: threading.Event) -> Local:
        fetched = fetcher.fetch(url, path, kind, stop=stop)
        return Local(fetched.path, fetched.name)

    return Origin(f"url:{url}", show_url(url), kind, load, "urls")


def _base64(index: int, text: str) -> Origin:
    digest = hashlib.sha256(text.encode()).hexdigest()

    def load(path: Path, stop: threading.Event) -> Local:
        data, suffix = decode_payload(text, f"images_base64[{index}]")
        path.write_bytes(data)
        return Local(path, f"image-{index + 1:03d}{suffix}")

    return Origin(f"base64:{digest}", f"images_base64[{index}]", "picture", load, "base64")


def _add_uploads(listed: SourceList, keys: list[str], tune_id: str, store: Store) -> None:
    sidecars = listed.sidecars.setdefault("uploads", Sidecars())
    for key in keys:
        check_upload_key(key, tune_id)
        name = re.sub(r"^\d{4}-", "", PurePosixPath(key).name)
        if is_sidecar(name):
            if not store.exists(key):
                listed.notes.append(f"{name}: not used, the upload is gone.")
            elif _short_enough(listed, name, store.size(key)):
                sidecars.add(name, store.read_bytes(key))
            continue

        def load(path: Path, stop: threading.Event, key: str = key, name: str = name) -> Local:
            try:
                path.write_bytes(store.read_bytes(key))
            except FileNotFoundError:
                raise Failure(
                    FailureCode.SOURCE_REFUSED, f"The upload {name!r} is gone.", "Upload it again."
                ) from None
            return Local(path, name)

        kind: SourceKind = "archive" if is_archive_name(name) else "picture"
        listed.origins.append(Origin(f"upload:{key}", f"upload {name}", kind, load, "uploads"))


def _add_folder(listed: SourceList, folder: str, store: Store, options: Mapping[str, Any] | None) -> None:
    if options is None and not store.is_local and folder.startswith(f"{store.root.protocol}://"):
        options = dict(store.root.storage_options)
    check_settled(folder)
    root = open_folder(folder, options)
    sidecars = listed.sidecars.setdefault("folder", Sidecars())
    for file in list_files(root, listed.notes):
        if is_sidecar(file.name):
            _add_sidecar(listed, sidecars, file, root)
        elif file.name.lower() in NAMES:
            continue
        else:
            _add_file(listed, file, root)


def _short_enough(listed: SourceList, name: str, size: int) -> bool:
    """Whether a file of captions is read; one that is too large for that is noted."""
    if size > MAX_SIDECAR:
        listed.notes.append(f"{name}: not used, captions of more than {MAX_SIDECAR // MB} MB are not read.")
    return size <= MAX_SIDECAR


def _add_sidecar(listed: SourceList, sidecars: Sidecars, file: FolderFile, root: UPath) -> None:
    if not _short_enough(listed, file.name, file.size):
        return
    try:
        local = file.path.protocol in ("", "file", "local")
        data = _still_inside(file, root).read_bytes() if local else file.path.read_bytes()
    except (Failure, OSError) as error:
        failure = error if isinstance(error, Failure) else may_not_be_read(file.name, error)
        if failure.code == FailureCode.STORE_UNAVAILABLE:
            raise failure from error
        listed.notes.append(f"{file.name}: not used. {failure.message}")
        return
    sidecars.add(file.name, data)


def kind_of(file: FolderFile) -> SourceKind | None:
    """Return whether a file is a picture or an archive, by its name or where that says nothing its first bytes.

    Raises:
        OSError: It cannot be read.
    """
    if is_picture_name(file.name):
        return "picture"
    if is_archive_name(file.name):
        return "archive"
    with file.path.open("rb") as stream:
        head = stream.read(512)
    if looks_like_picture(file.name, head):
        return "picture"
    return "archive" if archive_kind(head) in ("zip", "tar") else None


def hold_pictures(files: Iterable[FolderFile]) -> bool:
    """Whether there may be a picture among files of a folder; what cannot be read is named when they are gathered."""
    for file in files:
        try:
            if not is_sidecar(file.name) and kind_of(file) is not None:
                return True
        except OSError:
            return True
    return False


def _add_file(listed: SourceList, file: FolderFile, root: UPath) -> None:
    try:
        kind = kind_of(file)
    except OSError as error:
        listed.ignored.append(file.name)
        listed.notes.append(may_not_be_read(file.name, error).message)
        return
    if kind is None:
        listed.ignored.append(file.name)
    else:
        listed.origins.append(_folder_file(file, kind, root))


def _still_inside(file: FolderFile, root: UPath) -> Path:
    """Return the file itself; it may have been replaced by a link since the folder was listed, minutes ago.

    Raises:
        Failure: `SOURCE_REFUSED`.
    """
    actual = Path(str(file.path)).resolve()
    if not actual.is_relative_to(Path(str(root))):
        raise Failure(
            FailureCode.SOURCE_REFUSED,
            f"The file {file.name} is a link now that leads out of its folder.",
            "Put the picture itself there.",
            str(actual),
        )
    return actual


def _folder_file(file: FolderFile, kind: SourceKind, root: UPath) -> Origin:
    def load(path: Path, stop: threading.Event) -> Local:
        try:
            if file.path.protocol in ("", "file", "local"):
                return Local(_still_inside(file, root), file.name)
            file.path.fs.get_file(file.path.path, str(path))
        except FileNotFoundError:
            raise Failure(
                FailureCode.SOURCE_REFUSED, f"The file {file.name} is gone.", "Put it back."
            ) from None
        except OSError as error:
            raise may_not_be_read(file.name, error) from error
        return Local(path, file.name)

    return Origin(f"file:{file.path}:{file.size}:{file.stamp}", shown(str(file.path)), kind, load, "folder")

"""What lies in the drop folder: pure decisions over a listing, for the sensor that acts on them.

Each entry of the drop folder (a folder of pictures, or an archive beside them) is one dataset. It is complete when
it holds `tune.yaml`, or when it has not changed for the settle time. What was taken once is not taken again, also
when files are added to it later; what was refused is looked at again when it changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from upath import UPath

from tunes_dagster.core.failures import Failure
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.intake.folders import FolderFile, list_files, open_folder
from tunes_dagster.intake.kohya import subject_of
from tunes_dagster.intake.sources import hold_pictures, is_archive_name, is_picture_name
from tunes_dagster.intake.tune_file import NAMES, parse_tune_yaml

DropState = Literal["settling", "complete", "invalid"]
_OPEN = ("settling", "invalid")
QUIET_SECONDS = 2.0
"""A `tune.yaml` may arrive before the last picture does; this much silence says that the copying is over."""


class KnownDrop(Protocol):
    """What an earlier look recorded; the registry's `Drop` rows fit.

    Attributes:
        fingerprint: Of the files then.
        state: `settling` and `invalid` are looked at again; anything else is final.
    """

    fingerprint: str
    state: str


@dataclass(frozen=True, kw_only=True)
class Drop:
    """One dataset in the drop folder that has something new to say.

    Attributes:
        path: Full path or URL: its identity.
        name: Name of the folder or archive.
        fingerprint: Changes when any file is added, removed or changed.
        state: `complete` is to be submitted; `invalid` cannot be, `message` says why; `settling` is not done.
        request: The request of a complete one, its own pictures filled in.
        message: For people.
    """

    path: str
    name: str
    fingerprint: str
    state: DropState
    request: TuneRequest | None = None
    message: str = ""


def scan_drop_folder(
    folder: str | UPath,
    known: Mapping[str, KnownDrop],
    now: datetime,
    settle_seconds: float,
    options: Mapping[str, Any] | None = None,
) -> list[Drop]:
    """Return what is new in the drop folder, by name.

    Args:
        folder: Local folder or S3 prefix; a missing one is empty.
        known: What earlier looks recorded, by path.
        now: The time, aware.
        settle_seconds: A dataset without `tune.yaml` is complete after this long without change.
        options: Options of the folder's filesystem.
    """
    root = open_folder(folder, options)
    if not root.exists():
        return []
    found = []
    for entry in sorted(root.iterdir(), key=str):
        name, path = entry.name, str(entry).rstrip("/")
        before = known.get(path)
        if name.startswith(".") or (before is not None and before.state not in _OPEN):
            continue
        try:
            if not entry.is_dir() and not is_archive_name(name):
                continue  # loose pictures in the drop folder itself are nobody's
            files = list(list_files(entry))
        except Failure as failure:
            fingerprint = hashlib.sha256(failure.message.encode()).hexdigest()
            drop = Drop(path=path, name=name, fingerprint=fingerprint, state="invalid", message=str(failure))
        else:
            drop = _look(path, name, _fingerprint(files), files, now, settle_seconds)
        if before is None or (before.fingerprint, before.state) != (drop.fingerprint, drop.state):
            found.append(drop)
    return found


def _fingerprint(files: Sequence[FolderFile]) -> str:
    lines = "\n".join(f"{file.name}\t{file.size}\t{file.stamp}" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _look(
    path: str, name: str, fingerprint: str, files: Sequence[FolderFile], now: datetime, settle_seconds: float
) -> Drop:
    if not files:
        return Drop(path=path, name=name, fingerprint=fingerprint, state="settling", message="It is empty.")
    configs = [file for file in files if file.name.lower() in NAMES]
    wait = min(QUIET_SECONDS, settle_seconds) if configs else settle_seconds
    quiet = now.timestamp() - max(file.changed for file in files)
    if quiet < wait:
        return Drop(
            path=path,
            name=name,
            fingerprint=fingerprint,
            state="settling",
            message=f"Changed {max(0.0, quiet):.0f} s ago.",
        )
    try:
        request = _request(path, name, configs, files)
    except Failure as failure:
        return Drop(
            path=path,
            name=name,
            fingerprint=fingerprint,
            state="invalid",
            message=f"{failure.message} {failure.remedy}".strip(),
        )
    elsewhere = not request.sources.model_copy(update={"folder": None}).empty
    if not elsewhere and request.sources.folder == path and not hold_pictures(files):
        return Drop(
            path=path,
            name=name,
            fingerprint=fingerprint,
            state="invalid",
            message=f"{name} holds no pictures. Put some into it.",
        )
    return Drop(
        path=path,
        name=name,
        fingerprint=fingerprint,
        state="complete",
        request=request,
        message=f"{name}: {len(files)} files.",
    )


def _request(path: str, name: str, configs: Sequence[FolderFile], files: Sequence[FolderFile]) -> TuneRequest:
    """Return the request of a dataset: its tune.yaml's, or one made from its name and that of folders in it."""
    title, class_name, token = words_of(name)
    said, subject = subject_of([file.name for file in files if is_picture_name(file.name)])
    defaults: dict[str, Any] = {"name": subject or class_name, "title": title}
    token = token or said
    if token:
        defaults["token"] = token
    if not configs:
        request = TuneRequest(**defaults)
    else:
        file = configs[0]
        request = parse_tune_yaml(file.path.read_bytes(), file.name, defaults)
    if request.sources.empty or request.sources.folder in (".", "./"):
        sources = request.sources.model_copy(update={"folder": path})
        request = request.model_copy(update={"sources": sources})
    return request


def words_of(name: str) -> tuple[str, str, str]:
    """Return title, class and token that the name of a folder gives.

    The last word is the class, as in `anna woman`, `red-mug` or `woman`; a word in square brackets is the token,
    as in `anna [ohwx] woman`.
    """
    stem = re.sub(r"(\.tar)?\.(zip|tar|gz|tgz|bz2|tbz2|xz|txz)$", "", name, flags=re.IGNORECASE)
    bracket = re.search(r"\[([\w-]{1,40})\]", stem)
    plain = re.sub(r"\[[^\]]*\]", " ", stem)
    words = re.findall(r"[^\W\d_]+", plain)
    title = " ".join(plain.split()) or stem
    return title[:200], (words[-1].lower() if words else "subject")[:60], bracket[1] if bracket else ""

"""Local folders and S3 prefixes of pictures, and which of them a request may name."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.intake.archives import is_junk
from tunes_dagster.intake.names import shown

PROTOCOLS = frozenset({"", "file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "memory"})
MAX_FILES = 10_000
_NAMED = 20
"""So many of the files that are left out are told one by one."""


@dataclass(frozen=True)
class FolderFile:
    """One file of a folder.

    Attributes:
        name: Path inside the folder, with `/`.
        path: Where it lies.
        size: Bytes.
        stamp: Time of the last change, or another mark of the version.
        changed: Seconds since the epoch of the last change; 0 when the filesystem does not say.
    """

    name: str
    path: UPath
    size: int
    stamp: str
    changed: float = 0.0


def open_folder(folder: str | UPath, options: Mapping[str, Any] | None = None) -> UPath:
    """Return a folder or prefix as a path.

    Args:
        folder: Local path or URL (`s3://bucket/prefix`).
        options: Keyword options of its filesystem (`endpoint_url` …).

    Raises:
        Failure: `SOURCE_REFUSED` for filesystems that are not for folders of pictures (http, ssh, chains).
    """
    text = str(folder)
    protocol = text.split("://", 1)[0].lower() if "://" in text else ""
    climbs = bool(protocol) and ".." in text.split("/")
    if "::" in text or protocol not in PROTOCOLS or climbs:
        raise Failure(
            FailureCode.SOURCE_REFUSED,
            f"{text[:200]!r} is not a folder that can be read.",
            "Name a local folder or an s3:// prefix; give other files by URL.",
        )
    if protocol in ("", "file", "local"):
        local = text.split("://", 1)[1] if protocol else text
        return UPath(Path(local).expanduser().resolve())
    # A long-lived process must see what was put there since it last looked.
    return UPath(text, **{"use_listings_cache": False, **(options or {})})


def check_folder(folder: str, allowed: Sequence[str]) -> str:
    """Return the folder when it lies inside one that is allowed; links and `..` are followed first.

    Raises:
        Failure: `SOURCE_REFUSED`.
    """
    wanted = open_folder(folder)
    for entry in allowed:
        root = open_folder(entry)
        if root.protocol != wanted.protocol:
            continue
        inside, outside = _parts(wanted), _parts(root)
        if inside[: len(outside)] == outside:
            return folder
    raise Failure(
        FailureCode.SOURCE_REFUSED,
        f"The folder {folder!r} is not one that requests may name.",
        "Put the pictures into the drop folder, or let the operator add the folder to TUNES_ALLOW_FOLDERS.",
    )


def settled(folder: str) -> str:
    """Return where a folder leads, links and `..` followed; what was allowed is written down like this."""
    return str(open_folder(folder)) if "://" not in folder else folder


def check_settled(folder: str) -> None:
    """Check that a folder still leads where it led when it was allowed.

    Whoever may write beside it can put a link in its place while it waits.

    Raises:
        Failure: `SOURCE_REFUSED`.
    """
    if Path(folder).is_absolute() and settled(folder) != folder:
        raise Failure(
            FailureCode.SOURCE_REFUSED,
            f"The folder {Path(folder).name!r} is a link now, or lies behind one.",
            "Put the pictures themselves there, or hand in the folder that it leads to.",
            f"{folder} leads to {settled(folder)}",
        )


def _parts(path: UPath) -> list[str]:
    return [part for part in str(path.path).replace("\\", "/").split("/") if part not in ("", ".")]


def may_not_be_read(name: str, error: OSError) -> Failure:
    """Return what is said of a file that is there and cannot be read."""
    if isinstance(error, FileNotFoundError):
        return Failure(FailureCode.SOURCE_REFUSED, f"The file {name} is gone.", "Put it back.")
    if isinstance(error, PermissionError):
        return Failure(
            FailureCode.SOURCE_REFUSED,
            f"The file {name} may not be read by whoever runs this.",
            "Give the right to read it, or leave it out.",
        )
    return Failure(
        FailureCode.SOURCE_UNREACHABLE, f"{name} could not be read.", "Try again.", detail_of(error)
    )


def out_of_space(error: OSError) -> bool:
    """Whether it is this machine that has no room, whatever file was being read."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def list_files(folder: UPath, left_out: list[str] | None = None) -> Iterator[FolderFile]:
    """Yield the files below a folder, sorted by name, without junk, hidden files and links that lead out.

    A folder that is a file yields that one file.

    Args:
        folder: See `open_folder`.
        left_out: Takes what was left out that somebody may miss, in sentences.

    Raises:
        Failure: `SOURCE_UNREACHABLE` when it does not exist or cannot be listed; `SOURCE_REFUSED` when it
            holds more than `MAX_FILES` files.
    """
    try:
        if folder.is_file():
            yield _file(folder.name, folder)
            return
        if not folder.is_dir():
            raise FileNotFoundError(str(folder))
        local = folder.protocol in ("", "file", "local")
        found = _local_files(folder, left_out) if local else _remote_files(folder)
    except FileNotFoundError as error:
        raise Failure(
            FailureCode.SOURCE_REFUSED,
            f"There is no folder {folder.name!r}.",
            "Check the path and its spelling.",
            str(folder),
        ) from error
    except (OSError, ValueError) as error:
        raise Failure(
            FailureCode.SOURCE_UNREACHABLE,
            f"The folder {folder.name!r} cannot be read.",
            "Check that it exists and that this machine may read it.",
            detail_of(error, folder),
        ) from error
    yield from found


def _too_many(folder: UPath) -> Failure:
    return Failure(
        FailureCode.SOURCE_REFUSED,
        f"The folder {folder.name!r} holds more than {MAX_FILES:,} files.",
        "Name the folder that holds the pictures only.",
        str(folder),
    )


def _local_files(folder: UPath, left_out: list[str] | None) -> list[FolderFile]:
    root = Path(str(folder))
    found: list[FolderFile] = []
    missed: list[tuple[str, str]] = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if hidden or is_junk(name):
            continue
        try:
            why = _why_left_out(path, root)
            if why is None:
                found.append(_file(shown(name), UPath(path)))
            elif why:
                missed.append((shown(name), why))
        except (OSError, RuntimeError):  # gone since, or links in a ring
            missed.append((shown(name), "cannot be looked at"))
        if len(found) > MAX_FILES:
            raise _too_many(folder)
    if left_out is not None:
        left_out += [f"{name}: not used, it {why}." for name, why in missed[:_NAMED]]
        if len(missed) > _NAMED:
            left_out.append(f"{len(missed) - _NAMED:,} more like these are not used.")
    return found


def _why_left_out(path: Path, root: Path) -> str | None:
    """Return why something in a folder is not read, empty for what nobody misses; None for a file that is."""
    if path.is_symlink():
        if not path.resolve().is_relative_to(root):
            return "is a link that leads out of its folder; put the file itself there"
        if not path.exists():
            return "is a link to nothing"
    if path.is_dir():
        readable = os.access(path, os.R_OK | os.X_OK)
        linked = path.is_symlink()
        return (
            "is a link to a folder"
            if linked
            else ""
            if readable
            else "is a folder that may not be looked into"
        )
    if not path.is_file():
        return "is not a plain file"
    return None if path.resolve().is_relative_to(root) else ""


def _remote_files(folder: UPath) -> list[FolderFile]:
    prefix = str(folder.path).rstrip("/")
    listed = folder.fs.find(prefix, detail=True)
    if len(listed) > MAX_FILES:
        raise _too_many(folder)
    found = []
    for full, info in sorted(listed.items()):
        name = full.removeprefix(prefix).lstrip("/")
        if not name or is_junk(name) or any(part.startswith(".") for part in name.split("/")):
            continue
        stamp = info.get("ETag") or info.get("LastModified") or info.get("mtime") or ""
        moment = info.get("LastModified") or info.get("mtime") or info.get("created") or 0.0
        changed = moment.timestamp() if hasattr(moment, "timestamp") else float(moment)
        found.append(FolderFile(name, folder / name, int(info.get("size") or 0), str(stamp), changed))
    return found


def _file(name: str, path: UPath) -> FolderFile:
    status = path.stat()
    stamp = str(getattr(status, "st_mtime_ns", status.st_mtime))
    # The time of the inode counts too: copying with preserved times must not look long settled.
    changed = max(float(status.st_mtime), float(getattr(status, "st_ctime", 0.0)))
    return FolderFile(name, path, int(status.st_size), stamp, changed)

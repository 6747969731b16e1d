"""Zip and tar archives, read member by member into memory; nothing is ever written under a member's name.

Archives are hostile until proven otherwise: a child process unpacks them (`sandbox.child.archives`, which says what is
refused), and what it hands out is looked at once more here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tunes_dagster.core.failures import Failure, FailureCode

MB = 1024 * 1024
_JUNK_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini", ".gitkeep", ".localized"})


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What an archive may unpack to.

    Attributes:
        members: Files and folders.
        total_bytes: All content together, unpacked.
        member_bytes: One file, unpacked.
        ratio: Unpacked to packed size, looked at once more than `ratio_from_bytes` came out. Photos are packed
            already (about 1); flat drawings as BMP reach 50.
        ratio_from_bytes: See `ratio`.
        xz_memory_bytes: Memory that unpacking xz may take.
    """

    members: int = 10_000
    total_bytes: int = 8192 * MB
    member_bytes: int = 128 * MB
    ratio: float = 100.0
    ratio_from_bytes: int = 64 * MB
    xz_memory_bytes: int = 192 * MB


@dataclass(frozen=True)
class Member:
    """One file of an archive: its name with `/`, and its content or why there is none."""

    name: str
    data: bytes
    fault: str = ""


def archive_kind(head: bytes) -> str | None:
    """Return the kind of archive that a file's first 512 bytes announce, or None.

    Returns:
        `zip`, `gzip`, `bzip2`, `xz`, `tar`, or a kind that is known but not read: `7z`, `rar`, `zstd`.
    """
    starts = {
        b"PK\x03\x04": "zip",
        b"PK\x05\x06": "zip",
        b"\x1f\x8b": "gzip",
        b"BZh": "bzip2",
        b"\xfd7zXZ\x00": "xz",
        b"7z\xbc\xaf\x27\x1c": "7z",
        b"Rar!": "rar",
        b"\x28\xb5\x2f\xfd": "zstd",
    }
    for start, kind in starts.items():
        if head.startswith(start):
            return kind
    return "tar" if head[257:262] == b"ustar" else None


def is_junk(name: str) -> bool:
    """Whether a file is what operating systems leave behind (`__MACOSX/…`, `.DS_Store`, `Thumbs.db`)."""
    path = PurePosixPath(name.replace("\\", "/"))  # as some archivers for Windows write them
    return (
        path.name == "Icon\r"  # a folder's own picture on a Mac
        or "__MACOSX" in path.parts
        or path.name.lower() in _JUNK_FILES
        or path.name.startswith("._")
        or path.name == ""
    )


def read_archive(path: Path, limits: ArchiveLimits | None = None, name: str = "") -> Iterator[Member]:
    """Yield the files of an archive, in its order, without junk.

    Args:
        path: The archive on this machine.
        limits: See `ArchiveLimits`.
        name: What the archive is called in refusals.

    Raises:
        Failure: `ARCHIVE_REFUSED`, saying what was found.
    """
    from tunes_dagster.intake.sandbox.limits import for_archive
    from tunes_dagster.intake.sandbox.nursery import Gone
    from tunes_dagster.intake.sandbox.pool import get_pool, scratch

    limits = limits or ArchiveLimits()
    label = name or path.name

    def refused(why: str, remedy: str) -> Failure:
        return refuse(
            label, f"cannot be unpacked: {why}", remedy or "Pack the pictures again, as an ordinary .zip."
        )

    arguments = {"name": label[:500], "limits": asdict(limits)}
    members = total = 0
    with (
        scratch() as content,
        get_pool().task(
            "archive",
            path,
            arguments,
            lambda size, settings: for_archive(size, limits.member_bytes, settings),
            [content],
            refused,
        ) as task,
    ):
        try:
            for message in task.messages():
                member, size, fault = _checked(message.get("member"), limits, label, refused)
                members, total = members + 1, total + size
                if members > limits.members or total > limits.total_bytes:
                    raise refused("it unpacks to more than it may", "")
                content.seek(0)
                yield Member(member, content.read(size), fault)
                task.go_on()
        except Gone:
            raise Failure(
                FailureCode.RUN_LOST,
                f"The process that unpacked {label!r} was killed by the system.",
                "It is tried again; if that repeats, the machine is short of memory.",
            ) from None


def _checked(said: Any, limits: ArchiveLimits, label: str, refused: Any) -> tuple[str, int, str]:
    """Return the name and size of a member, and why it has no content, when a child says something sensible."""
    name, size = (said.get("name"), said.get("size")) if isinstance(said, dict) else (None, None)
    if not isinstance(name, str) or type(size) is not int or not 0 <= size <= limits.member_bytes:
        raise refused("what was read of it makes no sense", "")
    fault = "".join(c for c in str(said.get("fault", ""))[:200] if c.isprintable())
    return check_name(name, label), 0 if fault else size, fault


def check_name(name: str, label: str) -> str:
    """Return a member's name with `/`.

    Args:
        name: As it stands in the archive.
        label: Of the archive, for refusals.

    Raises:
        Failure: `ARCHIVE_REFUSED` when it would climb out of the folder it is unpacked to.
    """
    plain = name.replace("\\", "/")
    if plain.startswith("/") or re.match(r"^[A-Za-z]:", plain) or ".." in plain.split("/"):
        raise refuse(label, f"holds {name[:100]!r}, a name that leads out of its folder", "Pack it again.")
    if any(ord(character) < 32 for character in plain) or len(plain) > 1000:
        raise refuse(label, f"holds the malformed name {name[:100]!r}", "Rename the file.")
    return plain.removeprefix("./")


def refuse(label: str, why: str, remedy: str) -> Failure:
    """Return the refusal of an archive."""
    return Failure(FailureCode.ARCHIVE_REFUSED, f"The archive {label!r} {why}.", remedy)

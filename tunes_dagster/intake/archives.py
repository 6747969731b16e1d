"""Zip and tar archives, read member by member into memory; nothing is ever written under a member's name.

Archives are hostile until proven otherwise. Each refusal names what was found: names that climb out, links,
devices, archives in archives, encryption, and bombs by count, by total size, by member and by ratio. Sizes are
counted as bytes come out, never believed from a header.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tunes_dagster.core.failures import Failure, FailureCode

MB = 1024 * 1024
_ENTRY = b"PK\x01\x02"
_JUNK_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini", ".gitkeep", ".localized"})
_PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


@dataclass(frozen=True)
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
    """One file of an archive: its name with `/`, and its content."""

    name: str
    data: bytes


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
    path = PurePosixPath(name)
    return (
        "__MACOSX" in path.parts
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
    limits = limits or ArchiveLimits()
    label = name or path.name
    with path.open("rb") as file:
        kind = archive_kind(file.read(512))
    meter = _Meter(label, limits, packed=path.stat().st_size)
    try:
        if kind == "zip":
            yield from _read_zip(path, meter)
        elif kind in ("gzip", "bzip2", "xz", "tar"):
            yield from _read_tar(path, kind, meter)
        else:
            raise refuse(
                label,
                f"is a {kind} archive" if kind else "is neither a zip nor a tar archive",
                "Pack the pictures as .zip or .tar.gz.",
            )
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        raise refuse(label, f"is damaged ({error})", "Pack the pictures again.") from error
    except (NotImplementedError, RuntimeError, MemoryError) as error:
        raise refuse(
            label, f"cannot be unpacked ({error})", "Pack the pictures as an ordinary .zip."
        ) from error
    except Exception as error:
        if type(error).__name__ != "error":  # zlib.error has no public base class besides Exception
            raise
        raise refuse(label, f"is damaged ({error})", "Pack the pictures again.") from error


def refuse(label: str, why: str, remedy: str) -> Failure:
    """Return the refusal of an archive."""
    return Failure(FailureCode.ARCHIVE_REFUSED, f"The archive {label!r} {why}.", remedy)


@dataclass
class _Meter:
    """Counts what comes out of one archive and refuses beyond the limits."""

    label: str
    limits: ArchiveLimits
    packed: int
    members: int = 0
    out: int = 0

    def count_member(self) -> None:
        self.members += 1
        if self.members > self.limits.members:
            raise refuse(
                self.label, f"holds more than {self.limits.members:,} files", "Hand in the pictures only."
            )

    def count_bytes(self, number: int) -> None:
        self.out += number
        if self.out > self.limits.total_bytes:
            size = f"{self.limits.total_bytes // MB:,} MB"
            raise refuse(self.label, f"unpacks to more than {size} (a bomb?)", "Hand in fewer pictures.")
        if self.out > max(self.limits.ratio_from_bytes, self.packed * self.limits.ratio):
            ratio = f"{self.limits.ratio:g} times its size"
            raise refuse(
                self.label, f"unpacks to more than {ratio} (a bomb?)", "Pack the pictures as JPEG or PNG."
            )

    def too_large(self, name: str) -> Failure:
        size = f"{self.limits.member_bytes // MB} MB"
        return refuse(self.label, f"holds {name!r}, which is larger than {size} (a bomb?)", "Leave it out.")

    def check_name(self, name: str) -> str:
        """Return a member's name with `/`.

        Raises:
            Failure: When it would climb out of the folder it is unpacked to.
        """
        plain = name.replace("\\", "/")
        if plain.startswith("/") or re.match(r"^[A-Za-z]:", plain) or ".." in plain.split("/"):
            raise refuse(
                self.label, f"holds {name[:100]!r}, a name that leads out of its folder", "Pack it again."
            )
        if any(ord(character) < 32 for character in plain) or len(plain) > 1000:
            raise refuse(self.label, f"holds the malformed name {name[:100]!r}", "Rename the file.")
        return plain.removeprefix("./")

    def check_content(self, name: str, head: bytes) -> None:
        """Refuse archives in archives."""
        if archive_kind(head):
            raise refuse(
                self.label,
                f"holds another archive, {name!r}",
                "Put the pictures themselves into one archive.",
            )


def _read_zip(path: Path, meter: _Meter) -> Iterator[Member]:
    _count_entries(path, meter)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        for info in infos:  # refuse before anything is unpacked
            _check_entry(info, meter)
        if sum(info.file_size for info in infos) > meter.limits.total_bytes:
            meter.count_bytes(meter.limits.total_bytes + 1)
        for info in infos:
            name = meter.check_name(info.filename)
            if info.is_dir() or is_junk(name):
                continue
            with archive.open(info) as stream:
                data = _read_member(stream, name, meter, count=True)
            meter.check_content(name, data[:512])
            yield Member(name, data)


def _count_entries(path: Path, meter: _Meter) -> None:
    """Count the entries of the directory before `zipfile` makes an object of each."""
    found, tail = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(4 * MB):
            found += (tail + chunk).count(_ENTRY)
            tail = chunk[-3:]
            if found > meter.limits.members:
                meter.members = found
                meter.count_member()


def _check_entry(info: zipfile.ZipInfo, meter: _Meter) -> None:
    meter.count_member()
    name = meter.check_name(info.filename)
    mode = info.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise refuse(meter.label, f"holds the link {name!r}", "Put the file itself into the archive.")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refuse(meter.label, f"holds {name!r}, which is not a plain file", "Leave it out.")
    if info.flag_bits & 0x1:
        raise refuse(meter.label, "is encrypted", "Pack the pictures without a password.")
    if info.compress_type not in _PLAIN_METHODS:
        why = f"uses the compression method {info.compress_type}"
        raise refuse(meter.label, why, "Pack with ordinary zip compression (deflate).")
    if info.file_size > meter.limits.member_bytes:
        raise meter.too_large(name)


def _read_tar(path: Path, kind: str, meter: _Meter) -> Iterator[Member]:
    with (
        path.open("rb") as raw,
        _CountingReader(_unpacker(raw, kind, meter), meter) as stream,
        tarfile.open(fileobj=stream, mode="r|", errorlevel=1) as archive,  # type: ignore[call-overload]
    ):
        for info in archive:
            meter.count_member()
            name = meter.check_name(info.name)
            if info.isdir():
                continue
            if info.issym() or info.islnk():
                raise refuse(meter.label, f"holds the link {name!r}", "Put the file itself into the archive.")
            if not info.isreg() or info.issparse():
                raise refuse(meter.label, f"holds {name!r}, which is not a plain file", "Leave it out.")
            if info.size > meter.limits.member_bytes:
                raise meter.too_large(name)
            if is_junk(name):
                continue
            content = archive.extractfile(info)
            assert content is not None
            data = _read_member(content, name, meter, count=False)
            meter.check_content(name, data[:512])
            yield Member(name, data)


def _read_member(stream: IO[bytes], name: str, meter: _Meter, count: bool) -> bytes:
    """Read one member, believing no header; `count` is off where the stream below counts already."""
    kept = io.BytesIO()
    while chunk := stream.read(MB):
        if count:
            meter.count_bytes(len(chunk))
        if kept.tell() + len(chunk) > meter.limits.member_bytes:
            raise meter.too_large(name)
        kept.write(chunk)
    return kept.getvalue()


class _CountingReader:
    """A forward-only stream that counts into a meter, so that skipped members count too."""

    def __init__(self, stream: Any, meter: _Meter) -> None:
        self._stream = stream
        self._meter = meter

    def __enter__(self) -> _CountingReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        data = self._stream.read(size)
        self._meter.count_bytes(len(data))
        return data


def _unpacker(raw: IO[bytes], kind: str, meter: _Meter) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if kind == "bzip2":
        return bz2.BZ2File(raw)
    if kind == "xz":
        return _XzReader(raw, meter.limits.xz_memory_bytes)
    return raw


class _XzReader:
    """Unpacks xz with a memory limit, which `lzma.LZMAFile` does not take."""

    def __init__(self, raw: IO[bytes], memory: int) -> None:
        self._raw = raw
        self._xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory)

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; empty at the end of the first stream."""
        while not self._xz.eof:
            more = self._raw.read(256 * 1024) if self._xz.needs_input else b""
            if self._xz.needs_input and not more:
                raise EOFError("the file ends early")
            data = self._xz.decompress(more, max_length=size)
            if data:
                return data
        return b""

    def close(self) -> None:
        """Nothing to close: the raw file is its opener's."""

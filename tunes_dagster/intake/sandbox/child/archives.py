"""Unpacks zip and tar, member by member; nothing is ever written under a member's name.

Each refusal names what was found: names that climb out, links, devices, archives in archives, encryption, methods
that few need and that cost much, headers that are larger than anybody's, members that share their bytes, and bombs by
count, by total size, by member and by ratio. Sizes are counted as bytes come out, never believed from a header.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, Any

from tunes_dagster.core.failures import Failure, detail_of
from tunes_dagster.intake.archives import (
    MB,
    ArchiveLimits,
    archive_kind,
    check_name,
    is_junk,
    refuse,
)
from tunes_dagster.intake.names import from_bytes, shown
from tunes_dagster.intake.sandbox.child.tasks import Work

_METHODS = {
    1: "shrink",
    2: "reduce",
    3: "reduce",
    4: "reduce",
    5: "reduce",
    6: "implode",
    9: "deflate64",
    10: "PKWARE DCL",
    12: "bzip2",
    14: "LZMA",
    93: "Zstandard",
    94: "MP3",
    95: "xz",
    96: "JPEG",
    97: "WavPack",
    98: "PPMd",
    99: "AES",
}
_PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# The end record with the longest comment, and the records of zip64 before it.
_TAIL = 65_535 + 22 + 76
_ENTRY, _END, _END64 = b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06"
# Per member: 46 bytes, a name of 1000 characters, and what archivers add (times, owners).
_DIRECTORY_BYTES_PER_MEMBER = 4096
# A name and a few times; photographers' tools add a comment.
_TAR_HEADER_BYTES = 64 * 1024
_TAR_HEADERS_BYTES = 8 * MB
_HEADERS_PER_MEMBER = 4
_PIECE = MB
_UTF8 = 0x800
_NO_LINKS = "Put the file itself into the archive."
# What is said of a member that is passed over; see `collect`.
_ODD = "it is a link or another archive"

# Name, size, and why there is no content: what is wrong with it, or the refusal of an archive that holds nothing else.
_Member = tuple[str, int, "str | Failure"]


class _Odd(Exception):
    """A member that is passed over."""

    def __init__(self, refusal: Failure) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def unpack(work: Work) -> None:
    """Send each file of the archive: name and size, with its content in the output, until the parent goes on."""
    arguments = work.arguments
    limits = ArchiveLimits(**arguments["limits"])
    meter = _Meter(label=str(arguments["name"]), limits=limits, packed=int(arguments["size"]))
    whole, first = 0, None
    for name, size, fault in _members(work.file, meter, work.outputs[0]):
        if isinstance(fault, Failure):
            first, fault = first or fault, _ODD
        else:
            whole += 1
        work.say(member={"name": name, "size": size, "fault": fault})
        work.wait()
    if first is not None and not whole:
        raise first  # nothing but what is passed over: that is what is wrong with it


def _members(file: IO[bytes], meter: _Meter, out: IO[bytes]) -> Iterator[_Member]:
    kind = archive_kind(file.read(512))
    file.seek(0)
    try:
        if kind == "zip":
            yield from _read_zip(file, meter, out)
        elif kind in ("gzip", "bzip2", "xz", "tar"):
            yield from _read_tar(file, kind, meter, out)
        else:
            raise refuse(
                meter.label,
                f"is a {kind} archive" if kind else "is neither a zip nor a tar archive",
                "Pack the pictures as .zip or .tar.gz.",
            )
    except MemoryError:
        raise
    except (NotImplementedError, RuntimeError) as error:
        failure = refuse(meter.label, "cannot be unpacked", "Pack the pictures as an ordinary .zip.")
        failure.detail = detail_of(error)
        raise failure from error
    except Failure:
        raise
    except Exception as error:  # `zlib.error`, `struct.error`, `TarError`, `BadZipFile`, OSError …
        failure = refuse(meter.label, "is damaged", "Pack the pictures again.")
        failure.detail = detail_of(error)
        raise failure from error


@dataclass(kw_only=True)
class _Meter:
    """Counts what comes out of one archive and refuses beyond the limits."""

    label: str
    limits: ArchiveLimits
    packed: int
    members: int = 0
    headers: int = 0
    header_bytes: int = 0
    out: int = 0

    def count_member(self, number: int = 1) -> None:
        self.members += number
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

    def count_header(self, size: int) -> None:
        """Count a header that comes before a member: a long name, or a set of properties."""
        self.headers += 1
        self.header_bytes += size
        most = min(_TAR_HEADER_BYTES, self.limits.member_bytes)
        if size > most or self.header_bytes > _TAR_HEADERS_BYTES:
            found = max(size, 0)
            raise refuse(
                self.label,
                f"holds a header of {found:,} bytes; {most:,} are plenty"
                if size > most
                else f"holds more than {_TAR_HEADERS_BYTES // MB} MB of headers",
                "Pack the pictures again with an ordinary archiver.",
            )
        if self.headers > _HEADERS_PER_MEMBER * (self.members + 2):
            raise refuse(self.label, "holds header after header and no files", "Pack the pictures again.")

    def too_large(self, name: str) -> Failure:
        size = f"{self.limits.member_bytes // MB} MB"
        return refuse(self.label, f"holds {name!r}, which is larger than {size} (a bomb?)", "Leave it out.")

    def check_content(self, name: str, head: bytes) -> None:
        """Pass over archives in archives; a workbook is a zip, and opened as what it is."""
        if archive_kind(head) and not name.lower().endswith(".xlsx"):
            raise _Odd(
                refuse(
                    self.label,
                    f"holds another archive, {name!r}",
                    "Put the pictures themselves into one archive.",
                )
            )


def _read_zip(file: IO[bytes], meter: _Meter, out: IO[bytes]) -> Iterator[_Member]:
    _check_directory(file, meter)
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        for info in infos:  # refuse before anything is unpacked
            _check_entry(info, meter)
        _check_overlap(infos, archive.start_dir, meter)
        if sum(info.file_size for info in infos) > meter.limits.total_bytes:
            meter.count_bytes(meter.limits.total_bytes + 1)
        for info, name in zip(infos, _zip_names(infos), strict=True):
            if info.is_dir() or is_junk(name):
                continue
            name, size, fault = check_name(name, meter.label), 0, ""
            try:
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise _Odd(refuse(meter.label, f"holds the link {name!r}", _NO_LINKS))
                with archive.open(info) as stream:
                    size = _copy_member(stream, name, meter, out, count=True)
            except _Odd as odd:
                yield name, 0, odd.refusal
                continue
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                fault = str(error)[:200] or "it ends early"  # the others lie elsewhere in the file
            yield name, size, fault


def _zip_names(infos: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Return the members' names; without the flag that says UTF-8 they are bytes of any code page."""
    found = [_own_unicode(info) or info.filename for info in infos]
    bare = [i for i, info in enumerate(infos) if not info.flag_bits & _UTF8 and found[i] == info.filename]
    for i, name in zip(bare, from_bytes([_zip_bytes(infos[i]) for i in bare]), strict=True):
        found[i] = name
    return found


def _zip_bytes(info: zipfile.ZipInfo) -> bytes:
    try:
        return info.filename.encode("cp437")  # as which `zipfile` has read it
    except UnicodeEncodeError:
        return info.filename.encode()


def _own_unicode(info: zipfile.ZipInfo) -> str | None:
    """Return the name in a member's Unicode path field (Info-ZIP, 0x7075), when it is of this very name."""
    extra = info.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        theirs = kind == 0x7075 and len(field) > 5 and field[0] == 1
        if theirs and struct.unpack_from("<I", field, 1)[0] == zlib.crc32(_zip_bytes(info)):
            return field[5:].decode("utf-8", "replace")
    return None


def _check_directory(file: IO[bytes], meter: _Meter) -> None:
    """Look at the end record before `zipfile` reads the directory into memory and makes an object of each entry."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    last = len(tail) - 22
    # As `zipfile` looks for it: at the very end, else the last one that can be found.
    at = last if last >= 0 and tail[last : last + 4] == _END and tail.endswith(b"\0\0") else tail.rfind(_END)
    file.seek(0)
    if at < 0 or at > last:
        return  # `zipfile` will say that this is no archive
    entries, length = struct.unpack_from("<HI", tail, at + 10)
    if (entries == 0xFFFF or length == 0xFFFFFFFF) and (wide := tail.rfind(_END64)) >= 0:
        entries, length = struct.unpack_from("<QQ", tail, wide + 32)
    if length > min(size, meter.limits.members * _DIRECTORY_BYTES_PER_MEMBER):
        raise refuse(
            meter.label, f"has a directory of {length:,} bytes", "Pack the pictures again, without comments."
        )
    # The number may be a lie; the length is what the directory is found and read by.
    counted, before = 0, b""
    file.seek(max(0, size - len(tail) + at - length - _TAIL))
    while piece := file.read(_PIECE):
        counted += (before + piece).count(_ENTRY)
        before = piece[-3:]
    file.seek(0)
    meter.count_member(max(entries, counted))
    meter.members = 0


def _check_entry(info: zipfile.ZipInfo, meter: _Meter) -> None:
    meter.count_member()
    name = info.filename if is_junk(info.filename) else check_name(info.filename, meter.label)
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise refuse(meter.label, f"holds {name!r}, which is not a plain file", "Leave it out.")
    if info.flag_bits & 0x1:
        raise refuse(meter.label, "is encrypted", "Pack the pictures without a password.")
    if info.compress_type not in _PLAIN_METHODS:
        method = _METHODS.get(info.compress_type, "an unknown one")
        why = f"uses the compression method {info.compress_type} ({method})"
        raise refuse(meter.label, why, "Pack with ordinary zip compression (deflate).")
    if info.file_size > meter.limits.member_bytes:
        raise meter.too_large(name)


def _check_overlap(infos: Sequence[zipfile.ZipInfo], end: int, meter: _Meter) -> None:
    """Refuse members that share bytes of the file, by which a small archive unpacks to a large one many times."""
    placed = sorted(infos, key=lambda info: info.header_offset)
    for info, after in pairwise([*placed, None]):
        assert info is not None
        limit = end if after is None else after.header_offset
        if info.header_offset + 30 + info.compress_size > limit:
            raise refuse(
                meter.label,
                f"holds {info.filename[:100]!r}, which shares its bytes with another member",
                "Pack the pictures again with an ordinary archiver.",
            )


def _read_tar(file: IO[bytes], kind: str, meter: _Meter, out: IO[bytes]) -> Iterator[_Member]:
    with (
        _CountingReader(_unpacker(file, kind, meter), meter) as stream,
        tarfile.open(fileobj=stream, mode="r|", errorlevel=1, tarinfo=_counted(meter)) as archive,  # type: ignore[call-overload]
    ):
        for info in archive:
            meter.count_member()
            if info.isdir() or is_junk(info.name):
                continue
            name = check_name(shown(info.name), meter.label)
            if info.issym() or info.islnk():
                yield name, 0, refuse(meter.label, f"holds the link {name!r}", _NO_LINKS)
                continue
            if not info.isreg() or info.issparse():
                raise refuse(meter.label, f"holds {name!r}, which is not a plain file", "Leave it out.")
            if info.size > meter.limits.member_bytes:
                raise meter.too_large(name)
            content = archive.extractfile(info)
            assert content is not None
            try:
                yield name, _copy_member(content, name, meter, out, count=False), ""
            except _Odd as odd:
                yield name, 0, odd.refusal


def _counted(meter: _Meter) -> type[tarfile.TarInfo]:
    """Return the class of members whose headers are counted before they are read; see tarfile's `_proc_member`."""

    class Counted(tarfile.TarInfo):
        def _proc_member(self, archive: Any) -> Any:
            if self.type in (
                tarfile.XHDTYPE,
                tarfile.XGLTYPE,
                tarfile.SOLARIS_XHDTYPE,
                tarfile.GNUTYPE_LONGNAME,
                tarfile.GNUTYPE_LONGLINK,
            ):
                meter.count_header(self.size)
            if self.type == tarfile.GNUTYPE_SPARSE:
                name = self.name[:100]
                raise refuse(meter.label, f"holds {name!r}, which is not a plain file", "Leave it out.")
            return super()._proc_member(archive)  # type: ignore[misc]

    return Counted


def _copy_member(stream: IO[bytes], name: str, meter: _Meter, out: IO[bytes], count: bool) -> int:
    """Copy one member to the output, believing no header; `count` is off where the stream below counts already."""
    out.seek(0)
    out.truncate()
    size = 0
    while chunk := stream.read(_PIECE):
        if count:
            meter.count_bytes(len(chunk))
        if not size:
            meter.check_content(name, chunk[:512])
        size += len(chunk)
        if size > meter.limits.member_bytes:
            raise meter.too_large(name)
        out.write(chunk)
    out.flush()
    return size


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
        data: bytes = self._stream.read(size)
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

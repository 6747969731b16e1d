from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.intake.conftest import png
from tests.support.hostile_archives import zipped
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.intake.archives import ArchiveLimits, archive_kind, read_archive

FILES = {"a.png": png(1), "folder/b.png": png(2), "folder/b.txt": b"a caption"}
SMALL = ArchiveLimits(
    members=20, total_bytes=2_000_000, member_bytes=1_000_000, ratio=50, ratio_from_bytes=200_000
)


def tarred(files: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return buffer.getvalue()


def read(data: bytes, tmp_path: Path, limits: ArchiveLimits | None = None) -> dict[str, bytes]:
    path = tmp_path / "archive"
    path.write_bytes(data)
    return {member.name: member.data for member in read_archive(path, limits, "pictures.zip")}


def refused(data: bytes, tmp_path: Path, limits: ArchiveLimits | None = None) -> str:
    with pytest.raises(Failure) as caught:
        read(data, tmp_path, limits)
    assert caught.value.code == FailureCode.ARCHIVE_REFUSED
    assert caught.value.remedy
    assert "pictures.zip" in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    "pack",
    [
        zipped,
        lambda f: zipped(f, zipfile.ZIP_STORED),
        tarred,
        lambda f: gzip.compress(tarred(f)),
        lambda f: bz2.compress(tarred(f)),
        lambda f: lzma.compress(tarred(f)),
    ],
    ids=["zip", "stored", "tar", "tar.gz", "tar.bz2", "tar.xz"],
)
def test_every_kind_gives_its_files(pack: Callable[[dict[str, bytes]], bytes], tmp_path: Path) -> None:
    junk = {"__MACOSX/._a.png": b"x", ".DS_Store": b"x", "folder/Thumbs.db": b"x"}
    assert read(pack({**FILES, **junk}), tmp_path) == FILES


@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "a/../../b.png", "C:\\evil.png", "..\\evil.png"]
)
def test_names_that_lead_out(name: str, tmp_path: Path) -> None:
    for pack in (zipped, tarred):
        assert "leads out of its folder" in refused(pack({**FILES, name: b"x"}), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive"]


def test_links_and_devices(tmp_path: Path) -> None:
    for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "a.png")):
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = kind, target
        assert "link 'link.png'" in refused(tarred({}, link), tmp_path)
        (tmp_path / "beside.tar").write_bytes(tarred(FILES, link))
        found = list(read_archive(tmp_path / "beside.tar"))
        assert [member.data for member in found if member.name == "link.png"] == [b""]
        assert {member.name: member.data for member in found if not member.fault} == FILES
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
        device = tarfile.TarInfo("device.png")
        device.type = kind
        assert "not a plain file" in refused(tarred(FILES, device), tmp_path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert "link 'link.png'" in refused(buffer.getvalue(), tmp_path)


@pytest.mark.parametrize(
    "inner",
    [zipped(FILES), gzip.compress(b"x"), tarred(FILES), b"7z\xbc\xaf\x27\x1c..."],
    ids=["zip", "gzip", "tar", "7z"],  # archives hold the time, and workers have to agree on names
)
def test_archives_in_archives(inner: bytes, tmp_path: Path) -> None:
    for pack in (zipped, tarred):
        assert "holds another archive, 'photos.jpg'" in refused(pack({"photos.jpg": inner}), tmp_path)


def test_a_link_or_an_archive_beside_pictures_costs_itself_alone(tmp_path: Path) -> None:
    inner = zipped({"x.png": FILES["a.png"]})
    linked = tarfile.TarInfo("link.png")
    linked.type, linked.linkname = tarfile.SYMTYPE, "a.png"
    data = tarred({"a.png": FILES["a.png"], "notes.docx": inner, "captions.xlsx": inner}, linked)
    file = tmp_path / "x.tar"
    file.write_bytes(data)
    found = {member.name: (bool(member.data), member.fault) for member in read_archive(file)}
    odd = (False, "it is a link or another archive")
    assert found == {"a.png": (True, ""), "notes.docx": odd, "captions.xlsx": (True, ""), "link.png": odd}


def test_encrypted(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.png": FILES["a.png"]}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refused(bytes(data), tmp_path)


def test_unusual_compression_is_refused_by_its_name(tmp_path: Path) -> None:
    assert "compression method 14 (LZMA)" in refused(zipped(FILES, zipfile.ZIP_LZMA), tmp_path)
    assert "compression method 12 (bzip2)" in refused(zipped(FILES, zipfile.ZIP_BZIP2), tmp_path)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({f"{n}.png": b"x" for n in range(30)}, "more than 20 files"),
        ({"a.png": bytes(1_500_000)}, "'a.png', which is larger than"),
        ({f"{n}.png": bytes(900_000) for n in range(3)}, "a bomb"),
        ({"a.png": bytes(900_000)}, "50 times its size"),
        ({f"{n}.png": os.urandom(500_000) for n in range(5)}, "unpacks to more than"),
    ],
    ids=["count", "member", "total", "ratio", "total-random"],
)
def test_bombs(files: dict[str, bytes], why: str, tmp_path: Path) -> None:
    assert why in refused(zipped(files), tmp_path, SMALL)
    assert why in refused(gzip.compress(tarred(files), 1), tmp_path, SMALL)


def test_a_header_that_lies_about_the_size(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.png": bytes(5_000_000)}))
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 1000)
    path = tmp_path / "lies.zip"
    path.write_bytes(data)
    (member,) = read_archive(path, SMALL)  # by zipfile's own check, never read whole
    assert (member.data, "CRC" in member.fault) == (b"", True)


def test_overlapping_members_count_each_time(tmp_path: Path) -> None:
    """The quoted-overlap bomb of David Fifield: many directory entries over one compressed member."""
    plain = zipped({"a.png": os.urandom(100) + bytes(700_000)})
    start, end = plain.index(b"PK\x01\x02"), plain.index(b"PK\x05\x06")
    entry, tail = plain[start:end], bytearray(plain[end:])
    copies = 10
    tail[8:12] = struct.pack("<HH", copies, copies)
    tail[12:16] = struct.pack("<I", len(entry) * copies)
    refused(plain[:start] + entry * copies + bytes(tail), tmp_path, SMALL)


def test_a_huge_directory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Its end record says that there is one entry."""
    plain = zipped({"a.png": b"x"})
    start, end = plain.index(b"PK\x01\x02"), plain.index(b"PK\x05\x06")
    entry, tail = plain[start:end], bytearray(plain[end:])
    tail[12:16] = struct.pack("<I", len(entry) * 1000)
    assert "more than 20 files" in refused(plain[:start] + entry * 1000 + bytes(tail), tmp_path, SMALL)


def test_tar_padding_counts(tmp_path: Path) -> None:
    """A skipped member must not unpack for free."""
    data = lzma.compress(tarred({"__MACOSX/._a": bytes(900_000), "b/.DS_Store": bytes(900_000)}))
    refused(data, tmp_path, SMALL)


def test_an_xz_that_wants_too_much_memory(tmp_path: Path) -> None:
    data = lzma.compress(tarred(FILES), preset=9)
    with pytest.raises(Failure, match="is damaged") as caught:
        read(data, tmp_path, ArchiveLimits(xz_memory_bytes=1_000_000))
    assert "Memory" in caught.value.detail


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"Rar!\x1a\x07", "a rar archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"hello", "neither a zip nor a tar"),
        (b"", "neither"),
        (gzip.compress(b"hello"), "damaged"),
        (zipped(FILES)[:-30], "damaged"),
        (gzip.compress(tarred(FILES))[:-40], "damaged"),
        (lzma.compress(tarred(FILES))[:-300], "damaged"),
    ],
    ids=["rar", "7z", "words", "nothing", "gzip of words", "cut zip", "cut gzip", "cut xz"],
)
def test_what_is_no_readable_archive(data: bytes, why: str, tmp_path: Path) -> None:
    assert why in refused(data, tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_and_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(
        data.draw(st.sampled_from([zipped(FILES), tarred(FILES), gzip.compress(tarred(FILES))]))
    )
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(whole), tmp_path, SMALL)
    except Failure as failure:
        assert failure.code == FailureCode.ARCHIVE_REFUSED


def test_kinds_are_told_by_content() -> None:
    assert archive_kind(zipped(FILES)) == "zip"
    assert archive_kind(tarred(FILES)[:512]) == "tar"
    assert archive_kind(png(1)) is None

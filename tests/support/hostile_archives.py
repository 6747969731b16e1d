"""Small archives and workbooks that cost whoever opens them much, one function each; see `hostile_pictures.py`."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def zip_bzip2() -> bytes:
    return zipped({"a.png": bytes(50_000_000)}, zipfile.ZIP_BZIP2)


def zip_lzma() -> bytes:
    return zipped({"a.png": bytes(50_000_000)}, zipfile.ZIP_LZMA)


def zip_deflate64() -> bytes:
    data = bytearray(zipped({"a.png": bytes(1000)}))
    for at in (8, data.index(b"PK\1\2") + 10):
        data[at : at + 2] = struct.pack("<H", 9)
    return bytes(data)


def zip_overlapping() -> bytes:
    """One member of 100 MB in 5,000 entries of the directory."""
    plain = zipped({"a.png": bytes(100_000_000)})
    start, end = plain.index(b"PK\1\2"), plain.index(b"PK\5\6")
    entry, tail = plain[start:end], bytearray(plain[end:])
    tail[8:12] = struct.pack("<HH", 5_000, 5_000)
    tail[12:16] = struct.pack("<I", len(entry) * 5_000)
    return plain[:start] + entry * 5_000 + bytes(tail)


def zip_directory_that_lies() -> bytes:
    """One entry by the end record, 200,000 by the directory."""
    plain = zipped({"a.png": b"x"})
    start, end = plain.index(b"PK\1\2"), plain.index(b"PK\5\6")
    entry, tail = plain[start:end], bytearray(plain[end:])
    tail[12:16] = struct.pack("<I", len(entry) * 50_000)
    return plain[:start] + entry * 50_000 + bytes(tail)


def zip_of_flat_bytes() -> bytes:
    return zipped({f"{n}.bmp": bytes(120_000_000) for n in range(2)})


def zip_in_zip() -> bytes:
    return zipped({"photo.jpg": zipped({"photo.jpg": zipped({"a.png": bytes(9)})})})


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    for info, data in members:
        info.size = len(data) if not info.size else info.size
        buffer.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    return buffer.getvalue() + bytes(1024)


def _member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info


def tar_pax_header() -> bytes:
    return gzip.compress(
        _tar((_member("pax", tarfile.XHDTYPE), b"300000000 comment=" + b"a" * 30_000_000)), 1
    )


def tar_long_name() -> bytes:
    return gzip.compress(_tar((_member("././@LongLink", tarfile.GNUTYPE_LONGNAME), b"a" * 30_000_000)), 1)


def tar_header_after_header() -> bytes:
    one = (_member("pax", tarfile.XHDTYPE), b"12 path=abc\n")
    return gzip.compress(_tar(*[one] * 20_000))


def tar_sparse() -> bytes:
    return gzip.compress(_tar((_member("a.png", tarfile.GNUTYPE_SPARSE), bytes(512))))


def tar_bzip2_of_nothing() -> bytes:
    return bz2.compress(_tar((_member("a.png"), bytes(70_000_000))))


def tar_xz_of_nothing() -> bytes:
    return lzma.compress(_tar((_member("a.bmp"), bytes(100_000_000))), preset=1)


def tar_xz_with_a_dictionary() -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    return lzma.compress(_tar((_member("a.png"), bytes(9))), filters=filters)


def tar_gzip_members() -> bytes:
    return gzip.compress(b"") * 150_000


def tar_of_folders() -> bytes:
    return gzip.compress(_tar(*[(_member("a", tarfile.DIRTYPE), b"")] * 20_000))


ARCHIVES: dict[str, Callable[[], bytes]] = {
    f"{made.__name__}.{'zip' if made.__name__.startswith('zip') else 'tar'}": made
    for made in (
        zip_bzip2,
        zip_lzma,
        zip_deflate64,
        zip_overlapping,
        zip_directory_that_lies,
        zip_of_flat_bytes,
        zip_in_zip,
        tar_pax_header,
        tar_long_name,
        tar_header_after_header,
        tar_sparse,
        tar_bzip2_of_nothing,
        tar_xz_of_nothing,
        tar_xz_with_a_dictionary,
        tar_gzip_members,
        tar_of_folders,
    )
}


def _xlsx(sheet: str, strings: str = "") -> bytes:
    """A workbook of one sheet."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="xml" '
        f'ContentType="{kind}.sheet.main+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
        f'<Override PartName="/xl/s.xml" ContentType="{kind}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
        f'<sheet name="S" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/worksheet" Target="s.xml"/></Relationships>',
        "xl/s.xml": strings + f'<worksheet xmlns="{main}">{sheet}</worksheet>',
    }
    return zipped({name: text.encode() for name, text in files.items()})


def xlsx_entities() -> bytes:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    document = f'<!DOCTYPE w [<!ENTITY e0 "ha">{levels}]>'
    return _xlsx('<sheetData><row r="1"><c t="str"><v>&e11;</v></c></row></sheetData>', document)


def xlsx_that_is_wide() -> bytes:
    row = '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
    return _xlsx(f'<dimension ref="A1:XFD1048576"/><sheetData>{row}</sheetData>')


def xlsx_of_spaces() -> bytes:
    return _xlsx("<sheetData>" + " " * 90_000_000 + "</sheetData>")


WORKBOOKS: dict[str, Callable[[], bytes]] = {
    f"{made.__name__}.xlsx": made for made in (xlsx_entities, xlsx_that_is_wide, xlsx_of_spaces)
}

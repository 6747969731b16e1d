"""Reads a workbook's sheet: a zip of XML, so as hostile as any archive.

Rows go to the output as lines of JSON, cells as what was calculated last.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from typing import IO, Any

from tunes_dagster.intake.sandbox.child.tasks import Work

# Sheets of the largest campaigns have 30 MB; what is packed tighter than this is no writing.
_PART_BYTES = 256 * 1024 * 1024
_RATIO = 200
_RATIO_FROM = 16 * 1024 * 1024
_PARTS = 5_000
_COLUMNS = 500


class _Refused(Exception):
    """A workbook that is not opened; says why."""


def read_workbook(work: Work) -> None:
    """Say the names of the sheets, then write the rows of the one that is wanted."""
    from openpyxl import load_workbook

    arguments = work.arguments
    try:
        _check_parts(work.file, int(arguments["size"]))
        book = load_workbook(work.file, read_only=True, data_only=True)
    except _Refused as refused:
        work.say(unreadable=str(refused))
        return
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        said = "it is damaged, or another kind of file"
        work.say(unreadable=said, detail=f"{type(error).__name__}: {error}"[:300])
        return
    wanted = arguments["sheet"]
    work.say(sheets=[name[:200] for name in book.sheetnames[:100]])
    if wanted is not None and wanted not in book.sheetnames:
        return
    sheet = book[wanted] if wanted is not None else book.worksheets[0]
    rows = 0
    for row in sheet.iter_rows(values_only=True, max_row=int(arguments["rows"]), max_col=_COLUMNS):
        work.outputs[0].write(_line(row))
        rows += 1
    work.outputs[0].flush()
    work.say(rows=rows)


def _line(row: Sequence[Any]) -> bytes:
    """Return a row as a line; rows that are not there come as empty ones of full width, and by the hundred thousand."""
    if row.count(None) == len(row):
        return b"[]\n"
    cells = [_plain(cell) for cell in row]
    while cells and cells[-1] is None:
        cells.pop()
    return json.dumps(cells, separators=(",", ":")).encode() + b"\n"


def _check_parts(file: IO[bytes], size: int) -> None:
    """Refuse a workbook by what its directory says, before XML is read.

    Raises:
        _Refused: Saying why.
    """
    with zipfile.ZipFile(file) as parts:
        infos = parts.infolist()
    if len(infos) > _PARTS:
        raise _Refused(f"it has {len(infos):,} parts")
    for info in infos:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Refused(f"it uses the compression method {info.compress_type}")
    total = sum(info.file_size for info in infos)
    if total > _PART_BYTES or total > max(_RATIO_FROM, size * _RATIO):
        raise _Refused(f"it unpacks to {total / 1e6:,.0f} MB (a bomb?)")
    file.seek(0)


def _plain(value: Any) -> Any:
    """Return a cell as JSON can hold it."""
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)

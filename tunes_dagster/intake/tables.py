"""Tables of text as people and spreadsheets write them: delimiters, line ends, quoting, a header or none.

Every row is held against the header. One that does not fit costs itself only, and its line is told.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunes_dagster.core.failures import Failure
from tunes_dagster.intake.pictures import SUFFIXES
from tunes_dagster.intake.workbooks import read_workbook

_DELIMITERS = ",;\t|"
_ENDS = re.compile(r"\r\n|\r|\n")
# Longer ones are no captions. A quotation mark that is not closed within so many lines is none that opens.
_LONGEST_ROW = 100_000
_LINES_OF_A_CELL = 50
_ROWS = 50_000
_SCORED_LINES = 200
# A header stands among so many first rows.
_ABOVE = 5

Columns = Sequence[Sequence[str]]


@dataclass
class Table:
    """What a table says.

    Attributes:
        rows: Line and, in the order of the columns that were asked for, the cells.
        faults: What could not be read, in sentences with the line.
        found: Whether it has the columns that were asked for.
        gaps: Whether the last of them may be empty.
    """

    rows: list[tuple[int, list[str]]] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)
    found: bool = True
    gaps: bool = False


@dataclass
class _Line:
    number: int
    cells: list[str]
    raw: str = ""


def read_table(text: str, columns: Columns, headless: bool = True, gaps: bool = False) -> Table:
    """Return a table's rows.

    Args:
        text: CSV, or what spreadsheets call so.
        columns: Each by the names it goes by; the last one is the one that people write sentences into.
        headless: Whether two columns without a header are taken as those that are asked for.
        gaps: Whether the last column may be empty.
    """
    table = Table(gaps=gaps)
    lines = _ENDS.split(text)
    start, delimiter = 0, ""
    while start < len(lines) and not lines[start].strip():
        start += 1
    if start < len(lines) and (said := re.fullmatch(r'"?sep=(.)"?', lines[start].strip("\ufeff "), re.I)):
        start, delimiter = start + 1, said[1]  # Excel's own word about what follows
    if lines[start : start + 1] and lines[start].lstrip()[:1] == "<":
        table.faults.append((start + 1, "this is a web page and no table: download it as CSV"))
        return table
    delimiter = delimiter or _delimiter(lines[start : start + _SCORED_LINES], columns)
    _take(table, list(_records(lines, start, delimiter, table)), columns, delimiter, headless)
    return table


def read_sheet(data: bytes, columns: Columns, headless: bool = True, gaps: bool = False) -> Table:
    """Return the rows of a workbook's first sheet, as `read_table`; one that cannot be read is a fault."""
    table = Table(gaps=gaps)
    try:
        rows = read_workbook(data, None, _ROWS)[1]
    except Failure as failure:
        table.faults.append((1, f"{failure.message} {failure.remedy}"))
        return table
    lines = [_Line(n, ["" if c is None else str(c) for c in row]) for n, row in enumerate(rows, 1)]
    _take(table, [line for line in lines if any(c.strip() for c in line.cells)], columns, "", headless)
    return table


def _delimiter(lines: Sequence[str], columns: Columns) -> str:
    """Return the delimiter under which the header is one, else by which most rows begin with a picture's name."""
    first = lines[0] if lines else ""
    for delimiter in _DELIMITERS:
        if _places(_cells(first, delimiter), columns) is not None:
            return delimiter
    named = {d: sum(_named(line.split(d)) for line in lines) for d in _DELIMITERS}
    return max(_DELIMITERS, key=lambda d: (named[d], first.count(d)))


def _named(cells: Sequence[str]) -> bool:
    return len(cells) > 1 and _is_picture(cells[0])


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []


def _records(lines: list[str], start: int, delimiter: str, table: Table) -> Iterator[_Line]:
    """Yield the rows, each with its first line; one whose quoting does not hold is a fault and ends with its line."""
    at = start
    while at < len(lines):
        number, raw = at + 1, lines[at]
        at += 1
        if not raw.strip():
            continue
        if len(raw) > _LONGEST_ROW:
            table.faults.append((number, f"it has {len(raw):,} characters; {_LONGEST_ROW:,} are plenty"))
            continue
        taken = _record(lines[number - 1 : number - 1 + _LINES_OF_A_CELL], delimiter)
        if taken is None:
            table.faults.append(
                (number, 'its quotation marks do not match: write those inside of a cell twice ("")')
            )
            continue
        cells, used = taken
        yield _Line(number, cells, raw if used == 1 else "")
        at = number - 1 + used


def _record(lines: Sequence[str], delimiter: str) -> tuple[list[str], int] | None:
    """Return the cells of the row that begins here and how many lines it has, or None."""
    ways: list[dict[str, Any]] = [{}]
    if '\\"' in lines[0]:
        ways.append({"escapechar": "\\", "doublequote": False})
    for way in ways:
        reader = csv.reader(
            (line + "\n" for line in lines), delimiter=delimiter, strict=True, skipinitialspace=True, **way
        )
        try:
            return next(reader), reader.line_num
        except (csv.Error, StopIteration):
            continue
    return None


def _places(cells: Sequence[str], columns: Columns) -> list[int] | None:
    """Return where the columns are by a header, or None when this is none."""
    header = ["_".join(cell.strip().strip("\ufeff").lower().split()) for cell in cells]
    found = [next((header.index(name) for name in names if name in header), None) for names in columns]
    return None if None in found else [place for place in found if place is not None]


def _take(table: Table, lines: list[_Line], columns: Columns, delimiter: str, headless: bool) -> None:
    lines = _from_header(lines, columns, table)
    if not lines:
        return
    places, width = _places(lines[0].cells, columns), len(lines[0].cells)
    if places is not None:
        while width > max(places) + 1 and not lines[0].cells[width - 1].strip():
            width -= 1
        lines = lines[1:]
    elif headless and not _half_a_header(lines[0], columns):
        places, width = _guessed(lines, columns)
    else:
        names = " and ".join(f"one of {', '.join(group)}" for group in columns)
        table.faults.append((lines[0].number, f"the header lacks columns; it needs {names}"))
        table.found = False
        return
    for line in lines:
        if not any(cell.strip() for cell in line.cells):
            continue  # spreadsheets save empty rows as delimiters
        cells = _fitted(line, width, places, delimiter, table)
        if cells is not None:
            table.rows.append((line.number, cells))


def _from_header(lines: list[_Line], columns: Columns, table: Table) -> list[_Line]:
    """Return the rows from the header on; a title or a comment may stand above it."""
    for at, line in enumerate(lines[:_ABOVE]):
        if _named(line.cells):
            break
        if at and _places(line.cells, columns) is not None:
            table.faults += [
                (above.number, "it stands above the header and is no row") for above in lines[:at]
            ]
            return lines[at:]
    return lines


def _guessed(lines: Sequence[_Line], columns: Columns) -> tuple[list[int], int]:
    """Return where the columns are without a header, and how many there are; pictures are known by their names."""
    width = len(lines[0].cells)
    if len(columns) == 2 and width > 2 and not any(_named(line.cells) for line in lines):
        counts = [
            sum(_is_picture(line.cells[at]) for line in lines if at < len(line.cells)) for at in range(width)
        ]
        at = max(range(width), key=lambda one: counts[one])
        if counts[at] and at + 1 < width:
            return [at, at + 1], width
    return list(range(len(columns))), len(columns)


def _is_picture(cell: str) -> bool:
    return cell.strip(' "').lower().endswith(tuple(SUFFIXES))


def _half_a_header(line: _Line, columns: Columns) -> bool:
    """Whether a first row holds the name of a column, and so is no row of two columns without a header."""
    if _named(line.cells):
        return False
    header = {cell.strip().lower() for cell in line.cells}
    return any(header & set(names) for names in columns)


def _fitted(line: _Line, width: int, places: Sequence[int], delimiter: str, table: Table) -> list[str] | None:
    """Return a row's cells when it fits the header, else note why not."""
    cells = list(line.cells)
    while len(cells) > width and not cells[-1].strip():
        cells.pop()
    if len(cells) > width:
        if places[-1] != width - 1 or '"' in line.raw or not line.raw:
            table.faults.append(
                (
                    line.number,
                    f"it has {len(cells)} cells and the header {width}: put texts with commas into quotation marks",
                )
            )
            return None
        # Everything after the other columns is the sentence, whose commas nobody quoted.
        cells = line.raw.split(delimiter, width - 1)
    wanted = [_plain_cell(cells[place]) if place < len(cells) else "" for place in places]
    if not all(wanted[:-1]):
        table.faults.append((line.number, "it lacks a cell"))
        return None
    if not wanted[-1] and not table.gaps:
        table.faults.append((line.number, "it has no caption"))
        return None
    return wanted


def _plain_cell(cell: str) -> str:
    """Return a cell without the formula that keeps a spreadsheet from changing it (`="0012"`)."""
    formula = re.fullmatch(r'\s*="([^"]*)"\s*', cell)
    return (formula[1] if formula else cell).strip()


def read_json(text: str) -> tuple[list[tuple[int, Any]], list[tuple[int, str]]]:
    """Return the rows of JSON Lines, or of one JSON array under that name, with lines (of an array: its number)."""
    faults: list[tuple[int, str]] = []
    rows: list[tuple[int, Any]] = []
    if text.lstrip("\ufeff \t\r\n")[:1] == "[":
        whole = parse_json(text.lstrip("\ufeff"))
        if isinstance(whole, list):
            return list(enumerate(whole, 1)), []
    if (spread := _objects(text)) is not None:
        return spread, []
    # Only these end a line: U+2028, U+0085 and the like stand inside strings.
    for number, line in enumerate(_ENDS.split(text), 1):
        plain = line.strip().strip("\ufeff").rstrip(",")
        if plain in ("", "[", "]"):
            continue  # an array whose commas do not fit is read line by line
        row = parse_json(plain)
        if row is None:
            faults.append((number, "it is not JSON"))
        else:
            rows.append((number, row))
    return rows, faults


def _objects(text: str) -> list[tuple[int, Any]] | None:
    """Return JSON objects that go over several lines, one after the other; None when this is another thing."""
    text = text.strip().lstrip("\ufeff")
    if not text.startswith("{") or parse_json(_ENDS.split(text, maxsplit=1)[0].rstrip(",")) is not None:
        return None
    decoder, at = json.JSONDecoder(strict=False), 0
    rows: list[tuple[int, Any]] = []
    try:
        while at < len(text):
            row, end = decoder.raw_decode(text, at)
            rows.append((len(rows) + 1, row))
            at = end + len(text[end:]) - len(text[end:].lstrip(" \t\r\n,"))
    except (ValueError, RecursionError):
        return None
    return rows


def parse_json(text: str) -> Any:
    """Return what JSON says, None when it is none."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None

"""The table of prompts: CSV, TSV or XLSX as spreadsheets export them, or rows inside the YAML.

Forgiving about form (delimiter, encoding, a title above the header, empty rows and columns), strict about
content: a column that nothing knows and no text uses is a mistake, because it was meant to do something.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tunes_dagster.campaigns.files import CampaignFile, Parsed, Source, table_name
from tunes_dagster.campaigns.problems import Mistake
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import RenderSettings

log = logging.getLogger("tunes.campaigns")

MAX_ROWS = 100_000
MAX_BYTES = 64 * 1024 * 1024

# What people call the columns, in the spelling of `spelled`.
COLUMNS = {
    "text": "text",
    "prompt": "text",
    "prompts": "text",
    "prompt_text": "text",
    "tune": "tunes",
    "tunes": "tunes",
    "model": "tunes",
    "subject": "tunes",
    "size": "sizes",
    "sizes": "sizes",
    "seed": "seeds",
    "seeds": "seeds",
    "images": "num_images",
    "pictures": "num_images",
    "number": "num_images",
    "num_images": "num_images",
    "negative": "negative_prompt",
    "guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "sampler": "scheduler",
    "base": "base",
    "label": "label",
    "name": "label",
}
_FORMULA_FAILED = re.compile(r"^#(REF!|N/A|NAME\?|VALUE!|DIV/0!|NULL!|NUM!|ERROR!|SPILL!)$")
SETTINGS = frozenset(RenderSettings.model_fields) - {"seed"}
KNOWN = frozenset(COLUMNS.values()) | SETTINGS


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        line: Where it stands: line of a text file, row of a sheet.
        cells: Column → what is written there; empty cells are left out.
    """

    line: int
    cells: dict[str, str]


@dataclass
class Table:
    """A table that was read.

    Attributes:
        label: What it is called in messages.
        columns: Its columns in order, known ones by their own names.
        rows: Rows with something in them.
        header: Line of the header.
        problems: What is wrong with it as a table.
    """

    label: str
    columns: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    header: int = 1
    problems: list[Mistake] = field(default_factory=list)


def read_table(source: Source, parsed: Parsed) -> Table:
    """Read the table that a campaign names, or its own rows; never raises for what a person wrote."""
    assert parsed.file is not None
    name = table_name(parsed.file)
    if name is None:
        return _own_rows(source, parsed, parsed.file)
    line = parsed.line("prompts")
    try:
        data = source.tables.get(name)
        if data is None:
            data = source.tables[name] = source.read(name)
    except FileNotFoundError:
        remedy = "Put it into the same folder, or correct the name."
        if "://" in str(parsed.file.prompts):
            remedy = "Download it as CSV or XLSX, put it beside this file, and write its name."
        return Table(
            name,
            problems=[Mistake(source.label, line, f"There is no table {name} beside this file.", remedy)],
        )
    except (OSError, ValueError):
        log.warning("The table %s cannot be read.", name, exc_info=True)
        return Table(name, problems=[Mistake(source.label, line, f"The table {name} cannot be read.")])
    if len(data) > MAX_BYTES:
        return Table(
            name, problems=[Mistake(name, 0, "The table is larger than 64 MB.", "Split the campaign.")]
        )
    if PurePosixPath(name).suffix.lower() in (".xlsx", ".xlsm"):
        return _from_grid(name, *_grid_of_workbook(name, data, parsed.file.sheet))
    return _from_grid(name, *_grid_of_text(name, data))


def _own_rows(source: Source, parsed: Parsed, file: CampaignFile) -> Table:
    table = Table(source.label, header=parsed.line("prompts"))
    for index, row in enumerate(file.prompts):
        assert isinstance(row, dict)
        said = {_column(str(name)): _own_cell(str(name), value) for name, value in row.items()}
        table.columns += [name for name in said if name not in table.columns]
        cells = {name: value for name, value in said.items() if value is not None}
        if any(cells.values()):
            table.rows.append(Row(parsed.line(f"prompts.{index}"), cells))
    if not table.rows:
        table.problems.append(Mistake(source.label, table.header, "There are no prompts.", "Write some."))
    return table


def _own_cell(name: str, value: Any) -> str | None:
    """Return a value of the YAML's own rows as a cell; None when nothing was said.

    An empty text is said on purpose there: it takes the place of the campaign's setting or variable, and no tunes are
    the plain base. In a table an empty cell says nothing.
    """
    column = _column(name)
    if value is None:
        return None
    if value == [] and column == "tunes":
        return "none"
    cell = _cell(value)
    return cell if cell or column in SETTINGS or column not in KNOWN else None


def _cell(value: Any) -> str:
    """Return a value as it would stand in a cell: lists as `a; b`, whole numbers without `.0`."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "; ".join(_cell(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _grid_of_text(name: str, data: bytes) -> tuple[list[tuple[int, list[str]]], list[Mistake]]:
    """Return the rows of a CSV or TSV file with their first lines."""
    from tunes_dagster.intake.sidecars import decode_text

    text = decode_text(data)
    if text.lstrip()[:1] == "<":
        remedy = "In Google Sheets: File > Download > Comma-separated values; put that file here."
        return [], [Mistake(name, 1, "This is a web page and no table.", remedy)]
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max("\t;,|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    grid: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for cells in reader:
            grid.append((line, [cell.strip() for cell in cells]))
            line = reader.line_num + 1
    except csv.Error:
        remedy = 'Put the whole cell into them, and write those inside twice: "a ""red"" coat".'
        return [], [Mistake(name, line, "The double quotes of this row do not match.", remedy)]
    return grid, []


def _grid_of_workbook(
    name: str, data: bytes, sheet: str | None
) -> tuple[list[tuple[int, list[str]]], list[Mistake]]:
    """Return the rows of a sheet with their numbers; a formula counts as what it last came to."""
    from tunes_dagster.intake.workbooks import read_workbook

    try:
        sheets, rows = read_workbook(data, sheet, MAX_ROWS + 50)
    except Failure as failure:
        if failure.code == FailureCode.STORE_UNAVAILABLE:
            raise
        return [], [Mistake(name, 0, failure.message, failure.remedy)]
    if sheet is not None and sheet not in sheets:
        return [], [
            Mistake(name, 0, f"There is no sheet {sheet!r}.", f"Its sheets are: {', '.join(sheets)}.")
        ]
    return [(number, [_cell(cell) for cell in row]) for number, row in enumerate(rows, start=1)], []


def _from_grid(name: str, grid: list[tuple[int, list[str]]], problems: list[Mistake]) -> Table:
    """Make a table of rows of cells: find the header, then check and name the columns."""
    table = Table(name, problems=problems)
    if problems:
        return table
    found = next((i for i, (_line, cells) in enumerate(grid[:20]) if _is_header(cells)), None)
    if found is None:
        table.problems.append(
            Mistake(
                name,
                grid[0][0] if grid else 0,
                "No column is called text (or prompt).",
                "The first row names the columns: text, tunes, sizes, seeds, and one per variable.",
            )
        )
        return table
    table.header, header = grid[found]
    names = [_column(cell) for cell in header]
    for column in {column for column in names if column and names.count(column) > 1}:
        table.problems.append(Mistake(name, table.header, f"Two columns are called {column}.", "Rename one."))
    table.columns = [column for column in names if column]
    for line, cells in grid[found + 1 :]:
        filled = {column: cell for column, cell in zip(names, cells, strict=False) if column and cell}
        if filled.get("text", "").startswith("#") and not _FORMULA_FAILED.match(filled["text"]):
            continue  # left out by whoever wrote it
        for column, cell in filled.items():
            if _FORMULA_FAILED.match(cell):
                table.problems.append(
                    Mistake(name, line, f"The formula in the column {column} came to {cell}.", "Correct it.")
                )
        stray = [
            cell for index, cell in enumerate(cells) if cell and (index >= len(names) or not names[index])
        ]
        if stray:
            table.problems.append(
                Mistake(
                    name,
                    line,
                    f"{stray[0][:60]!r} stands in a column without a name.",
                    "Name the column, or put text with the delimiter in it into double quotes.",
                )
            )
        if filled:
            table.rows.append(Row(line, filled))
    if len(table.rows) > MAX_ROWS:
        table.problems.append(Mistake(name, 0, f"It has more than {MAX_ROWS} rows.", "Split the campaign."))
    if not table.rows:
        table.problems.append(
            Mistake(name, table.header, "There are no rows below the header.", "Write some.")
        )
    return table


def _is_header(cells: list[str]) -> bool:
    return any(COLUMNS.get(spelled(cell)) == "text" for cell in cells)


def spelled(name: str) -> str:
    """Return the name of a column in one spelling: `Negative prompt` is `negative_prompt`."""
    return re.sub(r"[\s-]+", "_", name.strip().strip("{}").strip().lower())


def _column(name: str) -> str:
    word = spelled(name)
    return COLUMNS.get(word, word)

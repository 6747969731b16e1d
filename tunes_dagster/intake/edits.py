"""A caption table that was edited by hand, in an editor or a spreadsheet: taken whole, or refused by line."""

from __future__ import annotations

from collections.abc import Mapping

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.intake.names import Stage, loose, match, plain
from tunes_dagster.intake.sidecars import decode_text
from tunes_dagster.intake.tables import read_sheet, read_table

_NAMED = 8
"""So many of the lines that cannot be taken are told."""


def read_csv(data: bytes, names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return item hash → caption from a table as people save it: any encoding, delimiter or line ends, or XLSX.

    Args:
        data: The file.
        names: Hash → name of the items it is about; a row whose hash a spreadsheet made a number of goes by its name.

    Raises:
        Failure: `INVALID_REQUEST`, naming each line that cannot be taken; an edit is never passed over.
    """
    book = data.startswith(b"PK\x03\x04")
    text = "" if book else decode_text(data).replace("\x00", "")
    for columns in (("hash", "name", "caption"), ("hash", "caption"), ("name", "caption")):
        wanted = [(column,) for column in columns]
        if book:
            table = read_sheet(data, wanted, headless=False, gaps=True)
        else:
            table = read_table(text, wanted, headless=False, gaps=True)
        if table.found:
            break
    faults, found = list(table.faults), {}
    for line, cells in table.rows:
        said = dict(zip(columns, cells, strict=True))
        key = _row_meant(said, names)
        if key is None:
            faults.append((line, f"there is no picture {said.get('name') or said.get('hash')!r}"))
        elif said["caption"]:
            found[key] = said["caption"]
    if faults:
        listed = "; ".join(f"line {line}: {why}" for line, why in faults[:_NAMED])
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"captions.csv cannot be taken: {listed}.",
            "Mend these lines and save it as CSV with the columns it had, or delete it: what was there before stands.",
        )
    return found


def _row_meant(said: Mapping[str, str], names: Mapping[str, str] | None) -> str | None:
    """Return the hash of the row that a line is about, or None."""
    if names is None or said.get("hash") in names:
        return said.get("hash")
    stages = (Stage(plain, plain, plain), Stage(loose, loose, plain))
    found = match([said.get("name", "")], list(names.values()), stages).found
    return list(names)[next(iter(found))] if len(found) == 1 else None

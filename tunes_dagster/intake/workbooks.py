"""Workbooks (XLSX) as rows of plain values; a child process opens them, because each is a zip of XML."""

from __future__ import annotations

import json
from typing import Any

from tunes_dagster.core import extras
from tunes_dagster.core.failures import Failure, FailureCode

Cell = str | int | float | bool | None


def read_workbook(data: bytes, sheet: str | None, rows: int) -> tuple[list[str], list[list[Cell]]]:
    """Return the names of the sheets, and the rows of one of them.

    Args:
        data: The file.
        sheet: By name; None is the first one. Of a name that is not there come no rows.
        rows: At most.

    Raises:
        Failure: `INVALID_REQUEST`, saying why it cannot be read, or which package reads workbooks.
    """
    if not extras.has("openpyxl"):  # here, where the refusal can say so: a child is told nothing of extras
        raise extras.missing("openpyxl", "Reading an XLSX workbook", "save it as .csv")
    from tunes_dagster.intake.sandbox.limits import for_table
    from tunes_dagster.intake.sandbox.nursery import Gone
    from tunes_dagster.intake.sandbox.pool import get_pool, scratch

    def refuse(why: str, remedy: str) -> Failure:
        return Failure(
            FailureCode.INVALID_REQUEST,
            f"This is not an XLSX workbook that can be read: {why}.",
            remedy or "Save it as .xlsx or .csv.",
        )

    sheets: list[str] = []
    with scratch() as lines:
        try:
            with get_pool().task(
                "table", data, {"sheet": sheet, "rows": rows}, for_table, [lines], refuse
            ) as task:
                for message in task.messages():
                    if "unreadable" in message:
                        failure = refuse(str(message["unreadable"])[:300], "")
                        failure.detail = str(message.get("detail", ""))[:300]
                        raise failure
                    sheets += [str(name) for name in message.get("sheets", ())]
        except Gone:
            raise refuse("the process that opened it was killed, because memory ended", "") from None
        lines.seek(0)
        return sheets, [[_cell(cell) for cell in json.loads(line)] for line in lines]


def _cell(value: Any) -> Cell:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)

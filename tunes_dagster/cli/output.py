"""How commands speak: one console, complaints, tables, JSON, and times as people say them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import typer

from tunes_dagster import clock

if TYPE_CHECKING:
    from rich.console import Console

STATUS_STYLES = {
    "ready": "green",
    "done": "green",
    "delivered": "green",
    "failed": "red",
    "dead": "red",
    "blocked": "red",
    "cancelled": "yellow",
    "held": "yellow",
    "deleted": "dim",
    "training": "cyan",
    "rendering": "cyan",
}


@lru_cache(maxsize=2)
def _console(stderr: bool) -> Console:
    from rich.console import Console

    target = Console(stderr=stderr, highlight=False, soft_wrap=True)
    # Files and pipes have no width; tables there must not be cut to 80 columns.
    return (
        target if target.is_terminal else Console(stderr=stderr, highlight=False, soft_wrap=True, width=200)
    )


def console(stderr: bool = False) -> Console:
    """Return the console that everything is printed on."""
    return _console(stderr)


def say(text: str = "") -> None:
    """Print a line; rich's markup is understood."""
    console().print(text)


def escape(text: object) -> str:
    """Return text that somebody else wrote so that rich prints it as it is."""
    from rich.markup import escape as rich_escape

    return rich_escape(str(text))


def complain(message: str, remedy: str = "") -> None:
    """Print what went wrong and what to do about it, to standard error."""
    target = console(stderr=True)
    target.print(f"[bold red]error[/] {escape(message)}")
    if remedy:
        target.print(f"      {escape(remedy)}")


def emit_json(value: Any) -> None:
    """Print a value as JSON for programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    return clock.iso(value) if isinstance(value, datetime) else str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table; cells may use rich's markup. A column whose name ends in `#` is set to the right."""
    from rich import box
    from rich.table import Table

    grid = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.endswith("#") else "left"
        grid.add_column(column.removesuffix("#"), justify=justify, overflow="fold")
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    console().print(grid)


def styled(status: str) -> str:
    """Return a status word in its colour."""
    style = STATUS_STYLES.get(status)
    return f"[{style}]{status}[/]" if style else status


def ago(moment: datetime | None) -> str:
    """Return a moment as people say it: `5 s ago`, `3 min ago`, `2 h ago`, or a date."""
    if moment is None:
        return ""
    seconds = (clock.now() - moment).total_seconds()
    for limit, divisor, unit in ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h")):
        if seconds < limit:
            return f"{max(0, int(seconds // divisor))} {unit} ago"
    return moment.astimezone().strftime("%Y-%m-%d")


def megabytes(size: float) -> str:
    """Return a size as people say it: `834 KB`, `12.4 MB`, `6.9 GB`."""
    for limit, divisor, unit in ((1e6, 1e3, "KB"), (1e9, 1e6, "MB")):
        if size < limit:
            value = size / divisor
            return f"{value:.0f} {unit}" if value >= 100 or unit == "KB" else f"{value:.1f} {unit}"
    return f"{size / 1e9:.1f} GB"

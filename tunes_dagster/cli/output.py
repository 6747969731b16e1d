"""How commands speak: one console, complaints, tables, JSON, and times as people say them."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import typer

from tunes_dagster.core import clock

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


# What becomes of letters that a stream cannot write.
_LETTERS = "backslashreplace"
_consoles: dict[bool, Console] = {}
_BEFORE_NO_TAG = re.compile(r"\\\[(?![a-z#/@].*?\])")


def _make_console(stderr: bool, file: IO[str] | None = None) -> Console:
    from rich.console import Console

    # Emoji off: `<lora:ID:0.8>` is somebody's text, and `:ID:` in it no picture.
    target = Console(file=file, stderr=stderr, highlight=False, emoji=False, soft_wrap=True)
    # Files and pipes have no width; tables there must not be cut to 80 columns.
    if not target.is_terminal:
        return Console(file=file, stderr=stderr, highlight=False, emoji=False, soft_wrap=True, width=200)
    return target


def console(stderr: bool = False) -> Console:
    """Return the console that everything is printed on."""
    if stderr not in _consoles:
        _consoles[stderr] = _make_console(stderr)
    return _consoles[stderr]


def print_anything() -> None:
    """Let standard output write letters that its encoding lacks as `\\u6f22`, as standard error does.

    Titles are anybody's and files may have any name: a letter must not end a command whose work goes on.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_LETTERS)


@contextmanager
def noise_to(log: Path) -> Iterator[None]:
    """Send what libraries and Dagster print to a log file; `console()` still reaches the terminal.

    It works on the file descriptors, because Dagster captures those while a step runs. Streams that have none
    of their own (tests) are left alone.
    """
    streams = {False: sys.stdout, True: sys.stderr}
    if not all(_has_descriptor(stream, 2 if error else 1) for error, stream in streams.items()):
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    before = dict(_consoles)
    kept = {}
    for error, stream in streams.items():
        stream.flush()
        kept[error] = os.fdopen(
            os.dup(stream.fileno()), "w", encoding=stream.encoding, errors=_LETTERS, buffering=1
        )
        _consoles[error] = _make_console(error, kept[error])
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    try:
        yield
    finally:
        for error, stream in streams.items():
            stream.flush()
            os.dup2(kept[error].fileno(), 2 if error else 1)
            kept[error].close()
        os.close(target)
        _consoles.clear()
        _consoles.update(before)


def _has_descriptor(stream: IO[str], number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError, AttributeError):
        return False


def say(text: str = "") -> None:
    """Print a line; rich's markup is understood."""
    console().print(text)


def escape(text: object) -> str:
    """Return text that somebody else wrote so that rich prints it as it is."""
    from rich.markup import escape as rich_escape

    # Rich doubles backslashes before what looks like a tag, and eats one before any other bracket.
    return rich_escape(_BEFORE_NO_TAG.sub(r"\\\\[", str(text)))


def complain(message: str, remedy: str = "", detail: str = "") -> None:
    """Print what went wrong, what to do about it, and what only operators are told, to standard error."""
    target = console(stderr=True)
    target.print(f"[bold red]error[/] {escape(message)}")
    if remedy:
        target.print(f"      {escape(remedy)}")
    if detail:
        target.print(f"      [dim]{escape(detail)}[/]")


def emit_json(value: Any) -> None:
    """Print a value as JSON for programs."""
    # Escapes of JSON's own where the encoding lacks letters: Python's for those beyond U+FFFF are none in JSON.
    narrow = not (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    typer.echo(json.dumps(value, indent=2, ensure_ascii=narrow, default=_plain))


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

"""Shows how far work is, by looking at its rows: on a terminal as a moving display, elsewhere as lines.

The rows are the same whether the daemon or this very process does the work, so there is one way to watch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tunes_dagster.cli.output import console, escape, styled
from tunes_dagster.core.progress import format_count, format_seconds

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tunes_dagster.registry import Registry

TUNE_OVER = frozenset({"ready", "failed", "cancelled", "deleted"})
PROMPT_OVER = frozenset({"done", "failed", "blocked", "cancelled"})
QUEUED = frozenset({"queued", "prepared", "trained"})
_POLL_SECONDS = 0.5
# Somebody who reads a log wants to know that it lives, not every step.
_LINE_SECONDS = 20.0
_SAME_LINE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Line:
    """How far one piece of work is.

    Attributes:
        name: What it is, for people.
        status: Of the row.
        phase: What is being done now.
        message: One sentence about it.
        step: Done so far.
        total: Of so many; 0 when that is not known.
        seconds_left: Estimate for this phase; None when there is none yet.
        percent: How far all of it is.
        over: Whether nothing more will happen.
    """

    name: str
    status: str
    phase: str = ""
    message: str = ""
    step: int = 0
    total: int = 0
    seconds_left: float | None = None
    percent: float = 0.0
    over: bool = False

    def text(self) -> str:
        """Return the line as words, for logs."""
        share = f"{self.percent:.0f} % · " if self.percent and not self.over else ""
        parts = [f"{share}{self.phase or self.status}"]
        if self.total and not self.over:
            parts.append(f"{self.step}/{self.total}")
        if self.message:
            parts.append(self.message)
        if self.seconds_left is not None and not self.over:
            parts.append(f"{format_seconds(self.seconds_left)} left")
        return f"{self.name}: " + " · ".join(parts)


@dataclass
class Watch:
    """Reads the rows of some tunes and prompts.

    Attributes:
        registry: Where the rows lie.
        tunes: Ids.
        prompts: Ids; prompts of one batch share a line.
        waiting_for: Said of what is queued and has no message of its own.
        news: Asked until it has lines, which are then said once.
    """

    registry: Registry
    tunes: Sequence[str] = ()
    prompts: Sequence[str] = ()
    waiting_for: str = ""
    news: Callable[[], Sequence[str]] | None = None
    _seen: tuple[float, list[Line]] | None = field(default=None, repr=False)

    def lines(self) -> list[Line]:
        """Return one line per tune and per batch, read at most twice a second."""
        moment = time.monotonic()
        if self._seen is None or moment - self._seen[0] > _POLL_SECONDS:
            self._seen = (moment, [self._explained(line) for line in self._read()])
        return self._seen[1]

    def _explained(self, line: Line) -> Line:
        mute = line.status in QUEUED and not line.message
        return replace(line, message=self.waiting_for) if mute else line

    def refresh(self) -> None:
        """Read again at the next look, however soon that is."""
        self._seen = None

    @property
    def over(self) -> bool:
        """Whether everything that is watched has come to an end."""
        self.refresh()
        return all(line.over for line in self.lines())

    def _read(self) -> list[Line]:
        lines = [tune_line(self.registry.tunes.get(tune)) for tune in self.tunes]
        groups: dict[tuple[str | None, str], list[Any]] = {}
        for row in map(self.registry.prompts.get, self.prompts):
            groups.setdefault((row.tune_id, row.base_id), []).append(row)
        for (tune_id, base_id), rows in groups.items():
            of = "with the tune" if tune_id else f"on plain {base_id}"
            lines.append(self._prompts_line(f"{format_count(len(rows), 'prompt')} {of}", rows))
        return lines

    def _prompts_line(self, name: str, rows: list[Any]) -> Line:
        """Return the line of prompts that belong together: that of their batch at work, if there is one."""
        is_open = [row for row in rows if row.status not in PROMPT_OVER]
        batch_id = next((row.batch_id for row in is_open if row.batch_id), None)
        batch = self.registry.groups.batch(batch_id) if batch_id else None
        if batch is None or not is_open:
            status = is_open[0].status if is_open else rows[-1].status
            return Line(name=name, status=status, over=not is_open)
        return Line(
            name=name,
            status=batch.status,
            phase=batch.phase,
            message=batch.message,
            step=batch.step or 0,
            total=batch.total_steps or 0,
            seconds_left=batch.seconds_left,
            percent=batch.progress,
        )


def tune_line(tune: Any) -> Line:
    """Return how far a tune's row says it is."""
    over = tune.status in TUNE_OVER
    return Line(
        name=tune.title,
        status=tune.status,
        phase="" if over else tune.phase or tune.status,
        message=tune.failure_message or "" if tune.status == "failed" else "" if over else tune.message or "",
        step=0 if tune.phase == "queued" else tune.step or 0,
        total=0 if tune.phase == "queued" else tune.total_steps or 0,
        seconds_left=None if tune.phase == "queued" else tune.seconds_left,
        percent=tune.progress,
        over=over,
    )


def display(lines: Sequence[Line]) -> RenderableType:
    """Return the moving display: one row per line, with a bar over all phases once the first one moves."""
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    for line in lines:
        bar: RenderableType = ""
        if line.percent and not line.over:
            bar = ProgressBar(total=100, completed=line.percent, width=28)
        elif not line.over:
            bar = Spinner("dots")
        left = (
            f"{format_seconds(line.seconds_left)} left"
            if line.seconds_left is not None and not line.over
            else ""
        )
        grid.add_row(
            Text(line.name, style="bold"),
            Text.from_markup(styled(line.status) if line.over else escape(line.phase or line.status)),
            bar,
            f"{line.step}/{line.total}" if line.total and not line.over else "",
            Text(left, style="cyan"),
            Text(line.message, style="dim", overflow="ellipsis", no_wrap=True),
        )
    return grid


def show_while(watch: Watch, work: Callable[[], None] | None = None, stderr: bool = False) -> None:
    """Show the rows while `work` runs, or until they are all over when somebody else does the work.

    Args:
        watch: What to look at.
        work: Moves the rows; None waits for others to do it.
        stderr: Show it on standard error, when standard output is for programs.
    """
    target = console(stderr)
    with _told_of_news(watch, target):
        _show(watch, work, target)


@contextmanager
def _told_of_news(watch: Watch, target: Console) -> Iterator[None]:
    """Have the news said as soon as there are some, and at the latest at the end."""
    stop = threading.Event()

    def look() -> None:
        ending = False
        while watch.news is not None and not ending:
            ending = stop.wait(_POLL_SECONDS)
            if lines := watch.news():
                watch.news = None
                for line in lines:
                    target.print(escape(line))

    teller = threading.Thread(target=look, daemon=True)
    teller.start()
    try:
        yield
    finally:
        stop.set()
        teller.join(timeout=5)


def _show(watch: Watch, work: Callable[[], None] | None, target: Console) -> None:
    if target.is_terminal:
        from rich.live import Live

        with Live(get_renderable=lambda: display(watch.lines()), console=target, refresh_per_second=4):
            _until_over(watch, work)
            watch.refresh()
        return
    stop = threading.Event()
    printer = threading.Thread(target=_print_lines, args=(watch, stop, target), daemon=True)
    printer.start()
    try:
        _until_over(watch, work)
    finally:
        stop.set()
        printer.join(timeout=5)


def _until_over(watch: Watch, work: Callable[[], None] | None) -> None:
    if work is not None:
        work()
        return
    while not watch.over:
        time.sleep(_POLL_SECONDS)


def _print_lines(watch: Watch, stop: threading.Event, target: Console) -> None:
    """Print a line when its phase changes, when it moved since 20 s ago, and once a minute to show life."""
    last: dict[str, tuple[str, str, float]] = {}
    ending = False
    while not ending:
        ending = stop.wait(_POLL_SECONDS)
        if ending:
            watch.refresh()
        for line in watch.lines():
            stage, text, moment = f"{line.status}/{line.phase}", line.text(), time.monotonic()
            old_stage, old_text, printed = last.get(line.name, ("", "", 0.0))
            pause = _LINE_SECONDS if text != old_text else _SAME_LINE_SECONDS
            if stage != old_stage or (not line.over and moment - printed > pause):
                last[line.name] = (stage, text, moment)
                target.print(escape(text))

"""The report of a campaign date: sheets by tune and by prompt, one page, and a table of every picture.

Everything is written below `campaigns/<name>/<date>/report/`; pictures stay where they were rendered, and the page
leads to them by relative path, so it works from a folder, from a bucket, and from a copy of either.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from tunes_dagster.campaigns.expand import OF_TUNE
from tunes_dagster.core import extras
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.results import DateResult
from tunes_dagster.rendering.pages import Figure, Section, page, relative
from tunes_dagster.rendering.png import open_own
from tunes_dagster.rendering.sheets import Cell, Labels, contact_sheet, in_rows, png_bytes

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.registry import Batch, Campaign, CampaignDate, CampaignPrompt, Prompt
    from tunes_dagster.service.installation import Installation

PLAIN = "plain base"
# More columns or rows than this are too small to see on one sheet; the sheets by tune and by prompt show the rest.
MAX_COLUMNS, MAX_ROWS = 8, 12
MAX_ON_SHEET = 48
MAX_SHEETS = 40
MAX_FIGURES = 2000
_CELL = 320
# Prompts with longer names stand beside rows, where there is room, instead of above columns.
_SHORT = 24
_WHY_NOT_YET = {
    "waiting": "It waits for its tune.",
    "queued": "It waits to be rendered.",
    "rendering": "It is being rendered.",
}


@dataclass(frozen=True)
class Line:
    """One picture of the report, or one prompt without any.

    Attributes:
        link: Its place in the plan.
        prompt: Its row.
        number: Which of the prompt's pictures.
        key: In the store; None when there is none.
        seconds: It took; None when that is not known.
        tune: Title of its tune.
    """

    link: CampaignPrompt
    prompt: Prompt
    number: int
    key: str | None
    seconds: float | None
    tune: str

    @property
    def seed(self) -> int:
        """Seed of this picture."""
        return int(self.prompt.settings.get("seed") or 0) + self.number

    @property
    def recipe_hash(self) -> str:
        """Hash of everything that decided the picture; that of the plan where there is none."""
        made = self.prompt.made
        hashes = made.recipe_hashes or [made.recipe_hash or ""]
        return str((hashes[self.number] if self.number < len(hashes) else hashes[0]) or self.link.recipe_hash)

    @property
    def reason(self) -> str:
        """Why there is no picture; empty when there is one."""
        if self.key:
            return ""
        if self.prompt.failure_message:
            return f"{self.prompt.failure_message} {self.prompt.failure_remedy or ''}".strip()
        if self.prompt.expired_at:
            return f"Its pictures expired on {self.prompt.expired_at:%Y-%m-%d}."
        return _WHY_NOT_YET.get(self.prompt.status, f"It is {self.prompt.status}.")


@dataclass(frozen=True, kw_only=True)
class Report:
    """The files of a report.

    Attributes:
        page_key: Page (HTML).
        sheet_key: Overview (PNG).
        csv_key: Table of every picture.
        parquet_key: The same as Parquet; None where pyarrow is not installed.
        sheet: The overview as a picture.
        numbers: Of its prompts and pictures.
        failures: Rows `{line, tune, prompt, reason}`.
    """

    page_key: str
    sheet_key: str
    csv_key: str
    parquet_key: str | None
    sheet: Image.Image
    numbers: DateResult
    failures: list[dict[str, Any]]


def make_report(installation: Installation, campaign: Campaign, date: str) -> Report:
    """Write the report of a date, also when not all of it has ended yet.

    Raises:
        Failure: `INVALID_REQUEST` when the date was never planned.
    """
    registry = installation.registry
    row = registry.dates.get(campaign.id, date)
    if row is None or row.planned_at is None:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The campaign {campaign.name} was not planned for {date}.",
            f"Plan it: tunes campaign backfill {campaign.name} {date}",
        )
    pairs = registry.dates.prompts(row.id)
    batches = registry.groups.batches_by_id({prompt.batch_id for _link, prompt in pairs if prompt.batch_id})
    titles = {**row.plan.get("tunes", {})}
    lines = list(report_lines(pairs, batches, titles))
    report = _Writer(installation.store, campaign, row, lines).write()
    registry.dates.report_made(row.id, report.page_key, report.numbers, complete=not report.numbers.open)
    return report


def report_lines(
    pairs: Sequence[tuple[CampaignPrompt, Prompt]], batches: dict[str, Batch], titles: dict[str, str]
) -> Iterable[Line]:
    """Yield a line per picture, in the order of the plan; missing ones included."""
    for link, prompt in pairs:
        batch = batches.get(prompt.batch_id or "")
        each = batch.made.seconds_each if batch else None
        seconds = None if each is None else round(each, 3)
        tune = titles.get(prompt.tune_id or "", prompt.tune_id or PLAIN)
        images = list(prompt.images or [])
        for number in range(max(len(images), int(prompt.settings.get("num_images") or 1))):
            key = images[number] if number < len(images) else None
            yield Line(link, prompt, number, key, seconds if key else None, tune)


def numbers_of(lines: Sequence[Line], left_out: Sequence[Any] = ()) -> DateResult:
    """Return what a report counts; prompts, but for the pictures."""
    states: dict[str, str] = {line.prompt.id: line.prompt.status for line in lines}
    open_ = sum(status in ("waiting", "queued", "rendering") for status in states.values())
    done = sum(status == "done" for status in states.values())
    return DateResult(
        prompts=len(states) + len(left_out),
        pictures=sum(line.key is not None for line in lines),
        done=done,
        open=open_,
        failed=len(states) - done - open_ + len(left_out),
        kept=len({line.prompt.id for line in lines if line.link.kept}),
        seconds=round(sum(line.seconds or 0.0 for line in lines if not line.link.kept), 1),
    )


def table_of(lines: Sequence[Line], left_out: Sequence[dict[str, Any]], folder: str) -> Any:
    """Return the table of every picture as a data frame; what failed or was left out has its reason."""
    import pandas

    rows = [
        {
            "line": line.link.line,
            "tune": line.tune,
            "prompt": line.prompt.text,
            **line.link.variables,
            "seed": line.seed,
            "width": line.prompt.settings.get("width"),
            "height": line.prompt.settings.get("height"),
            "steps": line.prompt.settings.get("steps"),
            "base": line.prompt.base_id,
            "status": line.prompt.status,
            "file": relative(line.key, f"{folder}/pictures.csv") if line.key else None,
            "seconds": line.seconds,
            "recipe_hash": line.recipe_hash,
            "kept": line.link.kept,
            "reason": line.reason or None,
            "prompt_id": line.prompt.id,
            "tune_id": line.prompt.tune_id,
            "batch_id": line.prompt.batch_id,
        }
        for line in lines
    ]
    rows += [
        {
            "line": one["line"],
            "tune": one["tune"],
            "prompt": one["text"],
            "status": "left out",
            "reason": one["reason"],
        }
        for one in left_out
    ]
    variables = dict.fromkeys(name for line in lines for name in line.link.variables)
    first = ["line", "tune", "prompt", *variables]
    others = dict.fromkeys(name for row in rows for name in row if name not in first)
    frame = pandas.DataFrame(rows, columns=[*first, *others])
    for column in ("line", "seed", "width", "height", "steps"):
        if column in frame.columns:
            frame[column] = frame[column].astype("Int64")
    return frame


class _Writer:
    """Draws and writes the files of one report."""

    def __init__(self, store: Store, campaign: Campaign, row: CampaignDate, lines: list[Line]) -> None:
        self.store, self.campaign, self.row, self.lines = store, campaign, row, lines
        self.folder = f"campaigns/{campaign.name}/{row.date.replace(':', '')}/report"
        self.page_key = f"{self.folder}/index.html"
        self.left_out: list[dict[str, Any]] = list(row.plan.get("left_out", []))
        self.tunes = list(dict.fromkeys(line.tune for line in lines))
        self.templates = list(dict.fromkeys(self.label(line) for line in lines))
        self.small: dict[str, Image.Image | None] = {}

    def label(self, line: Line) -> str:
        """Return what a prompt is called, the same for all tunes."""
        return str(line.link.variables.get("label") or line.prompt.text)

    def write(self) -> Report:
        numbers = numbers_of(self.lines, self.left_out)
        self._load(self._wanted())
        sheet = self._overview(numbers)
        sheet_key = self.store.write_bytes(f"{self.folder}/contact_sheet.png", png_bytes(sheet))
        by_tune = self._sheets("tune", self.tunes, lambda line: line.tune, lambda line: self.label(line))
        by_prompt = self._sheets("prompt", self.templates, self.label, lambda line: line.tune)
        frame = table_of(self.lines, self.left_out, self.folder)
        csv_key = self.store.write_bytes(
            f"{self.folder}/pictures.csv", frame.to_csv(index=False).encode("utf-8-sig")
        )
        parquet_key = self._parquet(frame)
        failures = self._failures()
        sections = self._sections(numbers, sheet_key, by_tune, by_prompt, csv_key, parquet_key, failures)
        self.store.write_text(
            self.page_key, page(self._title(), self._subtitle(numbers), sections, self._footer())
        )
        return Report(
            page_key=self.page_key,
            sheet_key=sheet_key,
            csv_key=csv_key,
            parquet_key=parquet_key,
            sheet=sheet,
            numbers=numbers,
            failures=failures,
        )

    def _title(self) -> str:
        return f"{self.campaign.definition.get('name') or self.campaign.name} · {self.row.date}"

    def _subtitle(self, numbers: DateResult) -> str:
        parts = [
            f"{numbers.pictures:,} pictures",
            _count(len(self.tunes), "tune"),
            _count(len(self.templates), "prompt"),
        ]
        if numbers.failed:
            parts.append(f"{numbers.failed} failed")
        if numbers.open:
            parts.append(f"{numbers.open} not rendered yet")
        bases = sorted({line.prompt.base_id for line in self.lines})
        return " · ".join([*parts, *bases])

    def _footer(self) -> str:
        return f"Campaign {self.campaign.name}, files {self.row.version[:12]}. Each PNG carries its whole recipe."

    def _wanted(self) -> list[str]:
        """Return the pictures that appear on sheets, those of the overview first."""
        per_group: dict[tuple[str, str], int] = {}
        keys = []
        for line in self.lines:
            groups = (("tune", line.tune), ("prompt", self.label(line)))
            shown = [group for group in groups if per_group.get(group, 0) < MAX_ON_SHEET]
            for group in shown:
                per_group[group] = per_group.get(group, 0) + 1
            if shown and line.key:
                keys.append(line.key)
        return keys[: MAX_ON_SHEET * MAX_SHEETS]

    def _load(self, keys: Sequence[str]) -> None:
        with ThreadPoolExecutor(8) as pool:
            self.small = dict(zip(keys, pool.map(self._reduced, keys), strict=True))

    def _reduced(self, key: str) -> Image.Image | None:
        try:
            picture = open_own(self.store.read_bytes(key))
        except FileNotFoundError:
            return None  # deleted meanwhile
        except Failure as damaged:
            if damaged.code != FailureCode.RENDER_FAILED:
                raise
            return None  # or no still picture
        picture.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
        return picture

    def _cell(self, line: Line, caption: str) -> Cell:
        image = self.small.get(line.key) if line.key else None
        if image is not None:
            return Cell(image, caption)
        failed = line.prompt.status in ("failed", "blocked", "cancelled")
        return Cell(
            None, caption, line.prompt.status if not line.key else "gone", "bad" if failed else "info"
        )

    def _overview(self, numbers: DateResult) -> Image.Image:
        """Draw prompts × tunes when that fits on one sheet, else the first pictures of each tune."""
        title, subtitle, footer = self._title(), self._subtitle(numbers), self._footer()
        first: dict[tuple[str, str], Line] = {}
        for line in self.lines:
            first.setdefault((self.label(line), line.tune), line)

        def cell(label: str, tune: str) -> Cell | None:
            return self._cell(first[label, tune], "") if (label, tune) in first else None

        short = max((len(label) for label in self.templates), default=0) <= _SHORT
        if short and len(self.tunes) < len(self.templates) <= MAX_COLUMNS:
            rows = [[cell(label, tune) for label in self.templates] for tune in self.tunes]
            return contact_sheet(
                rows,
                title=title,
                subtitle=subtitle,
                labels=Labels(rows=self.tunes, columns=self.templates),
                footer=footer,
            )
        if len(self.tunes) <= MAX_COLUMNS and len(self.templates) <= MAX_ROWS:
            rows = [[cell(label, tune) for tune in self.tunes] for label in self.templates]
            return contact_sheet(
                rows,
                title=title,
                subtitle=subtitle,
                labels=Labels(rows=self.templates, columns=self.tunes),
                footer=footer,
            )
        each = max(1, MAX_ON_SHEET // max(1, len(self.tunes)))
        cells = [
            self._cell(line, f"{line.tune}: {self.label(line)}")
            for tune in self.tunes
            for line in [line for line in self.lines if line.tune == tune][:each]
        ][:MAX_ON_SHEET]
        return contact_sheet(in_rows(cells), title=title, subtitle=subtitle, footer=footer)

    def _sheets(self, kind: str, names: list[str], group: Any, caption: Any) -> dict[str, str]:
        """Write a sheet per tune or per prompt and return name → key."""
        groups: dict[str, list[Line]] = {}
        for line in self.lines:
            groups.setdefault(group(line), []).append(line)
        keys = {}
        for number, name in enumerate(names[:MAX_SHEETS], start=1):
            some = groups[name]
            told = _told_apart_by(some)
            cells = [
                self._cell(line, " · ".join([caption(line), *told(line), f"seed {line.seed}"]))
                for line in some[:MAX_ON_SHEET]
            ]
            more = f"{len(some) - MAX_ON_SHEET:,} more are in the table" if len(some) > MAX_ON_SHEET else ""
            sheet = contact_sheet(
                in_rows(cells),
                title=name,
                subtitle=f"{self._title()} · {_count(len(some), 'picture')}",
                footer=more,
            )
            keys[name] = self.store.write_bytes(f"{self.folder}/by_{kind}/{number:02d}.png", png_bytes(sheet))
        return keys

    def _parquet(self, frame: Any) -> str | None:
        if not extras.has("pyarrow"):
            return None
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        return self.store.write_bytes(f"{self.folder}/pictures.parquet", buffer.getvalue())

    def _failures(self) -> list[dict[str, Any]]:
        ended = ("failed", "blocked", "cancelled")
        seen: dict[str, Line] = {line.prompt.id: line for line in self.lines if line.prompt.status in ended}
        rows = [
            {"line": line.link.line, "tune": line.tune, "prompt": line.prompt.text, "reason": line.reason}
            for line in seen.values()
        ]
        left = [
            {"line": one["line"], "tune": one["tune"], "prompt": one["text"], "reason": one["reason"]}
            for one in self.left_out
        ]
        return rows + left

    def _sections(
        self,
        numbers: DateResult,
        sheet_key: str,
        by_tune: dict[str, str],
        by_prompt: dict[str, str],
        csv_key: str,
        parquet_key: str | None,
        failures: list[dict[str, Any]],
    ) -> list[Section]:
        def path(key: str) -> str:
            return relative(key, self.page_key)

        tables = {"Table of every picture (CSV)": path(csv_key)}
        if parquet_key:
            tables["the same as Parquet"] = path(parquet_key)
        if self.row.plan_key:
            tables["the plan"] = path(self.row.plan_key)
        facts = {
            "pictures": f"{numbers.pictures:,} of {numbers.prompts:,} prompts",
            "kept from before": numbers.kept or "",
            "failed": numbers.failed or "",
            "not rendered yet": numbers.open or "",
            "render time": f"{numbers.seconds:,.0f} s",
            "cost": f"${float(self.row.plan.get('cost_usd') or 0):,.2f}",
        }
        sections = [Section(facts=facts, links=tables), Section("Overview", wide=path(sheet_key))]
        if failures:
            said = {
                f"{one['tune']}, line {one['line']}, {i}": f"{one['prompt']} — {one['reason']}"
                for i, one in enumerate(failures[:500], 1)
            }
            sections.append(Section(f"What failed ({len(failures)})", facts=said))
        counts = Counter(self.label(line) for line in self.lines)
        sheets = [
            Figure(source=path(key), caption=name, details=_count(counts[name], "picture"))
            for name, key in by_prompt.items()
        ]
        if len(self.templates) > len(sheets):
            more = f"{len(self.templates) - len(sheets):,} more prompts are below and in the table."
        else:
            more = ""
        sections.append(Section("By prompt", text=more, figures=sheets, column=380))
        left = MAX_FIGURES
        for tune in self.tunes:
            some = [line for line in self.lines if line.tune == tune]
            figures = [self._figure(line) for line in some[:left]]
            left -= len(figures)
            links = {"contact sheet": path(by_tune[tune])} if tune in by_tune else {}
            more = f"{len(some) - len(figures):,} more are in the table." if len(some) > len(figures) else ""
            sections.append(Section(f"Tune: {tune}", text=more, links=links, figures=figures))
        return sections

    def _figure(self, line: Line) -> Figure:
        took = f" · {line.seconds:.1f} s" if line.seconds else ""
        if line.key:
            details = f"seed {line.seed}{took} · recipe {line.recipe_hash[:10]}"
            return Figure(source=relative(line.key, self.page_key), caption=line.prompt.text, details=details)
        return Figure(
            source="",
            caption=line.prompt.text,
            details=line.reason,
            tone="bad" if line.prompt.status == "failed" else "warn",
        )


def _told_apart_by(lines: Sequence[Line]) -> Callable[[Line], list[str]]:
    """Return what says of each picture of a sheet which values of the table's variables its label leaves out."""
    own = {"label", *OF_TUNE}
    names = dict.fromkeys(name for line in lines for name in line.link.variables if name not in own)
    varying = [name for name in names if len({line.link.variables.get(name) for line in lines}) > 1]

    def told(line: Line) -> list[str]:
        values, label = line.link.variables, line.link.variables.get("label", "")
        return [values[name] for name in varying if values.get(name, label) not in label]

    return told


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

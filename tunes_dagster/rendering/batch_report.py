"""What a finished batch shows: its contact sheet and its page, written beside its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from tunes_dagster.core.failures import Failure
from tunes_dagster.core.store import Store
from tunes_dagster.rendering.jobs import RenderedImage, RenderJob, RenderResult
from tunes_dagster.rendering.loras import LoraUse
from tunes_dagster.rendering.pages import Figure, Section, page, relative
from tunes_dagster.rendering.png import open_own
from tunes_dagster.rendering.sheets import Cell, Labels, contact_sheet, in_rows, png_bytes

# A sheet with more pictures is too large to look at; the page has them all.
MAX_ON_SHEET = 64
_LARGEST_ON_SHEET = 384


@dataclass(frozen=True)
class BatchReport:
    """The report's files.

    Attributes:
        sheet_key: Contact sheet (PNG).
        page_key: Page (HTML).
        sheet: The sheet as a picture, for thumbnails.
    """

    sheet_key: str
    page_key: str
    sheet: Image.Image


def write_batch_report(
    store: Store,
    prefix: str,
    jobs: Sequence[RenderJob],
    results: Sequence[RenderResult],
    *,
    title: str = "Renders",
    base: str = "",
    footer: str = "",
) -> BatchReport:
    """Write `<prefix>/contact_sheet.png` and `<prefix>/index.html`.

    Args:
        store: Where the pictures lie.
        prefix: The batch's folder.
        jobs: As they were rendered.
        results: In the same order.
        title: Of sheet and page.
        base: Name of the base, for the subtitle.
        footer: Small, at the end of both.
    """
    subtitle = shared_settings(jobs, results, base)
    sheet = batch_sheet(store, jobs, results, title=title, subtitle=subtitle, footer=footer)
    sheet_key = store.write_bytes(f"{prefix}/contact_sheet.png", png_bytes(sheet))
    page_key = f"{prefix}/index.html"
    store.write_text(
        page_key, batch_page(page_key, jobs, results, title=title, subtitle=subtitle, footer=footer)
    )
    return BatchReport(sheet_key, page_key, sheet)


def shared_settings(jobs: Sequence[RenderJob], results: Sequence[RenderResult], base: str = "") -> str:
    """Return in words the settings that all prompts of a batch share."""

    def shared(values: set[str]) -> str:
        return values.pop() if len(values) == 1 else ""

    every = [job.settings for job in jobs]
    done = [image for result in results for image in result.images]
    size = shared({f"{s.width} × {s.height}" for s in every})
    drawn_at = shared({f"{i.rendered_at[0]} × {i.rendered_at[1]}" for i in done})
    if size and drawn_at and drawn_at != size:
        size += f", rendered at {drawn_at}"
    scheduler = shared({s.scheduler or "" for s in every})
    steps = shared({f"{s.steps} steps" for s in every})
    guidance = shared({f"guidance {s.guidance_scale:g}" for s in every if s.guidance_scale is not None})
    return " · ".join(part for part in (base, steps, guidance, scheduler, size) if part)


def batch_sheet(
    store: Store,
    jobs: Sequence[RenderJob],
    results: Sequence[RenderResult],
    *,
    title: str = "Renders",
    subtitle: str = "",
    footer: str = "",
) -> Image.Image:
    """Draw the pictures of a batch: a row per prompt where all have the same number of several, else a grid."""
    numbers = {job.settings.num_images for job in jobs}
    as_table = len(numbers) == 1 and 1 < min(numbers) <= 8
    total = sum(job.settings.num_images for job in jobs)
    rows: list[list[Cell]] = []
    shown = 0
    for job, result in zip(jobs, results, strict=True):
        room = MAX_ON_SHEET - shown
        if room <= 0:
            break
        rows.append(_cells(store, job, result, with_prompt=not as_table)[:room])
        shown += len(rows[-1])
    if total > shown:
        footer = " · ".join(part for part in (footer, f"{total - shown} more not shown") if part)
    if as_table:
        labels = [job.text for job in jobs]
        return contact_sheet(rows, title=title, subtitle=subtitle, labels=Labels(rows=labels), footer=footer)
    flat = in_rows([cell for row in rows for cell in row])
    return contact_sheet(flat, title=title, subtitle=subtitle, footer=footer)


def _cells(store: Store, job: RenderJob, result: RenderResult, with_prompt: bool) -> list[Cell]:
    cells = []
    found = {image.seed: image for image in result.images}
    for number in range(job.settings.num_images):
        seed = (job.settings.seed or 0) + number
        caption = job.text if with_prompt else f"seed {seed}"
        image = found.get(seed)
        if image is None:
            cells.append(Cell(None, caption, "failed", "bad"))
        else:
            cells.append(_cell(store.read_bytes(image.poster or image.key), image, caption))
    return cells


def _cell(data: bytes, image: RenderedImage, caption: str) -> Cell:
    try:
        picture = open_own(data)
    except Failure:
        return Cell(None, caption, "damaged", "bad")
    picture.thumbnail((_LARGEST_ON_SHEET, _LARGEST_ON_SHEET), Image.Resampling.LANCZOS)
    return Cell(picture, caption, "blank" if image.blank else "", "warn")


def batch_page(
    page_key: str,
    jobs: Sequence[RenderJob],
    results: Sequence[RenderResult],
    *,
    title: str = "Renders",
    subtitle: str = "",
    footer: str = "",
) -> str:
    """Return the page of a batch: every picture with its prompt and seed, every failure with its reason."""
    figures, problems = [], {}
    own = _differences(jobs)
    for job, result in zip(jobs, results, strict=True):
        for image in result.images:
            warning = " ".join(result.warnings)
            details = " · ".join([f"seed {image.seed}", *own[job.prompt_id]])
            figures.append(
                Figure(
                    source=relative(image.poster or image.key, page_key),
                    caption=job.text,
                    details=f"{details} · {warning}" if warning else details,
                    tone="warn" if warning else "",
                )
            )
        if result.failure:
            problems[result.prompt_id] = (
                f"{job.text} — {result.failure.message} {result.failure.remedy}".strip()
            )
            if not result.images:
                figures.append(
                    Figure(source="", caption=job.text, details=result.failure.message, tone="bad")
                )
    sections = [Section(figures=figures)]
    if problems:
        sections.append(Section("What failed", facts=problems))
    sections.append(Section("Settings of all prompts", facts=_common(jobs)))
    return page(title, subtitle, sections, footer or "Each PNG carries its whole recipe.")


def _settings(job: RenderJob) -> dict[str, object]:
    """Return a prompt's settings in words, without those that are said elsewhere or left empty."""
    values = job.settings.model_dump(exclude={"seed", "num_images"})
    named = {name.replace("_", " "): value for name, value in values.items() if value not in (None, "")}
    named["LoRAs"] = [LoraUse(*use).id or LoraUse(*use).key for use in job.loras]
    if job.faces:
        named["faces"] = [LoraUse(*use).id or LoraUse(*use).key for use in job.faces]
    return named


def _common(jobs: Sequence[RenderJob]) -> dict[str, object]:
    every = [_settings(job) for job in jobs]
    first = every[0] if every else {}
    return {
        name: value for name, value in first.items() if value and all(s.get(name) == value for s in every)
    }


def _differences(jobs: Sequence[RenderJob]) -> dict[str, list[str]]:
    """Return for each prompt, in words, the settings that not all prompts share."""
    common = _common(jobs)
    return {
        job.prompt_id: [
            f"{name} {', '.join(value) if isinstance(value, list) else value}"
            for name, value in _settings(job).items()
            if value and name not in common
        ]
        for job in jobs
    }

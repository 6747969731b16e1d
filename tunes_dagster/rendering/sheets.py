"""Contact sheets: labelled grids of pictures for people.

One engine (`contact_sheet`) draws every grid; `training_sheet`, `before_after_sheet` and
`checkpoint_sheet` say what goes into the cells. The brushes are in `paper`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from tunes_dagster.rendering import paper
from tunes_dagster.rendering.typefaces import text_of, unshown

Tone = Literal["good", "info", "warn", "bad", "plain"]

MARGIN = 32
GAP = 18
CAPTION_LINES = 2
_TITLE, _SUBTITLE, _LABEL, _CAPTION = 26, 15, 15, 13


@dataclass(frozen=True)
class Cell:
    """One cell of a sheet.

    Attributes:
        image: The picture; None leaves a grey place, with `caption` saying why.
        caption: Under the picture, at most two lines.
        badge: One or two words on the picture.
        tone: Colour of the badge.
        muted: Wash the picture out: it is there but does not count.
    """

    image: Image.Image | None
    caption: str = ""
    badge: str = ""
    tone: Tone = "info"
    muted: bool = False


Row = Sequence[Cell | None]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What stands beside a grid.

    Attributes:
        rows: Left of the rows.
        columns: Above the columns.
        columns_from: The first row that those of the columns hold for; they stand above it.
    """

    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    columns_from: int = 0


def in_rows(cells: Sequence[Cell], columns: int | None = None) -> list[list[Cell]]:
    """Break cells into rows; by default a little wider than high, and without a nearly empty last row."""
    if not cells:
        return []
    if columns is None:
        wanted = min(8, max(1, math.ceil(math.sqrt(len(cells) * 1.6))))
        narrower = max(1, wanted - 1)
        columns = min((wanted, narrower), key=lambda n: -len(cells) % n + 1.5 * (wanted - n))
    return [list(cells[i : i + columns]) for i in range(0, len(cells), columns)]


def cell_box(images: Sequence[Image.Image], columns: int, max_width: int = 1800) -> tuple[int, int]:
    """Return width and height of a cell's picture.

    Small pictures are enlarged by a whole factor, so that they stay crisp; large ones shrink until the sheet
    is at most about `max_width` pixels wide.
    """
    if not images:
        return 192, 192
    widest = max(image.width for image in images)
    highest = max(image.height for image in images)
    room = max(96, (max_width - 2 * MARGIN) // max(1, columns) - GAP)
    longest = max(widest, highest)
    factor: float = max(1, min(256 // longest, room // longest)) if longest <= 256 else 1
    limit = min(room, 384)
    if longest * factor > limit:
        factor = limit / longest
    return round(widest * factor), round(highest * factor)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where things go: every length of a sheet in pixels."""

    box: tuple[int, int]
    columns: int
    left: int
    top: int
    row_tops: list[int]
    row_heights: list[int]
    width: int
    height: int
    caption_lines: list[list[list[str]]]
    title: list[str]
    subtitle: list[str]


def contact_sheet(
    rows: Sequence[Row],
    *,
    title: str = "",
    subtitle: str = "",
    labels: Labels = Labels(),
    footer: str = "",
    box: tuple[int, int] | None = None,
) -> Image.Image:
    """Draw a labelled grid of pictures on light paper.

    Args:
        rows: Cells by row; None leaves a cell empty; rows may differ in length.
        title: Large, above everything.
        subtitle: What all pictures share (base, steps, seed …); wrapped.
        labels: Left of the rows and above the columns.
        footer: Small, below.
        box: Width and height of a cell's picture; None fits the pictures.

    Returns:
        An RGB picture.
    """
    cells = [cell for row in rows for cell in row if cell]
    written = text_of(
        title, subtitle, labels.rows, labels.columns, footer, *([c.caption, c.badge] for c in cells)
    )
    footer = " · ".join(filter(None, (footer, unshown(map(paper.clean, written)))))
    columns = max((len(row) for row in rows), default=1)
    images = [cell.image for row in rows for cell in row if cell and cell.image]
    layout = _lay_out(
        rows,
        columns,
        box or cell_box(images, columns),
        title,
        subtitle,
        labels,
        footer,
    )
    sheet = Image.new("RGB", (layout.width, layout.height), paper.PAPER)
    _draw_heading(sheet, layout)
    _draw_labels(sheet, layout, labels)
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            if cell is not None:
                at = (layout.left + c * (layout.box[0] + GAP), layout.row_tops[r])
                size = (layout.box[0], layout.row_heights[r])
                _draw_cell(sheet, cell, at, size, layout.caption_lines[r][c])
    if footer:
        face = paper.font(12)
        text = paper.shorten(paper.clean(footer), face, layout.width - 2 * MARGIN)
        face.draw(sheet, (MARGIN, layout.height - MARGIN + 4), text, paper.SOFT_INK, "ls")
    return sheet


def _lay_out(
    rows: Sequence[Row],
    columns: int,
    box: tuple[int, int],
    title: str,
    subtitle: str,
    labels: Labels,
    footer: str,
) -> _Layout:
    caption_face, label_face = paper.font(_CAPTION), paper.font(_LABEL, bold=True)
    label_width = 0
    if any(labels.rows):
        longest = max(paper.text_width(paper.clean(label), label_face) for label in labels.rows)
        label_width = min(longest, 220) + GAP
    grid = columns * box[0] + (columns - 1) * GAP
    width = max(MARGIN * 2 + label_width + grid, 420)
    left = MARGIN + label_width + max(0, (width - 2 * MARGIN - label_width - grid) // 2)

    room = width - 2 * MARGIN
    heading = paper.wrap(title, paper.font(_TITLE, bold=True), room, 2)
    subheading = paper.wrap(subtitle, paper.font(_SUBTITLE), room, 3)
    top = MARGIN
    top += len(heading) * paper.line_height(paper.font(_TITLE, bold=True))
    top += len(subheading) * paper.line_height(paper.font(_SUBTITLE)) + (6 if subheading else 0)
    top += 16 if heading or subheading else 0

    captions = [
        [paper.wrap(cell.caption, caption_face, box[0], CAPTION_LINES) if cell else [] for cell in row]
        for row in rows
    ]
    row_tops, row_heights, y = [], [], top
    for index, (row, row_lines) in enumerate(zip(rows, captions, strict=True)):
        if index == labels.columns_from and any(labels.columns):
            y += paper.line_height(label_face) + 6
        row_tops.append(y)
        row_heights.append(_row_height(row, box))
        deepest = max((len(lines) for lines in row_lines), default=0)
        y += row_heights[-1] + (deepest * paper.line_height(caption_face) + 7 if deepest else 0) + GAP
    height = y - GAP + (paper.line_height(paper.font(12)) + 14 if footer else 0) + MARGIN
    return _Layout(
        box=box,
        columns=columns,
        left=left,
        top=top,
        row_tops=row_tops,
        row_heights=row_heights,
        width=width,
        height=height,
        caption_lines=captions,
        title=heading,
        subtitle=subheading,
    )


def _row_height(row: Row, box: tuple[int, int]) -> int:
    """Return the height of the row's highest picture, so that a row of wide ones leaves no hole."""
    fitted = [paper.contain(cell.image.size, box)[1] for cell in row if cell and cell.image]
    return max(fitted, default=box[1])


def _draw_heading(sheet: Image.Image, layout: _Layout) -> None:
    y = MARGIN - 4
    for line in layout.title:
        face = paper.font(_TITLE, bold=True)
        face.draw(sheet, (MARGIN, y), line, paper.INK)
        y += paper.line_height(face)
    y += 6
    for line in layout.subtitle:
        face = paper.font(_SUBTITLE)
        face.draw(sheet, (MARGIN, y), line, paper.SOFT_INK)
        y += paper.line_height(face)


def _draw_labels(sheet: Image.Image, layout: _Layout, labels: Labels) -> None:
    face = paper.font(_LABEL, bold=True)
    width = layout.box[0]
    first = labels.columns_from
    above = (layout.row_tops[first] if first < len(layout.row_tops) else layout.top) - 9
    for c, label in enumerate(labels.columns[: layout.columns]):
        text = paper.shorten(paper.clean(label), face, width)
        middle = layout.left + c * (width + GAP) + width / 2
        face.draw(sheet, (middle, above), text, paper.INK, "ms")
    step = paper.line_height(face)
    room = layout.left - MARGIN - GAP
    for top, height, label in zip(layout.row_tops, layout.row_heights, labels.rows, strict=False):
        lines = paper.wrap(label, face, room, max(1, min(5, height // step)))
        y = top + (height - step * len(lines)) / 2
        for line in lines:
            face.draw(sheet, (layout.left - GAP, y), line, paper.INK, "ra")
            y += step


def _draw_cell(
    sheet: Image.Image, cell: Cell, at: tuple[int, int], box: tuple[int, int], lines: Sequence[str]
) -> None:
    width, height = box
    draw = ImageDraw.Draw(sheet)
    if cell.image is None:
        spot = at
        sheet.paste(paper.PLACEHOLDER, (*at, at[0] + width, at[1] + height), paper.rounded_mask(box, 6))
        draw.line(
            [(at[0] + width * 0.42, at[1] + height / 2), (at[0] + width * 0.58, at[1] + height / 2)],
            fill=paper.HAIRLINE,
            width=3,
        )
    else:
        size = paper.contain(cell.image.size, box)
        spot = (at[0] + (width - size[0]) // 2, at[1] + (height - size[1]) // 2)
        paper.paste_picture(sheet, paper.scale_to(cell.image, size), spot, muted=cell.muted)
    if cell.badge:
        paper.paste_badge(sheet, cell.badge, cell.tone, (spot[0] + 7, spot[1] + 7), width - 14)
    face = paper.font(_CAPTION)
    y = at[1] + height + 7
    for line in lines:
        face.draw(sheet, (at[0] + width / 2, y), line, paper.SOFT_INK, "ma")
        y += paper.line_height(face)


def training_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] = (),
    *,
    verdicts: Sequence[str] = (),
    held_out: Sequence[bool] = (),
    title: str = "Training set",
    subtitle: str = "",
    max_pictures: int = 60,
) -> Image.Image:
    """Draw what came in: each picture with its caption (or reason) and a badge where something is to be said.

    Args:
        images: Pictures in the manifest's order.
        captions: Under the pictures.
        verdicts: `accepted`, `warned` or `rejected`; rejected ones are washed out.
        held_out: Which ones are kept for scoring.
        title: Above.
        subtitle: Below the title.
        max_pictures: More are counted in the footer instead of drawn.
    """
    cells = []
    for i, image in enumerate(images[:max_pictures]):
        verdict = verdicts[i] if i < len(verdicts) else "accepted"
        caption = captions[i] if i < len(captions) else ""
        badge: str = ""
        tone: Tone = "info"
        if verdict == "rejected":
            badge, tone = "rejected", "bad"
        elif i < len(held_out) and held_out[i]:
            badge, tone = "held out", "info"
        elif verdict == "warned":
            badge, tone = "warning", "warn"
        cells.append(Cell(image, caption, badge, tone, muted=verdict == "rejected"))
    hidden = len(images) - len(cells)
    footer = f"{hidden} more not shown" if hidden > 0 else ""
    return contact_sheet(in_rows(cells), title=title, subtitle=subtitle, footer=footer)


def before_after_sheet(
    prompts: Sequence[str],
    before: Sequence[Image.Image | None],
    after: Sequence[Image.Image | None],
    *,
    references: Sequence[Image.Image] = (),
    title: str = "Before and after",
    subtitle: str = "",
    footer: str = "",
) -> Image.Image:
    """Draw the same prompts on the untuned base (above) and with the tune (below).

    Args:
        prompts: Column captions.
        before: One picture per prompt.
        after: One picture per prompt, same seeds.
        references: Pictures of the real subject, a first row of their own.
        title: Above.
        subtitle: Below the title.
        footer: Small, at the bottom.
    """
    rows: list[Row] = []
    names: list[str] = []
    if references:
        rows.append([Cell(image) for image in references[: len(prompts)]])
        names.append("the subject")
    rows.append([Cell(image) for image in before])
    rows.append([Cell(image, prompt) for image, prompt in zip(after, prompts, strict=True)])
    names += ["base", "tuned"]
    return contact_sheet(rows, title=title, subtitle=subtitle, labels=Labels(rows=names), footer=footer)


def checkpoint_sheet(
    prompts: Sequence[str],
    steps: Sequence[int],
    images: Sequence[Sequence[Image.Image | None]],
    *,
    title: str = "Samples over training",
    subtitle: str = "",
    footer: str = "",
) -> Image.Image:
    """Draw how a tune learned: rows are prompts, columns are checkpoints.

    Args:
        prompts: Row labels.
        steps: Step of each checkpoint; 0 is the untuned base.
        images: `images[p][s]`, one per prompt and checkpoint.
        title: Above.
        subtitle: Below the title.
        footer: Small, at the bottom.
    """
    rows = [[Cell(image) for image in row] for row in images]
    columns = ["base" if step == 0 else f"step {step}" for step in steps]
    return contact_sheet(
        rows,
        title=title,
        subtitle=subtitle,
        labels=Labels(rows=list(prompts), columns=columns),
        footer=footer,
    )


def png_bytes(image: Image.Image) -> bytes:
    """Return a sheet as PNG, small: sheets carry no recipe (`png` is for renders)."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

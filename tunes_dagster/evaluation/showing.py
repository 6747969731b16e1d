"""What people see of a report card: the before-and-after sheet, the curves over the checkpoints, the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunes_dagster.evaluation.card import Card, Scores
from tunes_dagster.rendering.pages import Section, page, relative
from tunes_dagster.rendering.sheets import Cell, Labels, Row, Tone, contact_sheet, png_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

    from tunes_dagster.core.store import Store
    from tunes_dagster.evaluation.scoring import Scored

# Columns of the sheet; more cannot be told apart in a thumbnail.
_COLUMNS = 8
_TONES: dict[str, Tone] = {"good": "good", "weak": "warn", "bad": "bad", "unscored": "plain"}
_CURVES = {
    "learned": ("learned", "#2662ba"),
    "obeyed": ("obedience", "#1e8449"),
    "varied": ("variety", "#c96f00"),
    "copied": ("copies", "#ba2d2d"),
}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The files of a card.

    Attributes:
        card_key: The card (JSON).
        page_key: The page (HTML).
        sheet_key: Before and after (PNG); empty when nothing was rendered.
        curve_key: Scores over the checkpoints (PNG); empty when there is none.
        sheet: The sheet, for thumbnails.
        curve: The curves, for thumbnails.
    """

    card_key: str
    page_key: str
    sheet_key: str = ""
    curve_key: str = ""
    sheet: Image | None = None
    curve: Image | None = None


def write_card(
    scored: Scored,
    training: Sequence[Image],
    held_out: Sequence[Image],
    title: str,
    prefix: str,
    store: Store,
) -> Shown:
    """Write `card.json`, `before-after.png`, `scores.png` and `index.html` below a prefix of the store.

    Args:
        scored: The card and its pictures.
        training: The subject's training pictures.
        held_out: Those that were not trained on.
        title: Of the tune.
        prefix: Folder in the store.
        store: Where to.
    """
    from tunes_dagster.rendering.plots import figure_image

    card = scored.card
    sheet = curve = None
    keys = {"card_key": store.write_text(f"{prefix}/card.json", card.model_dump_json(indent=1) + "\n")}
    if scored.renders.get(0):
        sheet = before_after(scored, training, held_out, title)
        keys["sheet_key"] = store.write_bytes(f"{prefix}/before-after.png", png_bytes(sheet))
    if len(card.checkpoints) > 1:
        curve = figure_image(score_figure(card, f"What {title} learned and lost"))
        keys["curve_key"] = store.write_bytes(f"{prefix}/scores.png", png_bytes(curve))
    page_key = f"{prefix}/index.html"
    store.write_text(page_key, _page(card, title, page_key, keys))
    return Shown(page_key=page_key, sheet=sheet, curve=curve, **keys)


def before_after(scored: Scored, training: Sequence[Image], held_out: Sequence[Image], title: str) -> Image:
    """Draw the subject, the untuned base, and the checkpoints; the published one carries a badge."""
    card = scored.card
    columns = min(_COLUMNS, len(scored.prompts))
    real = [Cell(one, badge="held out") for one in held_out[:columns]]
    real += [Cell(one) for one in training[: columns - len(real)]]
    rows: list[Row] = [real]
    labels = ["the subject"]
    for step in sorted(scored.renders):
        chosen = bool(step) and step == card.chosen_step
        row = [Cell(one) for one in scored.renders[step][:columns]]
        if chosen:
            row[0] = Cell(row[0].image, badge="published", tone="good")
        rows.append(row)
        labels.append(f"step {step}" if step else "untuned base")
    if "tune" in scored.plain:
        rows.append([Cell(one) for one in scored.plain["tune"][:columns]])
        labels.append("the tune, without its token")
    scenes = [
        one.text.removeprefix(f"a photo of {card.called} ").removeprefix("wearing ")
        for one in scored.prompts[:columns]
    ]
    return contact_sheet(
        rows,
        title=f"{title}: {card.called}",
        subtitle=card.line,
        # The subject's own pictures show none of these scenes.
        labels=Labels(rows=labels, columns=scenes, columns_from=1),
        footer=f"The same prompt and the same noise in each column. {card.why}",
    )


def score_figure(card: Card, title: str) -> Any:
    """Draw what was learned, obedience, variety and copies over the checkpoints, by the names of the table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from tunes_dagster.rendering import plots

    figure = Figure(figsize=(8, 4), dpi=110, facecolor=plots.PAPER)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)  # inches; the title would touch the frame
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    plots.style(axes)
    for name, (label, colour) in _CURVES.items():
        points = [(0, 0.0 if name in ("learned", "copied") else 1.0)] if name != "varied" else []
        points += [(one.step, value) for one in card.checkpoints if (value := getattr(one, name)) is not None]
        if len(points) > 1:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, marker="o", ms=5, lw=2, label=label)
    axes.axvline(card.chosen_step, color=plots.SOFT, lw=1, ls=":")
    axes.annotate(
        "published",
        (card.chosen_step, 0),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 12),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=9,
        color=plots.SOFT,
    )
    axes.set_xlabel("step", color=plots.SOFT)
    axes.set_ylim(-0.05, max(1.2, axes.get_ylim()[1]) + 0.2)
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=plots.INK, pad=12)
    axes.legend(frameon=False, fontsize=9, labelcolor=plots.SOFT, loc="upper left", ncols=4)
    return figure


def score_rows(card: Card) -> list[dict[str, str]]:
    """Return the card as a table: the untuned base and the checkpoints."""
    states = [card.base, *card.checkpoints] if card.base else list(card.checkpoints)
    return [_row(one, card) for one in states if one is not None]


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    """Return a share in words; less than nothing is noise of a few renders."""
    return "" if value is None else f"{max(0.0, value):.0%} of that gained with it"


def _row(one: Scores, card: Card) -> dict[str, str]:
    return {
        "step": "base" if one.step == 0 else str(one.step),
        "published": "yes" if one.step and one.step == card.chosen_step else "",
        "likeness": _rounded(one.likeness),
        "learned": _rounded(one.learned),
        "faces": _rounded(one.face_likeness),
        "obedience": _rounded(one.obeyed if one.step else None),
        "right scene": _rounded(one.recognised),
        "variety": _rounded(one.varied),
        "copies": _rounded(one.copied),
        "nearest picture": _rounded(one.nearest),
        "score": _rounded(one.score),
    }


def _measured(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows with the columns in which anything was measured; the published one is coloured."""
    names = [name for name in rows[0] if name != "published" and any(row[name] for row in rows)]
    shown = [{name: row[name] for name in names} for row in rows]
    for row, one in zip(rows, shown, strict=True):
        if row["published"]:
            one |= {"step": f"{row['step']}, published", "tone": "good"}
    return shown


def _page(card: Card, title: str, page_key: str, keys: dict[str, str]) -> str:
    sections = [
        Section(
            "Verdict",
            card.why,
            table=[
                {
                    "verdict": one.code.replace("_", " "),
                    "what was seen": one.sentence,
                    "what to do": one.remedy,
                    "tone": _TONES[one.tone],
                }
                for one in card.verdicts
            ],
        )
    ]
    if card.unmeasured:
        sections.append(Section("Not measured", " ".join(card.unmeasured)))
    if "sheet_key" in keys:
        sections.append(Section("Before and after", wide=relative(keys["sheet_key"], page_key)))
    if rows := score_rows(card):
        sections.append(
            Section(
                "Over the checkpoints",
                "Learned: 0 is the likeness of the untuned base, 1 that of the subject's own pictures. Obedience: 1 is "
                "the untuned base. Variety: 1 is the subject's own pictures. Copies: share of the renders.",
                table=_measured(rows),
                wide=relative(keys["curve_key"], page_key) if "curve_key" in keys else "",
            )
        )
    sections.append(
        Section(
            "How it was measured",
            facts={
                "likeness measured against": f"{card.reference_pictures} {card.reference} "
                f"picture{'' if card.reference_pictures == 1 else 's'}",
                "training pictures": card.training_pictures,
                "likeness of real pictures": _rounded(card.real_likeness),
                "variety of real pictures": _rounded(card.real_variety),
                "coherence of the pictures": _rounded(card.coherence),
                "likeness gained without the token": _share(card.leak),
                "class word that fits": {k: f"{v:.0%}" for k, v in card.class_votes.items()},
                "scorers": card.scorers,
                "renders of each": card.options.renders,
                "first seed": card.options.seed,
                "seconds": card.seconds,
                "failure": card.failure,
            },
        )
    )
    return page(f"Report card of {title}", f"{card.called}. {card.line}", sections)

"""Curves for people: the loss of a tune as PNG, SVG and thumbnail.

Drawn with matplotlib's objects on the Agg and SVG canvases, never with pyplot: no global state, safe in
threads, no display needed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tunes_dagster.rendering.png import open_own

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID = "#1c1e24", "#686c76", "#e6e7e9"
PAPER, BLUE, ORANGE, GREEN = "#fafaf8", "#2662ba", "#c96f00", "#1e8449"


def smooth(values: Sequence[float], window: int | None = None) -> np.ndarray:
    """Return a centred running mean, taken three times, whose window shrinks at the ends: no lag, no gaps.

    Three passes of a box are close to a Gaussian, so that a single spike becomes a low hill and not a block.

    Args:
        values: One per step; non-finite ones are skipped.
        window: Width in steps; None takes a twentieth of the curve, at least 5.
    """
    data = np.asarray(values, dtype=np.float64)
    half = max(1, (window or max(5, len(data) // 20)) // 3)
    for _ in range(3):
        data = _running_mean(data, half)
    return data


def _running_mean(data: np.ndarray, half: int) -> np.ndarray:
    count = len(data)
    if count == 0:
        return data
    finite = np.isfinite(data)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, data, 0.0))])
    numbers = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(count)
    reach = np.minimum(half, np.minimum(index, count - 1 - index))
    low, high = index - reach, index + reach + 1
    total = numbers[high] - numbers[low]
    return np.divide(sums[high] - sums[low], total, out=np.full(count, np.nan), where=total > 0)


def loss_figure(
    steps: Sequence[int],
    losses: Sequence[float],
    learning_rates: Sequence[float] = (),
    *,
    title: str = "",
    checkpoints: Sequence[int] = (),
    held_out: Sequence[tuple[int, float]] = (),
) -> Figure:
    """Draw a loss curve: raw faintly, smoothed strongly, learning rate on its own scale.

    Args:
        steps: Step numbers.
        losses: One per step.
        learning_rates: One per step, or empty.
        title: Above, left.
        checkpoints: Steps with a checkpoint, marked on the axis.
        held_out: Step and loss on pictures that were not trained on.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=130, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    style(axes)
    axes.plot(steps, losses, color=BLUE, alpha=0.22, linewidth=0.9)
    axes.plot(
        steps, smooth(losses), color=BLUE, linewidth=2.2, label="loss, smoothed", solid_capstyle="round"
    )
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color=GREEN, marker="o", ms=4, lw=1.4, label="held-out loss")
    if checkpoints:
        marks = axes.plot(
            list(checkpoints), [0] * len(checkpoints), "|", ms=9, mew=1.6, color=SOFT, label="checkpoint"
        )[0]
        marks.set(clip_on=False, transform=axes.get_xaxis_transform())
    axes.set_xlabel("step", color=SOFT)
    axes.set_ylabel("loss", color=SOFT)
    axes.set_ylim(_loss_range(losses))
    if len(steps) > 1:
        axes.set_xlim(steps[0], steps[-1])
    if len(learning_rates) == len(steps) and len(steps):
        _add_learning_rate(axes, steps, learning_rates)
    if title:
        axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=12)
    handles = axes.get_legend_handles_labels()[0]
    if len(handles) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=SOFT, loc="upper right")
    return figure


def style(axes: Axes) -> None:
    """Give axes the look of all curves."""
    axes.set_facecolor(PAPER)
    axes.grid(axis="y", color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9cbd0")
    axes.tick_params(colors=SOFT, labelsize=9, length=0, pad=6)


def _add_learning_rate(axes: Axes, steps: Sequence[int], rates: Sequence[float]) -> None:
    twin = axes.twinx()
    style(twin)
    twin.grid(visible=False)
    twin.plot(steps, rates, color=ORANGE, linewidth=1.2, alpha=0.85)
    twin.set_ylim(0, max(max(rates), 1e-12) * 1.6)
    twin.set_yticks([0, max(rates)])
    twin.set_yticklabels(["0", f"{max(rates):.1g}"])
    twin.tick_params(colors=ORANGE)
    twin.set_ylabel("learning rate", color=ORANGE)


def _loss_range(losses: Sequence[float]) -> tuple[float, float]:
    """Return axis limits in which single spikes do not flatten the curve."""
    data = np.asarray([x for x in losses if np.isfinite(x)], dtype=np.float64)
    if len(data) == 0:
        return 0.0, 1.0
    low, high = np.percentile(data, [0.5, 99])
    room = max((high - low) * 0.12, abs(high) * 0.02, 1e-9)
    return max(0.0, float(low - room)), float(high + room)


def figure_png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def figure_image(figure: Figure) -> Image.Image:
    """Return a figure as an RGB picture."""
    return open_own(figure_png(figure))

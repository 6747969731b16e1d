"""What the fidelity benchmark prints and draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.fidelity_figures import Before, Measured, Tune
from benchmarks.subjects import scenes


def print_table(
    tunes: Sequence[Tune],
    rows: Sequence[Measured],
    figures: Mapping[str, float],
    around: Mapping[str, tuple[float, float]],
    seconds: float,
) -> None:
    """Print one line per tune, then the headline figures with their intervals."""
    print()
    print(
        f"{'tune':<14}{'likeness':>9}{'base':>7}{'others':>8}{'nearest':>9}{'leak':>7}{'obeyed':>8}{'before':>8}"
    )
    for tune, row in zip(tunes, rows, strict=True):
        leak = row.leaked / row.gained if row.gained > 0 else float("nan")
        print(
            f"{tune.subject.name + '/' + str(tune.seed):<14}{row.likeness:>9.3f}{row.base_likeness:>7.3f}"
            f"{row.others:>8.3f}{row.nearest:>9.2f}{leak:>7.2f}{row.obeyed.mean():>8.3f}"
            f"{row.obeyed_before.mean():>8.3f}"
        )
    print()
    for name, value in figures.items():
        low, high = around[name]
        print(f"{name:<26}{value:>7.3f}   95 % in {low:.3f} … {high:.3f}")
    print(f"{'seconds_per_tune':<26}{seconds:>7.1f}")


def draw_grid(tunes: Sequence[Tune], before: Before, out: Path) -> Path:
    """Write the picture grid: a row per tune with training pictures, base, tune, and tune without token."""
    from tunes_dagster.rendering.sheets import Cell, Labels, contact_sheet

    rows, labels = [], []
    for tune in tunes:
        shown = [picture for picture, _ in tune.subject.training[:2]]
        shown += [*before.pictures[tune.subject.name], *tune.pictures]
        rows.append([Cell(picture) for picture in shown])
        labels.append(f"{tune.subject.called} (seed {tune.seed})")
    columns = ["training", "training", "base", *scenes(5), "no token", "no token"]
    sheet = contact_sheet(
        rows,
        title="What tunes have learned",
        labels=Labels(rows=labels, columns=columns),
        subtitle="Training pictures; the untuned base asked for the token; the tune; the tune without the token.",
        box=(128, 128),
    )
    path = out / "fidelity.png"
    sheet.save(path)
    return path

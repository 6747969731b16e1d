"""One batch from loading to files, on whatever kind of model its catalog entry names."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunes_dagster.core.progress import Reporter
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import AuxiliaryEntry, BaseModelEntry
from tunes_dagster.rendering.aids import Aids
from tunes_dagster.rendering.jobs import RenderJob, RenderResult


def run_batch(
    jobs: Sequence[RenderJob],
    entry: BaseModelEntry,
    folder: Path,
    device: str,
    dtype: Any,
    store: Store,
    out_prefix: str,
    report: Reporter,
    on_done: Callable[[RenderResult], None],
    aids: Aids,
    between: Callable[[float], None] = lambda loaded: None,
) -> float:
    """Load a model and render a batch on it; see `renderer.render` and `plain.render_plain`.

    Args:
        jobs: The prompts.
        entry: Of the catalog.
        folder: Of its weights.
        device: torch device.
        dtype: torch dtype.
        store: Where files come from and go.
        out_prefix: Of the files.
        report: Progress and cancel.
        on_done: Called once per prompt.
        aids: Models and rules beside the base.
        between: Called with the seconds that loading took between parts of a batch, when nothing is half done; may
            raise `Cancelled`.

    Returns:
        Seconds that loading took.
    """
    began = time.monotonic()
    if isinstance(entry, AuxiliaryEntry):
        from tunes_dagster.rendering.plain import render_plain

        render_plain(
            jobs, entry, folder, device, dtype, store, out_prefix, report, on_done, aids, lambda: between(0.0)
        )
        return 0.0
    from tunes_dagster.families.base import load_family
    from tunes_dagster.rendering.renderer import render

    base = load_family(entry, folder, device, dtype)
    loaded = time.monotonic() - began
    render(jobs, base, store, out_prefix, report, on_done, aids=aids, between=lambda: between(loaded))
    return loaded

"""One batch from loading to files, on whatever kind of model its catalog entry names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunes_dagster.families.catalog import AuxiliaryEntry, BaseModelEntry
from tunes_dagster.rendering.aids import Aids
from tunes_dagster.rendering.jobs import Delivery, RenderJob


def run_batch(
    jobs: Sequence[RenderJob],
    entry: BaseModelEntry,
    folder: Path,
    device: str,
    dtype: Any,
    delivery: Delivery,
    aids: Aids,
) -> float:
    """Load a model and render a batch on it; see `renderer.render` and `plain.render_plain`.

    Args:
        jobs: The prompts.
        entry: Of the catalog.
        folder: Of its weights.
        device: torch device.
        dtype: torch dtype.
        delivery: Where files go, and who is told.
        aids: Models and rules beside the base.

    Returns:
        Seconds that loading took.
    """
    began = time.monotonic()
    if isinstance(entry, AuxiliaryEntry):
        from tunes_dagster.rendering.plain import render_plain

        render_plain(jobs, entry, folder, device, dtype, delivery, aids)
        return 0.0
    from tunes_dagster.families.base import load_family
    from tunes_dagster.rendering.renderer import render

    base = load_family(entry, folder, device, dtype)
    loaded = time.monotonic() - began
    render(jobs, base, replace(delivery, between=lambda _: delivery.between(loaded)), aids=aids)
    return loaded

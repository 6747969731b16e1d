"""The public code location; what it holds is put together in `pipeline/definitions.py`."""

from __future__ import annotations

from tunes_dagster.pipeline.definitions import build_defs, defs

__all__ = ["build_defs", "defs"]

"""Callbacks: what is told to the callers' own servers, and how it gets there.

`bodies.py` builds what is sent, `registry/outbox.py` keeps what is owed, `deliver.py` sends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunes_dagster.registry import Callback, Registry


def replay(registry: Registry, callback_id: str, *, force: bool = False) -> Callback:
    """Make a callback due again at once; see `Outbox.replay`."""
    return registry.outbox.replay(callback_id, force=force)

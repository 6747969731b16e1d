"""What a tune or prompt owes when it ends: the one place that says so. See docs/registry.md, "Money".

- A tune that is ready owes its price, a prompt the part of it that its pictures are of those asked for.
- What its caller gave up, by cancelling or deleting it, owes what was computed by then: a tune the part of its training
  steps, a prompt the part of its batch's rendering. Nothing of it is handed out.
- What failed, was blocked, never began, or was ended by the operator owes nothing. Nothing of it is handed out.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from tunes_dagster.registry.ledger import close_reservation
from tunes_dagster.registry.tables import Prompt, Tune


def owed(row: Tune | Prompt, computed: float) -> float:
    """Return which part of its price a row owes, 0 to 1.

    Args:
        row: With the status that it ends in.
        computed: Part that was computed when its caller gave it up; 0 when nobody did.
    """
    if isinstance(row, Prompt) and row.status == "done":
        wanted = row.settings.get("num_images")
        return len(row.images or []) / max(1, 1 if wanted is None else int(wanted))
    return 1.0 if row.status == "ready" else computed


def settle(session: Session, row: Tune | Prompt, now: datetime, given_up: float = 0.0) -> None:
    """Charge what a row owes and return the rest; only the first time counts.

    Args:
        session: The transaction that ends it, or in which its caller gives it up.
        row: With its new status.
        now: Time of the entries.
        given_up: See `owed`.
    """
    close_reservation(session, row.id, now, owed(row, given_up))

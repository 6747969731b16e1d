"""What came of callbacks that were sent: recorded whatever becomes of the database, so that none is sent twice.

An outcome is known to this process alone until it is recorded. While the database is away it is kept here and a thread
writes it down as soon as the database is back; until then this process sends nothing (`unrecorded`). Another process
that saw the outage waits a moment after it, so that whoever knows an outcome comes first (`just_back`).
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunes_dagster.registry.retrying import FOR_EVER, DatabaseAway

if TYPE_CHECKING:
    from tunes_dagster.registry import Callback, Registry

log = logging.getLogger(__name__)

# After this long whoever waits for the database, and tries each second, has recorded what it knows. The database may
# have come back since a tick of ours last asked in vain, a few seconds before this one.
_GRACE_SECONDS = 15.0
# A database that refuses us is asked again this often: an operator may be mending its passwords.
_REFUSED_SECONDS = 5.0
# A record takes milliseconds; one that takes longer waits for its database.
_SOON_SECONDS = 2.0


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt; the fields are those of `Outbox.end_delivery`."""

    status_code: int | None = None
    error: str | None = None
    response_head: str | None = None
    retry_after: float | None = None
    final: bool = False
    unreachable: bool = False

    @property
    def delivered(self) -> bool:
        """Whether the receiver took it."""
        return self.error is None and self.status_code is not None and 200 <= self.status_code < 300

    def columns(self) -> dict[str, Any]:
        """Return what `end_delivery` takes, as every database takes it."""
        return {
            "status_code": self.status_code,
            "error": plain(self.error),
            "response_head": plain(self.response_head),
            "retry_after": self.retry_after,
            "final": self.final,
        }


def plain(text: str | None) -> str | None:
    """Return a text as every database takes it."""
    if text is None:
        return None
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")[:2000]


_changed = threading.Condition()
# By registry: deliveries whose outcome is known and not recorded yet.
_open: dict[str, set[str]] = {}


def record(registry: Registry, delivery_id: str, outcome: Outcome) -> Callback | None:
    """Record an outcome; None when its database is away and a thread does it later, or nobody knows of it any more."""
    with _changed:
        _open.setdefault(registry.url, set()).add(delivery_id)
    try:
        callback = registry.outbox.end_delivery(delivery_id, **outcome.columns())
    except DatabaseAway as away:
        log.warning("%s What came of a callback is kept until it is back.", away.trouble.sentence)
        threading.Thread(
            target=_record_later, args=(registry, delivery_id, outcome), name="callback-outcome", daemon=True
        ).start()
        return None
    except BaseException:
        _close(registry, delivery_id)
        raise
    _close(registry, delivery_id)
    return callback


def _record_later(registry: Registry, delivery_id: str, outcome: Outcome) -> None:
    patient = registry.with_patience(FOR_EVER)
    try:
        while True:
            try:
                patient.outbox.end_delivery(delivery_id, **outcome.columns())
                return
            except DatabaseAway:
                time.sleep(_REFUSED_SECONDS)
    except Exception:  # its row is gone, for example: nobody is owed anything any more
        log.exception("What came of the delivery %s could not be recorded.", delivery_id)
    finally:
        _close(registry, delivery_id)


def _close(registry: Registry, delivery_id: str) -> None:
    with _changed:
        _open[registry.url].discard(delivery_id)
        _changed.notify_all()


def unrecorded(registry: Registry, seconds: float = _SOON_SECONDS) -> int:
    """Return how many outcomes known now are still not recorded after so long."""
    ends = time.monotonic() + seconds
    with _changed:
        known = set(_open.get(registry.url, ()))
        while known and (left := ends - time.monotonic()) > 0:
            _changed.wait(left)
            known &= _open[registry.url]
        return len(known)


def just_back(registry: Registry) -> bool:
    """Whether the database was away a moment ago, so that others may still have outcomes to record."""
    return registry.outage.seconds_ago() < _GRACE_SECONDS

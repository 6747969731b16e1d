"""The form in which a callback goes out: the project's own, or that of the dialect its caller speaks.

The outbox keeps one canonical body; a dialect turns it into its own method, address and body when an attempt
is made. Dialects are found by name, so that nothing here knows any of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tunes_dagster.registry.outbox import Sending

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation


def in_form(installation: Installation, sending: Sending) -> Sending:
    """Return the attempt as its receiver expects it.

    A dialect's module has a function `callback(installation, sending) -> Sending`.
    """
    if not sending.form:
        return sending
    dialect = import_module(f"tunes_dagster.gateway.dialects.{sending.form}")
    return dialect.callback(installation, sending)

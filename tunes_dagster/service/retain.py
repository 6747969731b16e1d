"""Retention: what an account's rule lets expire is announced, then extended or deleted, and that is recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tunes_dagster.registry.retention import is_due, warning_of
from tunes_dagster.service.erase import Erased, drive, drive_subjects

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from tunes_dagster.registry import Tune
    from tunes_dagster.service.installation import Installation

# What one run deletes at most; the next one goes on.
_MOST = 10_000
# A rule without any time to warn in would delete on the first look.
_LONGEST_WARNING = timedelta(days=30)


@dataclass(kw_only=True)
class Retained:
    """What one run of retention did.

    Attributes:
        warned: Callers and accounts that were told.
        extended: Tunes and prompts that were kept for another period.
        tunes: Tunes that were deleted.
        outputs: Prompts whose pictures were deleted.
        erased: Their files.
        tune_ids: Of the deleted tunes.
    """

    warned: int = 0
    extended: int = 0
    tunes: int = 0
    outputs: int = 0
    erased: Erased = field(default_factory=Erased)
    tune_ids: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """Return it in words."""
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.erased.files.items()))
        return (
            f"{self.warned} were warned, {self.extended} extended; {self.tunes} tunes and the pictures of "
            f"{self.outputs} prompts expired: {self.erased.count} files, {self.erased.bytes / 1e6:.1f} MB"
            f"{f' ({kinds})' if kinds else ''}."
        )


def retain(installation: Installation, now: datetime) -> Retained:
    """Warn of what expires soon; extend or delete what has expired and was announced in time.

    Something is only deleted once its warning is as old as the account's `warn_hours`, or the whole period when that is
    shorter: who sets a rule today loses nothing before the warning has had its time.
    """
    registry, done = installation.registry, Retained()
    accounts = {account.id: account for account in registry.accounts.rows()}
    soon = []
    for one in registry.retention.expiring(now + _LONGEST_WARNING, _MOST):
        warning = warning_of(accounts[one.row.account_id], one.hours)
        if one.at <= now + warning:
            soon.append((one, warning))
    for one, _warning in soon:
        if one.extends and one.at <= now:
            registry.retention.extend(one)
            done.extended += 1
    done.warned = registry.retention.warn_of([one for one, _warning in soon if not one.extends])
    due = [one for one, _warning in soon if not one.extends and one.at <= now]
    drive(installation)  # what earlier ones left, and what runs wrote for what is gone
    for one in due:
        if one.kind != "tune":
            continue
        rule = f"tunes are kept {one.hours:g} h"
        gone = registry.work.delete_tune(one.row.id, reason="expired", rule=rule, when=_still_due(now))
        if gone.status == "deleted":
            done.tunes += 1
            done.tune_ids.append(gone.id)
    prompts = registry.retention.expire_pictures([one for one in due if one.kind == "prompt"])
    done.outputs = len(prompts)
    done.erased.add(drive_subjects(installation, [*done.tune_ids, *(one.id for one in prompts)]))
    return done


def _still_due(now: datetime) -> Callable[[Session, Tune], bool]:
    """Ask the locked row once more: its owner may have kept it while others were deleted."""
    return lambda session, tune: is_due(session, tune, now)

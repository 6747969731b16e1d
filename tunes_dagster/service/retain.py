"""Retention: what an account's rule lets expire is announced, then extended or deleted, and that is recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tunes_dagster.service.erase import Erased, erase_outputs, erase_tunes

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.registry import Registry

# What one run deletes at most; the next one goes on.
_MOST = 10_000
# A rule without any time to warn in would delete on the first look.
_LONGEST_WARNING = timedelta(days=30)


@dataclass
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


def retain(registry: Registry, store: Store, now: datetime) -> Retained:
    """Warn of what expires soon; extend or delete what has expired and was announced in time.

    Something is only deleted once its warning is as old as the account's `warn_hours`, or the whole period when that is
    shorter: who sets a rule today loses nothing before the warning has had its time.
    """
    done = Retained()
    accounts = {account.id: account for account in registry.accounts.rows()}
    soon = []
    for one in registry.retention.expiring(now + _LONGEST_WARNING, _MOST):
        warning = timedelta(hours=min(accounts[one.row.account_id].warn_hours, one.hours))
        if one.at <= now + warning:
            soon.append((one, warning))
    for one, _warning in soon:
        if one.extends and one.at <= now:
            registry.retention.extend(one)
            done.extended += 1
    done.warned = registry.retention.warn_of([one for one, _warning in soon if not one.extends])
    due = [
        one
        for one, warning in soon
        if not one.extends
        and one.at <= now
        and one.row.warned_at is not None
        and one.row.warned_at + warning <= now
    ]
    sweep(registry, store, now)
    tunes = [one for one in due if one.kind == "tune"]
    for one in tunes:
        rule = f"tunes are kept {one.hours:g} h"
        erased = erase_tunes(registry, store, [one.row], reason="expired", rule=rule)
        done.tunes += 1
        done.tune_ids.append(one.row.id)
        _add(done.erased, erased)
    prompts = [one for one in due if one.kind == "prompt"]
    if prompts:
        before = {one.row.id: list(one.row.images or []) for one in prompts}
        _add(done.erased, erase_outputs(registry, store, [one.row for one in prompts]))
        registry.retention.record_deletions(
            [
                {
                    "account_id": one.row.account_id,
                    "kind": "prompt",
                    "subject_id": one.row.id,
                    "label": one.row.text[:80],
                    "reason": "expired",
                    "rule": f"outputs are kept {one.hours:g} h",
                    "files": len(before[one.row.id]),
                    "bytes": 0,
                    "what": {"renders": len(before[one.row.id])},
                }
                for one in prompts
            ]
        )
        done.outputs = len(prompts)
    return done


def sweep(registry: Registry, store: Store, now: datetime) -> int:
    """Remove what runs wrote for tunes that were deleted while they worked; returns how many files that were."""
    lately = [
        tune
        for tune in registry.tunes.rows(status="deleted", limit=1000)
        if tune.deleted_at is not None and tune.deleted_at > now - timedelta(days=3)
    ]
    return sum(len(store.delete_prefix(f"tunes/{tune.id}")) for tune in lately)


def _add(total: Erased, more: Erased) -> None:
    total.files += more.files
    total.bytes += more.bytes
    total.left += more.left

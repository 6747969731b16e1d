"""Which tunes of a cohort a run trains: all that still wait when it begins, or what a run before it left undone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunes_dagster.assets.attempt import Context, run_origin
from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry, Tune, Work


@dataclass
class Claimed:
    """The members of a cohort that a run may train.

    Attributes:
        works: Owned by the run.
        left: Why others are not among them, by tune; nothing is wrong with that.
        refused: Why others that are still to be trained could not be taken, by tune.
    """

    works: list[Work] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    refused: dict[str, Failure] = field(default_factory=dict)


def claim_members(context: Context, cohort_id: str, registry: Registry) -> Claimed:
    """Claim the members of a cohort; for a re-execution those that were not trained and are still wanted."""
    run = context.run
    if run_origin(run)[0] != "ui":
        return Claimed(registry.work.claim_cohort(cohort_id, run.run_id))
    claimed = Claimed()
    for work in registry.groups.members(cohort_id):
        tune = registry.tunes.get(work.subject_id)
        if said := _not_wanted(work, tune, run.run_id):
            claimed.left[tune.id] = said
            continue
        try:
            claimed.works.append(registry.work.claim_again(work.kind, tune.id, run.run_id, ()))
        except Failure as failure:  # it moved meanwhile, or other work of it is in the way
            claimed.refused[tune.id] = failure
    return claimed


def _not_wanted(work: Work, tune: Tune, run_id: str) -> str:
    """Return why a member of a cohort is not trained when the run is executed again; empty when it is."""
    if tune.status == "deleted":
        return "was deleted"
    if work.state == "done":
        return f"is trained ({tune.status})"
    if work.state == "running" and work.run_id != run_id:
        return f"is being trained by run {work.run_id}"
    if tune.cancel == "cancel":
        return "was cancelled"
    return ""


def say_who_is_left(context: Context, cohort_id: str, claimed: Claimed, registry: Registry) -> None:
    """Say in the log who is not trained.

    Raises:
        Failure: `CONFLICT` when a re-execution has nobody to train: it would read as if it had.
    """
    said = [f"{_named(registry, one)} {why}" for one, why in claimed.left.items()]
    said += [f"{_named(registry, one)}: {why.code}" for one, why in claimed.refused.items()]
    for line in said:
        context.log.info(line)
    if claimed.works:
        return
    if run_origin(context.run)[0] != "ui":
        context.log.info(f"Nobody is left in cohort {cohort_id}; nothing to do.")
        return
    raise Failure(
        FailureCode.CONFLICT,
        f"Nothing of cohort {cohort_id} is left to be trained: {'; '.join(said) or 'its tunes are in other runs'}.",
        "Materialize `lora` of a tune to train it anew.",
    )


def _named(registry: Registry, tune_id: str) -> str:
    return f"tune {registry.tunes.get(tune_id).number}"

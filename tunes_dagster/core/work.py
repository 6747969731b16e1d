"""The kinds of work there are, and what is decided by them: one table, which every other place asks.

A tune goes through three stages: it is prepared, made and finished. Most are made by training (`train`); those that
train nothing keep what an encoder sees in their pictures (`embed`), which needs no device. Batches are rendered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tunes_dagster.core.ids import COHORT, WORK, is_id


class WorkKind(StrEnum):
    """What a piece of work is; the value stands in rows, tags and settings."""

    PREPARE = "prepare"
    TRAIN = "train"
    EMBED = "embed"
    FINISH = "finish"
    RENDER = "render"

    @property
    def asset(self) -> str:
        """The asset that it materializes, which the step of it in a run is called by."""
        return _RUNS[self].asset

    @property
    def job(self) -> str:
        """The job that is launched for it: for one subject, of `MAKING` for a cohort."""
        return _RUNS[self].job

    @property
    def op(self) -> str:
        """The one op of a cohort's job, whose config says which cohort it is."""
        return self.value

    @property
    def told_by(self) -> str:
        """The job whose runs tell what a session did of it; empty for what no session does."""
        return _RUNS[self].told_by


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """What Dagster calls the runs of a kind; see the properties of `WorkKind`."""

    asset: str
    job: str
    told_by: str = ""


_RUNS: Mapping[WorkKind, _Runs] = {
    WorkKind.PREPARE: _Runs(asset="source_images", job="prepare_tune"),
    WorkKind.TRAIN: _Runs(asset="lora", job="train_cohort", told_by="train_tune"),
    WorkKind.EMBED: _Runs(asset="lora", job="embed_faces"),
    WorkKind.FINISH: _Runs(asset="report_card", job="finish_tune", told_by="finish_tune"),
    WorkKind.RENDER: _Runs(asset="renders", job="render_batch", told_by="render_batch"),
}
# What sessions do, in the order in which it is done.
ON_DEVICE = tuple(kind for kind in WorkKind if kind.told_by)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage in the making of a tune.

    Attributes:
        waiting: Status of a tune whose work of the stage waits.
        running: While it is done.
        done: Once it is done.
        next: What the tune then waits for, in words.
    """

    waiting: str
    running: str
    done: str
    next: str = ""


# By the kind that names the stage, in order; `embed` is another way through that of `train`.
STAGES = {
    WorkKind.PREPARE: Stage(
        waiting="queued", running="preparing", done="prepared", next="Waiting to be trained."
    ),
    WorkKind.TRAIN: Stage(
        waiting="prepared", running="training", done="trained", next="Waiting to be finished."
    ),
    WorkKind.FINISH: Stage(waiting="trained", running="finishing", done="ready"),
}
# The kinds that make a tune, and that runs do for several tunes at a time.
MAKING = (WorkKind.TRAIN, WorkKind.EMBED)


def stage_of(kind: str) -> str:
    """Return the stage that work of a kind belongs to, by the name that timelines and pace know it by."""
    return WorkKind.TRAIN if kind in MAKING else kind


def made_by(trains: bool) -> WorkKind:
    """Return the kind of work that makes a tune, by whether it is trained."""
    return WorkKind.TRAIN if trains else WorkKind.EMBED


def run_key(work_id: str, attempt: int) -> str:
    """Return the key of the run of an attempt; that of a cohort's run is the cohort's id."""
    return f"{work_id}:{attempt}"


def is_run_key(name: str) -> bool:
    """Whether a name is a key that a run was launched under, and not the id of a run."""
    return is_id(name, WORK, COHORT)

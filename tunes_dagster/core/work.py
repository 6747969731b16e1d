"""The kinds of work there are, and what is decided by them: one table, which every other place asks.

A tune goes through three stages: it is prepared, made and finished. Most are made by training (`train`); those that
train nothing keep what an encoder sees in their pictures (`embed`), which needs no device. Batches are rendered.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tunes_dagster.core.ids import COHORT, WORK


class WorkKind(StrEnum):
    """What a piece of work is; the value stands in rows, tags, settings and the names of steps."""

    PREPARE = "prepare"
    TRAIN = "train"
    EMBED = "embed"
    FINISH = "finish"
    RENDER = "render"


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

# The asset that each kind of work materializes.
ASSETS = {
    WorkKind.PREPARE: "source_images",
    WorkKind.TRAIN: "lora",
    WorkKind.EMBED: "lora",
    WorkKind.FINISH: "report_card",
    WorkKind.RENDER: "renders",
}


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
    return name.startswith((f"{WORK}_", f"{COHORT}_"))

"""The installation as a whole, which no run makes: its drop folder, and what no sensor will ever move.

Both are assets without a partition whose checks turn red and stay so until somebody mends it. Counts only: names of
folders are somebody's words, which `tunes doctor` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg

from tunes_dagster.assets.names import DROP_FOLDER, INSTALLATION, Group, Owner
from tunes_dagster.pipeline.partitions import RENDER_BATCHES, TUNES
from tunes_dagster.registry import Registry
from tunes_dagster.resources import InstallationResource
from tunes_dagster.service.waiting import unused_drops

# After this long the sensors, which look every few seconds, have had their chance many times over.
GRACE = timedelta(hours=1)
# Keys that are looked at a time, and rows that are at work; more are named by the next look.
_MOST = 20_000

drop_folder = dg.AssetSpec(
    DROP_FOLDER,
    group_name=Group.DATASET,
    owners=[Owner.DATA],
    description="Folders and archives that were dropped to be trained on; the sensor `new_datasets` takes them in.",
)
installation_itself = dg.AssetSpec(
    INSTALLATION,
    group_name=Group.INSTALLATION,
    owners=[Owner.DATA],
    description="Registry and Dagster as one: whether they agree on what there is and what is being done.",
)


def looked_at() -> list[dg.AssetMaterialization]:
    """Return what lets Dagster show these assets as there: once, when somebody looks for the first time."""
    return [dg.AssetMaterialization(DROP_FOLDER), dg.AssetMaterialization(INSTALLATION)]


def folder_answer(registry: Registry) -> dg.AssetCheckEvaluation:
    """Return what the check of the drop folder says now."""
    unused = len(unused_drops(registry))
    said = f"{unused} of what lies there cannot be used: `tunes doctor` names it and what is wrong."
    return dg.AssetCheckEvaluation(
        asset_key=DROP_FOLDER,
        check_name="everything_is_usable",
        passed=not unused,
        severity=dg.AssetCheckSeverity.WARN,
        description=said if unused else "Everything there was taken in, or is still being written.",
        metadata={"not_used": unused},
    )


@dg.asset_check(
    asset=DROP_FOLDER,
    name="everything_is_usable",
    description="Nothing lies in the drop folder that is not used; `new_datasets` answers when that changes.",
)
def everything_is_usable(installation: InstallationResource) -> dg.AssetCheckResult:
    """Look at the rows of the drop folder."""
    answer = folder_answer(installation.open(works=False).registry)
    return dg.AssetCheckResult(
        passed=answer.passed,
        severity=answer.severity,
        description=answer.description,
        metadata=answer.metadata,
    )


@dataclass(frozen=True, kw_only=True)
class Stranded:
    """What nobody will ever move.

    Attributes:
        tunes: Open tunes that no work is open for.
        work: Attempts that count as running, whose run has ended or is unknown.
        keys: Partitions whose tune or batch is not in the registry.
        runs: Runs that count as going on, and whose work has ended or was never there.
    """

    tunes: Sequence[str] = ()
    work: Sequence[str] = ()
    keys: Sequence[str] = ()
    runs: Sequence[str] = ()

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.tunes or self.work or self.keys or self.runs)


def find_stranded(instance: dg.DagsterInstance, registry: Registry) -> Stranded:
    """Compare the rows with Dagster's runs and keys."""
    before = registry.now() - GRACE
    going = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    runs = {run.run_id: run for run in instance.get_runs(dg.RunsFilter(statuses=going), limit=_MOST)}
    active = registry.work.active(_MOST)
    lost = []
    for work in active:
        silent = work.state == "running" and work.heartbeat_at is not None and work.heartbeat_at < before
        if silent and (work.run_id or "") not in runs:
            lost.append(work.id)
    ended = {run_id: registry.work.run_ended_at(run_id) for run_id in runs}
    return Stranded(
        tunes=[tune_id for tune_id, _run in registry.mending.idle_tunes(before)],
        work=lost,
        keys=[
            *(key for key in instance.get_dynamic_partitions(TUNES)[:_MOST] if not registry.tunes.has(key)),
            *(
                key
                for key in instance.get_dynamic_partitions(RENDER_BATCHES)[:_MOST]
                if registry.groups.batch(key) is None
            ),
        ],
        runs=[run_id for run_id, end in ended.items() if end is not None and end < before],
    )


@dg.asset_check(
    asset=INSTALLATION,
    name="nothing_is_stranded",
    description=(
        "No tune without work, work without run, run without work, key without subject: all that the sensors should "
        "have set right within an hour. Looked at daily."
    ),
)
def nothing_is_stranded(
    context: dg.AssetCheckExecutionContext, installation: InstallationResource
) -> dg.AssetCheckResult:
    """Look for what nobody will ever move."""
    found = find_stranded(context.instance, installation.open(works=False).registry)
    counts = {name: len(getattr(found, name)) for name in ("tunes", "work", "runs", "keys")}
    first = {f"first_of_{name}": getattr(found, name)[0] for name, number in counts.items() if number}
    said = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Nobody will move {said}. The first of each is named here: see that `stuck_work` is on, "
        "or take a tune up with `tunes resume`; a key alone can be deleted in the UI."
        if found
        else "Rows, runs and keys agree.",
        metadata={**counts, **first},
    )

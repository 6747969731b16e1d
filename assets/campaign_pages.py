"""What people see of a campaign's dates, and the answers of their checks: plans, refused plans, reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg

from tunes_dagster.assets.display import files, picture, table
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.pipeline.partitions import campaigns_keys

if TYPE_CHECKING:
    from tunes_dagster.campaigns.plan import Sketch
    from tunes_dagster.campaigns.report import Report
    from tunes_dagster.core.store import Store
    from tunes_dagster.registry import CampaignDate

PLAN_COLUMNS = {
    "line": "int",
    "tune": "string",
    "seed": "int",
    "size": "string",
    "pictures": "int",
    "there already": "bool",
}
PROBLEM_COLUMNS = {"file": "string", "line": "int", "level": "string", "what": "string", "remedy": "string"}
FAILURE_COLUMNS = {"line": "int"}


def problems_table(problems: list[dict[str, Any]]) -> Any:
    """Return mistakes as a table."""
    rows = [{**one, "what": one["message"]} for one in problems]
    return table(rows, PROBLEM_COLUMNS)


def refused_plan(name: str, failure: Failure) -> list[dg.AssetCheckResult]:
    """Return the answers of the checks of a date whose plan was refused: they show which one refused it."""
    plan_key, _ = campaigns_keys(name)
    broken = failure.code == FailureCode.INVALID_REQUEST
    problems = failure.facts.get("problems", [])
    said = (
        f"{len(problems)} mistakes; `tunes campaign show {name}` names them." if problems else "No mistakes."
    )
    answers = [
        dg.AssetCheckResult(
            asset_key=plan_key, check_name="file_is_valid", passed=not broken, description=said
        )
    ]
    if not broken:
        refused = f"The plan was refused: {failure.code}."
        answers.append(
            dg.AssetCheckResult(
                asset_key=plan_key, check_name="cost_within_cap", passed=False, description=refused
            )
        )
    return answers


def described_plan(name: str, date: CampaignDate, drawn: Sketch, store: Store) -> dg.MaterializeResult:
    """Return the materialization of a planned date: what it comes to, its prompts, and the checks."""
    plan_key, _ = campaigns_keys(name)
    return dg.MaterializeResult(
        asset_key=plan_key,
        metadata=_plan_metadata(date, drawn, store),
        check_results=_plan_checks(plan_key, drawn),
    )


def _plan_metadata(date: CampaignDate, drawn: Sketch, store: Store) -> dict[str, Any]:
    estimate = drawn.estimate
    shown = [
        {
            "line": one.line,
            "tune": one.tune_id or "",
            "seed": one.request.settings.seed,
            "pictures": one.request.settings.num_images,
            "size": f"{one.request.settings.width}×{one.request.settings.height}",
            "there already": one.recipe_hash in drawn.known,
        }
        for one in drawn.planned[:100]
    ]
    facts = {
        "prompts": estimate.prompts,
        "pictures": estimate.pictures,
        "new_prompts": date.plan["new"],
        "kept": date.plan["kept"],
        "cost_of_new_usd": estimate.dollars,
        "prices": "; ".join(estimate.prices) or "nothing new",
        "runs_of_new": f"{estimate.batches} ({'; '.join(estimate.rooms)})" if estimate.rooms else "none",
        "time_of_new": estimate.duration,
        "time_from": "; ".join(estimate.sources) or "nothing new",
        "waits_for_tunes": len(drawn.waits),
        "tunes": dg.MetadataValue.json(sorted(tune.id for tune in drawn.tunes.values())),
        "plan": table(shown, PLAN_COLUMNS),
    }
    if drawn.problems:
        facts["warnings"] = len(drawn.problems)
    return {**facts, **files(store, {"plan": date.plan_key})}


def _plan_checks(plan_key: dg.AssetKey, drawn: Sketch) -> list[dg.AssetCheckResult]:
    cap = drawn.file.cost_cap
    left = sorted({one.reason for one in drawn.left_out})
    return [
        dg.AssetCheckResult(passed=True, check_name="file_is_valid", description="No mistakes."),
        dg.AssetCheckResult(
            passed=True,
            check_name="cost_within_cap",
            description=f"${drawn.estimate.dollars + drawn.spent / 1e6:,.2f} of "
            f"{'no cap' if cap is None else f'${cap:,.2f}'}.",
        ),
        dg.AssetCheckResult(
            passed=not left,
            check_name="every_tune_is_usable",
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{len(drawn.left_out)} prompts were left out." if left else "All are.",
        ),
    ]


def described_report(report: Report, store: Store) -> dg.MaterializeResult:
    """Return the materialization of a report: overview, numbers, failures, files, and the check."""
    counts = report.numbers
    missing = counts.failed + counts.open
    said = f"{counts.failed} prompts failed, {counts.open} are still open."
    return dg.MaterializeResult(
        metadata={
            "contact_sheet": picture(store, report.sheet_key, "campaign"),
            "pictures": counts.pictures,
            "prompts": counts.prompts,
            "done": counts.done,
            "failed": counts.failed,
            "not_yet_rendered": counts.open,
            "render_seconds": counts.seconds,
            "failures": table(report.failures, FAILURE_COLUMNS),
            **files(
                store,
                {
                    "page": report.page_key,
                    "contact sheet": report.sheet_key,
                    "table": report.csv_key,
                    "table (Parquet)": report.parquet_key,
                },
            ),
        },
        check_results=[
            dg.AssetCheckResult(
                passed=not missing,
                check_name="nothing_missing",
                description=said if missing else "All are there.",
            )
        ],
    )

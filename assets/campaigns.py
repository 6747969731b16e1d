"""Campaigns: for each, the plan and the report of its dates, made from the tunes and the renders.

There is one pair of assets per campaign, because each has dates of its own. They are built from the registry's rows
when the code location loads; a row that cannot become a partition set becomes an asset that says why, and nothing
else is touched by it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from tunes_dagster.assets.attempt import as_dagster_failure, sentences
from tunes_dagster.assets.display import files, picture, table
from tunes_dagster.assets.names import LORA, RENDERS, Group, Owner, check_spec, process_run
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.pipeline.partitions import campaign_dates, campaigns_keys, loras_of_batch
from tunes_dagster.resources import InstallationResource

if TYPE_CHECKING:
    from tunes_dagster.registry import Campaign
    from tunes_dagster.service.installation import Installation

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


class PlanConfig(dg.Config):
    """How a date is planned."""

    retry_failed: bool = Field(
        default=True,
        description="Ask again for prompts of this date that failed. What is done is never rendered again.",
    )


@dataclass(frozen=True)
class CampaignDefs:
    """What one campaign adds to the code location.

    Attributes:
        name: Of the campaign.
        assets: Its plan and its report.
        jobs: `plan_<name>` and `report_<name>`.
        problem: Why it has no partitions; empty for one that works.
    """

    name: str
    assets: list[dg.AssetsDefinition]
    jobs: list[Any]
    problem: str = ""


def plan_job_name(campaign: str) -> str:
    """Return the name of the job that plans a campaign's dates."""
    return f"plan_{campaign}"


def report_job_name(campaign: str) -> str:
    """Return the name of the job that reports on a campaign's dates."""
    return f"report_{campaign}"


def campaign_defs(campaign: "Campaign") -> CampaignDefs:
    """Return what a campaign adds to the code location; never raises for what its row says."""
    try:
        dates = campaign_dates(campaign.cron, campaign.timezone, campaign.starts)
        assets = [_plan_asset(campaign, dates), _report_asset(campaign, dates)]
    except Exception as error:  # one row that an older or newer version wrote must not take the others along
        return CampaignDefs(
            campaign.name, [_broken_asset(campaign, f"{type(error).__name__}: {error}")], [], str(error)
        )
    plan_key, report_key = campaigns_keys(campaign.name)
    jobs = [
        dg.define_asset_job(
            plan_job_name(campaign.name),
            selection=[plan_key],
            tags=process_run("campaign"),
            description=f"Plans dates of the campaign {campaign.name}: queues the prompts that are missing.",
        ),
        dg.define_asset_job(
            report_job_name(campaign.name),
            selection=[report_key],
            tags=process_run("campaign"),
            description=f"Reports on dates of the campaign {campaign.name}.",
        ),
    ]
    return CampaignDefs(campaign.name, assets, jobs)


def _facts(campaign: "Campaign") -> dict[str, Any]:
    """Return what the UI shows of a campaign before any date was planned."""
    facts: dict[str, Any] = {
        "cron": campaign.cron,
        "time zone": campaign.timezone,
        "account": campaign.account_id,
        "state": campaign.state,
    }
    if campaign.state == "broken":
        facts["problems"] = problems_table(campaign.problems.get("problems", []))
    return facts


def _said(campaign: "Campaign", what: str) -> str:
    own = str(campaign.definition.get("description") or "")
    broken = (
        "**BROKEN: its file has mistakes, see the problems below.** " if campaign.state == "broken" else ""
    )
    return f"{broken}{what}{f' {own}' if own else ''}"


def problems_table(problems: list[dict[str, Any]]) -> Any:
    """Return mistakes as a table."""
    rows = [{**one, "what": one["message"]} for one in problems]
    return table(rows, PROBLEM_COLUMNS)


def _plan_asset(campaign: "Campaign", dates: dg.TimeWindowPartitionsDefinition) -> dg.AssetsDefinition:
    plan_key, _ = campaigns_keys(campaign.name)
    valid = check_spec(
        "file_is_valid",
        asset=plan_key,
        partitions_def=dates,
        description="The campaign's files have no mistakes.",
    )
    cap = check_spec(
        "cost_within_cap",
        asset=plan_key,
        partitions_def=dates,
        blocking=True,
        description="What all plans of the date cost is at most the campaign's cost_cap; above it nothing is queued.",
    )
    usable = check_spec(
        "every_tune_is_usable",
        asset=plan_key,
        partitions_def=dates,
        description="No prompt had to be left out because its tune failed or is gone.",
    )
    name = campaign.name

    @dg.asset(
        key=plan_key,
        code_version="1",
        deps=[dg.AssetDep(LORA, partition_mapping=loras_of_batch)],
        partitions_def=dates,
        group_name=Group.CAMPAIGNS,
        kinds={"python", "pandas"},
        owners=[Owner.RENDERING],
        check_specs=[valid, cap, usable],
        metadata=_facts(campaign),
        description=_said(campaign, "The prompts of a date; those that are not there yet are queued."),
    )
    def campaign_plan(
        context: dg.AssetExecutionContext,
        config: PlanConfig,
        installation: InstallationResource,
    ) -> Iterator[Any]:
        yield from plan_results(context, config, _keeper(installation), name)

    return campaign_plan


def _keeper(installation: InstallationResource) -> Any:
    from tunes_dagster.campaigns.keeping import Keeper

    return Keeper(installation.open())


def plan_results(
    context: dg.AssetExecutionContext, config: PlanConfig, keeper: Any, name: str
) -> Iterator[Any]:
    """Plan one date; a refused plan shows which check refused it, and queues nothing."""
    plan_key, _ = campaigns_keys(name)
    with sentences():
        campaign = keeper.registry.campaigns.get(name)
    try:
        row, drawn = keeper.plan(campaign, context.partition_key, retry_failed=config.retry_failed)
    except Failure as failure:
        broken = failure.code == FailureCode.INVALID_REQUEST
        problems = failure.facts.get("problems", [])
        yield dg.AssetCheckResult(
            asset_key=plan_key,
            check_name="file_is_valid",
            passed=not broken,
            description=f"{len(problems)} mistakes; `tunes campaign show {name}` names them."
            if problems
            else "No mistakes.",
        )
        if not broken:
            yield dg.AssetCheckResult(
                asset_key=plan_key, check_name="cost_within_cap", passed=False, description=_refused(failure)
            )
        raise as_dagster_failure(failure) from None
    if drawn.problems or row.message:
        context.log.info(f"`tunes campaign show {name}` says what is to be known of this date.")
    yield dg.MaterializeResult(
        asset_key=plan_key,
        metadata=_plan_metadata(row, drawn, keeper.store),
        check_results=_plan_checks(plan_key, row, drawn),
    )


def _refused(failure: Failure) -> str:
    return f"The plan was refused: {failure.code}."


def _plan_metadata(row: Any, drawn: Any, store: Any) -> dict[str, Any]:
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
        "new prompts": row.plan["new"],
        "kept": row.plan["kept"],
        "cost of the new ones (USD)": estimate.dollars,
        "prices": "; ".join(estimate.prices) or "nothing new",
        "runs of the new ones": f"{estimate.batches} ({'; '.join(estimate.rooms)})"
        if estimate.rooms
        else "none",
        "time of the new ones": estimate.duration,
        "time from": "; ".join(estimate.sources) or "nothing new",
        "waits for tunes": len(drawn.waits),
        "tunes": dg.MetadataValue.json(sorted(tune.id for tune in drawn.tunes.values())),
        "plan": table(shown, PLAN_COLUMNS),
    }
    if drawn.problems:
        facts["warnings"] = len(drawn.problems)
    return {**facts, **files(store, {"plan": row.plan_key})}


def _plan_checks(plan_key: dg.AssetKey, row: Any, drawn: Any) -> list[dg.AssetCheckResult]:
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


def _report_asset(campaign: "Campaign", dates: dg.TimeWindowPartitionsDefinition) -> dg.AssetsDefinition:
    plan_key, report_key = campaigns_keys(campaign.name)
    missing = check_spec(
        "nothing_missing",
        asset=report_key,
        partitions_def=dates,
        description="Every planned picture is there.",
    )
    name = campaign.name

    @dg.asset(
        key=report_key,
        code_version="1",
        deps=[plan_key, dg.AssetDep(RENDERS, partition_mapping=loras_of_batch)],
        partitions_def=dates,
        group_name=Group.CAMPAIGNS,
        kinds={"pillow", "html", "csv"},
        owners=[Owner.RENDERING],
        check_specs=[missing],
        metadata=_facts(campaign),
        description=_said(
            campaign,
            "Contact sheets by tune and by prompt, a page, a table of every picture, and what failed and why.",
        ),
    )
    def campaign_report(
        context: dg.AssetExecutionContext, installation: InstallationResource
    ) -> dg.MaterializeResult:
        whole = installation.open()
        return report_result(context, whole, name)

    return campaign_report


def report_result(
    context: dg.AssetExecutionContext, installation: "Installation", name: str
) -> dg.MaterializeResult:
    """Report on one date, also when not everything has ended yet."""
    from tunes_dagster.campaigns.report import make_report

    with sentences():
        report = make_report(installation, installation.registry.campaigns.get(name), context.partition_key)
    store = installation.store
    counts = report.numbers
    missing = counts.failed + counts.open
    said = f"{counts.failed} prompts failed, {counts.open} are still open."
    return dg.MaterializeResult(
        metadata={
            "contact sheet": picture(store, report.sheet_key, "campaign"),
            "pictures": counts.pictures,
            "prompts": counts.prompts,
            "done": counts.done,
            "failed": counts.failed,
            "not yet rendered": counts.open,
            "render seconds": counts.seconds,
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


def _broken_asset(campaign: "Campaign", problem: str) -> dg.AssetsDefinition:
    """Return the asset of a campaign whose dates cannot be made: it shows itself, and fails when materialized."""
    plan_key, _ = campaigns_keys(campaign.name)
    said = f"The campaign {campaign.name} cannot have dates: {problem}"

    @dg.asset(
        key=plan_key,
        code_version="1",
        group_name=Group.CAMPAIGNS,
        kinds={"python"},
        owners=[Owner.RENDERING],
        check_specs=[dg.AssetCheckSpec("file_is_valid", asset=plan_key, description="It has no mistakes.")],
        metadata={"state": "broken", "problem": problem},
        description=f"**BROKEN.** {said}. Add it again: `tunes campaign add FILE`.",
    )
    def campaign_plan() -> Iterator[Any]:
        yield dg.AssetCheckResult(
            asset_key=plan_key, check_name="file_is_valid", passed=False, description=said
        )
        raise dg.Failure(said, allow_retries=False)

    return campaign_plan


def load_campaigns(installation: InstallationResource) -> "list[Campaign]":
    """Return the campaigns of this installation for the code location; none when the registry cannot be read.

    A code location must load whatever happens: without its campaigns everything else still works.
    """
    import logging

    settings = installation.settings
    url = settings.resolved_registry_url
    if (
        url.startswith("sqlite")
        and not (settings.resolved_home / "registry.db").exists()
        and not settings.registry_url
    ):
        return []  # nothing was ever asked of this installation
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return installation.open(works=False).registry.campaigns.rows()
    except (Failure, SQLAlchemyError, OSError) as error:
        logging.getLogger(__name__).warning("The campaigns cannot be read, so none are shown: %s", error)
        return []

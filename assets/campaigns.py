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
from tunes_dagster.assets.campaign_pages import (
    described_plan,
    described_report,
    problems_table,
    refused_plan,
)
from tunes_dagster.assets.names import LORA, RENDERS, Group, Owner, check_spec, process_run
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.settings import Settings
from tunes_dagster.pipeline.partitions import campaign_dates, campaigns_keys, loras_of_batch
from tunes_dagster.resources import InstallationResource

if TYPE_CHECKING:
    from tunes_dagster.registry import Campaign


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


def campaign_defs(campaign: "Campaign", settings: Settings) -> CampaignDefs:
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
            tags=process_run("campaign", settings),
            description=f"Plans dates of the campaign {campaign.name}: queues the prompts that are missing.",
        ),
        dg.define_asset_job(
            report_job_name(campaign.name),
            selection=[report_key],
            tags=process_run("campaign", settings),
            description=f"Reports on dates of the campaign {campaign.name}.",
        ),
    ]
    return CampaignDefs(campaign.name, assets, jobs)


def _facts(campaign: "Campaign") -> dict[str, Any]:
    """Return what the UI shows of a campaign before any date was planned."""
    facts: dict[str, Any] = {
        "cron": campaign.cron,
        "time_zone": campaign.timezone,
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
        from tunes_dagster.campaigns.keeping import Keeper

        keeper = Keeper(installation.open())
        with sentences():
            row = keeper.registry.campaigns.get(name)
        try:
            date, drawn = keeper.plan(row, context.partition_key, retry_failed=config.retry_failed)
        except Failure as failure:
            yield from refused_plan(name, failure)
            raise as_dagster_failure(failure) from None
        if drawn.problems or date.message:
            context.log.info(f"`tunes campaign show {name}` says what is to be known of this date.")
        yield described_plan(name, date, drawn, keeper.store)

    return campaign_plan


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
        from tunes_dagster.campaigns.report import make_report

        whole = installation.open()
        with sentences():
            report = make_report(whole, whole.registry.campaigns.get(name), context.partition_key)
        return described_report(report, whole.store)

    return campaign_report


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

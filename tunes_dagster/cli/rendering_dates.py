"""Renders one date of a campaign from the command line: plan it, have it rendered, report on it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tunes_dagster.cli.following import have_done
from tunes_dagster.cli.installation import Installation
from tunes_dagster.cli.output import complain, escape, noise_to, say
from tunes_dagster.cli.watching import Line, Watch, tune_line

if TYPE_CHECKING:
    from tunes_dagster.registry import Campaign, CampaignDate

# How long the daemon's sensor may take to ask for a report, before it is made here.
_REPORT_SECONDS = 60.0
_POLL_SECONDS = 0.5


class DateWatch(Watch):
    """Reads how far a date is, from one count of its prompts."""

    def __init__(self, installation: Installation, campaign: Campaign, date_id: str) -> None:
        super().__init__(installation.registry)
        self.campaign, self.date_id = campaign, date_id

    def _read(self) -> list[Line]:
        counts = self.registry.dates.counts(self.date_id)
        open_ = sum(counts.get(status, 0) for status in ("waiting", "queued", "rendering"))
        total = sum(counts.values())
        said = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
        status = "rendering" if open_ else "done"
        first = Line(
            name=self.campaign.name,
            status=status,
            phase=status,
            message=said,
            step=total - open_,
            total=total,
            seconds_left=None,
            over=not open_,
        )
        waits = self.registry.dates.waited_for(self.date_id) if counts.get("waiting") else []
        return [first, *(tune_line(tune) for tune in waits)]


def render_date(installation: Installation, campaign: Campaign, date: str, wait: bool) -> int:
    """Plan a date here, have it rendered by the daemon or here, and report on it; returns the exit code.

    Raises:
        Failure: Why its plan was refused.
    """
    from tunes_dagster.pipeline.inprocess import daemon_is_alive, open_instance, run_campaign_job

    registry, settings = installation.registry, installation.settings
    instance = open_instance(settings)
    log = settings.resolved_home / "logs" / "cli.log"
    with noise_to(log):
        run_campaign_job("plan", campaign, date, instance)
    row = registry.dates.get(campaign.id, date)
    assert row is not None
    say(
        f"[bold]{escape(campaign.name)}[/] {date}: {row.plan['new']:,} prompts queued, "
        f"{row.plan['kept']:,} are there already."
    )
    if row.message:
        say(escape(row.message))
    if not wait:
        if not daemon_is_alive(instance):
            say(
                "It is rendered when the daemon runs (`tunes dev`), or here: "
                f"[bold]tunes campaign run {campaign.name} {date}[/]"
            )
        return 0
    try:
        _finish(installation, campaign, row, instance)
    except KeyboardInterrupt:
        say(f"\nWhat was rendered is kept. Go on with: [bold]tunes campaign run {campaign.name} {date}[/]")
        raise
    return _say_result(installation, campaign, date)


def _finish(installation: Installation, campaign: Campaign, row: CampaignDate, instance: Any) -> None:
    from tunes_dagster.pipeline.inprocess import daemon_is_alive, run_campaign_job

    have_done(installation, DateWatch(installation, campaign, row.id), instance)
    until = time.monotonic() + _REPORT_SECONDS
    while daemon_is_alive(instance) and time.monotonic() < until:  # its sensor asks for the report
        after = installation.registry.dates.get(campaign.id, row.date)
        if after is not None and after.status == "reported":
            return
        time.sleep(_POLL_SECONDS)
    with noise_to(installation.settings.resolved_home / "logs" / "cli.log"):
        run_campaign_job("report", campaign, row.date, instance)


def _say_result(installation: Installation, campaign: Campaign, date: str) -> int:
    row = installation.registry.dates.get(campaign.id, date)
    assert row is not None
    made = row.made
    if row.report_key:
        folder = row.report_key.rpartition("/")[0]
        say(f"  page           {escape(installation.store.url(row.report_key))}")
        say(f"  contact sheet  {escape(installation.store.url(f'{folder}/contact_sheet.png'))}")
        say(f"  table          {escape(installation.store.url(f'{folder}/pictures.csv'))}")
    if made.failed:
        complain(
            f"{made.failed} of {made.prompts} prompts failed; {made.pictures} pictures are there.",
            f"Why: tunes campaign show {campaign.name} {date}. Once more: tunes campaign rerun {campaign.name} {date}",
        )
        return 1
    say(f"{made.pictures:,} pictures.")
    return 0

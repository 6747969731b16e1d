"""`tunes campaign check | add | list | show | run | rerun | backfill | reload | remove`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunes_dagster.cli.installation import Installation, open_installation, set_dagster_home
from tunes_dagster.cli.output import ago, complain, emit_json, escape, say, styled, table
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import format_count

if TYPE_CHECKING:
    from datetime import datetime

    from tunes_dagster.campaigns.keeping import Keeper
    from tunes_dagster.campaigns.plan import Sketch
    from tunes_dagster.campaigns.problems import Mistake
    from tunes_dagster.registry import Campaign, CampaignDate

app = typer.Typer(
    name="campaign",
    no_args_is_help=True,
    help="Tables of prompts × tunes, rendered on a schedule or on demand.",
)

File = Annotated[Path, typer.Argument(help="The campaign's YAML; its table lies beside it.")]
Name = Annotated[str, typer.Argument(help="Name of the campaign.")]
Date = Annotated[str | None, typer.Argument(help="One of its dates. Default: the newest one.")]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Stay until the report is there, or only queue it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def keeper_of(installation: Installation) -> Keeper:
    """Return what campaigns are kept with."""
    from tunes_dagster.campaigns.keeping import Keeper

    return Keeper(installation)


def _source(file: Path) -> Any:
    from tunes_dagster.campaigns.files import from_folder

    try:
        return from_folder(file)
    except OSError as error:
        raise Failure(
            FailureCode.INVALID_REQUEST, f"{file} cannot be read: {error.strerror}.", "Check the path."
        ) from error


@app.command()
def check(file: File, as_json: AsJson = False) -> int:
    """Say what a campaign would render, how long that takes here, what it costs, and every mistake. Queues nothing."""
    keeper = keeper_of(open_installation())
    drawn = keeper.check(_source(file))
    wrong = [one for one in drawn.problems if one.level == "error"]
    if as_json:
        emit_json(_as_dict(drawn))
        return 2 if wrong else 0
    _say_problems(drawn.problems)
    if wrong:
        complain(f"{format_count(len(wrong), 'mistake')} in {file.name}; nothing can be queued like this.")
        return 2
    _say_sketch(drawn, keeper.registry.now())
    return 0


def _as_dict(drawn: Sketch) -> dict[str, Any]:
    good = drawn.parsed.file is not None
    return {
        "campaign": drawn.file.id if good else None,
        "problems": [one.as_dict() for one in drawn.problems],
        **drawn.estimate.as_dict(),
        "waits_for": drawn.waits,
        "left_out": len(drawn.left_out),
        "over_cap": drawn.over_cap if good else "",
    }


def _say_problems(problems: list[Mistake]) -> None:
    for one in problems[:200]:
        colour, word = ("red", "error") if one.level == "error" else ("yellow", "warning")
        place = f"{one.file}, line {one.line}" if one.line else one.file
        say(
            f"[{colour}]{word}[/] [bold]{escape(place)}[/]: {escape(one.message)} {escape(one.remedy)}".rstrip()
        )
    if len(problems) > 200:
        say(f"… and {len(problems) - 200} more")


def _say_sketch(drawn: Sketch, now: datetime) -> None:
    from tunes_dagster.campaigns.dates import tick_after

    file, estimate = drawn.file, drawn.estimate
    following = tick_after(file.cron, file.timezone, now)
    say(
        f"[bold]{escape(file.id)}[/]  {escape(file.cron)} {escape(file.timezone)}, next {following:%A %Y-%m-%d %H:%M}"
    )
    by_tune = ", ".join(f"{escape(tune)} {number}" for tune, number in estimate.by_tune.items())
    say(
        f"  renders   {format_count(estimate.pictures, 'picture')} of {format_count(estimate.prompts, 'prompt')}"
        f"  [dim]({by_tune})[/]"
    )
    if estimate.new_pictures < estimate.pictures:
        say(f"  new       {estimate.new_pictures:,}; the others are there already and are kept")
    sources = "; ".join(estimate.sources)
    say(
        f"  takes     {estimate.duration} in {format_count(estimate.batches, 'run')}"
        f"  [dim]({escape(sources) or 'nothing new'})[/]"
    )
    for size in estimate.rooms:
        say(f"  size      [dim]{escape(size)}[/]")
    cap = "" if file.cost_cap is None else f" of at most ${file.cost_cap:,.2f}"
    say(f"  costs     ${estimate.dollars:,.2f}{cap}  [dim]({'; '.join(estimate.prices) or 'nothing new'})[/]")
    for title, status in drawn.waits.items():
        say(f"  waits     for {escape(title)}, which is {styled(status)}")
    for planned in drawn.planned[:3]:
        tune = drawn.tunes[planned.tune_id].title if planned.tune_id else "plain base"
        settings = planned.request.settings
        say(
            f"  [dim]line {planned.line}: {escape(tune)}: {escape(planned.request.text[:90])}, "
            f"{settings.width}×{settings.height}, seed {settings.seed}[/]"
        )
    if len(drawn.planned) > 3:
        say(f"  [dim]… and {len(drawn.planned) - 3:,} more prompts[/]")
    if drawn.over_cap:
        say(f"[red]{escape(drawn.over_cap)}[/]")


@app.command()
def add(
    files: Annotated[list[Path], typer.Argument(help="YAMLs of campaigns, or folders of them.")],
) -> int:
    """Check campaigns, keep them, and put them on the schedule; the same name replaces. A wrong one stops no other."""
    installation = open_installation()
    keeper, failed, added = keeper_of(installation), 0, ""
    for file in _yamls(files):
        drawn = keeper.check(_source(file))
        _say_problems(drawn.problems)
        if any(one.level == "error" for one in drawn.problems):
            complain(f"{file.name} was not added.", "Correct it and add it again.")
            failed += 1
            continue
        row, drawn = keeper.add(_source(file))
        _say_sketch(drawn, installation.registry.now())
        added = row.name
        folder = installation.store.url(row.file).rpartition("/")[0]
        say(f"Added [bold]{escape(row.name)}[/]; its files lie in {escape(folder)}")
    if added:
        from tunes_dagster.campaigns.reloading import reload_code_location

        say(escape(reload_code_location(installation.settings.ui_url)))
        say(f"Render its newest date now: [bold]tunes campaign run {escape(added)}[/]")
    return 2 if failed else 0


def _yamls(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found += sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
    return found


@app.command(name="list")
def list_campaigns(as_json: AsJson = False) -> None:
    """List the campaigns: when they come next, how their newest date stands, and what is wrong with broken ones."""
    from tunes_dagster.campaigns.dates import tick_after

    installation = open_installation()
    keeper = keeper_of(installation)
    rows = [keeper.look(row) for row in installation.registry.campaigns.rows()]
    newest = {row.name: next(iter(installation.registry.dates.rows(row.id, limit=1)), None) for row in rows}
    if as_json:
        emit_json([_campaign_as_dict(row, newest[row.name]) for row in rows])
        return
    if not rows:
        say("No campaigns yet. Add one: [bold]tunes campaign add campaigns/looks.yaml[/]")
        return
    table(
        ["name", "state", "cron", "time zone", "next", "newest date", "stands", "prompts#"],
        [
            [
                escape(row.name),
                "[red]broken[/]" if row.state == "broken" else "good",
                row.cron,
                row.timezone,
                f"{tick_after(row.cron, row.timezone, installation.registry.now()):%Y-%m-%d %H:%M}",
                *(
                    [date.date, date.status, date.plan.get("prompts", "")]
                    if (date := newest[row.name])
                    else ["", "", ""]
                ),
            ]
            for row in rows
        ],
    )
    for row in rows:
        if row.state == "broken":
            _say_problems(_problems(row))


def _problems(row: Campaign) -> list[Mistake]:
    from tunes_dagster.campaigns.problems import Mistake

    return [Mistake(**one) for one in row.problems.get("problems", [])]


def _campaign_as_dict(row: Campaign, date: CampaignDate | None) -> dict[str, Any]:
    return {
        "name": row.name,
        "id": row.id,
        "state": row.state,
        "cron": row.cron,
        "timezone": row.timezone,
        "starts": row.starts,
        "version": row.version,
        "problems": row.problems.get("problems", []),
        "newest_date": date.date if date else None,
        "status": date.status if date else None,
    }


@app.command()
def show(name: Name, date: Date = None, as_json: AsJson = False) -> None:
    """Show a campaign's dates, or one of them: what is done, what it waits for, where its report lies."""
    installation = open_installation()
    registry = installation.registry
    row = keeper_of(installation).look(registry.campaigns.get(name))
    dates = registry.dates.rows(row.id)
    chosen = [one for one in dates if date is None or one.date == date]
    if date is not None and not chosen:
        keeper_of(installation).date_of(row, date)
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{row.name} was not planned for {date}.",
            f"Plan it: tunes campaign backfill {row.name} {date}",
        )
    if as_json:
        emit_json(
            {
                **_campaign_as_dict(row, dates[0] if dates else None),
                "dates": [_date_as_dict(installation, one) for one in chosen],
            }
        )
        return
    say(
        f"[bold]{escape(row.name)}[/]  {row.cron} {row.timezone}  {'[red]broken[/]' if row.state == 'broken' else ''}"
    )
    _say_problems(_problems(row))
    for one in chosen[: 1 if date else 20]:
        _say_date(installation, row, one, full=date is not None or len(chosen) == 1)
    if not chosen:
        say(f"No date was planned yet. Render the newest: [bold]tunes campaign run {row.name}[/]")


def _date_as_dict(installation: Installation, date: CampaignDate) -> dict[str, Any]:
    return {
        "date": date.date,
        "status": date.status,
        "message": date.message,
        "plan": date.plan,
        "result": date.result,
        "prompts": installation.registry.dates.counts(date.id),
        "planned_at": date.planned_at,
        "report": installation.store.url(date.report_key) if date.report_key else None,
    }


def _say_date(installation: Installation, row: Campaign, date: CampaignDate, full: bool) -> None:
    counts = installation.registry.dates.counts(date.id)
    said = ", ".join(f"{number:,} {styled(status)}" for status, number in sorted(counts.items()))
    say(
        f"  [bold]{date.date}[/]  {date.status}  {said or escape(date.message)}  [dim]{ago(date.planned_at)}[/]"
    )
    for tune in installation.registry.dates.waited_for(date.id):
        step = f" {tune.step}/{tune.total_steps}" if tune.total_steps and tune.step else ""
        say(f"      waits for {escape(tune.title)}, which is {styled(tune.status)}{step}")
    if not full:
        return
    if date.report_key:
        say(f"      report    {escape(installation.store.url(date.report_key))}")
    for link, prompt in installation.registry.dates.prompts(date.id)[:5000]:
        if prompt.status in ("failed", "blocked"):
            why = f"{escape(prompt.text[:60])}: {escape(prompt.failure_message or '')}"
            say(f"      line {link.line}: {styled(prompt.status)} {why}")


@app.command()
def run(name: Name, date: Date = None, wait: Wait = True) -> int:
    """Render the newest date now, or another one: what is there already is kept, what is missing or failed is made."""
    return _render_dates(name, [date], wait)


@app.command()
def rerun(name: Name, date: Date = None, wait: Wait = True) -> int:
    """Render again what failed on a date; everything that is done is kept."""
    installation = open_installation()
    row = installation.registry.campaigns.get(name)
    key = keeper_of(installation).date_of(row, date)
    planned = installation.registry.dates.get(row.id, key)
    if planned is None or planned.planned_at is None:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{row.name} was not rendered on {key} yet: there is nothing to repeat.",
            f"Render it: tunes campaign run {row.name} {key}",
        )
    return _render_dates(name, [key], wait)


@app.command()
def backfill(
    name: Name,
    dates: Annotated[list[str] | None, typer.Argument(help="Dates that were missed.")] = None,
    missed: Annotated[
        bool, typer.Option("--missed", help="All dates that came and were not planned.")
    ] = False,
    wait: Wait = True,
) -> int:
    """Render dates that were missed."""
    installation = open_installation()
    keeper = keeper_of(installation)
    row = installation.registry.campaigns.get(name)
    if missed:
        planned = {
            one.date for one in installation.registry.dates.rows(row.id, limit=100_000) if one.planned_at
        }
        dates = [*(dates or []), *(key for key in keeper.dates(row) if key not in planned)]
    if not dates:
        known = ", ".join(keeper.dates(row)[-5:])
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "No date was missed." if missed else "Which date was missed was not said.",
            f"The newest dates of {row.name} are {known}." if known else f"It starts {row.starts}.",
        )
    return _render_dates(name, list(dates), wait)


@app.command()
def reload() -> int:
    """Read the kept files of all campaigns again, after they were changed in the store, and reload the schedule."""
    installation = open_installation()
    keeper = keeper_of(installation)
    rows = [keeper.read_again(row) for row in installation.registry.campaigns.rows()]
    for row in rows:
        say(f"{escape(row.name)}: {'[red]broken[/]' if row.state == 'broken' else 'good'}")
        _say_problems(_problems(row))
    from tunes_dagster.campaigns.reloading import reload_code_location

    say(escape(reload_code_location(installation.settings.ui_url)))
    return 2 if any(row.state == "broken" for row in rows) else 0


@app.command()
def remove(name: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Take a campaign off the schedule; what it still waits for is cancelled, its pictures and reports stay."""
    installation = open_installation()
    row = installation.registry.campaigns.get(name)
    if not yes:
        typer.confirm(f"Remove the campaign {row.name}? Its pictures and reports stay.", abort=True)
    cancelled = installation.registry.campaigns.remove(row.id)
    from tunes_dagster.campaigns.reloading import reload_code_location

    say(f"{escape(row.name)} is removed; {format_count(cancelled, 'waiting prompt')} cancelled.")
    say(escape(reload_code_location(installation.settings.ui_url)))


def _render_dates(name: str, dates: list[str | None], wait: bool) -> int:
    from tunes_dagster.cli.rendering_dates import render_date

    installation = open_installation()
    set_dagster_home(installation.settings)
    row = installation.registry.campaigns.get(name)
    keys = [keeper_of(installation).date_of(row, date) for date in dates]
    return max(render_date(installation, row, key, wait) for key in keys)

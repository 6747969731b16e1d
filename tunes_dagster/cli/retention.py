"""`tunes delete`, `tunes keep`, `tunes retention …`: what goes, what stays, and the record of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunes_dagster.cli.flags import Account, Which
from tunes_dagster.cli.installation import Installation, open_installation, set_dagster_home
from tunes_dagster.cli.output import ago, emit_json, escape, megabytes, say, table
from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    from tunes_dagster.service.erase import Erased

app = typer.Typer(
    name="retention", no_args_is_help=True, help="How long tunes and pictures are kept, and what was deleted."
)

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Word = str | None
_UNITS = {"h": 1.0, "d": 24.0, "w": 168.0}


def delete(
    tune: Annotated[Word, typer.Argument(help="Tune by number, id or title.")] = None,
    person: Annotated[
        Word, typer.Option(help="All tunes with the label person=LABEL; or NAME=VALUE of another label.")
    ] = None,
    account: Annotated[
        Word,
        typer.Option(
            help="Whose tune or person is meant (local when left out); alone: all tunes of an account."
        ),
    ] = None,
    yes: Yes = False,
) -> None:
    """Delete a tune, or all of a person: pictures, captions, caches, weights and renders; prints what was removed."""
    from tunes_dagster.service.erase import erase_tunes, tunes_of_person

    installation = open_installation()
    registry = installation.registry
    if (tune is not None and person is not None) or tune is person is account is None:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "What is to be deleted was not said, or twice.",
            "Name a tune, or a person (--person LABEL), or an account (--account ID).",
        )
    whose = registry.accounts.get(account or "local").id
    if tune is not None:
        rows, rule = [registry.objects.tune_named(whose, tune, deleted=True)], ""
    elif person is not None:
        rows, rule = tunes_of_person(registry, person, whose), "a person was forgotten"
    else:
        rows, rule = registry.tunes.rows(limit=1_000_000, account_id=whose), f"account {whose}"
    if not yes:
        names = ", ".join(f"{row.number} ({row.title})" for row in rows[:10])
        typer.confirm(
            f"Delete {len(rows)} tune(s): {names}, with their pictures, weights and renders?", abort=True
        )
    erased = erase_tunes(installation, rows, rule=rule)
    _say_erased(erased)
    say(_forget_in_dagster(installation, [row.id for row in rows]))
    what = f"Tune {rows[0].number} is" if len(rows) == 1 else f"{len(rows)} tunes are"
    say(f"{what} deleted; {erased.count} files went. The record stays: [bold]tunes retention log[/]")


def forget(
    dagster_history: Annotated[
        bool,
        typer.Option(
            "--dagster-history",
            help="Delete all ended runs of Dagster with their events and logs: earlier versions wrote thumbnails "
            "and texts there.",
        ),
    ] = False,
    person: Annotated[Word, typer.Argument(help="Label of a person; as `tunes delete --person`.")] = None,
    account: Account = "local",
    yes: Yes = False,
) -> None:
    """Forget a person, or what Dagster's storage holds of before it was kept free of pictures and words."""
    if person is None and not dagster_history:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "Whom or what to forget was not said.",
            "Name a person, or --dagster-history.",
        )
    if person is not None:
        delete(None, person, account, yes)
    if not dagster_history:
        return
    if not yes:
        typer.confirm(
            "Delete all ended runs of Dagster? Its assets look as if they had never been made; tunes and "
            "renders stay as they are.",
            abort=True,
        )
    installation = open_installation()
    set_dagster_home(installation.settings)
    from tunes_dagster.assets.housekeeping import forget_history
    from tunes_dagster.pipeline.inprocess import open_instance

    with open_instance(installation.settings) as instance:
        say(f"Deleted {forget_history(instance)} runs of Dagster with their events and logs.")


def _say_erased(erased: Erased) -> None:
    for kind, number in sorted(erased.files.items()):
        say(f"  {kind:<14} {number:>6,}")
    if erased.count:
        say(f"  {'together':<14} {erased.count:>6,}  [dim]({megabytes(erased.bytes)})[/]")
    for left in erased.left:
        say(f"  [yellow]stays[/]: {escape(left)}")
    if erased.unfinished:
        say(
            f"  [yellow]{erased.unfinished} deletions go on by themselves[/]: something could not be reached."
        )


def _forget_in_dagster(installation: Installation, tune_ids: list[str]) -> str:
    """Delete the tunes' runs and partitions: their events hold thumbnails."""
    set_dagster_home(installation.settings)
    from tunes_dagster.assets.housekeeping import forget_tunes
    from tunes_dagster.pipeline.inprocess import open_instance

    with open_instance(installation.settings) as instance:
        return forget_tunes(instance, installation.registry, tune_ids).sentence()


def keep(
    tune: Which,
    for_: Annotated[Word, typer.Option("--for", help="Keep it so long from now: 24h, 30d, 8w.")] = None,
    auto_extend: Annotated[
        bool | None,
        typer.Option("--auto-extend/--no-auto-extend", help="Extend it whenever it would expire."),
    ] = None,
    account: Account = "local",
) -> None:
    """Keep a tune longer than its account's rule says."""
    registry = open_installation().registry
    row = registry.objects.tune_named(account, tune)
    if for_ is None and auto_extend is None:
        raise Failure(
            FailureCode.INVALID_REQUEST, "How long was not said.", "Add --for 30d, or --auto-extend."
        )
    until = None
    if for_ is not None:
        hours = _hours(for_)
        until = _FOR_EVER if hours is None else registry.now() + timedelta(hours=hours)
    after = registry.retention.keep_tune(row.id, until=until, auto_extend=auto_extend)
    said = f"until {after.kept_until:%Y-%m-%d %H:%M} UTC at least" if until else "as before"
    extends = {True: ", and extended each time", False: ", and not extended", None: ""}[after.auto_extend]
    say(f"Tune {row.number} is kept {said}{extends}.")


# What `never` means where a time has to be written.
_FOR_EVER = datetime(9999, 1, 1, tzinfo=UTC)
# No calendar holds the end of much longer times.
_LONGEST_HOURS = 100 * 366 * 24


def _hours(word: str) -> float | None:
    """Return `24h`, `30d`, `8w` in hours; None for `never`.

    Raises:
        Failure: `INVALID_REQUEST`.
    """
    if word.strip().lower() in ("never", "forever"):
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([hdw])\s*", word.lower())
    if found is None or float(found.group(1)) <= 0:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{word!r} is no time to keep something.",
            "Write 24h, 30d, 8w, never.",
        )
    hours = float(found.group(1)) * _UNITS[found.group(2)]
    if hours > _LONGEST_HOURS:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{word!r} is longer than a hundred years.",
            "Write never to keep it for good.",
        )
    return hours


def _said(hours: float | None) -> str:
    if hours is None:
        return "never expire"
    return (
        f"expire after {hours / 24:g} days" if hours % 24 == 0 and hours > 48 else f"expire after {hours:g} h"
    )


@app.command("set")
def set_rules(
    account: Annotated[str, typer.Argument(help="Id of the account; `local` is the command line's.")],
    tunes: Annotated[Word, typer.Option(help="How long ready tunes are kept: 30d, never.")] = None,
    outputs: Annotated[Word, typer.Option(help="How long pictures are kept: 24h, 30d, never.")] = None,
    auto_extend: Annotated[
        bool | None, typer.Option("--auto-extend/--no-auto-extend", help="Extend instead of delete.")
    ] = None,
    warn: Annotated[Word, typer.Option(help="How long before an expiry callers are told: 24h.")] = None,
    callback_url: Annotated[
        Word, typer.Option(help="Told of all expiries of the account; `none` for nobody.")
    ] = None,
) -> None:
    """Set how long an account's tunes and pictures are kept. Nothing goes before its warning had its time."""
    from tunes_dagster.service.checks import check_callback_url

    installation = open_installation()
    rules: dict[str, Any] = {}
    if tunes is not None:
        rules["keep_tunes_hours"] = _hours(tunes)
    if outputs is not None:
        rules["keep_outputs_hours"] = _hours(outputs)
    if auto_extend is not None:
        rules["auto_extend"] = auto_extend
    if warn is not None:
        rules["warn_hours"] = _hours(warn) or 0.0
    if callback_url is not None:
        url = None if callback_url == "none" else callback_url
        check_callback_url(url, installation.settings)
        rules["expiry_callback_url"] = url
    installation.registry.accounts.set_retention(account, **rules)
    show()


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False) -> None:
    """Show the rules of all accounts."""
    from tunes_dagster.registry.retention import RULES

    rows = open_installation().registry.accounts.rows()
    if as_json:
        emit_json([{"account": row.id, **{name: getattr(row, name) for name in RULES}} for row in rows])
        return
    table(
        ["account", "tunes", "pictures", "auto-extend", "warning", "told"],
        [
            [
                escape(row.id),
                _said(row.keep_tunes_hours),
                _said(row.keep_outputs_hours),
                "yes" if row.auto_extend else "no",
                f"{row.warn_hours:g} h before",
                escape(row.expiry_callback_url or "the callers"),
            ]
            for row in rows
        ],
    )


@app.command()
def run() -> None:
    """Warn, extend and delete now; the `housekeeping` schedule does it every day."""
    from tunes_dagster.service.retain import retain

    installation = open_installation()
    done = retain(installation, installation.registry.now())
    say(done.sentence())
    _say_erased(done.erased)
    if done.tune_ids:
        say(_forget_in_dagster(installation, done.tune_ids))


@app.command()
def log(
    account: Annotated[Word, typer.Option(help="Only this account's.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many, newest first.", min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show the records of what was deleted."""
    rows = open_installation().registry.deletions.records(account, limit)
    if as_json:
        fields = (
            "id",
            "account_id",
            "kind",
            "subject_id",
            "label",
            "reason",
            "rule",
            "files",
            "bytes",
            "what",
            "state",
            "at",
            "done_at",
        )
        emit_json([{name: getattr(row, name) for name in fields} for row in rows])
        return
    table(
        ["when", "what", "id", "why", "state", "files#", "size#"],
        [
            [
                ago(row.at),
                f"{row.kind} {escape(row.label)}",
                row.subject_id,
                f"{row.reason} {escape(row.rule)}".strip(),
                row.state,
                row.files,
                megabytes(row.bytes),
            ]
            for row in rows
        ],
    )

"""`tunes diff` and `tunes rerun`: comparing how tunes were made, and making one again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tunes_dagster.cli.flags import Account, Which, assignments
from tunes_dagster.cli.installation import open_installation
from tunes_dagster.cli.output import emit_json, escape, say
from tunes_dagster.cli.tunes import AsJson
from tunes_dagster.core.failures import Failure, FailureCode


def diff(
    first: Which,
    second: Annotated[str, typer.Argument(help="The other tune.")],
    account: Account = "local",
    as_json: AsJson = False,
) -> None:
    """Show what differs between two tunes: base, settings, pictures, captions, versions."""
    from dataclasses import asdict

    from tunes_dagster.cli.output import console
    from tunes_dagster.service.compare import differences

    installation = open_installation()
    rows = [installation.registry.objects.tune_named(account, name) for name in (first, second)]
    found = differences(rows[0], rows[1], installation.store)
    if as_json:
        emit_json([asdict(one) for one in found])
        return
    if not found:
        say(f"Tunes {rows[0].number} and {rows[1].number} were made the same way.")
        return
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("", "", *(f"{row.number} {escape(row.title)}" for row in rows)):
        table.add_column(title, overflow="fold")
    before = ""
    for one in found:
        kind = "" if one.kind == before else one.kind
        before = one.kind
        table.add_row(kind, escape(one.what), escape(one.first), escape(one.second))
    console().print(table)


def rerun(
    tune: Which,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Training option that is to differ: steps=800; may be repeated."),
    ] = None,
    title: Annotated[str, typer.Option(help="Of the new tune. Default: the old one's with (again).")] = "",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Stay until it is done, or only hand it in.")
    ] = True,
    account: Account = "local",
    as_json: AsJson = False,
) -> None:
    """Train a tune again, with its pictures and settings and with its captions as they are now.

    On the same device the weights are the same, number for number, unless something is changed with --set or
    in the captions. Pictures that were encoded before are not encoded again.
    """
    from tunes_dagster.cli.showing import say_findings, say_warnings, tune_as_dict
    from tunes_dagster.service.rerun import rerun as hand_in

    installation = open_installation()
    registry = installation.registry
    row = hand_in(
        installation,
        registry.objects.tune_named(account, tune),
        training_changes(set_ or []),
        title,
    )
    if wait:
        from tunes_dagster.cli.following import follow

        follow(installation, tunes=[row.id], stderr=as_json)
        row = registry.tunes.get(row.id)
    if as_json:
        emit_json(tune_as_dict(row))
        return
    say_warnings([row])
    say_findings([row])
    say(f"Tune [bold]{row.number}[/] ({row.id}) is {row.status}. Compare: tunes diff {tune} {row.number}")


def training_changes(pairs: list[str]) -> dict[str, Any]:
    """Return `["steps=800", "training.rank=8"]` as training options.

    Raises:
        Failure: `INVALID_REQUEST` for what is not a training option.
    """
    said = assignments(pairs)
    changes = {**said, **said.pop("training", {})}
    changes.pop("training", None)
    groups = [name for name, value in changes.items() if isinstance(value, dict)]
    if groups:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"Only training options can be changed, not {groups[0]!r}.",
            "Write --set steps=800; for other pictures or another subject make a new tune.",
        )
    return changes

"""`tunes doctor`: what this machine has, and what would stop a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tunes_dagster.cli.installation import open_installation, set_dagster_home
from tunes_dagster.cli.output import emit_json, escape, say

_MARKS = {"ok": "[green]✓[/]", "note": "[yellow]·[/]", "problem": "[red]✗[/]"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    mend: Annotated[
        bool,
        typer.Option(
            "--mend", help="First queue again what nobody works on, and settle what is held for nothing."
        ),
    ] = False,
) -> int:
    """Say what this machine has, what would stop a run, and what earlier faults left behind.

    Ends with code 1 if something would stop a run.
    """
    from tunes_dagster.cli.checkup import Finding, examine, summary

    installation = open_installation()
    set_dagster_home(installation.settings)
    mended = installation.registry.mending.mend() if mend else None
    if mended is not None and not as_json:
        say(
            f"{mended.queued} tunes and prompts were put back into the queue, {mended.settled} reservations settled.\n"
        )
    findings: list[Finding] = []
    area = ""
    for finding in examine(installation.settings):
        findings.append(finding)
        if as_json:
            continue
        heading = finding.area if finding.area != area else ""
        area = finding.area
        say(f"{_MARKS[finding.level]} [bold]{heading:<12}[/] {escape(finding.says)}")
        if finding.remedy:
            say(f"{'':<15}[dim]{escape(finding.remedy)}[/]")
    result = summary(findings)
    if as_json:
        emit_json({**result, **({} if mended is None else {"mended": asdict(mended)})})
    elif result["ready"]:
        say("\nNothing would stop a run. Try: [bold]tunes demo[/]")
    else:
        say("\n[red]Something would stop a run:[/] see ✗ above.")
    return 0 if result["ready"] else 1

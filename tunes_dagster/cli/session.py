"""`tunes session`: holds this machine's device and does what waits for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tunes_dagster.cli.installation import open_installation
from tunes_dagster.cli.output import escape, say
from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    from tunes_dagster.sessions.session import Session


def session(
    for_good: Annotated[
        bool,
        typer.Option(
            "--for-good", help="Stay when nothing waits, as a service does; without it, as long as set."
        ),
    ] = False,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Wait in a small process, and load models only while there is work, as `tunes dev` does.",
        ),
    ] = False,
    named: Annotated[str, typer.Option(help="Be the session of this name.", hidden=True)] = "",
) -> None:
    """Hold this machine's device: train, score and render what waits, until told to end.

    For a service manager or a container; without one, Dagster starts a session when something waits.
    """
    installation = open_installation()
    if not installation.settings.uses_sessions:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "Sessions are switched off: Dagster's runs do what needs a device.",
            "Set TUNES_SESSIONS=on here and for everything else of this installation.",
        )
    from tunes_dagster.core.logs import set_up_logging
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.sessions.hosting import host

    set_up_logging("tunes.session", installation.settings.log_format)
    whole = Installation(installation.settings, works=True)
    if keep:
        from tunes_dagster.sessions import keeping

        keeping.keep(whole, keeping.session_command())
        return

    def ready(one: Session) -> None:
        if not named:
            say(
                f"{escape(one.name)} holds [bold]{escape(one.device.name)}[/] ({escape(one.device.label)}). "
                "Ctrl-C ends it; what it does goes on in the next one."
            )

    name = host(
        whole,
        name=named,
        alone=True,
        warm_seconds=float("inf") if for_good else None,
        ready=ready,
        line=sys.stdin.fileno() if named else None,
    )
    if not named:
        say(f"{escape(name)} has ended.")

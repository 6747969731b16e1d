"""`tunes backup`, `tunes restore`: a copy of the whole installation, taken while it works, and putting it back."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tunes_dagster.cli.installation import Installation, open_installation, set_dagster_home
from tunes_dagster.cli.output import emit_json, escape, megabytes, say
from tunes_dagster.core.failures import Failure, FailureCode

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def backup(
    folder: Annotated[
        Path, typer.Argument(help="Where the copy goes; an earlier one there is brought up to date.")
    ],
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="Also copy the store; not when a bucket is replicated.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Copy registry, store and Dagster's history into a folder. Everything may go on working meanwhile."""
    from tunes_dagster.service.backup import back_up

    settings = open_installation().settings
    made = back_up(settings, folder.expanduser().resolve(), with_store=store)
    if as_json:
        emit_json(asdict(made))
        return
    files = "without the store" if made.files is None else f"{made.files} files, {megabytes(made.bytes)}"
    say(f"The installation as of {made.taken_at} lies in [bold]{escape(str(folder))}[/] ({files}).")


def restore(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A folder that `tunes backup` made. None: everything was put back by hand."),
    ] = None,
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="Also put the store back; not when it is still there.")
    ] = True,
    taken_at: Annotated[
        datetime | None,
        typer.Option(help="Without a folder: the moment of the copy, as far as it is known (UTC)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put a backup back, and bring its rows to where the installation can go on. Nothing may run on it meanwhile."""
    from tunes_dagster.service.backup import put_back
    from tunes_dagster.service.restore import check_files, delete_again

    installation = open_installation()
    set_dagster_home(installation.settings)
    _nobody_works(installation)
    about = None
    if folder is not None:
        about = put_back(installation.settings, folder.expanduser().resolve(), with_store=store)
        taken_at = datetime.fromisoformat(about.taken_at)
    elif taken_at is not None:
        taken_at = taken_at.replace(tzinfo=taken_at.tzinfo or UTC)
    rows = installation.registry.restoring.restored(taken_at)
    again = delete_again(installation, about) if about else 0
    files = check_files(installation)
    if as_json:
        emit_json({"rows": asdict(rows), "deleted_again": again, "files": asdict(files)})
        return
    for line in _sentences(rows, again, files):
        say(line)
    say("Start it again: [bold]tunes dev[/]; `tunes doctor` looks at the whole.")


def _nobody_works(installation: Installation) -> None:
    from tunes_dagster.pipeline.inprocess import daemon_is_alive, open_instance
    from tunes_dagster.service.backup import dagster_storage

    if not dagster_storage(installation.settings).exists():
        return
    if daemon_is_alive(open_instance(installation.settings)):
        raise Failure(
            FailureCode.CONFLICT,
            "A daemon is alive in this installation.",
            "Stop `tunes dev` first, then try again.",
        )


def _sentences(rows: Any, again: int, files: Any) -> list[str]:
    """Return in words what was done."""
    said = [
        f"{rows.queued} pieces of work are back in the queue.",
        f"{rows.due} callbacks will be sent, perhaps again; {rows.held} are held, because their receivers cannot take "
        "a repeat (`tunes callbacks list --state held`, `tunes callbacks replay`).",
    ]
    if again or files.deleted:
        numbers = f" (tunes {', '.join(map(str, files.deleted))})" if files.deleted else ""
        said.append(f"{again + len(files.deleted)} things that had been deleted are deleted again{numbers}.")
    if files.again:
        named = ", ".join(f"{number} ({kind})" for number, kind in files.again.items())
        said.append(f"Files were missing: tunes that are made again: {named}.")
    if files.rendered:
        said.append(
            f"Files were missing: prompts that are rendered again: {', '.join(map(str, files.rendered))}."
        )
    said += [f"[yellow]Lost[/]: {escape(one)}." for one in files.lost]
    return said

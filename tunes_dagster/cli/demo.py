"""`tunes demo`: the whole way once, from pictures to a before-and-after sheet."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from tunes_dagster.cli.installation import Installation, open_installation
from tunes_dagster.cli.output import escape, say
from tunes_dagster.core.failures import Failure, FailureCode


def demo(
    subject: Annotated[
        str, typer.Option(help="Whom to train on: nova, fern, duo, barbo, comet, minty, smily.")
    ] = "nova",
    steps: Annotated[
        int | None, typer.Option(min=1, max=20_000, help="Fewer are quicker and less like the subject.")
    ] = None,
    base: Annotated[str, typer.Option(help="The shipped base to train: sdxl or flux.")] = "sdxl",
) -> None:
    """Train on a drawn subject that the base has never seen, and render it in new places."""
    from tunes_dagster.cli import demonstration as library
    from tunes_dagster.cli.following import follow
    from tunes_dagster.service.submit import submit_prompt, submit_tune
    from tunes_dagster.tiny.world.subjects import SUBJECTS

    if subject not in SUBJECTS:
        raise Failure(
            FailureCode.INVALID_REQUEST, f"There is no subject {subject!r}.", f"Choose {', '.join(SUBJECTS)}."
        )
    if base not in library.BASES:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The demo has no base {base!r}.",
            f"Choose {' or '.join(library.BASES)}.",
        )
    started = time.monotonic()
    installation = open_installation()
    registry, store = installation.registry, installation.store
    _say_what_comes(installation, SUBJECTS[subject].description)
    show = library.prepare(
        installation.settings.resolved_home / "demo" / folder_name(subject, base), subject, base
    )
    if steps is not None:
        show.request.training.steps = steps
    folder = show.request.sources.folder
    tune = submit_tune(installation, show.request, origin="demo", allow_folder=folder)
    show.tune_id = tune.id
    show.plain_ids = [submit_prompt(installation, one, origin="demo").id for one in show.plain]
    follow(installation, tunes=[tune.id], prompts=show.plain_ids)
    files = library.finish(show, installation)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    say(f"\n[green]Done[/] in {minutes} min {seconds} s.\n")
    say(f"  before and after   [bold]{escape(files['sheet'])}[/]")
    say(f"  report             [bold]{escape(files['page'])}[/]   (open it in a browser)")
    card = registry.tunes.get(tune.id).made.report_card
    if card is not None and card.page_key:
        say(f"  report card        {escape(store.url(card.page_key))}   ({escape(card.verdict)})")
    say(f"  everything else    {escape(store.url(f'tunes/{tune.id}'))}\n")
    say("Next:")
    for comment, command in library.next_commands(registry.tunes.get(tune.id)):
        say(f"  [bold]{escape(command)}[/]   [dim]# {comment}[/]")


def folder_name(subject: str, base: str) -> str:
    """Where, below `demo`, the files of one demonstration go: one folder for each subject and base."""
    return subject if base == "sdxl" else f"{subject}-{base}"


def _say_what_comes(installation: Installation, description: str) -> None:
    import shutil

    from tunes_dagster.cli.demonstration import DISK_MB, MEMORY_GB, MINUTES, PICTURES, SCENES

    home = installation.settings.resolved_home
    free = shutil.disk_usage(home).free / 1e6
    say(f"[bold]The demo[/] draws {PICTURES} pictures of {escape(description)},")
    say("which the shipped base model has never seen, trains a LoRA on them, and renders")
    say(f"{len(SCENES)} prompts with and without it. It takes about {MINUTES} minutes on two cores,")
    say(f"{MEMORY_GB} GB of memory and {DISK_MB} MB in {escape(home)}.\n")
    if free < DISK_MB * 2:
        raise Failure(
            FailureCode.STORE_UNAVAILABLE,
            f"Only {free:.0f} MB are free at {home}.",
            "Free some space, or set TUNES_HOME to another disk.",
        )

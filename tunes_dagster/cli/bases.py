"""`tunes bases list | pull`: the base models that can be trained on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from tunes_dagster.cli.installation import Installation, open_installation
from tunes_dagster.cli.output import emit_json, escape, megabytes, say, table
from tunes_dagster.families.catalog import AuxiliaryEntry, BaseModelEntry

if TYPE_CHECKING:
    from tunes_dagster.families.pulling import HuggingFaceHub

app = typer.Typer(no_args_is_help=True, help="Look at base models, and bring real ones from a hub.")


@app.command("list")
def list_bases(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List the base models of the catalog and the models beside them, and which are installed."""
    installation = open_installation()
    catalog, folder = installation.catalog, installation.settings.bases_folder
    entries = [*catalog.entries.values(), *catalog.auxiliary.values()]
    if as_json:
        emit_json(
            [
                {
                    "branch": entry.base_id,
                    **entry.model_dump(include={"family", "aliases", "repo_id", "licence", "gated"}),
                    "installed": entry.installed(folder),
                    "location": str(entry.location(folder)),
                    "used": catalog.real(entry).base_id,
                }
                for entry in entries
            ]
        )
        return
    rows: dict[bool, list[tuple[str, ...]]] = {False: [], True: []}
    for entry in entries:
        installed = "[green]installed[/]" if entry.installed(folder) else f"{entry.download_gb:g} GB to pull"
        real = catalog.real(entry)
        used = "itself" if real is entry else f"{real.base_id} [dim](profile {catalog.profile})[/]"
        licence = entry.licence + (", gated" if entry.gated else "")
        words = ", ".join(entry.aliases[:3])
        beside = isinstance(entry, AuxiliaryEntry)
        facts = () if beside else (f"{entry.native_size}²",)
        rows[beside].append((entry.base_id, words, entry.family, *facts, licence, installed, used))
    table(["base", "also called", "family", "size#", "licence", "weights", "trains on"], rows[False])
    table(["model beside", "also called", "what it is", "licence", "weights", "runs on"], rows[True])
    if catalog.profile == "embedded":
        say(
            "[dim]The profile `embedded` trains on the shipped tiny base. Real ones: tunes bases pull NAME, then "
            "TUNES_PROFILE=production.[/]"
        )


@app.command()
def pull(
    base: Annotated[str, typer.Argument(help="Branch or alias, see `tunes bases list`; or a scorer.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    alone: Annotated[
        bool,
        typer.Option("--alone", help="Leave out what tunes on the base use beside it: scorers, captioner."),
    ] = False,
    token: Annotated[str | None, typer.Option(envvar="HF_TOKEN", help="Read token for gated bases.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(envvar="HF_ENDPOINT", help="Another hub.", hidden=True)
    ] = None,
) -> None:
    """Bring a base model from the hub, with what a tune on it needs to its end. Says what it costs first."""
    from tunes_dagster.families.pulling import HuggingFaceHub
    from tunes_dagster.service.companions import missing, model_called

    installation = open_installation()
    entry = model_called(base, installation.catalog)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    hub = HuggingFaceHub(token, endpoint)
    if _is_there(entry, installation):
        say(f"{entry.base_id} is installed at {escape(entry.location(installation.settings.bases_folder))}.")
    else:
        _bring(entry, installation, hub, yes, bool(token))
    if isinstance(entry, AuxiliaryEntry):
        return
    # A real base is trained on under the profile `production`, whatever this command runs under.
    real = installation.settings.model_copy(update={"profile": "production"})
    lacking = [one for one in missing(real, installation.catalog) if one.pullable]
    if lacking and not alone:
        say("Tunes on it also use:")
        for one in lacking:
            about = f"{one.entry.download_gb:g} GB, {one.entry.licence}"
            say(f"  [bold]{one.entry.base_id}[/]  {about}: {one.use}; without it {one.without}")
        for one in lacking:
            if yes or typer.confirm(f"Bring {one.entry.base_id}?", default=True):
                _bring(one.entry, installation, hub, True, bool(token))
    say(
        "Train on it with: [bold]TUNES_PROFILE=production tunes train ./photos --name woman "
        f"--base {entry.base_id}[/]"
    )


def _is_there(entry: BaseModelEntry, installation: Installation) -> bool:
    return entry.installed(installation.settings.bases_folder) and not entry.repo_id.startswith("embedded:")


def _bring(
    entry: BaseModelEntry, installation: Installation, hub: HuggingFaceHub, yes: bool, token: bool
) -> None:
    """Say what a download is, ask, and do it."""
    from tunes_dagster.families.pulling import plan_pull
    from tunes_dagster.families.pulling import pull as bring

    plan = plan_pull(entry, installation.settings.bases_folder, hub)
    say(f"[bold]{entry.base_id}[/]  {entry.repo_id} @ {plan.commit[:12]}")
    say(f"  size      {megabytes(plan.size)} in {len(plan.files)} files, to {escape(plan.target)}")
    say(f"  licence   {entry.licence}: read it at {plan.page}")
    if entry.gated:
        given = "a token was given" if token else "no token was given (HF_TOKEN or --token)"
        say(f"  gated     the licence must be accepted on that page with your account; {given}")
    if not isinstance(entry, AuxiliaryEntry):
        say(f"  training  needs about {entry.memory_gb:g} GB of accelerator memory")
    if not yes:
        typer.confirm("Download it?", default=True, abort=True)
    bring(plan, hub, say=lambda line: say(escape(line)))
    beside = isinstance(entry, AuxiliaryEntry) and installation.catalog.real(entry) is not entry
    used = " It is used under [bold]TUNES_PROFILE=production[/]." if beside else ""
    say(f"[green]{entry.base_id} is installed.[/]{used}")

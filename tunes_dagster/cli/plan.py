"""`tunes plan`: what makes a tune fit a device, before anything is fetched or loaded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tunes_dagster.cli.flags import takes
from tunes_dagster.cli.installation import Installation, open_installation
from tunes_dagster.cli.output import emit_json, escape, say, table
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.recipe import UNTRAINED, TrainingOptions

# Memory of usual accelerators, in GiB.
DEVICES = (12, 24, 48, 80, 140)


@takes(training=TrainingOptions)
def plan(
    base: Annotated[str, typer.Option(help="Base model, see `tunes bases list`.")] = "sdxl",
    memory: Annotated[
        float | None,
        typer.Option(min=1, help="GiB of a GPU to plan for. Default: this machine, then usual GPUs."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    *,
    training: dict[str, Any],
) -> None:
    """Say how a tune would be laid out in memory: what is saved, how many share a run, what does not fit.

    The base is the one that was named, also under the profile `embedded`.
    """
    from tunes_dagster.core.validation import checked
    from tunes_dagster.service.companions import missing
    from tunes_dagster.sessions.hardware import find_devices
    from tunes_dagster.training.planner import Machine

    installation = open_installation()
    entry = installation.catalog.resolve(base)
    options = entry.training_options(checked(TrainingOptions, training, "The request"))
    if options.kind in UNTRAINED:
        said = (
            f"A tune of the kind {options.kind} trains nothing: an encoder looks at its pictures on the CPU."
        )
        if as_json:
            emit_json({"base": entry.base_id, "devices": [], "says": said})
        else:
            say(said)
        return
    if memory is not None:
        machines = {f"GPU with {memory:g} GiB": Machine("cuda", memory, "bfloat16", True)}
    else:
        device = find_devices(installation.settings.device, installation.settings.dtype)[0]
        machines = {f"this machine ({device.label})": device.machine()}
        machines |= {f"GPU with {gib} GiB": Machine("cuda", float(gib), "bfloat16", True) for gib in DEVICES}
    rows = [_planned(installation, entry, options, name, machine) for name, machine in machines.items()]
    real = installation.settings.model_copy(update={"profile": "production"})
    lacking = missing(real, installation.catalog)
    if as_json:
        named = [
            {"name": one.entry.base_id, "use": one.use, "without": one.without, "remedy": one.remedy}
            for one in lacking
        ]
        emit_json({"base": entry.base_id, "devices": rows, "missing": named})
        return
    shown = [(row["device"], _gib(row), row.get("cohort", ""), escape(row["says"])) for row in rows]
    table(["device", "GiB needed#", "tunes at a time#", f"{entry.base_id}, {options.kind}"], shown)
    for one in lacking:
        say(f"Not installed: {one.entry.base_id}, for {one.use}. {escape(one.remedy)}")
    say("[dim]GPUs are planned in bfloat16 and with bitsandbytes installed.[/]")


def _gib(row: dict[str, Any]) -> str:
    return f"{row['needed_gib']:.1f}" if "needed_gib" in row else ""


def _planned(
    installation: Installation, entry: Any, options: TrainingOptions, name: str, machine: Any
) -> dict[str, Any]:
    from tunes_dagster.families.sizes import sizes_of
    from tunes_dagster.training.planner import plan_memory
    from tunes_dagster.training.road import described

    sizes = sizes_of(entry, entry.location(installation.settings.bases_folder))
    try:
        made = plan_memory([options], sizes, entry.native_size, machine, installation.settings.max_cohort)
    except Failure as failure:
        return {
            "device": name,
            "fits": False,
            **failure.facts,
            "says": f"{failure.message} {failure.remedy}",
        }
    folder = entry.location(installation.settings.bases_folder)
    whole = described(made, options, entry, folder, machine)
    highest, moments = whole["worst_moment"], whole["moments_gib"]
    says = (
        f"{made.sentence()} Highest: {highest}, {moments[highest]:.1f} GiB. {_rendered(whole['rendering'])}"
    )
    return {"device": name, "fits": True, **made.as_dict(), **whole, "says": says}


def _rendered(way: dict[str, Any]) -> str:
    """Say how pictures of the finished tune are rendered, and that they are not where nothing fits."""
    if not way["fits"]:
        return f"Pictures do not fit: one needs {way['needed_gib']:.1f} GiB; render on a larger device."
    saved = ["text encoders and VAE are offloaded"] if way["offload"] else []
    saved += [f"base in {way['quantize']}"] if way["quantize"] != "none" else []
    return f"Pictures: {', '.join(saved) or 'nothing saved'}, {way['needed_gib']:.1f} GiB."

"""The renders of a batch: prompts of one base, over any tunes, in one model load."""

import time
from typing import Any

import dagster as dg

from tunes_dagster.assets.attempt import attempt, sentences
from tunes_dagster.assets.display import device_facts, files, picture, table
from tunes_dagster.assets.following import followed
from tunes_dagster.assets.launchpad import filled_in, mirror
from tunes_dagster.assets.names import (
    CODE_VERSIONS,
    GPU_POOL,
    LORA,
    RENDERS,
    Group,
    Owner,
    check_spec,
    pool_of,
)
from tunes_dagster.assets.versions import version_of_renders
from tunes_dagster.core.failures import FailureCode
from tunes_dagster.core.progress import Phase
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.results import BatchResult, Machine
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.core.work import WorkKind
from tunes_dagster.pipeline.partitions import loras_of_batch, render_batches
from tunes_dagster.rendering.aids import make_aids
from tunes_dagster.rendering.jobs import Delivery
from tunes_dagster.rendering.loras import LoraUse
from tunes_dagster.rendering.run import run_batch
from tunes_dagster.resources import ComputeResource, Device, InstallationResource
from tunes_dagster.sessions.batches import (
    GAVE_WAY,
    GaveWay,
    PromptWriter,
    Turn,
    render_jobs,
    require_batch,
    wanted_prompts,
)
from tunes_dagster.sessions.results import Rendered

RENDERS_CONFIG = mirror(RenderSettings, "RendersConfig")
"""Empty renders the prompts as they were asked for; what is filled in overrides the settings of all of them."""

PROMPT_COLUMNS = {
    "prompt": "string",
    "tune": "string",
    "seed": "int",
    "pictures": "int",
    "result": "string",
    "first file": "string",
}

COUNTS = check_spec(
    "every_picture_is_there",
    asset=RENDERS,
    partitions_def=render_batches,
    description="As many pictures as were asked for.",
)
NOT_BLANK = check_spec(
    "not_blank",
    asset=RENDERS,
    partitions_def=render_batches,
    description="No picture is black or of one flat colour.",
)
FINITE = check_spec(
    "finite",
    asset=RENDERS,
    partitions_def=render_batches,
    description="No picture was lost to numbers that are not finite (NaN).",
)


def renders(
    context: dg.AssetExecutionContext,
    config: RENDERS_CONFIG,  # type: ignore[valid-type]
    installation: InstallationResource,
    compute: ComputeResource,
) -> dg.MaterializeResult:
    """Render every prompt of the batch; one that fails leaves the others alone."""
    whole = installation.open()
    rows, kept, settings = whole.registry, whole.store, whole.settings
    with sentences():
        batch = require_batch(rows, context.partition_key)

    def version_now() -> str:
        return version_of_renders(rows.prompts.rows(batch_id=batch.id))

    if (made := followed(context, whole, WorkKind.RENDER, batch.id, filled_in(config))) is not None:
        return made
    with attempt(context, whole, WorkKind.RENDER, batch.id) as mine:
        began = time.monotonic()
        prompts = {p.id: p for p in wanted_prompts(rows, batch, mine.work, all_again(context))}
        writer = PromptWriter(rows, mine.work.id, context.run.run_id)
        jobs = render_jobs(rows, list(prompts.values()), filled_in(config), writer)
        if not jobs:
            mine.finish()
            return nothing_left(writer, version_now())
        turn = Turn(rows, batch, mine.work, settings.campaign_turn_seconds)
        if turn.yields_at_once():
            mine.give_back(GAVE_WAY)
            return nothing_left(writer, version_now(), GAVE_WAY)
        entry, folder = whole.usable(batch.base_id)
        prefix = f"batches/{batch.id}/{mine.work.attempt}"
        with compute.lease(mine.report, settings, holder=context.run.run_id) as device:
            aids = make_aids(whole.catalog, settings)
            mine.report.phase(Phase.LOADING, f"Loading {entry.base_id} onto {device.name} ({device.dtype}).")
            before = time.monotonic() - began
            try:
                loading = before + run_batch(
                    jobs,
                    entry,
                    folder,
                    device.name,
                    device.torch_dtype,
                    Delivery(kept, prefix, mine.report, writer.on_done, turn.look),
                    aids,
                )
            except GaveWay:
                mine.give_back(GAVE_WAY)
                jobs = [job for job in jobs if job.prompt_id in writer.results]
                context.log.info(f"{GAVE_WAY} {len(jobs)} of {len(prompts)} prompts are done.")
        seconds = time.monotonic() - began
        if not mine.member.closed:
            mine.finish(batch_result(writer, device, seconds, loading))
    if not jobs:
        return nothing_left(writer, version_now(), GAVE_WAY)
    rendered = Rendered(batch, prompts, jobs, writer.results, prefix, seconds, device)
    return described(rendered, kept, version_now())


def renders_asset(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset, which waits for a pool where no sessions hold the devices."""
    made = dg.asset(
        key=RENDERS,
        code_version=CODE_VERSIONS[RENDERS],
        deps=[dg.AssetDep(LORA, partition_mapping=loras_of_batch)],
        partitions_def=render_batches,
        pool=pool_of(GPU_POOL, settings),
        group_name=Group.RENDERS,
        kinds={"pytorch", "diffusers", "png"},
        owners=[Owner.RENDERING],
        check_specs=[COUNTS, NOT_BLANK, FINITE],
        description=(
            "The pictures of a batch of prompts, each a PNG with its whole recipe inside, and their contact sheet. "
            "The tunes that a batch really used stand in its metadata."
        ),
    )
    return made(renders)


def batch_result(writer: PromptWriter, device: Device, seconds: float, loading: float) -> BatchResult:
    """Return what a batch's row keeps of its rendering."""
    machine = device.machine()
    return BatchResult(
        pictures=sum(len(result.images) for result in writer.results.values()),
        seconds=round(seconds, 2),
        load_seconds=round(loading, 2),
        machine=Machine(kind=machine.kind, gib=round(machine.gib, 2), dtype=machine.dtype),
    )


def all_again(context: dg.AssetExecutionContext) -> bool:
    """Whether a person materializes the batch anew; executing its run again does what that left undone."""
    return context.run.parent_run_id is None


def nothing_left(
    writer: PromptWriter, version: str, why: str = "An attempt before this one rendered everything."
) -> dg.MaterializeResult:
    """Return the materialization of an attempt that rendered nothing."""
    refused = {p: result.failure.code for p, result in writer.results.items() if result.failure}
    said = "; ".join(f"{p}: {code}" for p, code in refused.items()) or why
    return dg.MaterializeResult(
        metadata={"pictures": 0, "result": said},
        check_results=[
            dg.AssetCheckResult(passed=not refused, check_name=COUNTS.name, description=said),
            dg.AssetCheckResult(passed=True, check_name=NOT_BLANK.name),
            dg.AssetCheckResult(passed=True, check_name=FINITE.name),
        ],
        data_version=dg.DataVersion(version),
    )


def described(done: Rendered, store: Store, version: str) -> dg.MaterializeResult:
    """Return the materialization of a batch: contact sheet, page, table of prompts, tunes used, and checks."""
    from tunes_dagster.rendering.batch_report import write_batch_report

    images = [image for result in done.results.values() for image in result.images]
    report = write_batch_report(
        store,
        done.prefix,
        done.jobs,
        [done.results[job.prompt_id] for job in done.jobs],
        title=f"{len(images)} renders",
        base=done.batch.base_id,
        footer=done.batch.id,
    )
    used = {LoraUse(*use).id for job in done.jobs for use in (*job.loras, *job.faces)}
    sizes = {f"{image.rendered_at[0]}×{image.rendered_at[1]}" for image in images}
    return dg.MaterializeResult(
        metadata={
            "contact_sheet": picture(store, report.sheet_key, "renders"),
            "prompts": table(prompt_rows(done), PROMPT_COLUMNS),
            "pictures": len(images),
            "tunes": dg.MetadataValue.json(sorted(one for one in used if one)),
            "base": done.batch.base_id,
            "rendered_at": ", ".join(sorted(sizes)),
            **device_facts(done.device),
            "seconds": round(done.seconds, 1),
            "seconds_per_picture": round(done.seconds / max(1, len(images)), 2),
            **files(store, {"page": report.page_key, "contact sheet": report.sheet_key}),
        },
        check_results=checks(done),
        data_version=dg.DataVersion(version),
    )


def prompt_rows(done: Rendered) -> list[dict[str, Any]]:
    """Return one row per prompt: ids and numbers."""
    return [
        {
            "prompt": p,
            "tune": done.prompts[p].tune_id or "",
            "seed": done.prompts[p].settings.get("seed"),
            "pictures": len(result.images),
            "result": str(result.failure.code) if result.failure else "done",
            "first file": result.images[0].key.rpartition("/")[2] if result.images else "",
        }
        for p, result in done.results.items()
    ]


def checks(done: Rendered) -> list[dg.AssetCheckResult]:
    """Return the answers of the checks of a batch."""
    asked = {p: int(prompt.settings["num_images"]) for p, prompt in done.prompts.items()}
    asked |= {job.prompt_id: job.settings.num_images for job in done.jobs}
    missing = {p: number - len(done.results[p].images) for p, number in asked.items() if p in done.results}
    missing = {p: number for p, number in missing.items() if number > 0}
    blank = [image.key for result in done.results.values() for image in result.images if image.blank]
    broken = [p for p, r in done.results.items() if r.failure and r.failure.code == FailureCode.NOT_FINITE]
    warn = dg.AssetCheckSeverity.WARN
    return [
        dg.AssetCheckResult(
            passed=not missing,
            check_name=COUNTS.name,
            description="; ".join(f"{p} lacks {n}" for p, n in missing.items()) or "All are there.",
        ),
        dg.AssetCheckResult(
            passed=not blank,
            check_name=NOT_BLANK.name,
            severity=warn,
            description=f"{len(blank)} pictures are flat." if blank else "All show something.",
        ),
        dg.AssetCheckResult(
            passed=not broken,
            check_name=FINITE.name,
            description="; ".join(broken) or "All numbers are finite.",
        ),
    ]

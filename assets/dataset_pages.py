"""What people see of a dataset, and the answers of its checks: one function per asset of `datasets.py`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import dagster as dg

from tunes_dagster.assets.display import MAX_SHOWN, files, load_pictures, save_sheet, table
from tunes_dagster.assets.names import CAPTIONS, SOURCE_IMAGES, TRAINING_SET, check_spec
from tunes_dagster.core.failures import Failure
from tunes_dagster.pipeline.partitions import tunes

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.intake.captions import CaptionTable
    from tunes_dagster.intake.manifest import Manifest
    from tunes_dagster.intake.training_set import TrainingSet
    from tunes_dagster.registry import Tune

MANIFEST_COLUMNS = {
    "picture": "string",
    "verdict": "string",
    "reason": "string",
    "remedy": "string",
    "size": "string",
    "faces": "int",
    "sharpness": "string",
    "caption": "string",
    "hash": "string",
}
CAPTION_COLUMNS = {"name": "string", "caption": "string", "source": "string"}

ENOUGH_PICTURES = check_spec(
    "enough_pictures",
    asset=SOURCE_IMAGES,
    blocking=True,
    partitions_def=tunes,
    description="Enough pictures were accepted to train on; otherwise nothing after this is started.",
)
NO_LEAKAGE = check_spec(
    "no_leakage",
    asset=TRAINING_SET,
    partitions_def=tunes,
    description="No picture, crop or near duplicate is in both the trained and the held-out part.",
)
TOKEN_AND_CLASS = check_spec(
    "token_and_class",
    asset=CAPTIONS,
    partitions_def=tunes,
    description="Every caption holds the trigger word and the class name.",
)


def described_manifest(
    store: Store, tune: Tune, manifest: Manifest, failure: Failure | None
) -> dg.MaterializeResult:
    """Return the materialization of the pictures: sheet, counts, table, files, and the check's answer."""
    from tunes_dagster.rendering.sheets import training_sheet

    counts = manifest.counts()
    usable = len(manifest.accepted)
    metadata: dict[str, Any] = {}
    shown = [row for row in manifest.rows if row.key][:MAX_SHOWN]
    if shown:
        sheet = training_sheet(
            load_pictures(store, [row.key for row in shown if row.key]),
            [row.reason or row.name for row in shown],
            verdicts=[row.verdict for row in shown],
            title=f"Source images of {tune.title}",
            subtitle=f"{usable} can be used, {counts['rejected']} rejected",
        )
        metadata["pictures"] = save_sheet(store, f"tunes/{tune.id}/source/sheet.png", sheet, "source images")
    metadata |= {"usable": usable, **counts}
    metadata["manifest"] = table(manifest.records(), MANIFEST_COLUMNS)
    if manifest.notes or manifest.ignored:
        ignored = [f"ignored: {name}" for name in manifest.ignored[:20]]
        metadata["notes"] = dg.MetadataValue.md("\n".join(f"- {n}" for n in [*manifest.notes, *ignored]))
    metadata |= files(store, {"manifest": manifest.key})
    answer = dg.AssetCheckResult(
        passed=failure is None,
        check_name=ENOUGH_PICTURES.name,
        severity=dg.AssetCheckSeverity.ERROR,
        description=failure.message if failure else f"{usable} pictures can be used.",
        metadata={"usable": usable, **({"remedy": failure.remedy} if failure else {})},
    )
    return dg.MaterializeResult(metadata=metadata, check_results=[answer])


def described_training_set(store: Store, tune: Tune, built: TrainingSet) -> dg.MaterializeResult:
    """Return the materialization of the training set: contact sheet, buckets, and the leakage check."""
    from tunes_dagster.intake.training_set import leaks
    from tunes_dagster.rendering.sheets import training_sheet

    shown = built.items[:MAX_SHOWN]
    counts = f"{len(built.training)} trained on, {len(built.held_out)} held out"
    sheet = training_sheet(
        load_pictures(store, [item.key for item in shown], crops=[item.crop for item in shown]),
        [f"{item.name} · {item.bucket[0]}×{item.bucket[1]}" for item in shown],
        held_out=[item.held_out for item in shown],
        title=f"Training set of {tune.title}",
        subtitle=counts,
    )
    buckets = Counter(f"{item.bucket[0]}×{item.bucket[1]}" for item in built.training)
    rows = [{"bucket": bucket, "pictures": number} for bucket, number in buckets.most_common()]
    found = leaks(built)
    key = f"tunes/{tune.id}/training_set/contact_sheet.png"
    answer = dg.AssetCheckResult(
        passed=not found,
        check_name=NO_LEAKAGE.name,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(found) or f"Nothing is in both parts ({counts}).",
    )
    return dg.MaterializeResult(
        metadata={
            "contact sheet": save_sheet(store, key, sheet, "training set"),
            "trained on": len(built.training),
            "held out": len(built.held_out),
            "face crops": sum(item.kind == "face" for item in built.items),
            "resolution": built.resolution,
            "buckets": table(rows, {"bucket": "string", "pictures": "int"}),
            **files(store, {"training set": built.key, "contact sheet": key}),
        },
        check_results=[answer],
    )


def described_captions(store: Store, tune: Tune, written: CaptionTable) -> dg.MaterializeResult:
    """Return the materialization of the captions: the table, where each came from, and the check."""
    rows = [row.model_dump() for row in written.rows]
    sources = Counter(row.source for row in written.rows)
    lacking = [
        row.name
        for row in written.rows
        if tune.token not in row.caption or tune.class_name.lower() not in row.caption.lower()
    ]
    subject = f"'{tune.token}' and '{tune.class_name}'"
    answer = dg.AssetCheckResult(
        passed=not lacking,
        check_name=TOKEN_AND_CLASS.name,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Without {subject}: {', '.join(lacking)}"
        if lacking
        else f"All {len(rows)} captions hold {subject}.",
    )
    return dg.MaterializeResult(
        metadata={
            "captions": table(rows, CAPTION_COLUMNS),
            **{f"from {source}": number for source, number in sources.most_common()},
            "version": written.version,
            "file to edit": dg.MetadataValue.path(store.url(written.key)),
        },
        check_results=[answer],
    )

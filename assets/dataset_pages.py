"""What people see of a dataset, and the answers of its checks: one function per asset of `datasets.py`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import dagster as dg

from tunes_dagster.assets.display import MAX_SHOWN, called, document, files, load_pictures, save_sheet, table
from tunes_dagster.assets.names import CAPTIONS, SOURCE_IMAGES, TRAINING_SET, check_spec
from tunes_dagster.assets.versions import version_of
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.recipe import recipe_hash
from tunes_dagster.pipeline.partitions import tunes

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.intake.captions import CaptionTable
    from tunes_dagster.intake.manifest import Manifest
    from tunes_dagster.intake.training_set import TrainingSet
    from tunes_dagster.registry import Tune


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
    from tunes_dagster.intake.verdict import verdict_key
    from tunes_dagster.rendering.sheets import training_sheet

    counts = manifest.counts()
    usable = len(manifest.accepted)
    metadata: dict[str, Any] = {**called(tune)}
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
    found = Counter(str(row.findings[0]) for row in manifest.rows if row.findings)
    metadata["found"] = table(
        [{"finding": finding, "pictures": number} for finding, number in found.most_common()],
        {"finding": "string", "pictures": "int"},
    )
    metadata |= {"notes": len(manifest.notes), "ignored_files": len(manifest.ignored)}
    metadata["manifest"] = document(store, manifest.key)
    # What `tunes check` says, which holds names and captions: its address alone.
    verdict = verdict_key(tune.id)
    metadata["verdict"] = document(store, verdict)
    metadata |= files(store, {"manifest": manifest.key, "verdict": verdict})
    answer = dg.AssetCheckResult(
        passed=failure is None,
        check_name=ENOUGH_PICTURES.name,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{usable} of {len(manifest.rows)} pictures can be used.",
        metadata={"usable": usable, **({"code": str(failure.code)} if failure else {})},
    )
    return dg.MaterializeResult(
        metadata=metadata,
        check_results=[answer],
        data_version=dg.DataVersion(version_of(manifest, "tune_id")),
    )


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
        description=f"{len(found)} are in both parts." if found else f"Nothing is in both parts ({counts}).",
    )
    return dg.MaterializeResult(
        metadata={
            **called(tune),
            "contact_sheet": save_sheet(store, key, sheet, "training set"),
            "trained_on": len(built.training),
            "held_out": len(built.held_out),
            "face_crops": sum(item.kind == "face" for item in built.items),
            "resolution": built.resolution,
            "buckets": table(rows, {"bucket": "string", "pictures": "int"}),
            **files(store, {"training set": built.key, "contact sheet": key}),
        },
        check_results=[answer],
        data_version=dg.DataVersion(version_of(built, "tune_id")),
    )


def described_captions(store: Store, tune: Tune, written: CaptionTable) -> dg.MaterializeResult:
    """Return the materialization of the captions: the table, where each came from, and the check."""
    sources = Counter(row.source for row in written.rows)
    lacking = [
        row.name
        for row in written.rows
        if tune.token not in row.caption or tune.class_name.lower() not in row.caption.lower()
    ]
    answer = dg.AssetCheckResult(
        passed=not lacking,
        check_name=TOKEN_AND_CLASS.name,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(lacking)} of {len(written.rows)} captions lack the trigger word or the class name."
        if lacking
        else f"All {len(written.rows)} captions hold the trigger word and the class name.",
    )
    return dg.MaterializeResult(
        metadata={
            **called(tune),
            "captions": len(written.rows),
            "table": document(store, written.key),
            **{f"from_{source}": number for source, number in sources.most_common()},
            "version": written.version,
            "file_to_edit": dg.MetadataValue.path(store.url(written.key)),
        },
        check_results=[answer],
        data_version=dg.DataVersion(recipe_hash(written.texts())),
    )

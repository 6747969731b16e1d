"""The whole verdict on a dataset in words, before anything is queued: each picture, its crop and caption, the rest."""

from __future__ import annotations

from collections.abc import Sequence

from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.store import Store
from tunes_dagster.intake.buckets import share_lost
from tunes_dagster.intake.captions import CaptionTable
from tunes_dagster.intake.manifest import Manifest
from tunes_dagster.intake.training_set import TrainingItem, TrainingSet

_CAPTION_FROM = {
    "edit": "an edit",
    "request": "the request",
    "sidecar": "its file or table",
    "default": "default_caption",
    "captioner": "the captioner",
    "template": "the template",
}
_LONGEST = 120


def verdict_key(tune_id: str) -> str:
    """Return where the verdict on a tune's dataset lies in the store; it holds a person's words."""
    return f"tunes/{tune_id}/source/verdict.txt"


def save_verdict(
    store: Store,
    manifest: Manifest,
    built: TrainingSet | None,
    table: CaptionTable | None,
    request: TuneRequest,
    findings: Sequence[str] = (),
) -> str:
    """Write the verdict as far as it is known beside the manifest, and return its key; see `in_words`."""
    lines = in_words(manifest, built, table, request, findings)
    return store.write_text(verdict_key(manifest.tune_id), "\n".join(lines) + "\n")


def in_words(
    manifest: Manifest,
    built: TrainingSet | None,
    table: CaptionTable | None,
    request: TuneRequest,
    findings: Sequence[str] = (),
) -> list[str]:
    """Return the verdict, a line each.

    Args:
        manifest: Of the pictures.
        built: What would be trained on; None when there is too little.
        table: Its captions; those that a captioner would write are not there yet.
        request: What was asked for.
        findings: What else was found; what the rows say already is not said again.
    """
    lines = [
        f"Subject: {request.token} {request.class_name} (token {request.token}, class {request.class_name})."
    ]
    used = len(manifest.accepted)
    held = f"; {len(built.held_out)} of them held out for scoring" if built and built.held_out else ""
    lines.append(f"{used} of {len(manifest.rows)} pictures are used{held}.")
    items: dict[str, list[TrainingItem]] = {}
    for item in built.items if built else ():
        items.setdefault(item.picture, []).append(item)
    said = {row.hash: (row.caption, row.source) for row in table.rows} if table else {}
    for row in manifest.rows:
        if row.verdict == "rejected":
            lines.append(f"- {row.name}: not used. {row.reason} {row.remedy}".rstrip())
            continue
        lines.append(f"- {row.name}: used, {row.width}×{row.height}. {row.reason} {row.remedy}".rstrip())
        for item in items.get(row.hash, ()):
            lines.append("  " + _item(item, row.width, row.height, *said.get(item.hash, ("", ""))))
    lines += [f"- {row.name}: regularisation, as: {row.caption}" for row in manifest.prior]
    if manifest.ignored:
        lines += [f"- {name}: neither a picture nor a caption, not read." for name in manifest.ignored]
    known = set(manifest.findings()) - set(manifest.notes)
    return [*lines, *(one for one in dict.fromkeys([*manifest.notes, *findings]) if one not in known)]


def _item(item: TrainingItem, width: int, height: int, caption: str, source: str) -> str:
    lost = share_lost(width, height, item.crop)
    cropped = f", {lost:.0%} cropped away around the {item.around}" if lost >= 0.01 else ""
    what = "face, " if item.kind == "face" else ""
    use = "held out" if item.held_out else "trained on"
    words = caption if len(caption) <= _LONGEST else caption[:_LONGEST] + " …"
    shape, origin = f"{item.bucket[0]}×{item.bucket[1]}", _CAPTION_FROM.get(source, source)
    return f"{what}{use} as {shape}{cropped}; caption from {origin}: {words}"

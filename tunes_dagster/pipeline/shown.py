"""What the run of a session's attempt shows of what was made: numbers, ids and addresses, read from the rows.

Nothing that a person wrote, and no picture: of these, Dagster keeps every copy for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from tunes_dagster.assets.display import called, files, picture, sparkline, table
from tunes_dagster.assets.names import LORA, RENDERS, REPORT_CARD
from tunes_dagster.assets.versions import version_of_card, version_of_renders
from tunes_dagster.core.failures import FailureCode
from tunes_dagster.core.results import CardSummary, TuneResult
from tunes_dagster.core.work import WorkKind
from tunes_dagster.pipeline.journal import Shown

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.registry import DeviceRun, Prompt
    from tunes_dagster.service.installation import Installation

# A failure's own sentence may name a person's files; what a code means stands here, and the rest where it is deleted.
_MEANT = {
    FailureCode.OUT_OF_MEMORY: "The device has too little memory for it.",
    FailureCode.DIVERGED: "The loss left all bounds.",
    FailureCode.WEIGHTS_UNUSABLE: "Its weights cannot be used.",
    FailureCode.RENDER_FAILED: "It could not be rendered.",
    FailureCode.NOT_FINITE: "Numbers of it were not finite (NaN).",
    FailureCode.BASE_NOT_INSTALLED: "Its base model is not installed.",
    FailureCode.BLOCKED: "A rule does not let it through.",
    FailureCode.RUN_LOST: "The session that did it died.",
    FailureCode.TIMED_OUT: "It took longer than it may.",
    FailureCode.STORE_UNAVAILABLE: "The store did not answer.",
    FailureCode.CONFLICT: "Something that it needs is not there, or changed meanwhile.",
    FailureCode.INVALID_REQUEST: "It asks for what cannot be done.",
    FailureCode.INTERNAL: "Something went wrong on our side.",
}


def meaning(code: FailureCode) -> str:
    """Return what a code means, in a sentence without anybody's words."""
    return _MEANT.get(code, "It failed.")


_BATCHES = {"batch": "string", "state": "string", "prompts": "int", "pictures": "int", "seconds": "float"}


def why(row: DeviceRun) -> str:
    """Return why an attempt ended as it did, in a sentence or two."""
    ending = {
        "lost": "The session that did it died.",
        "returned": "The session stopped or gave way.",
        "cancelled": "It was cancelled on request.",
    }
    try:
        code = FailureCode(row.failure_code) if row.failure_code else None
    except ValueError:  # of a newer version
        code = None
    said = ending.get(row.state) or _MEANT.get(code or FailureCode.INTERNAL, "It failed.")
    if row.again:
        return f"{said} It goes on in another attempt."
    return said if row.state != "failed" else f"{said} [{row.failure_code}]"


def what_to_do(kind: str, subject_id: str) -> str:
    """Return where the whole of a failure stands."""
    if kind == WorkKind.RENDER:
        return (
            "`tunes status TUNE`, for the tunes of the batch, says which prompts failed, why, and what helps."
        )
    return f"`tunes status {subject_id}` says what is wrong and what helps."


def facts_of_failure(row: DeviceRun) -> dict[str, Any]:
    """Return what the UI shows beside the sentence."""
    return {
        "code": row.failure_code or row.state,
        "attempt": row.attempt,
        "session": row.session_id or "",
        "what_to_do": what_to_do(row.kind, row.subject_id),
    }


def shown(rows: Sequence[DeviceRun], installation: Installation) -> Shown:
    """Return what is shown of the files that attempts of one kind made.

    Args:
        rows: Attempts that one run tells of; several only for batches.
        installation: Holds the rows and files.
    """
    registry, store = installation.registry, installation.store
    first = rows[0]
    if first.kind == WorkKind.RENDER:
        return _renders(rows, installation)
    tune = registry.tunes.get(first.subject_id)
    result = tune.made
    if first.kind == WorkKind.TRAIN:
        metadata, answers = _trained(first, result, store)
        version = result.weights_recipe_hash or tune.recipe_hash
    else:
        metadata, answers = _evaluated(first, result, store)
        version = version_of_card(result.report_card or CardSummary())
    seconds = _seconds(first)
    spent = {} if seconds is None else {"seconds_on_the_device": round(seconds, 1)}
    device = {"device": first.facts["device"]} if first.facts.get("device") else {}
    metadata |= {
        **called(tune),
        "base": tune.base_id,
        **spent,
        **device,
        "session": first.session_id or "",
        "attempt": first.attempt,
    }
    return Shown(metadata, answers, version)


def _seconds(row: DeviceRun) -> float | None:
    if row.began_at is None or row.ended_at is None:
        return None
    return (row.ended_at - row.began_at).total_seconds()


def _answers(row: DeviceRun, key: dg.AssetKey, kept: dict[str, bool]) -> list[dg.AssetCheckResult]:
    """Return the answers that a session gave, or what the row kept of them."""
    told = row.facts.get("checks") or [{"name": name, "passed": passed} for name, passed in kept.items()]
    return [
        dg.AssetCheckResult(
            passed=bool(one["passed"]),
            check_name=one["name"],
            asset_key=key,
            description=one.get("said"),
            metadata=one.get("numbers") or {},
            severity=dg.AssetCheckSeverity.WARN if one.get("warns") else dg.AssetCheckSeverity.ERROR,
        )
        for one in told
    ]


def _pictures(store: Store, keys: dict[str, str | None]) -> dict[str, dg.MetadataValue]:
    """Return those pictures that are there, by addresses that end with them."""
    return {
        name: picture(store, key, name.replace("_", " "))
        for name, key in keys.items()
        if key and store.exists(key)
    }


def _trained(
    row: DeviceRun, result: TuneResult, store: Store
) -> tuple[dict[str, Any], list[dg.AssetCheckResult]]:
    losses = row.facts.get("losses") or []
    curve = {"loss_at_a_glance": sparkline(losses, "loss"), "loss": round(losses[-1], 4)} if losses else {}
    keys = {
        "model (diffusers)" if result.pipeline_key else "weights (diffusers)": result.trained_key,
        "weights (kohya)": result.last_kohya_key or result.kohya_key,
        "model card": result.card_key,
        "samples": result.samples_key,
    }
    metadata = {
        **({"steps": result.steps} if result.steps is not None else {}),
        **({"seconds_of_training": result.seconds} if result.seconds is not None else {}),
        **({"stopped_early": True} if result.stopped else {}),
        "checkpoints": len(result.checkpoints),
        **_pictures(store, {"samples_over_training": result.samples_key}),
        **curve,
        **files(store, keys),
        "recipe_of_the_weights": result.weights_recipe_hash,
    }
    return metadata, _answers(row, LORA, result.checks)


_SCORES = ("likeness", "base_likeness", "learned", "obedience", "variety", "copying", "leak", "chosen_step")


def _evaluated(
    row: DeviceRun, result: TuneResult, store: Store
) -> tuple[dict[str, Any], list[dg.AssetCheckResult]]:
    card = result.report_card or CardSummary()
    said = {name: getattr(card, name) for name in _SCORES}
    scores = {name: value for name, value in said.items() if value is not None}
    keys = {
        "page": card.page_key,
        "card": card.card_key,
        "before and after": card.sheet_key,
        "scores": card.curve_key,
    }
    shown_here = _pictures(
        store, {"before_and_after": card.sheet_key, "over_the_checkpoints": card.curve_key}
    )
    metadata = {"verdict": card.verdict, **shown_here, **scores, **files(store, keys)}
    likeness, base = card.likeness, card.base_likeness
    measured = likeness is not None and base is not None
    above = {
        "name": "likeness_above_base",
        "passed": likeness is not None and base is not None and likeness > base,
        "said": f"{likeness:.3f}, the base {base:.3f}." if measured else "Not measured.",
        "warns": not measured,
    }
    return metadata, _answers(row, REPORT_CARD, {}) or _answers(_with(row, above), REPORT_CARD, {})


def _with(row: DeviceRun, answer: dict[str, Any]) -> DeviceRun:
    row.facts = {**row.facts, "checks": [answer]}
    return row


@dataclass(frozen=True)
class _Batch:
    """One batch that a run tells of."""

    row: DeviceRun
    prompts: Sequence[Prompt]

    @property
    def pictures(self) -> int:
        return sum(len(prompt.images) for prompt in self.prompts)

    @property
    def seconds(self) -> float:
        return round(_seconds(self.row) or 0.0, 1)

    @property
    def missing(self) -> int:
        """Pictures that were asked for and are not there, though nobody took the wish back."""
        ended = [one for one in self.prompts if one.status in ("done", "failed", "blocked")]
        asked = sum(int(one.settings.get("num_images", 1)) for one in ended if one.expired_at is None)
        return max(0, asked - sum(len(one.images) for one in ended))

    def line(self) -> dict[str, Any]:
        return {
            "batch": self.row.subject_id,
            "state": self.row.state,
            "prompts": len(self.prompts),
            "pictures": self.pictures,
            "seconds": self.seconds,
        }


def _renders(rows: Sequence[DeviceRun], installation: Installation) -> Shown:
    registry, store = installation.registry, installation.store
    batches = [_Batch(row, registry.prompts.rows(batch_id=row.subject_id, limit=1_000)) for row in rows]
    tunes = Counter(prompt.tune_id for batch in batches for prompt in batch.prompts if prompt.tune_id)
    pictures, seconds = sum(batch.pictures for batch in batches), sum(batch.seconds for batch in batches)
    first = rows[0]
    folder = f"batches/{first.subject_id}/{first.attempt}"
    metadata = {
        **_pictures(store, {"contact_sheet": f"{folder}/contact_sheet.png"}),
        "pictures": pictures,
        "prompts": sum(len(batch.prompts) for batch in batches),
        "tunes": dg.MetadataValue.json(dict(sorted(tunes.items()))),
        "seconds_on_the_device": round(seconds, 1),
        "seconds_per_picture": round(seconds / max(1, pictures), 2),
        **({"batches": table([batch.line() for batch in batches], _BATCHES)} if len(rows) > 1 else {}),
        **({"device": first.facts["device"]} if first.facts.get("device") else {}),
        "session": first.session_id or "",
        "folder": dg.MetadataValue.path(store.url(folder)),
    }
    prompts = [prompt for batch in batches for prompt in batch.prompts]
    return Shown(metadata, _answers_of_batches(batches), version_of_renders(prompts))


def _answers_of_batches(batches: Sequence[_Batch]) -> list[dg.AssetCheckResult]:
    missing = sum(batch.missing for batch in batches)
    broken = sum(
        prompt.failure_code == FailureCode.NOT_FINITE for batch in batches for prompt in batch.prompts
    )
    told = [one for batch in batches for one in batch.row.facts.get("checks") or []]
    looked = [one for one in told if one["name"] == "not_blank"]
    flat = sum(not one["passed"] for one in looked)
    answers = [
        ("every_picture_is_there", not missing, f"{missing} pictures are missing.", "All are there."),
        ("finite", not broken, f"{broken} prompts were lost to NaN.", "All numbers are finite."),
    ]
    if looked:
        answers.append(("not_blank", not flat, f"{flat} batches hold a flat picture.", "All show something."))
    return [
        dg.AssetCheckResult(
            passed=passed,
            check_name=name,
            asset_key=RENDERS,
            description=well if passed else badly,
            severity=dg.AssetCheckSeverity.WARN if name == "not_blank" else dg.AssetCheckSeverity.ERROR,
        )
        for name, passed, badly, well in answers
    ]

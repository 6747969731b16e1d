"""Verdicts: pure rules over what was measured, so that other options judge the same pictures anew for free."""

from __future__ import annotations

from collections.abc import Sequence

from tunes_dagster.core.failures import FailureCode
from tunes_dagster.core.recipe import DatasetOptions
from tunes_dagster.intake.faces import is_person
from tunes_dagster.intake.manifest import Examined, Finding, PictureRow
from tunes_dagster.intake.measures import near_pairs

BLURRED_BELOW = 0.45
"""Sharp drawings and photos measure 0.7 and more; a Gaussian blur of 1.5 % of the width brings both below this."""

_FAILED = {
    FailureCode.SOURCE_UNREACHABLE: Finding.UNREACHABLE,
    FailureCode.TIMED_OUT: Finding.UNREACHABLE,
    FailureCode.SOURCE_REFUSED: Finding.REFUSED,
    FailureCode.ARCHIVE_REFUSED: Finding.REFUSED,
    FailureCode.INVALID_REQUEST: Finding.REFUSED,
}


def judge(
    pictures: Sequence[Examined],
    options: DatasetOptions,
    class_name: str,
    *,
    faces_looked_for: bool = True,
    resolution: int | None = None,
) -> tuple[list[PictureRow], list[str]]:
    """Return one row with a verdict per picture, and notes about the whole set.

    Args:
        pictures: In the order of the request.
        options: Thresholds.
        class_name: Faces are expected of people only.
        faces_looked_for: Whether a detector ran at all.
        resolution: Side that training will use, when it is known already.
    """
    rows = [PictureRow(**picture.model_dump()) for picture in pictures]
    notes: list[str] = []
    for row in rows:
        _judge_alone(row, options, resolution)
    _reject_copies(rows, options)
    if faces_looked_for and is_person(class_name):
        notes += _judge_faces(rows, options, class_name)
    _reject_surplus(rows, options)
    return rows, notes


def _found(row: PictureRow, finding: Finding, rejects: bool, reason: str, remedy: str) -> None:
    row.findings.append(finding)
    row.verdict = "rejected" if rejects or row.verdict == "rejected" else "warned"
    row.reason = f"{row.reason} {reason}".strip()
    row.remedy = f"{row.remedy} {remedy}".strip()


def _judge_alone(row: PictureRow, options: DatasetOptions, resolution: int | None) -> None:
    """Judge what can be seen from the picture itself."""
    if row.failure:
        finding = _FAILED.get(FailureCode(row.failure), Finding.UNREADABLE)
        _found(row, finding, True, row.failure_reason, row.failure_remedy)
        return
    side = min(row.width, row.height)
    size = f"{row.width} x {row.height}"
    if side < options.min_side:
        _found(
            row,
            Finding.TOO_SMALL,
            True,
            f"Too small: {size}, the shorter side must have {options.min_side} pixels.",
            "Hand in the original, or lower dataset.min_side.",
        )
    if row.blank:
        _found(row, Finding.BLANK, True, "It shows one flat colour.", "Hand in another picture.")
        return
    if row.sharpness is not None and row.sharpness < BLURRED_BELOW:
        _found(
            row,
            Finding.BLURRED,
            False,
            f"It looks blurred (sharpness {row.sharpness:.2f} of 1).",
            "A tune learns the blur: replace it with a sharper one if there is one.",
        )
    if resolution and side < resolution / 2:
        _found(
            row,
            Finding.ENLARGED,
            False,
            f"{size} is less than half of the training resolution {resolution} and will be enlarged.",
            "Hand in a larger picture, or lower training.resolution.",
        )


def _reject_copies(rows: Sequence[PictureRow], options: DatasetOptions) -> None:
    """Keep the largest, then sharpest, then first of each group of copies."""
    alive = [row for row in rows if row.verdict != "rejected"]
    first: dict[str, PictureRow] = {}
    for row in alive:
        kept = first.setdefault(row.pixels_hash, row)
        if kept is not row:
            reason = f"The same picture as {kept.name}."
            _found(row, Finding.EXACT_DUPLICATE, True, reason, "Nothing to do: one of them is used.")
    alive = sorted(
        (row for row in alive if row.verdict != "rejected"),
        key=lambda row: (-row.width * row.height, -(row.sharpness or 0.0)),
    )
    pairs = near_pairs([row.fingerprint for row in alive], options.near_duplicate_bits)
    for better, worse in pairs:  # sorted by the better one: greedy from the best picture down
        if "rejected" not in (alive[better].verdict, alive[worse].verdict):
            _found(
                alive[worse],
                Finding.NEAR_DUPLICATE,
                True,
                f"Nearly the same picture as {alive[better].name}.",
                "Nothing to do: the better one is used. Lower dataset.near_duplicate_bits to keep both.",
            )


def _judge_faces(rows: Sequence[PictureRow], options: DatasetOptions, class_name: str) -> list[str]:
    alive = [row for row in rows if row.verdict != "rejected"]
    seen = sum(bool(row.faces) for row in alive)
    if 2 * seen < len(alive) and not options.require_face:
        # Then the detector hardly knows this kind of picture (drawings, masks, profiles): its silence about a
        # picture says nothing, and a warning on every row would bury the ones that matter.
        return [
            f"Faces were found in {seen} of {len(alive)} pictures of this {class_name}; missing faces were "
            "not judged. Check that the pictures show the face, if it matters."
        ]
    for row in alive:
        if len(row.faces) == 1:
            continue
        if row.faces:
            _found(
                row,
                Finding.SEVERAL_FACES,
                options.require_face,
                f"{len(row.faces)} faces were found.",
                "Crop it to the one who is meant.",
            )
        else:
            _found(
                row,
                Finding.NO_FACE,
                options.require_face,
                "No face was found.",
                "Fine for backs and details; replace it if the face should be seen.",
            )
    return []


def _reject_surplus(rows: Sequence[PictureRow], options: DatasetOptions) -> None:
    alive = [row for row in rows if row.verdict != "rejected"]
    for row in alive[options.max_pictures :]:
        reason = f"More than {options.max_pictures} pictures came in."
        _found(
            row, Finding.TOO_MANY, True, reason, "Raise dataset.max_pictures, or hand in the best ones only."
        )

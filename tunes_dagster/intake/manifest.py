"""The manifest: one row per picture that came in, with what was measured and what was decided about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, Field

from tunes_dagster.core.store import Store
from tunes_dagster.intake.faces import Box
from tunes_dagster.intake.measures import Fingerprint

Verdict = Literal["accepted", "warned", "rejected"]


class Finding(StrEnum):
    """What can be wrong with a picture; interfaces may switch on these, so none is ever renamed."""

    UNREADABLE = "unreadable"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    TOO_MANY = "too_many"
    TOO_SMALL = "too_small"
    EXACT_DUPLICATE = "exact_duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    BLANK = "blank"
    BLURRED = "blurred"
    ENLARGED = "enlarged"
    NO_FACE = "no_face"
    SEVERAL_FACES = "several_faces"


_WORDS = {
    Finding.UNREADABLE: "cannot be read",
    Finding.UNREACHABLE: "could not be fetched",
    Finding.REFUSED: "were refused",
    Finding.TOO_MANY: "are more than dataset.max_pictures takes",
    Finding.TOO_SMALL: "are too small",
    Finding.EXACT_DUPLICATE: "are the same as others",
    Finding.NEAR_DUPLICATE: "are nearly the same as others",
    Finding.BLANK: "show one flat colour",
    Finding.BLURRED: "look blurred",
    Finding.ENLARGED: "must be enlarged",
    Finding.NO_FACE: "show no face",
    Finding.SEVERAL_FACES: "show several faces",
}
# Pictures of one finding that get a sentence each; more share one.
_ALONE = 2
_NAMED = 5


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


class Examined(BaseModel):
    """What is known about one picture before anything is decided.

    Attributes:
        name: File name inside its source; captions are matched by it.
        source: Where it came from, for people (no credentials, no query strings).
        hash: SHA-256 of the stored file, hex; empty when it could not be read.
        key: Store key of the normalised picture; None when it could not be read.
        pixels_hash: SHA-256 of the pixels.
        width: Pixels.
        height: Pixels.
        bytes: Size as it came in.
        faces: Boxes (x, y, width, height), largest first.
        sharpness: 0 blurred to 1 sharp, see `measures.sharpness`.
        blank: Whether it shows nothing.
        phash: 256-bit perceptual hash, hex.
        colours: 4 x 4 map of mean colours, hex.
        caption: The caption that came along, or None.
        mask_key: Store key of the mask that came along (`NAME.mask.png`, `NAME-mask.png`), or None.
        repeats: How many times as often as others it is seen, see `kohya`.
        note: Something that was done to it, or empty.
        failure: Why there is no picture: code of the failure, or empty.
        failure_reason: The sentence of it.
        failure_remedy: What to do.
        failure_detail: What a library said of it; only operators see the manifest itself.
        retryable: Whether the same address may give a picture later.
    """

    name: str
    source: str = ""
    hash: str = ""
    key: str | None = None
    pixels_hash: str = ""
    width: int = 0
    height: int = 0
    bytes: int = 0
    faces: list[Box] = Field(default_factory=list)
    sharpness: float | None = None
    blank: bool = False
    phash: str = ""
    colours: str = ""
    caption: str | None = None
    mask_key: str | None = None
    repeats: int = 1
    note: str = ""
    failure: str = ""
    failure_reason: str = ""
    failure_remedy: str = ""
    failure_detail: str = ""
    retryable: bool = False

    @property
    def fingerprint(self) -> Fingerprint:
        """What near duplicates are found by."""
        return Fingerprint(self.phash, self.colours)


class PictureRow(Examined):
    """One row of the manifest.

    Attributes:
        verdict: Rejected pictures are not trained on; warned ones are.
        findings: What was found, most important first.
        reason: The findings in sentences.
        remedy: What its owner can do.
    """

    verdict: Verdict = "accepted"
    findings: list[Finding] = Field(default_factory=list)
    reason: str = ""
    remedy: str = ""


class Manifest(BaseModel):
    """All rows of a tune's dataset.

    Attributes:
        tune_id: Whose.
        class_name: The class the pictures were judged for.
        detector: Name of the face detector.
        rows: One per picture, in the order of the request.
        prior: Pictures of the class without the subject (kohya's regularisation pictures), each with a caption.
        ignored: Files that are neither pictures nor captions.
        notes: What else is worth telling.
    """

    tune_id: str
    class_name: str = ""
    detector: str = ""
    rows: list[PictureRow] = Field(default_factory=list)
    prior: list[PictureRow] = Field(default_factory=list)
    ignored: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @staticmethod
    def store_key(tune_id: str) -> str:
        """Return where the manifest of a tune lies in the store."""
        return f"tunes/{tune_id}/source/manifest.json"

    @property
    def key(self) -> str:
        """Where this manifest lies in the store."""
        return self.store_key(self.tune_id)

    @property
    def accepted(self) -> list[PictureRow]:
        """The rows that are trained on: accepted and warned."""
        return [row for row in self.rows if row.verdict != "rejected"]

    def counts(self) -> dict[str, int]:
        """Return the number of rows per verdict."""
        found = Counter(row.verdict for row in self.rows)
        return {verdict: found.get(verdict, 0) for verdict in ("accepted", "warned", "rejected")}

    def reasons(self, limit: int = 20) -> list[str]:
        """Return `name: reason remedy` of what was not plainly accepted, rejected ones first."""
        rows = sorted((r for r in self.rows if r.reason), key=lambda r: r.verdict != "rejected")
        lines = [f"{row.name}: {row.reason} {row.remedy}".strip() for row in rows[:limit]]
        return lines + ([f"… and {len(rows) - limit} more."] if len(rows) > limit else [])

    def findings(self) -> list[str]:
        """Return what its owner should know, a sentence or two each: what is not used and why, what is odd, notes."""
        lost = [row for row in self.rows if row.verdict == "rejected"]
        said = [f"{len(lost)} of {len(self.rows)} pictures are not used."] if lost else []
        groups: dict[tuple[bool, Finding], list[PictureRow]] = {}
        for row in sorted((r for r in self.rows if r.findings), key=lambda r: r.verdict != "rejected"):
            groups.setdefault((row.verdict == "rejected", row.findings[0]), []).append(row)
        for (rejected, finding), rows in groups.items():
            if len(rows) <= _ALONE:
                said += [f"{row.name}: {row.reason} {row.remedy}".strip() for row in rows]
                continue
            use = "not used" if rejected else "used all the same"
            said.append(
                f"{len(rows)} pictures {_WORDS[finding]} and are {use}: {_first([row.name for row in rows])}. "
                f"{rows[0].remedy}".strip()
            )
        if self.ignored:
            said.append(f"Neither pictures nor captions, and not read: {_first(self.ignored)}.")
        return [*said, *self.notes]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as a small table for people: one dict of plain values per picture."""
        return [
            {
                "picture": row.name,
                "verdict": row.verdict,
                "reason": row.reason or row.note,
                "remedy": row.remedy,
                "size": f"{row.width} x {row.height}" if row.width else "",
                "faces": len(row.faces),
                "sharpness": row.sharpness if row.sharpness is not None else "",
                "caption": row.caption or "",
                "hash": row.hash[:12],
            }
            for row in self.rows
        ]

    def save(self, store: Store) -> str:
        """Write the manifest into the store and return its key."""
        return store.write_text(self.key, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, store: Store, tune_id: str) -> Manifest:
        """Read the manifest of a tune.

        Raises:
            FileNotFoundError: When there is none yet.
        """
        return store.read_model(cls.store_key(tune_id), cls, "The list of pictures")

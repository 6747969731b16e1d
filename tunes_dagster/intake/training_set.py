"""The training set: full pictures and face crops in their shapes, and the pictures held out for scoring.

No new picture files are made: an item names a stored picture and a crop of it. The held-out choice depends on
content and seed only, so that adding a picture moves none of the others to the other side.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Reporter
from tunes_dagster.core.recipe import DatasetOptions
from tunes_dagster.core.store import Store
from tunes_dagster.intake.buckets import Crop, choose_bucket, crop_for, face_crop, share_lost
from tunes_dagster.intake.faces import Box, FaceDetector, is_person
from tunes_dagster.intake.manifest import Manifest, PictureRow
from tunes_dagster.intake.measures import Fingerprint, near_pairs
from tunes_dagster.intake.pictures import decode
from tunes_dagster.intake.restore import Restorer
from tunes_dagster.intake.saliency import subject_in
from tunes_dagster.intake.subject import is_style
from tunes_dagster.intake.variations import variations

LEAK_BITS = 4
"""Pictures nearer than this (of 64 bits) count as the same across the two sides, whatever dedupe allowed."""

# Share of a picture beyond which what is cropped away is worth a finding, and how many are named in it.
_MUCH_LOST, _NAMED = 0.3, 5
# Share from which on a subject without a face is looked for: below it, hardly any lies outside of the middle.
_SOME_LOST = 0.1

Around = Literal["middle", "face", "subject"]


class TrainingItem(BaseModel):
    """One thing to train on or to score with.

    Attributes:
        hash: Names the item: the picture's hash, or for a crop one made from picture and box.
        picture: Hash of the stored picture.
        key: Store key of the picture.
        name: File name for people; face crops end in ` (face)`.
        kind: A full picture or a face crop.
        bucket: (width, height) it is trained at.
        crop: left, top, right, bottom in the stored picture's pixels; has the bucket's aspect ratio.
        around: What the crop is around: the largest face, what stands out, or the picture's middle.
        held_out: Kept for scoring, never trained on.
        mirrored: Trained on left for right.
        tone: Factors on brightness and contrast.
        mask_key: Store key of the picture's mask, or None.
        mask_box: x, y, width, height of where the loss looks, or None.
        caption: The caption that came along, or None.
        repeats: How many times as often as others it is seen.
        phash: Fingerprint of the picture, for the leakage check.
        colours: As `phash`.
    """

    hash: str
    picture: str
    key: str
    name: str
    kind: Literal["full", "face"]
    bucket: tuple[int, int]
    crop: Crop
    around: Around = "middle"
    held_out: bool = False
    mirrored: bool = False
    tone: tuple[float, float] = (1.0, 1.0)
    mask_key: str | None = None
    mask_box: Box | None = None
    caption: str | None = None
    repeats: int = 1
    phash: str = ""
    colours: str = ""


class PriorPicture(BaseModel):
    """A picture of the class without the subject: its store key, its name for people, and what it shows."""

    key: str
    name: str
    caption: str


class TrainingSet(BaseModel):
    """All items of a tune.

    Attributes:
        tune_id: Whose.
        class_name: The class.
        resolution: Side of the square that the buckets have the area of.
        seed: Decided the held-out choice.
        items: In the manifest's order, a face crop right after its picture.
        prior: What prior preservation is given.
    """

    tune_id: str
    class_name: str
    resolution: int
    seed: int
    items: list[TrainingItem] = Field(default_factory=list)
    prior: list[PriorPicture] = Field(default_factory=list)

    @staticmethod
    def store_key(tune_id: str) -> str:
        """Return where the training set of a tune lies in the store."""
        return f"tunes/{tune_id}/training_set/training_set.json"

    @property
    def key(self) -> str:
        """Where this training set lies in the store."""
        return self.store_key(self.tune_id)

    @property
    def training(self) -> list[TrainingItem]:
        """The items that are trained on."""
        return [item for item in self.items if not item.held_out]

    @property
    def held_out(self) -> list[TrainingItem]:
        """The items that are kept for scoring."""
        return [item for item in self.items if item.held_out]

    def save(self, store: Store) -> str:
        """Write the training set into the store and return its key."""
        return store.write_text(self.key, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, store: Store, tune_id: str) -> TrainingSet:
        """Read the training set of a tune.

        Raises:
            FileNotFoundError: When there is none yet.
        """
        return store.read_model(cls.store_key(tune_id), cls, "The list of training pictures")


@dataclass(frozen=True)
class Framing:
    """How pictures are cut into what is trained on.

    Attributes:
        options: Face crops, masks, number to hold out.
        resolution: Side in pixels of the square that the buckets have the area of.
        class_name: The class, which decides what a picture is cropped around.
    """

    options: DatasetOptions
    resolution: int
    class_name: str


def build_training_set(
    manifest: Manifest,
    framing: Framing,
    store: Store,
    detector: FaceDetector,
    seed: int,
    report: Reporter,
    restorer: Restorer | None = None,
) -> TrainingSet:
    """Choose shapes, crops and the held-out pictures, and save the training set.

    Args:
        manifest: The judged pictures of a tune; the accepted and warned ones are used.
        framing: How they are cut.
        store: Takes the result; read only where faces must be looked for again.
        detector: Its faces are used; those of the manifest when it is the same detector.
        seed: Decides the held-out choice together with the content.
        report: Is told of progress.
        restorer: Makes the faces of pictures clearer before they are trained on; None leaves them.

    Raises:
        Failure: `TOO_FEW_PICTURES` when nothing is left to train on.
    """
    rows, options = manifest.accepted, framing.options
    if not rows:
        raise Failure(
            FailureCode.TOO_FEW_PICTURES,
            "No picture of the manifest was accepted.",
            "Replace or add pictures, then start again.",
            facts={"reasons": manifest.reasons()},
        )
    out = choose_held_out(rows, options.hold_out, seed)
    if options.hold_out is not None and len(out) < options.hold_out:
        report.finding(
            f"Held out {len(out)} instead of {options.hold_out} pictures, so that some are left to train on."
        )
    items: list[TrainingItem] = []
    for number, row in enumerate(rows, 1):
        report.check_cancelled()
        wants_faces = (
            options.face_crop or options.mask == "face" or bool(restorer) or is_person(framing.class_name)
        )
        faces = _faces(row, manifest.detector, detector, store) if wants_faces else []
        if restorer is not None and faces:
            row = _restored(row, restorer, store)
        focus, around = _focus(row, faces, framing, store)
        items += _items_of(row, faces, focus, framing, held_out=row.hash in out, around=around)
        if options.one_picture and len(rows) == 1:
            items += _variations_of(items[0], row, focus, framing)
        report.step(number, len(rows))
    _tell(report, options, rows, items)
    built = TrainingSet(
        tune_id=manifest.tune_id,
        class_name=framing.class_name,
        resolution=framing.resolution,
        seed=seed,
        items=items,
        prior=[
            PriorPicture(key=row.key, name=row.name, caption=row.caption or framing.class_name)
            for row in manifest.prior
            if row.key
        ],
    )
    built.save(store)
    report.note(f"{len(built.training)} items to train on, {len(built.held_out)} held out.")
    return built


def _focus(
    row: PictureRow, faces: Sequence[Box], framing: Framing, store: Store
) -> tuple[Sequence[Box], Around]:
    """Return what a picture is cropped around, the most important first, and what that is.

    A subject without a face is looked for where much is lost; all of a picture shows its style.
    """
    if faces:
        return faces, "face"
    crop = crop_for(row.width, row.height, choose_bucket(row.width, row.height, framing.resolution))
    if is_style(framing.class_name) or share_lost(row.width, row.height, crop) < _SOME_LOST:
        return [], "middle"
    assert row.key is not None
    box = subject_in(decode(store.read_bytes(row.key), row.name), crop)
    return ([box], "subject") if box else ([], "middle")


def _restored(row: PictureRow, restorer: Restorer, store: Store) -> PictureRow:
    """Return a row whose picture has its faces restored, as a picture of its own in the store."""
    assert row.key is not None
    data = io.BytesIO()
    restorer.restore(decode(store.read_bytes(row.key), row.name)).save(data, "PNG")
    return row.model_copy(update={"key": store.write_blob(data.getvalue(), ".png")})


def _tell(
    report: Reporter, options: DatasetOptions, rows: Sequence[PictureRow], items: Sequence[TrainingItem]
) -> None:
    """Say what was made of the options that depend on what came in."""
    if options.one_picture and len(rows) == 1:
        report.note(f"A one-picture tune: its picture is trained on in {len(items)} variations of itself.")
    elif options.one_picture:
        report.finding(
            f"one_picture was asked for, but {len(rows)} pictures came in; each is trained on as it is."
        )
    sizes = {row.hash: (row.width, row.height) for row in rows}
    shares = {
        item.name: share_lost(*sizes[item.picture], item.crop)
        for item in items
        if item.kind == "full" and not item.mirrored and item.picture in sizes
    }
    if much := [f"{name} ({share:.0%})" for name, share in shares.items() if share >= _MUCH_LOST]:
        more = f" and {len(much) - _NAMED} more" if len(much) > _NAMED else ""
        report.finding(
            f"Much of these is cropped away: {', '.join(much[:_NAMED])}{more}. What is trained on is the part around "
            "the largest face, else around what stands out, else the middle; crop them yourself where the subject lies "
            "elsewhere."
        )
    if options.mask != "off":
        without = sum(not (item.mask_key or item.mask_box) for item in items if not item.held_out)
        if without:
            what = "mask file" if options.mask == "file" else "face"
            report.finding(f"{without} items have no {what}; the loss looks at all of each.")


def _variations_of(
    full: TrainingItem, row: PictureRow, focus: Sequence[Box], framing: Framing
) -> list[TrainingItem]:
    """Return the one picture in other crops, mirrored and toned."""
    made = []
    resolution, class_name = framing.resolution, framing.class_name
    for one in variations(row.width, row.height, full.bucket, resolution, class_name, focus):
        seen = f"{row.hash}:{one.bucket}:{one.crop}:{one.mirrored}:{one.tone}"
        update = {
            "hash": hashlib.sha256(seen.encode()).hexdigest(),
            "name": f"{row.name} ({one.name})",
            "bucket": one.bucket,
            "crop": one.crop,
            "mirrored": one.mirrored,
            "tone": one.tone,
        }
        made.append(full.model_copy(update=update))
    return made


def _faces(row: PictureRow, judged_by: str, detector: FaceDetector, store: Store) -> list[Box]:
    if judged_by == detector.name:
        return row.faces
    assert row.key is not None
    return detector.detect(decode(store.read_bytes(row.key), row.name))


def _items_of(
    row: PictureRow,
    faces: Sequence[Box],
    focus: Sequence[Box],
    framing: Framing,
    held_out: bool,
    around: Around,
) -> list[TrainingItem]:
    assert row.key is not None
    options = framing.options
    bucket = choose_bucket(row.width, row.height, framing.resolution)
    full = TrainingItem(
        hash=row.hash,
        picture=row.hash,
        key=row.key,
        name=row.name,
        kind="full",
        bucket=bucket,
        crop=crop_for(row.width, row.height, bucket, focus),
        around=around,
        held_out=held_out,
        mask_key=row.mask_key if options.mask == "file" else None,
        mask_box=_face_mask(row, faces) if options.mask == "face" and faces else None,
        caption=row.caption,
        repeats=row.repeats,
        phash=row.phash,
        colours=row.colours,
    )
    if not (options.face_crop and faces):
        return [full]
    crop = face_crop(row.width, row.height, faces[0])
    same_as_full = crop[2] - crop[0] > 0.9 * min(row.width, row.height)
    if same_as_full or crop[2] - crop[0] < options.min_side:
        return [full]
    digest = hashlib.sha256(f"{row.hash}:face:{crop}".encode()).hexdigest()
    square = choose_bucket(1, 1, framing.resolution)
    update = {"hash": digest, "name": f"{row.name} (face)", "kind": "face", "bucket": square, "crop": crop}
    return [full, full.model_copy(update=update)]


def _face_mask(row: PictureRow, faces: Sequence[Box]) -> Box:
    """Return the box around the largest face with hair and chin, within which the loss looks."""
    left, top, right, bottom = face_crop(row.width, row.height, faces[0], margin=0.4)
    return left, top, right - left, bottom - top


def number_held_out(pictures: int, asked: int | None) -> int:
    """Return how many pictures to hold out: one in eight, at least one, none below five; or what was asked.

    At least one picture is always left to train on.
    """
    wanted = (0 if pictures < 5 else max(1, pictures // 8)) if asked is None else asked
    return max(0, min(wanted, pictures - 1))


def choose_held_out(rows: Sequence[PictureRow], asked: int | None, seed: int) -> set[str]:
    """Return the hashes of the pictures to hold out.

    Near duplicates (which stay in the set when dedupe is off) go to one side together. Among the rest, pictures
    without a warning come first, in the order of a hash of seed and content.
    """
    number = number_held_out(len(rows), asked)
    groups = _groups(rows)
    ordered = sorted(
        groups,
        key=lambda group: (
            any(row.verdict == "warned" for row in group),
            min(hashlib.sha256(f"{seed}:{row.hash}".encode()).hexdigest() for row in group),
        ),
    )
    chosen: set[str] = set()
    for group in ordered:
        if len(chosen) + len(group) <= number:
            chosen |= {row.hash for row in group}
    return chosen


def _groups(rows: Sequence[PictureRow]) -> list[list[PictureRow]]:
    """Group pictures that are near duplicates, directly or through others."""
    leader = list(range(len(rows)))

    def find(index: int) -> int:
        while leader[index] != index:
            index = leader[index]
        return index

    for first, second in near_pairs([row.fingerprint for row in rows], LEAK_BITS):
        leader[find(second)] = find(first)
    groups: dict[int, list[PictureRow]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(find(index), []).append(row)
    return list(groups.values())


def leaks(training_set: TrainingSet) -> list[str]:
    """Return, in sentences, every picture that is on both sides as itself, as a crop, or as a near duplicate."""
    found = []
    training = {item.picture: item for item in training_set.training}
    held_out = {item.picture: item for item in training_set.held_out}
    for picture in training.keys() & held_out.keys():
        found.append(f"{held_out[picture].name} is held out and trained on")
    items = [*training.values(), *(item for key, item in held_out.items() if key not in training)]
    prints = [Fingerprint(item.phash, item.colours) for item in items]
    for first, second in near_pairs(prints, LEAK_BITS):
        if items[first].held_out != items[second].held_out:
            out, inside = sorted((items[first], items[second]), key=lambda item: not item.held_out)
            found.append(f"{out.name} is held out and nearly the same as {inside.name}")
    return sorted(found)

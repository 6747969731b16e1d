"""Reads everything a request names into a manifest: fetch, unpack, decode, measure, judge.

What is known about an origin is written into the store as soon as it is known, so a collection that was
stopped goes on where it stopped, on any machine. A failing picture becomes a row that says why.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.core.progress import Phase, Reporter
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.store import Store
from tunes_dagster.intake.archives import ArchiveLimits, Member, archive_kind, read_archive
from tunes_dagster.intake.companions import captioned, tell_apart, with_masks, without_caption
from tunes_dagster.intake.faces import FaceDetector
from tunes_dagster.intake.fetch import Fetcher
from tunes_dagster.intake.folders import check_folder, may_not_be_read, out_of_space
from tunes_dagster.intake.judge import judge
from tunes_dagster.intake.kohya import laid_out
from tunes_dagster.intake.manifest import Examined, Manifest, PictureRow
from tunes_dagster.intake.parallel import completed
from tunes_dagster.intake.pictures import Picture, normalise, unreadable
from tunes_dagster.intake.sandbox.pool import Session, get_pool
from tunes_dagster.intake.sidecars import Sidecars, is_sidecar, masked_picture
from tunes_dagster.intake.sources import (
    Local,
    Origin,
    SourceList,
    SourceRules,
    is_picture_name,
    list_sources,
    looks_like_picture,
)

RECORD_VERSION = 1
# Notes that are told while it runs; the manifest has all of them.
_NOTES = 40
# Pictures of an archive that are examined beside its unpacking.
_AT_A_TIME = 2


logger = logging.getLogger(__name__)


class _Record(BaseModel):
    """What was found in one origin; lies in the store beside the manifest."""

    version: int = RECORD_VERSION
    detector: str = ""
    rows: list[Examined] = Field(default_factory=list)
    ignored: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class _Examiner:
    """Turns bytes into a row: decoded, stored, measured. Several threads may use one."""

    store: Store
    detector: FaceDetector
    limits: ArchiveLimits
    # Children decode. What comes of it takes up to 700 MB here at the largest size, so that few threads hold it at a
    # time; only waiting for the network is done by more.
    among: Session | None = None
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(2))

    def examine(self, data: bytes | Path, name: str, source: str) -> Examined:
        """Return what is known about one picture; an unreadable one gives a row that says so."""
        row = Examined(name=name, source=source, bytes=_length(data))
        try:
            with self.room:
                picture = normalise(data, name, self.among, as_mask=masked_picture(name) is not None)
                measured = self._measured(picture)
        except Failure as failure:
            return _failed(row, failure)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # whatever a stranger's picture brings up, it ends that picture only
            logger.exception("A picture could not be examined.")
            return _failed(row, unreadable(name, f"looking at it went wrong ({type(error).__name__})", ""))
        measured["key"] = self.store.write_blob(picture.data, picture.suffix)
        return row.model_copy(update=measured)

    def _measured(self, picture: Picture) -> dict[str, Any]:
        image, measures = picture.image, picture.measures
        return {
            "hash": picture.hash,
            "pixels_hash": picture.pixels_hash,
            "width": image.width,
            "height": image.height,
            "faces": self.detector.detect(image),
            "sharpness": measures.sharpness,
            "blank": measures.blank,
            "phash": measures.fingerprint.phash,
            "colours": measures.fingerprint.colours,
            "note": picture.note,
        }

    def expand(self, origin: Origin, local: Local, stop: threading.Event) -> _Record:
        """Examine the picture at a path, or every picture of the archive that lies there."""
        try:
            with local.path.open("rb") as file:
                head = file.read(512)
        except OSError as error:
            if out_of_space(error):
                raise
            raise may_not_be_read(local.name, error) from error
        # Somebody may give a picture's address as the archive's, or the other way round.
        if archive_kind(head) or (origin.kind == "archive" and not looks_like_picture("", head)):
            return self._expand_archive(origin, local, stop)
        if local.path.stat().st_size > self.limits.member_bytes:
            size = f"{self.limits.member_bytes // 2**20} MB"
            raise Failure(
                FailureCode.SOURCE_REFUSED, f"{local.name} is larger than {size}.", "Shrink or export it."
            )
        row = self.examine(local.path, local.name, origin.source)
        return _Record(detector=self.detector.name, rows=[row])

    def _expand_archive(self, origin: Origin, local: Local, stop: threading.Event) -> _Record:
        record, sidecars = _Record(detector=self.detector.name), Sidecars()

        def pictures() -> Iterator[Member]:
            for member in read_archive(local.path, self.limits, local.name):
                if stop.is_set():
                    raise Cancelled
                if member.fault and not is_picture_name(member.name):
                    record.ignored.append(member.name)
                    record.notes.append(f"{member.name}: not used, {_why(member)}.")
                elif is_sidecar(member.name):
                    sidecars.add(member.name, member.data)
                elif member.fault:
                    record.rows.append(
                        _failed(Examined(name=member.name, source=source(member)), _damaged(member))
                    )
                elif looks_like_picture(member.name, member.data[:16]):
                    yield member
                else:
                    record.ignored.append(member.name)

        def examine(member: Member, _: threading.Event) -> Examined:
            return self.examine(member.data, member.name, source(member))

        def source(member: Member) -> str:
            return f"{origin.source} » {member.name}"

        for _, row in completed(examine, pictures(), _AT_A_TIME):
            record.rows.append(row)
        for index, caption in sidecars.captions_for([row.name for row in record.rows]).items():
            record.rows[index].caption = caption
        record.rows.sort(key=lambda row: row.name)
        record.notes += sidecars.notes + sidecars.unmatched()
        return record


def _damaged(member: Member) -> Failure:
    failure = unreadable(member.name, _why(member), "Pack the pictures again.")
    failure.detail = member.fault
    return failure


def _why(member: Member) -> str:
    """Return why a member of an archive has no content; what is said of damage is a library's, for operators."""
    return member.fault if member.fault.startswith("it is ") else "it is damaged inside its archive"


def _length(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def _failed(row: Examined, failure: Failure) -> Examined:
    reason = failure.message.removeprefix(f"{row.name}: ")
    return row.model_copy(
        update={
            "failure": str(failure.code),
            "failure_reason": reason[:1].upper() + reason[1:],
            "failure_remedy": failure.remedy,
            "failure_detail": failure.detail[:300],
            "retryable": failure.retryable,
        }
    )


def collect_sources(
    tune_id: str,
    request: TuneRequest,
    store: Store,
    fetcher: Fetcher,
    detector: FaceDetector,
    report: Reporter,
    rules: SourceRules = SourceRules(),
) -> Manifest:
    """Fetch, examine and judge the pictures of a request, and save the manifest.

    Running it again reads only what is not yet in the store.

    Args:
        tune_id: Whose.
        request: Names the sources and the thresholds.
        store: Takes the pictures and the manifest.
        fetcher: For URLs.
        detector: Finds faces.
        report: Is told of progress and asked about cancelling.
        rules: What may be read, and how.

    Raises:
        Failure: `TOO_FEW_PICTURES` with the reasons; the source's own failure when nothing at all came in.
    """
    sources = request.sources
    if sources.empty:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "The request names no pictures.",
            "Name a folder, an archive, URLs or uploads.",
        )
    if sources.folder and rules.allow_folders is not None:
        check_folder(sources.folder, rules.allow_folders)
    report.phase(Phase.FETCHING, "Fetching the pictures.")
    listed = list_sources(sources, tune_id, store, fetcher, rules)
    with get_pool().session() as among:
        examiner = _Examiner(store, detector, rules.archives, among)
        records = _records(tune_id, listed, examiner, fetcher.limits.concurrency, report)
    report.phase(Phase.CHECKING, "Checking the pictures.")
    manifest = _judged(tune_id, request, listed, records, detector.name)
    manifest.save(store)
    counts = manifest.counts()
    report.note(
        f"{len(manifest.rows)} pictures: {counts['accepted']} accepted, {counts['warned']} with a warning, "
        f"{counts['rejected']} rejected."
    )
    for sentence in manifest.findings():
        report.finding(sentence)
    check_enough(manifest, request)
    return manifest


def _records(
    tune_id: str, listed: SourceList, examiner: _Examiner, workers: int, report: Reporter
) -> list[_Record]:
    """Return the record of every origin: from the store where it is known, else by reading it."""
    total = len(listed.origins)
    records = _known_records(tune_id, listed, examiner, workers)
    if records:
        report.note(f"{len(records)} of {total} sources are known already.")
    missing = [index for index in range(total) if index not in records]
    with tempfile.TemporaryDirectory(prefix="tunes-intake-") as folder:

        def read(index: int, stop: threading.Event) -> _Record:
            path = Path(folder) / f"{index:05d}"
            record = _read_origin(tune_id, listed.origins[index], path, examiner, stop)
            path.unlink(missing_ok=True)
            return record

        for index, record in completed(read, missing, workers, tick=report.check_cancelled):
            records[index] = record
            report.step(len(records), total)
            report.check_cancelled()
    return [records[index] for index in range(total)]


def _read_origin(
    tune_id: str, origin: Origin, path: Path, examiner: _Examiner, stop: threading.Event
) -> _Record:
    """Load and examine one origin; its record is kept when trying again would not change it."""
    name = origin.source
    try:
        local = origin.load(path, stop)
        name = local.name
        record = examiner.expand(origin, local, stop)
    except Cancelled:
        raise
    except Failure as failure:
        return _Record(rows=[_failed(Examined(name=name, source=origin.source), failure)])
    examiner.store.write_text(_record_key(tune_id, origin), record.model_dump_json())
    return record


def _known_records(tune_id: str, listed: SourceList, examiner: _Examiner, workers: int) -> dict[int, _Record]:
    """Return the records that earlier runs left, by index of their origin."""
    written = set(examiner.store.list(f"tunes/{tune_id}/source/examined"))
    maybe = [i for i, origin in enumerate(listed.origins) if _record_key(tune_id, origin) in written]

    def load(index: int, _: threading.Event) -> _Record | None:
        return _load_record(tune_id, listed.origins[index], examiner)

    return {index: record for index, record in completed(load, maybe, workers) if record is not None}


def _record_key(tune_id: str, origin: Origin) -> str:
    return f"tunes/{tune_id}/source/examined/{origin.record_name}.json"


def _load_record(tune_id: str, origin: Origin, examiner: _Examiner) -> _Record | None:
    """Return what an earlier run found, when the same detector looked and its pictures are still there."""
    try:
        record = _Record.model_validate_json(examiner.store.read_bytes(_record_key(tune_id, origin)))
    except (FileNotFoundError, ValidationError):
        return None
    if record.version != RECORD_VERSION or record.detector != examiner.detector.name:
        return None
    here = all(row.key is None or examiner.store.exists(row.key) for row in record.rows)
    return record if here else None


def _judged(
    tune_id: str, request: TuneRequest, listed: SourceList, records: Sequence[_Record], detector: str
) -> Manifest:
    pictures, unmatched = captioned(listed, [record.rows for record in records])
    pictures, about_masks = with_masks(pictures, used=request.dataset.mask == "file")
    layout = laid_out(pictures, request.token, request.class_name)
    pictures = layout.pictures
    unmatched += about_masks + layout.notes + without_caption(pictures)
    tell_apart(pictures)
    rows, notes = judge(
        pictures,
        request.dataset,
        request.class_name,
        faces_looked_for=detector != "none",
        resolution=request.training.resolution,
    )
    prior, about_prior = judge(layout.prior, request.dataset, request.class_name, faces_looked_for=False)
    notes += about_prior + listed.notes + unmatched
    return Manifest(
        tune_id=tune_id,
        class_name=request.class_name,
        detector=detector,
        rows=rows + [row for row in prior if row.verdict == "rejected"],
        prior=[row for row in prior if row.verdict != "rejected"],
        ignored=listed.ignored + [name for record in records for name in record.ignored],
        notes=notes + [note for record in records for note in record.notes],
    )


def check_enough(manifest: Manifest, request: TuneRequest) -> None:
    """Stop a tune that has too few pictures.

    Raises:
        Failure: `TOO_FEW_PICTURES` with the reasons per picture. When nothing came in but one kind of failure,
            or when retrying unreachable sources may still bring enough, that failure's own code instead, so
            that it is tried again or named for what it is.
    """
    have, need = len(manifest.accepted), request.dataset.min_pictures
    if have >= need:
        return
    reasons = manifest.reasons()
    facts = {"accepted": have, "needed": need, "reasons": reasons}
    failed = [row for row in manifest.rows if row.failure]
    passing = [row for row in failed if row.retryable]
    if passing and have + len(passing) >= need or (passing and len(passing) == len(manifest.rows)):
        raise _as_failure(passing[0], passing, facts)
    sources = [row for row in failed if row.failure != FailureCode.PICTURE_UNREADABLE]
    if sources and len(sources) == len(manifest.rows) and len({row.failure for row in sources}) == 1:
        raise _as_failure(sources[0], sources, facts)
    found = f"{have} of {len(manifest.rows)} pictures can be used; {need} are needed."
    listed = reasons[:5] if manifest.rows else ["No pictures were found in the sources.", *manifest.notes[:5]]
    raise Failure(
        FailureCode.TOO_FEW_PICTURES,
        " ".join([found, *listed]),
        "Replace or add pictures, then start again.",
        facts=facts,
    )


def _as_failure(row: PictureRow, rows: Sequence[PictureRow], facts: dict[str, Any]) -> Failure:
    more = f" ({len(rows) - 1} more like this.)" if len(rows) > 1 else ""
    return Failure(
        FailureCode(row.failure),
        row.failure_reason + more,
        row.failure_remedy,
        row.failure_detail,
        facts=facts,
    )

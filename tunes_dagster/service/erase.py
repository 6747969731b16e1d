"""Deleting a tune, a prompt, or everything of a person: pictures, captions, caches, weights, renders, words.

Whoever asks writes a `Deletion`, from which moment on nothing of the subject is reachable; `drive` removes what there
is of it, step by step, and begins where an interrupted one stopped. It is called by whoever asked, by a sensor, by the
server and by every command, so that no death of a process leaves anything behind. Each step may be done twice. The
folder with the manifests, by which the other steps find their files, goes last. For some days afterwards it is looked
again: whoever was at work on the subject may still write.

What other tunes use as well stays for them. What was removed is counted by kind in the record.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry.deletions import STEPS
from tunes_dagster.registry.prompts import prompt_in
from tunes_dagster.registry.retrying import DatabaseAway
from tunes_dagster.service.references import entries, name_all

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.registry import Deletion, Prompt, Registry, Tune
    from tunes_dagster.service.installation import Installation

log = logging.getLogger("tunes.deletion")

# Folder below tunes/<id>/ → what people call its files.
_KINDS = {
    "source": "source files",
    "training_set": "training sets",
    "captions": "captions",
    "lora": "weights",
    "uploads": "uploads",
}
# Seconds before a step that failed is tried again.
_AGAIN = 60.0
# How many are driven in one go.
_MOST = 1000


@dataclass
class Erased:
    """What was removed.

    Attributes:
        files: Number by kind: pictures, weights, captions, caches, renders, sheets …
        bytes: Their size.
        left: What could not or need not go, in words.
        unfinished: How many deletions go on later, because something could not be reached.
    """

    files: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    left: list[str] = field(default_factory=list)
    unfinished: int = 0

    @property
    def count(self) -> int:
        """All files."""
        return sum(self.files.values())

    def add(self, more: Erased) -> None:
        """Add what was removed elsewhere."""
        self.files += more.files
        self.bytes += more.bytes
        self.left += [one for one in more.left if one not in self.left]
        self.unfinished += more.unfinished


def tunes_of_person(registry: Registry, label: str, account_id: str) -> list[Tune]:
    """Return an account's tunes that are labelled as a person's: `person=LABEL`, or `NAME=VALUE` of another label.

    Raises:
        Failure: `UNKNOWN_TUNE` when there is none.
    """
    name, equals, value = label.partition("=")
    name, value = (name, value) if equals else ("person", label)
    found = [
        tune
        for tune in registry.tunes.rows(limit=1_000_000, account_id=account_id)
        if str((tune.labels or {}).get(name)) == value
    ]
    if not found:
        raise Failure(
            FailureCode.UNKNOWN_TUNE,
            f"No tune of the account {account_id!r} has the label {name}={value}.",
            f"Tunes get labels at training: tunes train … --label {name}={value}",
        )
    return found


def erase_tunes(
    installation: Installation, tunes: Sequence[Tune], *, reason: str = "asked", rule: str = ""
) -> Erased:
    """Delete tunes with everything that shows or was made of their pictures, and keep a record of each.

    Args:
        installation: Holds their rows and files.
        tunes: Which.
        reason: `asked` or `expired`.
        rule: What was asked for, or the rule that they expired by; a sentence without anybody's words.
    """
    for tune in tunes:
        installation.registry.work.delete_tune(tune.id, reason=reason, rule=rule)
    return drive_subjects(installation, [tune.id for tune in tunes])


def erase_outputs(installation: Installation, prompts: Sequence[Prompt], rule: str = "") -> Erased:
    """Delete the pictures of prompts, and the sheets and pages that show them."""
    ids = [prompt.id for prompt in prompts]
    installation.registry.retention.lose_pictures(ids, rule)
    return drive_subjects(installation, ids)


def drive_subjects(installation: Installation, subject_ids: Sequence[str]) -> Erased:
    """Drive the deletions of some tunes and prompts, which were asked for a moment ago."""
    ids = [row.id for row in installation.registry.deletions.of(subject_ids) if row.state == "open"]
    return drive(installation, ids=ids)


def drive(installation: Installation, *, ids: Sequence[str] | None = None, limit: int = _MOST) -> Erased:
    """Bring what is being deleted as far as it goes now.

    Args:
        installation: Where the deletions and the files are.
        ids: Only these deletions; None takes all that are due.
        limit: At most so many.

    Returns:
        What was removed. A deletion that cannot go on now is tried again later, and holds up no other one.
    """
    registry, total = installation.registry, Erased()
    due = registry.deletions.due(limit, ids)
    if due:
        name_all(installation)
    for deletion_id in due:
        try:
            done = _drive_one(installation, deletion_id)
        except DatabaseAway:
            raise
        except Exception as error:  # one that cannot go on must not keep the others from it
            log.warning("The deletion %s goes on later: %s", deletion_id, type(error).__name__)
            registry.deletions.put_off(deletion_id, _AGAIN)
            total.unfinished += 1
            continue
        total.add(done)
    return total


def _drive_one(installation: Installation, deletion_id: str) -> Erased:
    registry, total = installation.registry, Erased()
    taken = registry.deletions.take(deletion_id)
    if taken is None:
        return total
    work = _Driven(installation, *taken)
    for step in work.steps():
        done = Erased()
        traces = work.do(step, done)
        registry.deletions.step_done(deletion_id, step, done.files, done.bytes, done.left, traces)
        total.add(done)
    row = registry.deletions.round_done(deletion_id)
    if row is not None and row.state == "done" and row.takes_words:
        registry.blobs.purge(work.subjects)
    return total


class _Driven:
    """One deletion, and the steps of it.

    Args:
        installation: Holds its rows and files.
        row: The deletion.
        subjects: Ids of all it is about.
        prompts: Those of them that are prompts.
    """

    def __init__(
        self, installation: Installation, row: Deletion, subjects: list[str], prompts: list[Prompt]
    ) -> None:
        self.registry, self.store, self.row = installation.registry, installation.store, row
        self.subjects, self.prompts = subjects, prompts
        self.traces: dict[str, Any] = dict(row.traces or {})

    def steps(self) -> Iterator[str]:
        """Yield the steps that are left."""
        begun = STEPS.index(self.row.step) + 1 if self.row.step in STEPS else 0
        for step in STEPS[begun:]:
            of_prompts = step in ("renders", "pictures", "words")
            if (self.row.kind == "tune" or of_prompts) and (step == "renders" or self.row.takes_words):
                yield step

    def do(self, step: str, done: Erased) -> dict[str, Any] | None:
        """Do one step; returns what later ones need to know."""
        return {
            "renders": self._renders,
            "pictures": self._pictures,
            "caches": self._caches,
            "words": self._words,
            "folder": self._folder,
        }[step](done)

    def _renders(self, done: Erased) -> dict[str, Any]:
        """Remove the renders, and the sheets, pages and reports that show them; also what a late writer left."""
        ids = {prompt.id for prompt in self.prompts}
        batches = {prompt.batch_id for prompt in self.prompts if prompt.batch_id}
        batches |= set(self.traces.get("batches", []))
        for batch in sorted(batches):
            keys = list(self.store.list(f"batches/{batch}"))
            _remove(self.store, [key for key in keys if prompt_in(key) in ids], "renders", done)
            # Also of a batch where it came to no picture: the page says its text.
            _remove(self.store, [key for key in keys if prompt_in(key) is None], "sheets", done)
        for date in self.registry.deletions.dates_showing(sorted(ids)):
            folder = str(date.report_key).rpartition("/")[0]
            _remove(self.store, list(self.store.list(folder)), "reports", done)
            self.registry.deletions.report_gone(date.id)
        return {"batches": sorted(batches)}

    def _pictures(self, done: Erased) -> None:
        """Remove the shared files that nobody else needs."""

        def remove(key: str) -> None:
            _remove(self.store, [key], "uploads" if key.startswith("uploads/") else "pictures", done)

        kept = self.registry.blobs.release(self.subjects, remove)
        if kept:
            done.left.append(f"{len(kept)} pictures that others need as well")

    def _caches(self, done: Erased) -> dict[str, Any]:
        """Remove what is cached of its pictures and captions; others that need an entry make it again."""
        known = set(self.traces.get("caches", [])) | cached_of(self.store, self.row.subject_id)
        named = {key for key in known if key.startswith("cache/")}
        digests = known - named
        if digests:
            named |= {key for key in self.store.list("cache") if PurePosixPath(key).stem in digests}
        _remove(self.store, sorted(named), "caches", done)
        return {"caches": sorted(known)}

    def _words(self, done: Erased) -> None:
        plans = self.registry.deletions.forget(self.row, self.subjects)
        _remove(self.store, plans, "plans", done)

    def _folder(self, done: Erased) -> None:
        folder = f"tunes/{self.row.subject_id}"
        for key in list(self.store.list(folder)):
            _remove(self.store, [key], _KINDS.get(key.split("/")[2], "other files"), done)
        self.store.delete_prefix(folder)  # the empty folders, and what a writer was writing


def _remove(store: Store, keys: Iterable[str], kind: str, done: Erased) -> None:
    for key in keys:
        try:
            size = store.size(key)
        except (FileNotFoundError, NotADirectoryError):
            continue
        store.delete(key)
        done.files[kind] += 1
        done.bytes += size


def cached_of(store: Store, tune_id: str) -> set[str]:
    """Return what is cached of a tune: keys that training noted, and digests in the names of entries.

    Training notes what it caches (`cache.note_owner`); the digests also find what earlier versions cached.
    """
    from tunes_dagster.training.cache import digest

    folder, found = f"tunes/{tune_id}", set[str]()
    for key in store.list(f"{folder}/cached"):
        try:
            noted = store.read_json(key)
        except (FileNotFoundError, ValueError, RecursionError):  # half of a note names nothing
            continue
        if isinstance(noted, list):
            found.update(one for one in noted if isinstance(one, str) and ".." not in one)
    for item in entries(store, f"{folder}/training_set/training_set.json", "items"):
        with contextlib.suppress(KeyError, TypeError):  # what is damaged names nothing
            crop = tuple(item["crop"]) if item.get("crop") else None
            tone = tuple(item.get("tone") or (1.0, 1.0))
            changed = (
                (item.get("mirrored", False), tone) if item.get("mirrored") or tone != (1.0, 1.0) else ()
            )
            found.add(digest(item["key"], tuple(item["bucket"]), crop, *changed))
            found.add(str(item["hash"]))
    return found | {digest(text) for text in _captions(store, folder)}


def _captions(store: Store, folder: str) -> set[str]:
    """Return every caption of a tune, of all versions."""
    import csv
    import io

    found: set[str] = set()
    for key in store.list(f"{folder}/captions"):
        if key.endswith(".csv"):
            rows = csv.DictReader(io.StringIO(store.read_bytes(key).decode("utf-8", "replace")))
            with contextlib.suppress(csv.Error):  # from where it is damaged on
                for row in rows:
                    if row.get("caption"):
                        found.add(row["caption"])
    return found

"""Deleting a tune, or everything of a person: pictures, captions, caches, weights, renders, sheets that show them.

What other tunes use as well stays for them. What was removed is returned by kind, printed, and kept as a record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.registry import Prompt, Registry, Tune

_READERS = 16
# Folder below tunes/<id>/ → what people call its files.
_KINDS = {
    "source": "source files",
    "training_set": "training sets",
    "captions": "captions",
    "lora": "weights",
}


@dataclass
class Erased:
    """What was removed.

    Attributes:
        files: Number by kind: pictures, weights, captions, caches, renders, sheets …
        bytes: Their size.
        left: What could not or need not go, in words.
    """

    files: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    left: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """All files."""
        return sum(self.files.values())

    def what(self) -> dict[str, Any]:
        """Return it for the record."""
        return {**self.files, **({"left": self.left} if self.left else {})}


@dataclass(frozen=True)
class _Traces:
    """What a tune's manifests say of its files elsewhere in the store.

    Attributes:
        pictures: Hash → key of its stored pictures and masks.
        items: Hash of a training item → its picture's hash.
        latents: Digest in the name of cached latents → its picture's hash.
        texts: Digests in the names of cached text embeddings.
        uploads: Keys of files that came with the request.
    """

    pictures: dict[str, str]
    items: dict[str, str]
    latents: dict[str, str]
    texts: set[str]
    uploads: set[str]


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
    registry: Registry,
    store: Store,
    tunes: Sequence[Tune],
    *,
    reason: str = "asked",
    rule: str = "",
    forget: bool = False,
) -> Erased:
    """Delete tunes with everything that shows or was made of their pictures, and keep a record of each.

    Args:
        registry: Their rows; stopped first, so that nothing is written behind the deletion.
        store: Their files.
        tunes: Which.
        reason: `asked` or `expired`.
        rule: What was asked for, or the rule that they expired by.
        forget: Also take out of the rows what a person wrote: titles, labels, captions, texts.
    """
    total = Erased()
    ids = {tune.id for tune in tunes}
    for tune in tunes:
        registry.work.delete_tune(tune.id)
    others = _others(registry, store, ids)
    for tune in tunes:
        prompts = registry.uses.prompts_of([tune.id])
        done = _erase_tune(registry, store, tune, prompts, others)
        if forget:
            plans = registry.retention.forget_words(tune.id, [prompt.id for prompt in prompts])
            _remove(store, plans, "plans", done)
        record = {
            "account_id": tune.account_id,
            "kind": "tune",
            "subject_id": tune.id,
            "reason": reason,
            "rule": rule,
            "label": "" if forget else tune.title,
            "files": done.count,
            "bytes": done.bytes,
            "what": done.what(),
        }
        registry.retention.record_deletions([record])
        total.files += done.files
        total.bytes += done.bytes
        total.left += done.left
    return total


def erase_outputs(
    registry: Registry, store: Store, prompts: Sequence[Prompt], done: Erased | None = None
) -> Erased:
    """Delete the pictures of prompts, and the sheets and pages that show them."""
    done = done or Erased()
    _remove(store, [key for prompt in prompts for key in prompt.images or []], "renders", done)
    batches = {prompt.batch_id for prompt in prompts if prompt.batch_id and prompt.images}
    sheets = [
        key
        for batch in sorted(batches)
        for key in store.list(f"batches/{batch}")
        if PurePosixPath(key).name in ("contact_sheet.png", "index.html")
    ]
    _remove(store, sheets, "sheets", done)
    ids = [prompt.id for prompt in prompts]
    for date in registry.retention.dates_showing(ids):
        folder = str(date.report_key).rpartition("/")[0]
        _remove(store, list(store.list(folder)), "reports", done)
        registry.retention.report_gone(date.id)
    registry.retention.outputs_gone(ids)
    return done


def _erase_tune(
    registry: Registry, store: Store, tune: Tune, prompts: Sequence[Prompt], others: _Traces
) -> Erased:
    done = Erased()
    mine = traces_of(store, tune)
    erase_outputs(registry, store, prompts, done)
    own = {digest: key for digest, key in mine.pictures.items() if digest not in others.pictures}
    shared = len(mine.pictures) - len(own)
    if shared:
        done.left.append(f"{shared} pictures that other tunes were made from as well")
    _remove(store, own.values(), "pictures", done)
    _remove(store, sorted(mine.uploads - others.uploads), "uploads", done)
    _remove(store, _cached(store, mine, others, set(own)), "caches", done)
    for key in list(store.list(f"tunes/{tune.id}")):
        folder = key.split("/")[2]
        _remove(store, [key], _KINDS.get(folder, "other files"), done)
    store.delete_prefix(f"tunes/{tune.id}")  # the empty folders
    return done


def _remove(store: Store, keys: Iterable[str], kind: str, done: Erased) -> None:
    for key in keys:
        try:
            size = store.size(key)
        except (FileNotFoundError, NotADirectoryError):
            continue
        store.delete(key)
        done.files[kind] += 1
        done.bytes += size


def _cached(store: Store, mine: _Traces, others: _Traces, own: set[str]) -> list[str]:
    """Return the cache files made of a tune's own pictures and captions: latents, captions, text embeddings."""
    gone = {
        "latents": {name for name, picture in mine.latents.items() if picture in own} - others.latents.keys(),
        "captions": {name for name, picture in mine.items.items() if picture in own} - others.items.keys(),
        "text": mine.texts - others.texts,
    }
    return [key for key in store.list("cache") if PurePosixPath(key).stem in gone.get(key.split("/")[1], ())]


def traces_of(store: Store, tune: Tune) -> _Traces:
    """Return what a tune's manifests say; what is not there says nothing."""
    from tunes_dagster.training.cache import digest

    folder = f"tunes/{tune.id}"
    sources = (tune.request or {}).get("sources") or {}
    rows = _rows(store, f"{folder}/source/manifest.json", "rows")
    items = _rows(store, f"{folder}/training_set/training_set.json", "items")
    pictures = {row.get("hash") or row["key"]: row["key"] for row in rows if row.get("key")}
    pictures |= {row["mask_key"]: row["mask_key"] for row in rows if row.get("mask_key")}
    latents: dict[str, str] = {}
    for item in items:
        crop = tuple(item["crop"]) if item.get("crop") else None
        tone = tuple(item.get("tone") or (1.0, 1.0))
        changed = (item.get("mirrored", False), tone) if item.get("mirrored") or tone != (1.0, 1.0) else ()
        latents[digest(item["key"], tuple(item["bucket"]), crop, *changed)] = item["picture"]
    return _Traces(
        pictures,
        {item["hash"]: item["picture"] for item in items},
        latents,
        {digest(text) for text in _captions(store, folder)},
        set(sources.get("uploads") or []),
    )


def _rows(store: Store, key: str, name: str) -> list[dict[str, Any]]:
    try:
        return list(store.read_json(key).get(name, []))
    except (FileNotFoundError, ValueError, AttributeError, TypeError):  # a damaged list names nothing
        return []


def _captions(store: Store, folder: str) -> set[str]:
    """Return every caption of a tune, of all versions."""
    import csv
    import io

    found: set[str] = set()
    for key in store.list(f"{folder}/captions"):
        if key.endswith(".csv"):
            rows = csv.DictReader(io.StringIO(store.read_bytes(key).decode("utf-8", "replace")))
            found |= {row["caption"] for row in rows if row.get("caption")}
    return found


def _others(registry: Registry, store: Store, without: set[str]) -> _Traces:
    """Return what all other tunes together use."""
    rows = [tune for tune in registry.tunes.rows(limit=1_000_000) if tune.id not in without]
    with ThreadPoolExecutor(_READERS) as readers:
        every = list(readers.map(lambda tune: traces_of(store, tune), rows))
    merged = _Traces({}, {}, {}, set(), set())
    for one in every:
        merged.pictures.update(one.pictures)
        merged.items.update(one.items)
        merged.latents.update(one.latents)
        merged.texts.update(one.texts)
        merged.uploads.update(one.uploads)
    return merged

"""After a backup was put back: which files do its rows name that are not there, and what is done about each.

Registry and store were copied at slightly different moments, in either order, perhaps by hand. A tune whose files are
gone goes back to the last stage that can be done again; pictures are rendered again with their own seeds; what can
neither be shown nor made again is said to be lost. A tune whose folder is gone altogether was deleted after the
registry had been copied: it stays deleted.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.store import Store
from tunes_dagster.core.work import STAGES, WorkKind
from tunes_dagster.registry import Prompt, Registry, Tune
from tunes_dagster.service.backup import Backup, keys_of
from tunes_dagster.service.erase import drive_subjects, erase_outputs, erase_tunes

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation

_WHY = "Files of it were not in the backup that was put back."
# Of a tune's result: what has to be there for it to be used, and what is only looked at.
_WEIGHTS = (
    "weights_key",
    "kohya_key",
    "pipeline_key",
    "words_key",
    "last_weights_key",
    "last_kohya_key",
    "last_pipeline_key",
)
_PAGE = 500


class Files:
    """The keys of a store, as they were when it was listed."""

    def __init__(self, store: Store) -> None:
        self._keys = sorted(keys_of(store))
        self._known = frozenset(self._keys)

    def has(self, key: Any) -> bool:
        """Whether a file lies under a key, or below it when it names a folder; nothing is named by an empty one."""
        return not key or key in self._known or self.below(f"{key}/")

    def below(self, prefix: str) -> bool:
        """Whether any file lies below a prefix."""
        place = bisect_left(self._keys, prefix)
        return place < len(self._keys) and self._keys[place].startswith(prefix)


@dataclass
class Checked:
    """What was found about the files, by number of the tune or prompt.

    Attributes:
        again: Tunes that are made again, with the kind of work they begin with.
        rendered: Prompts that are rendered again.
        deleted: Tunes of which nothing is left: deleted while the backup was made, or made after the store was copied.
        lost: Tunes that can neither be shown nor made again, and prompts that have fewer pictures now, in words.
    """

    again: dict[int, str] = field(default_factory=dict)
    rendered: list[int] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def delete_again(installation: Installation, about: Backup) -> int:
    """Delete what was deleted while a backup was made: its registry still has the rows; returns how many."""
    registry = installation.registry
    tunes, prompts, words = [], [], list[str]()
    for kind, key in about.deleted:
        with suppress(Failure):  # the row came after the copy
            if kind == "tune" and (tune := registry.tunes.get(key)).status != "deleted":
                tunes.append(tune)
            if kind == "prompt" and (prompt := registry.prompts.get(key)).expired_at is None:
                prompts.append(prompt)
            if kind == "prompt with its words":
                words.append(registry.prompts.get(key).id)
    erase_tunes(installation, tunes, rule="it was deleted while a backup was made")
    erase_outputs(installation, prompts, "it was deleted while a backup was made")
    for one in words:
        registry.work.delete_prompt(one, rule="it was deleted while a backup was made")
    drive_subjects(installation, words)
    return len(tunes) + len(prompts) + len(set(words) - {prompt.id for prompt in prompts})


def check_files(installation: Installation) -> Checked:
    """Look for every file that the rows name, and have made again what is missing; twice changes nothing more."""
    registry, there = installation.registry, Files(installation.store)
    done = Checked()
    half_gone = [tune for tune in _all_tunes(registry, "deleted") if there.below(f"tunes/{tune.id}/")]
    erase_tunes(installation, half_gone, rule="it was being deleted while a backup was made")
    for tune in _all_tunes(registry):
        _check_tune(installation, there, tune, done)
    for prompt in _all_prompts(registry):
        _check_prompt(registry, there, prompt, done)
    for campaign in registry.campaigns.rows():
        for date in registry.dates.rows(campaign.id, limit=100_000):
            if not there.has(date.report_key):
                registry.restoring.report_missing(date.id)
    return done


def _all_tunes(registry: Registry, status: str | None = None) -> Iterator[Tune]:
    before: int | None = None
    while page := registry.tunes.rows(status, limit=_PAGE, before=before):
        yield from page
        before = page[-1].number


def _all_prompts(registry: Registry) -> Iterator[Prompt]:
    before: int | None = None
    while page := registry.prompts.rows(status="done", limit=_PAGE, before=before):
        yield from page
        before = page[-1].number


def _check_tune(installation: Installation, there: Files, tune: Tune, done: Checked) -> None:
    if tune.status in ("failed", "cancelled", "deleted", "awaiting_images"):
        return
    registry, store = installation.registry, installation.store
    stage = _stage_of(tune)
    lacking = [name for name in _WEIGHTS if not there.has(getattr(tune.made, name) or None)]
    if stage in (WorkKind.FINISH, "ready") and not lacking:
        return
    if stage == WorkKind.PREPARE and _sources_are_there(there, tune):
        return
    if stage == WorkKind.TRAIN and _dataset_is_there(store, there, tune):
        return
    if stage == "ready" and not there.below(f"tunes/{tune.id}/"):
        erase_tunes(installation, [tune], rule="its files were not in a backup that was put back")
        done.deleted.append(tune.number)
    elif stage != WorkKind.TRAIN and _dataset_is_there(store, there, tune):
        registry.restoring.redo_tune(tune.id, WorkKind.TRAIN, _WEIGHTS, _WHY)
        done.again[tune.number] = WorkKind.TRAIN
    elif stage != WorkKind.PREPARE and _sources_are_there(there, tune):
        registry.restoring.redo_tune(tune.id, WorkKind.PREPARE, _WEIGHTS, _WHY)
        done.again[tune.number] = WorkKind.PREPARE
    else:
        registry.restoring.lost_tune(tune.id, f"{_WHY} Its pictures are among them.")
        done.lost.append(f"tune {tune.number}: its pictures are not in the backup")


def _stage_of(tune: Tune) -> str:
    """Return the work that a tune needs next."""
    now = (kind for kind, stage in STAGES.items() if tune.status in (stage.waiting, stage.running))
    return next(now, "ready")


def _sources_are_there(there: Files, tune: Tune) -> bool:
    """Whether the pictures can be read again from where the request says: addresses of others count as there."""
    sources: Mapping[str, Any] = tune.request.get("sources") or {}
    if not all(there.has(key) for key in sources.get("uploads") or ()):
        return False
    return any(sources.get(name) for name in ("uploads", "archive_url", "image_urls", "folder"))


def _dataset_is_there(store: Store, there: Files, tune: Tune) -> bool:
    """Whether training can read what it needs: training set, captions and every picture of it."""
    from tunes_dagster.intake.captions import CaptionTable
    from tunes_dagster.intake.training_set import TrainingSet

    try:
        dataset = TrainingSet.load(store, tune.id)
        texts = CaptionTable.load(store, tune.id).texts()
    except (OSError, ValueError, KeyError, Failure, json.JSONDecodeError) as error:
        if isinstance(error, Failure) and error.code == FailureCode.STORE_UNAVAILABLE:
            raise  # nobody knows
        return False
    named = {key for item in dataset.items for key in (item.key, item.mask_key) if key}
    return all(map(there.has, named)) and {item.hash for item in dataset.items} <= texts.keys()


def _check_prompt(registry: Registry, there: Files, prompt: Prompt, done: Checked) -> None:
    left = [key for key in prompt.images or [] if there.has(key)]
    if len(left) == len(prompt.images or []) or prompt.expired_at is not None:
        return
    used = registry.uses.tunes_by_id(
        use.tune_id for use in registry.uses.of([prompt.id]).get(prompt.id, []) if use.tune_id
    )
    gone = any(tune.status in ("failed", "cancelled", "deleted") for tune in used.values())
    if gone:
        registry.restoring.lost_pictures(prompt.id, left, _WHY)
        done.lost.append(
            f"prompt {prompt.number}: {len(prompt.images) - len(left)} pictures, whose tune is gone"
        )
        return
    registry.restoring.redo_prompt(prompt.id, _WHY)
    done.rendered.append(prompt.number)

"""Files that nobody names: of requests that were never accepted, of processes that died, of deletions that lost count.

They are left alone for a day: whoever writes a file names it before or soon after.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunes_dagster.registry.blobs import SHARED
from tunes_dagster.registry.personal import TEMPORARY
from tunes_dagster.service.references import name_all

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.service.installation import Installation

DAY = 86_400.0
_PART = 1000


def remove_orphans(installation: Installation, older_than: float = DAY) -> int:
    """Remove what is older than some seconds and that no row knows; returns how many files and folders that were."""
    name_all(installation)
    before = time.time() - older_than
    done = _shared(installation, before) + _folders(installation, before)
    return done + installation.store.remove_unfinished(before) + _temporary(before)


def _shared(installation: Installation, before: float) -> int:
    """Remove shared files that nobody names."""
    registry, store, done = installation.registry, installation.store, 0
    for prefix in SHARED:
        for keys in _parts(list(store.list(prefix))):
            needed = registry.blobs.needed(keys)
            for key in keys:
                if (
                    key not in needed
                    and _is_old(store, key, before)
                    and registry.blobs.drop(key, store.delete)
                ):
                    done += 1
    return done


def _folders(installation: Installation, before: float) -> int:
    """Remove the folders of tunes and batches that no row knows."""
    registry, store, done = installation.registry, installation.store, 0
    for prefix, known in (("tunes", registry.blobs.known_tunes), ("batches", registry.blobs.known_batches)):
        for ids in _parts(store.folders(prefix)):
            for one in sorted(set(ids) - known(ids)):
                keys = list(store.list(f"{prefix}/{one}"))
                if all(_is_old(store, key, before) for key in keys):
                    done += len(store.delete_prefix(f"{prefix}/{one}"))
    return done


def _is_old(store: Store, key: str, before: float) -> bool:
    try:
        return store.changed(key) < before
    except FileNotFoundError:
        return False


def _temporary(before: float) -> int:
    """Remove temporary folders of processes that were killed."""
    done = 0
    for folder in Path(tempfile.gettempdir()).glob("tunes-*"):
        if folder.name.startswith(TEMPORARY) and folder.is_dir() and folder.stat().st_mtime < before:
            shutil.rmtree(folder, ignore_errors=True)
            done += 1
    return done


def _parts(values: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), _PART):
        yield list(values[start : start + _PART])

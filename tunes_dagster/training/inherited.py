"""What a tune that goes on from another one keeps of it beside the adapter: words, and adapters of text encoders.

Neither is trained further: the subject is called as before, and texts are encoded as that tune's were while the
adapter around them goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tunes_dagster.core.store import Store
from tunes_dagster.training.files import read_fields
from tunes_dagster.training.jobs import TuneJob

if TYPE_CHECKING:
    from torch import Tensor

    from tunes_dagster.families.base import LoadedBase


def inherit(job: TuneJob, base: LoadedBase, store: Store) -> None:
    """Give a job the words and the adapted encoders of the tune that it continues, if that has any.

    Args:
        job: `words`, `spoken` and `encoders` are filled in.
        base: Learns the words.
        store: Where that tune's files lie.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when they are gone, or not for this base.
    """
    from tunes_dagster.training import words
    from tunes_dagster.training.earlier import check_there

    key = job.start_from
    if key is None or job.options.is_whole:
        return
    check_there(key, store)
    header, names = read_fields(store, key)
    if any(name.startswith("text_encoder") for name in names):
        job.encoders = words.adapted_encoders(store, key)
    if words.KEY_FIELD in header:
        job.words = words.load(store, header[words.KEY_FIELD])
        job.spoken = words.register(base, job.words)
    if job.encoders or job.words:
        kept = [name for name, there in (("words", job.words), ("text encoders", job.encoders)) if there]
        job.report.note(f"The {' and '.join(kept)} of that tune are kept as they are.")


@contextmanager
def heard(job: TuneJob, base: LoadedBase) -> Iterator[str]:
    """Let a base encode texts as a job's encoders do for the while.

    Yields what tells embeddings made so from the base's own, for caches; empty for a job that adapts no encoder.
    """
    from tunes_dagster.training.encoders import dressed

    with dressed(base, [job.encoders or {}], [1.0]):
        yield _digest(job.encoders) if job.encoders else ""


def _digest(state: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(state[name].detach().float().cpu().numpy().tobytes())
    return found.hexdigest()[:32]

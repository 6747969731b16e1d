"""Which tunes and prompts need which shared files of the store: named before they are written, removed with the last.

The row of a blob is locked while somebody names it and while it is removed. So nobody finds a file there that is being
removed: whoever names it waits, and writes it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Cancelled
from tunes_dagster.registry.deletion_tables import Blob, BlobUse, Deletion
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import chunks, lock, lock_one
from tunes_dagster.registry.retrying import repeatable, retried
from tunes_dagster.registry.tables import Batch, Prompt, Tune

# Beginnings of the keys of files that several may name. All other files say in their key whose they are.
SHARED = ("blobs/", "uploads/")
# How long a file that came with a request waits for the request to be accepted.
HELD = timedelta(hours=1)
# Files removed in one transaction, which holds their rows: on an object store each takes a moment.
_AT_ONCE = 25


def shared(keys: Iterable[Any]) -> list[str]:
    """Return which of some values are keys of shared files, each once, sorted."""
    return sorted({key for key in keys if isinstance(key, str) and key.startswith(SHARED)})


def keys_of_request(request: dict[str, Any]) -> list[str]:
    """Return the shared files that the request of a tune names; those of its prompts are theirs."""
    return shared((request.get("sources") or {}).get("uploads") or [])


def keys_of_settings(settings: dict[str, Any]) -> list[str]:
    """Return the shared files that the settings of a prompt name."""
    return shared(settings.values())


def name_in(session: Session, uses: Iterable[tuple[str, str]], now: datetime) -> None:
    """Write that subjects need files, inside the transaction that names them: `(key, subject)`.

    Whoever held one for this moment holds it no longer.
    """
    pairs = sorted(set(uses))
    if not pairs:
        return
    for some in chunks(sorted({key for key, _subject in pairs}), 1000):
        rows = [{"key": key, "named_at": now} for key in some]
        _upsert(session, Blob, rows, ["key"], {"named_at": now, "held_until": None})
    for part in chunks(pairs, 1000):
        needs = [{"key": key, "subject_id": subject} for key, subject in part]
        _upsert(session, BlobUse, needs, ["key", "subject_id"], {"ended_at": None})


def share_uses(session: Session, of: str, to: str, now: datetime) -> None:
    """Write that a tune needs what another one needs; inside the transaction that accepts it."""
    keys = session.scalars(select(BlobUse.key).where(BlobUse.subject_id == of, BlobUse.ended_at.is_(None)))
    name_in(session, [(key, to) for key in keys], now)


def _upsert(
    session: Session, table: type[Any], rows: list[dict[str, Any]], keys: list[str], change: dict[str, Any]
) -> None:
    kinds: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
    statement = kinds[session.get_bind().dialect.name](table).values(rows)
    session.execute(statement.on_conflict_do_update(index_elements=keys, set_=change))


class Blobs(Part):
    """Naming, and removing what nobody names any more."""

    @repeatable
    def name(self, subject_id: str, keys: Sequence[str]) -> None:
        """Write that a tune needs files, before they are written.

        Raises:
            Cancelled: When it was deleted: what comes now is nobody's.
        """
        now = self.now()
        with self.writing() as session:
            tune = lock_one(session, Tune, Tune.id == subject_id)
            if tune is None or tune.deleted_at is not None:
                raise Cancelled
            name_in(session, [(key, subject_id) for key in shared(keys)], now)

    @repeatable
    def hold(self, key: str) -> None:
        """Keep a file from being removed while the request that comes with it is accepted."""
        if not shared([key]):
            return  # whoever it belongs to says its name
        now = self.now()
        row = {"key": key, "named_at": now, "held_until": now + HELD}
        with self.writing() as session:
            _upsert(session, Blob, [row], ["key"], {"held_until": now + HELD, "named_at": now})

    def is_needed(self, key: str) -> bool:
        """Whether anybody needs a file whose deletion was not asked for."""
        asked = exists().where(Deletion.subject_id == BlobUse.subject_id, Deletion.reason != "expired")
        gone = exists().where(Tune.id == BlobUse.subject_id, Tune.deleted_at.is_not(None))
        needed = exists().where(BlobUse.key == key, BlobUse.ended_at.is_(None), ~asked, ~gone)
        with self.reading() as session:
            return bool(session.scalar(select(needed)))

    def needed(self, keys: Sequence[str]) -> set[str]:
        """Return which of some files anybody needs or may be about to need."""
        now, found = self.now(), set[str]()
        with self.reading() as session:
            for some in chunks(keys):
                used = select(BlobUse.key).where(BlobUse.key.in_(some), BlobUse.ended_at.is_(None))
                found |= set(session.scalars(used))
                found |= set(
                    session.scalars(select(Blob.key).where(Blob.key.in_(some), Blob.held_until > now))
                )
        return found

    @repeatable
    def drop(self, key: str, remove: Callable[[str], None]) -> bool:
        """Remove a file that nobody names, under the lock of its row; returns whether it was still so."""
        now = self.now()
        with self.writing() as session:
            if not session.scalar(select(exists().where(Blob.key == key))):
                _upsert(session, Blob, [{"key": key, "named_at": now}], ["key"], {"named_at": now})
            blob = lock_one(session, Blob, Blob.key == key)
            live = exists().where(BlobUse.key == key, BlobUse.ended_at.is_(None))
            held = blob is not None and blob.held_until is not None and blob.held_until > now
            if held or session.scalar(select(live)):
                return False
            remove(key)
            if blob is not None and not session.scalar(select(exists().where(BlobUse.key == key))):
                session.delete(blob)
            return True

    def known_tunes(self, ids: Sequence[str]) -> set[str]:
        """Return which of some names are those of tunes that were not deleted."""
        with self.reading() as session:
            return set(session.scalars(select(Tune.id).where(Tune.id.in_(ids), Tune.deleted_at.is_(None))))

    def known_batches(self, ids: Sequence[str]) -> set[str]:
        """Return which of some names are those of batches."""
        with self.reading() as session:
            return set(session.scalars(select(Batch.id).where(Batch.id.in_(ids))))

    def of(self, subject_id: str) -> list[str]:
        """Return the files that a subject needs, or needed until it was deleted."""
        with self.reading() as session:
            query = select(BlobUse.key).where(BlobUse.subject_id == subject_id)
            return list(session.scalars(query.order_by(BlobUse.key)))

    def release(self, subject_ids: Sequence[str], remove: Callable[[str], None]) -> list[str]:
        """End what deleted subjects need, and remove what nobody else does; again is fine.

        Args:
            subject_ids: Tunes and prompts.
            remove: Removes a file; called under the lock of its row.

        Returns:
            The files that stay, because others need them.
        """
        keys: set[str] = set()
        with self.reading() as session:
            for some in chunks(subject_ids):
                keys |= set(session.scalars(select(BlobUse.key).where(BlobUse.subject_id.in_(some))))
        kept: list[str] = []
        for part in chunks(sorted(keys), _AT_ONCE):
            kept += self._release(part, subject_ids, remove)
        return kept

    @retried
    @repeatable
    def _release(
        self, keys: list[str], subject_ids: Sequence[str], remove: Callable[[str], None]
    ) -> list[str]:
        now = self.now()
        with self.writing() as session:
            blobs = lock(session, Blob, Blob.key.in_(keys))
            for some in chunks(subject_ids):
                mine = (BlobUse.key.in_(keys), BlobUse.subject_id.in_(some), BlobUse.ended_at.is_(None))
                session.execute(update(BlobUse).where(*mine).values(ended_at=now))
            live = select(BlobUse.key).where(BlobUse.key.in_(keys), BlobUse.ended_at.is_(None))
            used = set(session.scalars(live))
            for blob in blobs:
                if blob.key not in used and (blob.held_until is None or blob.held_until <= now):
                    remove(blob.key)
            return sorted(used)

    @repeatable
    def purge(self, subject_ids: Sequence[str]) -> None:
        """Drop the rows of deleted subjects, once nothing more of them is looked for."""
        with self.writing() as session:
            keys: set[str] = set()
            for some in chunks(subject_ids):
                keys |= set(session.scalars(select(BlobUse.key).where(BlobUse.subject_id.in_(some))))
            for part in chunks(sorted(keys), 1000):
                lock(session, Blob, Blob.key.in_(part))
                gone = (BlobUse.key.in_(part), BlobUse.ended_at.is_not(None))
                for some in chunks(subject_ids):
                    session.execute(delete(BlobUse).where(*gone, BlobUse.subject_id.in_(some)))
                unused = ~exists().where(BlobUse.key == Blob.key)
                session.execute(delete(Blob).where(Blob.key.in_(part), unused, Blob.held_until.is_(None)))

    def unnamed_tunes(self, limit: int = 200) -> list[Tune]:
        """Return tunes of earlier versions whose files were never named; see `service/references.py`."""
        with self.reading() as session:
            query = select(Tune).where(Tune.blobs_named.is_(False), Tune.deleted_at.is_(None))
            return list(session.scalars(query.order_by(Tune.number).limit(limit)))

    @repeatable
    def named(self, tune_id: str, keys: Sequence[str]) -> None:
        """Write what a tune of an earlier version needs."""
        with self.writing() as session:
            tune = lock_one(session, Tune, Tune.id == tune_id)
            if tune is None:
                return
            tune.blobs_named = True
            if tune.deleted_at is None:
                session.flush()
                name_in(session, [(key, tune_id) for key in shared(keys)], self.now())


def subjects_of(session: Session, deletion: Deletion) -> list[str]:
    """Return the tunes and prompts that a deletion is about: with a tune every prompt that named it."""
    from tunes_dagster.registry.uses import used_with

    if deletion.kind != "tune":
        return [deletion.subject_id]
    return [deletion.subject_id, *session.scalars(select(Prompt.id).where(used_with([deletion.subject_id])))]

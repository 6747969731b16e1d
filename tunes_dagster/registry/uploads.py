"""Tunes whose pictures come after the request: taking them in, and giving up on them."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm.attributes import flag_modified

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.work import WorkKind
from tunes_dagster.registry.api_tables import ApiObject
from tunes_dagster.registry.blobs import keys_of_request, name_in
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock_one
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.tables import Tune
from tunes_dagster.registry.transitions import lock_tune, note, open_work, show, tune_cancelled


class Uploads(Part):
    """Pictures that are promised."""

    @repeatable
    def receive(self, tune_id: str, keys: list[str]) -> Tune:
        """Give a tune that awaits its pictures the files that came, and queue it.

        Raises:
            Failure: `CONFLICT` when it has its pictures already, or has ended.
        """
        now = self.now()
        with self.writing() as session:
            tune = lock_tune(session, tune_id)
            if tune.request["sources"]["uploads"] == keys:
                return tune  # received already
            if tune.status != "awaiting_images":
                raise Failure(
                    FailureCode.CONFLICT,
                    f"The job has its pictures already: it is {tune.status}.",
                    "Make a new job for other pictures.",
                )
            tune.request["sources"]["uploads"] = keys
            flag_modified(tune, "request")
            tune.status, tune.updated_at = "queued", now
            show(tune, "queued", "Waiting to start.")
            open_work(session, WorkKind.PREPARE, tune.id, tune.origin, now)
            note(session, tune.id, "queued", f"{len(keys)} files were uploaded.", now)
            seen = lock_one(session, ApiObject, ApiObject.id == tune.id)
            if seen is not None:
                seen.upload_expires_at = None
            name_in(session, [(key, tune.id) for key in keys_of_request(tune.request)], now)
            return tune

    def expire(self, limit: int = 100) -> list[str]:
        """Cancel tunes whose pictures did not come in time, which returns what they had reserved."""
        now = self.now()
        due = select(ApiObject.id).where(ApiObject.upload_expires_at < now).limit(limit)
        with self.reading() as session:
            ids = list(session.scalars(due))
        for tune_id in ids:
            self.expire_one(tune_id, now)
        return ids

    @repeatable
    def expire_one(self, tune_id: str, now: datetime) -> None:
        """Cancel one tune whose pictures did not come in time."""
        with self.writing() as session:
            tune = lock_tune(session, tune_id)
            seen = lock_one(session, ApiObject, ApiObject.id == tune_id)
            if seen is not None:
                seen.upload_expires_at = None
            if tune.status == "awaiting_images":
                note(session, tune_id, "cancelled", "The pictures did not come in time.", now)
                tune_cancelled(session, tune, now, notify=True)

"""Device sessions: which there are, who holds which device, what each does, and whether anything waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, select, update

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.work import WorkKind
from tunes_dagster.registry.claims import fenced
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock, lock_one
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.session_tables import DeviceSession
from tunes_dagster.registry.tables import Prompt, Work


class Sessions(Part):
    """The sessions, by what they last said."""

    def any_alive(self, lost_after_seconds: float) -> bool:
        """Whether a session is there, at work or not."""
        return bool(self.alive(lost_after_seconds))

    def alive(self, lost_after_seconds: float) -> list[DeviceSession]:
        """Return the sessions that are there, at work or not."""
        since = self.now() - timedelta(seconds=lost_after_seconds)
        alive = (DeviceSession.ended_at.is_(None), DeviceSession.heartbeat_at > since)
        with self.reading() as session:
            return list(session.scalars(select(DeviceSession).where(*alive).order_by(DeviceSession.id)))

    def of_run(self, run_id: str) -> DeviceSession | None:
        """Return the session that a Dagster run hosts, or None when it has not begun."""
        with self.reading() as session:
            return session.scalars(select(DeviceSession).where(DeviceSession.run_id == run_id)).first()

    @repeatable
    def hold(
        self,
        session_id: str,
        host: str,
        device: str,
        run_id: str | None = None,
        *,
        memory_gb: float = 0.0,
        lost_after_seconds: float = 60.0,
    ) -> list[str]:
        """Make a session the one that holds a device, with the next fencing token.

        Args:
            session_id: The session.
            host: Of the device.
            device: As torch names it.
            run_id: The Dagster run that hosts the session.
            memory_gb: Of the device.
            lost_after_seconds: Silence after which another session does not hold it any more.

        Returns:
            The sessions whose place it takes: silent ones, from now on without a say. See `give_up_session`.

        Raises:
            Failure: `CONFLICT` while another session holds it.
        """
        now = self.now()
        since = now - timedelta(seconds=lost_after_seconds)
        with self.writing() as session:
            rows = lock(session, DeviceSession, DeviceSession.host == host, DeviceSession.device == device)
            others = [row for row in rows if row.ended_at is None and row.id != session_id]
            if alive := [row.id for row in others if row.heartbeat_at > since]:
                raise Failure(
                    FailureCode.CONFLICT,
                    f"The device {device} of {host} is held by {alive[0]}.",
                    "Stop that session first (`tunes devices` shows them all).",
                )
            for row in others:
                row.ended_at = now
            if session_id not in {row.id for row in rows}:
                token = max((row.token for row in rows), default=0) + 1
                session.add(
                    DeviceSession(
                        id=session_id,
                        host=host,
                        device=device,
                        run_id=run_id,
                        began_at=now,
                        heartbeat_at=now,
                        token=token,
                        memory_gb=memory_gb,
                    )
                )
            return [row.id for row in others]

    @repeatable
    def beat(
        self, session_id: str, host: str, device: str, run_id: str | None = None, over: bool = False
    ) -> None:
        """Note that a session or a keeper is alive, for the first time or again, or that it is over.

        Raises:
            Failure: `CONFLICT` when another session has taken its place.
        """
        now = self.now()
        with self.writing() as session:
            row = lock_one(session, DeviceSession, DeviceSession.id == session_id)
            if row is None:
                row = DeviceSession(id=session_id, host=host, device=device, run_id=run_id, began_at=now)
                session.add(row)
            elif row.ended_at is not None and not over:
                raise fenced(session_id)
            row.heartbeat_at, row.ended_at = now, now if over else None

    @repeatable
    def does(self, session_id: str, work_ids: Sequence[str], bases: Sequence[str]) -> None:
        """Note what a session computes from now on, and what it has loaded."""
        with self.writing() as session:
            session.execute(
                update(DeviceSession)
                .where(DeviceSession.id == session_id)
                .values(doing=list(work_ids), bases=list(bases))
            )

    def get(self, session_id: str) -> DeviceSession | None:
        """Return a session, or None when it never said that it is there."""
        with self.reading() as session:
            return session.get(DeviceSession, session_id)

    def works_of(self, session_id: str) -> list[Work]:
        """Return the work that a session owns."""
        query = select(Work).where(Work.run_id == session_id, Work.state == "running")
        with self.reading() as session:
            return list(session.scalars(query.order_by(Work.id)))

    def work_waits(self, seconds: float = 0.0) -> bool:
        """Whether something waits that needs a device, and has done so for a while."""
        now = self.now() - timedelta(seconds=seconds)
        due = (Work.state == "queued") & (Work.available_at <= now) & (Work.kind != WorkKind.PREPARE)
        prompts = select(Prompt.id).where(Prompt.status == "queued", Prompt.batch_id.is_(None))
        prompts = prompts.where(func.coalesce(Prompt.queued_at, Prompt.created_at) <= now)
        with self.reading() as session:
            return (
                session.scalar(select(Work.id).where(due).limit(1)) is not None
                or session.scalar(prompts.limit(1)) is not None
            )

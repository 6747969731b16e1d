"""Tables of device sessions: the attempts that they work on, what these say, and who holds which device."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from tunes_dagster.registry.tables import Table


class DeviceRun(Table):
    """One attempt that a session makes at device work, and the Dagster run that tells of it; see `device_runs.py`.

    Attributes:
        work_id: The work; `attempt` is its attempt, 0 while what a person started in the UI waits for a session.
        kind: train (whatever makes the tune), finish, render.
        subject_id: The tune or batch.
        session_id: The session that makes it.
        run_id: The Dagster run that tells of it; None until that is there.
        leader_id: The attempt whose run tells of this one too; see `requests_due`.
        changes: What a person filled in for it in the Launchpad.
        requests: How often a run was asked for; a part of the run key.
        state: done, failed, cancelled, returned, lost; empty while it goes on.
        again: Whether another attempt follows it.
        facts: What is shown of its files: ids, numbers and addresses.
        told: How much its run says: '' | 'run' (it began) | 'begun' (so did the attempt) | 'ended'; 'process' when the
            run's own process tells it.
        said: The last of its lines that its run holds.
        teller: Who is telling its run, until `telling_until`; a name that stays tells of a teller that died.
    """

    __tablename__ = "device_runs"
    __table_args__ = (
        Index("ix_device_runs_work", "work_id", "attempt"),
        Index("ix_device_runs_run", "run_id"),
        Index("ix_device_runs_told", "told", "id"),
        Index("ix_device_runs_subject", "subject_id"),
        Index("ix_device_runs_requested", "kind", "requested_at"),
    )

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    work_id: Mapped[str] = mapped_column(String(80))
    kind: Mapped[str] = mapped_column(String(20))
    subject_id: Mapped[str] = mapped_column(String(80))
    attempt: Mapped[int] = mapped_column(default=0)
    session_id: Mapped[str | None]
    run_id: Mapped[str | None] = mapped_column(String(80))
    leader_id: Mapped[str | None] = mapped_column(String(80))
    changes: Mapped[dict[str, Any]] = mapped_column(default=dict)
    requests: Mapped[int] = mapped_column(default=0)
    requested_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    began_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    state: Mapped[str] = mapped_column(String(20), default="")
    failure_code: Mapped[str | None]
    again: Mapped[bool] = mapped_column(default=False)
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    told: Mapped[str] = mapped_column(String(10), default="")
    said: Mapped[int] = mapped_column(default=0)
    teller: Mapped[str | None]
    telling_until: Mapped[datetime | None]


class DeviceSession(Table):
    """A process that holds a device; it is alive as long as it says so.

    Attributes:
        device: As torch names it; empty for a keeper, which starts sessions and computes nothing.
        run_id: The Dagster run that hosts it; None for one that a person or systemd started.
        token: Counts the sessions of a device on a host; whoever has an older one than the newest can claim nothing.
        memory_gb: Of the device.
        bases: Branches that are loaded, the one used last at the end.
        doing: Ids of the work that is being computed at the moment: what a death of the process is due to.
    """

    __tablename__ = "device_sessions"
    __table_args__ = (Index("ix_device_sessions_alive", "ended_at", "heartbeat_at"),)

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    host: Mapped[str]
    device: Mapped[str]
    run_id: Mapped[str | None] = mapped_column(String(80))
    began_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    token: Mapped[int] = mapped_column(default=0, server_default="0")
    memory_gb: Mapped[float] = mapped_column(default=0.0, server_default="0")
    bases: Mapped[list[str]] = mapped_column(default=list, server_default="[]")
    doing: Mapped[list[str]] = mapped_column(default=list, server_default="[]")


class DeviceRunLine(Table):
    """One line of the log of an attempt; it goes when its run has told it and ended."""

    __tablename__ = "device_run_lines"
    __table_args__ = (
        Index("ix_device_run_lines_run", "device_run_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    device_run_id: Mapped[str] = mapped_column(String(80))
    at: Mapped[datetime]
    level: Mapped[int]
    text: Mapped[str]

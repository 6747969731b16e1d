"""Packs, workspaces and likes: rows that one dialect asks for, which hands over what belongs into them.

They are no part of `Registry`: who needs them makes them around it (`Packs(registry)`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import or_, select

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import row_number
from tunes_dagster.registry.accepting import Claim, keep_claim
from tunes_dagster.registry.api_tables import ApiObject, Pack, Workspace
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.locks import lock_one
from tunes_dagster.registry.retrying import repeatable


class Likes(Part):
    """What callers like."""

    @repeatable
    def like(self, subject_id: str, liked: bool) -> None:
        """Set or take back a like."""
        now = self.now()
        with self.writing() as session:
            row = lock_one(session, ApiObject, ApiObject.id == subject_id)
            if row is not None:
                row.liked_at = now if liked else None


class Packs(Part):
    """Named lists of prompts, an account's own or everybody's."""

    def add(
        self,
        slug: str,
        title: str,
        *,
        account_id: str | None,
        fields: dict[str, Any] | None = None,
        prompts: list[dict[str, Any]] | None = None,
        public: bool = False,
        claim: Claim | None = None,
    ) -> Pack:
        """Add a pack, or replace the content of the one with this slug when it is the same owner's.

        Args:
            slug: Its name in addresses.
            title: For people.
            account_id: Owner; None for packs of the installation.
            fields: See `Pack`.
            prompts: See `Pack`.
            public: Whether everybody may use it.
            claim: Of the request; see `registry.accepting`.

        Raises:
            Failure: `CONFLICT` when the slug is somebody else's.
        """
        now = self.now()
        with self.writing() as session:
            pack = lock_one(session, Pack, Pack.slug == slug)
            if pack is not None and pack.account_id != account_id:
                raise Failure(FailureCode.CONFLICT, f"The slug {slug!r} is taken.", "Choose another title.")
            if pack is None:
                pack = Pack(slug=slug, account_id=account_id, created_at=now)
                session.add(pack)
            pack.title, pack.fields, pack.updated_at = title, fields or {}, now
            pack.prompts = {"rows": prompts or []}
            pack.public_at = (pack.public_at or now) if public else None
            session.flush()
            if account_id is not None:
                keep_claim(session, account_id, claim, [str(pack.number)])
            return pack

    def rows(self, account_id: str, *, public: bool = False, limit: int = 200) -> list[Pack]:
        """Return an account's own packs, or everybody's public ones with those of the installation."""
        mine = Pack.account_id == account_id
        query = select(Pack).where(Pack.public_at.is_not(None) if public else mine)
        with self.reading() as session:
            return list(session.scalars(query.order_by(Pack.number.desc()).limit(limit)))

    def find(self, account_id: str, key: str) -> Pack | None:
        """Return a pack by number or slug that the account may use."""
        seen = or_(Pack.account_id == account_id, Pack.account_id.is_(None), Pack.public_at.is_not(None))
        query = select(Pack).where(seen, or_(Pack.slug == key, Pack.number == row_number(key)))
        with self.reading() as session:
            return session.scalars(query.limit(1)).first()


class Workspaces(Part):
    """Everything about workspaces."""

    def add(
        self,
        account_id: str,
        slug: str,
        title: str,
        fields: dict[str, Any] | None = None,
        claim: Claim | None = None,
    ) -> Workspace:
        """Add a workspace.

        Args:
            account_id: Owner.
            slug: Its name in addresses.
            title: For people.
            fields: Whatever its dialect keeps.
            claim: Of the request; see `registry.accepting`.
        """
        now = self.now()
        with self.writing() as session:
            row = Workspace(account_id=account_id, slug=slug, title=title, created_at=now, updated_at=now)
            row.fields = fields or {}
            session.add(row)
            session.flush()
            keep_claim(session, account_id, claim, [str(row.number)])
            return row

    def rows(self, account_id: str, limit: int = 1_000) -> list[Workspace]:
        """Return an account's workspaces, newest first."""
        query = select(Workspace).where(Workspace.account_id == account_id)
        with self.reading() as session:
            return list(session.scalars(query.order_by(Workspace.number.desc()).limit(limit)))

    def find(self, account_id: str, key: str) -> Workspace | None:
        """Return a workspace of an account by number or slug."""
        named = or_(Workspace.slug == key, Workspace.number == row_number(key))
        with self.reading() as session:
            return session.scalars(select(Workspace).where(Workspace.account_id == account_id, named)).first()

    def change(self, number: int, title: str, fields: dict[str, Any]) -> Workspace:
        """Change a workspace's title, and those of its fields that are given."""
        with self.writing() as session:
            row = lock_one(session, Workspace, Workspace.number == number)
            if row is None:
                raise Failure(
                    FailureCode.INVALID_REQUEST, f"There is no workspace {number}.", "Check its id."
                )
            row.title, row.fields, row.updated_at = title, {**row.fields, **fields}, self.now()
            return row

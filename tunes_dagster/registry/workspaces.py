"""Workspaces of accounts: adding, finding, changing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import row_number
from tunes_dagster.registry.api_tables import Workspace
from tunes_dagster.registry.engine import Database
from tunes_dagster.registry.locks import lock_one


class WorkspaceQueries(Database):
    """Everything about workspaces."""

    def add_workspace(
        self,
        account_id: str,
        slug: str,
        title: str,
        fields: dict[str, Any] | None = None,
        also: Callable[[Session, Workspace], None] | None = None,
    ) -> Workspace:
        """Add a workspace.

        Args:
            account_id: Owner.
            slug: Its name in addresses.
            title: For people.
            fields: Whatever its dialect keeps.
            also: What belongs into the same transaction.
        """
        now = self.now()
        with self.writing() as session:
            row = Workspace(account_id=account_id, slug=slug, title=title, created_at=now, updated_at=now)
            row.fields = fields or {}
            session.add(row)
            session.flush()
            if also is not None:
                also(session, row)
            return row

    def list_workspaces(self, account_id: str, limit: int = 1_000) -> list[Workspace]:
        """Return an account's workspaces, newest first."""
        query = select(Workspace).where(Workspace.account_id == account_id)
        with self.reading() as session:
            return list(session.scalars(query.order_by(Workspace.number.desc()).limit(limit)))

    def find_workspace(self, account_id: str, key: str) -> Workspace | None:
        """Return a workspace of an account by number or slug."""
        named = or_(Workspace.slug == key, Workspace.number == row_number(key))
        with self.reading() as session:
            return session.scalars(select(Workspace).where(Workspace.account_id == account_id, named)).first()

    def change_workspace(self, number: int, title: str, fields: dict[str, Any]) -> Workspace:
        """Change a workspace's title, and those of its fields that are given."""
        with self.writing() as session:
            row = lock_one(session, Workspace, Workspace.number == number)
            if row is None:
                raise Failure(
                    FailureCode.INVALID_REQUEST, f"There is no workspace {number}.", "Check its id."
                )
            row.title, row.fields, row.updated_at = title, {**row.fields, **fields}, self.now()
            return row

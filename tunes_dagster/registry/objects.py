"""Tunes and prompts as their callers see them: lookups inside one account, pages, groups."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.orm import Session

from tunes_dagster.core.ids import row_number
from tunes_dagster.registry.api_tables import ApiObject
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.filters import Page, PromptFilter, TuneFilter
from tunes_dagster.registry.locks import lock_one
from tunes_dagster.registry.prompts import unknown_tune
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.tables import Prompt, Tune
from tunes_dagster.registry.transitions import lock_tune


class Objects(Part):
    """Everything here takes the account and finds nothing of anybody else's."""

    def find_tune(self, account_id: str, key: str | int) -> tuple[Tune, ApiObject | None] | None:
        """Return an account's live tune by id, number or public id, with how its caller sees it."""
        word = str(key)
        query = select(Tune, ApiObject).outerjoin(ApiObject, ApiObject.id == Tune.id)
        found: tuple[Tune, ApiObject | None] | None = self._first(
            query.where(Tune.account_id == account_id, Tune.deleted_at.is_(None)), Tune, word
        )
        return found

    def find_prompt(self, account_id: str, key: str | int) -> tuple[Prompt, ApiObject | None] | None:
        """Return an account's prompt by id, number or public id; deleted ones are not found."""
        query = select(Prompt, ApiObject).outerjoin(ApiObject, ApiObject.id == Prompt.id)
        found: tuple[Prompt, ApiObject | None] | None = self._first(
            query.where(Prompt.account_id == account_id, _not_deleted()), Prompt, str(key)
        )
        return found

    def tune_named(self, account_id: str, word: str | int, *, deleted: bool = False) -> Tune:
        """Return the tune that a person of an account means by a word: its id, number, public id or title.

        Of several with one title the newest is meant.

        Args:
            account_id: Whose tunes may be meant.
            word: As written.
            deleted: Tunes that were deleted may be meant too, by id or number, when no live one is.

        Raises:
            Failure: `UNKNOWN_TUNE`.
        """
        text = str(word).strip()
        seen = select(ApiObject.id).where(ApiObject.account_id == account_id, ApiObject.public_id == text)
        exact = [Tune.id == text, Tune.number == row_number(text), Tune.id.in_(seen)]
        live = Tune.deleted_at.is_(None)
        meant = [and_(one, live) for one in (*exact, Tune.title == text)] + (exact if deleted else [])
        query = select(Tune).where(Tune.account_id == account_id).order_by(Tune.number.desc()).limit(1)
        with self.reading() as session:
            # One after the other: an exact id wins, and a number over a title that looks like one.
            for one in meant:
                if (tune := session.scalars(query.where(one)).first()) is not None:
                    return tune
        raise unknown_tune(account_id, text)

    def _first(self, query: Select[Any], table: Any, word: str) -> Any:
        if (number := row_number(word)) is not None:
            query = query.where(table.number == number)
        elif word.startswith(("tune_", "prompt_")):
            query = query.where(table.id == word)
        else:
            query = query.where(or_(ApiObject.public_id == word, table.id == word))
        with self.reading() as session:
            row = session.execute(query.limit(1)).first()
            return None if row is None else (row[0], row[1])

    def page_tunes(
        self, account_id: str, page: Page, wanted: TuneFilter | None = None
    ) -> list[tuple[Tune, ApiObject | None]]:
        """Return a page of an account's live tunes, newest first."""
        query = select(Tune, ApiObject).outerjoin(ApiObject, ApiObject.id == Tune.id)
        query = query.where(Tune.account_id == account_id, Tune.deleted_at.is_(None))
        return self._page(query if wanted is None else wanted.of(query), Tune, page)

    def page_prompts(
        self, account_id: str, page: Page, wanted: PromptFilter | None = None
    ) -> list[tuple[Prompt, ApiObject | None]]:
        """Return a page of an account's prompts, newest first."""
        query = select(Prompt, ApiObject).outerjoin(ApiObject, ApiObject.id == Prompt.id)
        query = query.where(Prompt.account_id == account_id, _not_deleted())
        return self._page(query if wanted is None else wanted.of(query), Prompt, page)

    def _page(self, query: Select[Any], table: Any, page: Page) -> list[Any]:
        if page.before is not None:
            query = query.where(table.number < page.before)
        query = query.order_by(table.number.desc()).limit(page.limit).offset(page.offset)
        with self.reading() as session:
            return [(row[0], row[1]) for row in session.execute(query)]

    def tune_numbers(self, tune_ids: Sequence[str]) -> dict[str, int]:
        """Return the numbers of tunes by their ids."""
        if not tune_ids:
            return {}
        query = select(Tune.id, Tune.number).where(Tune.id.in_(set(tune_ids)))
        with self.reading() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def count_prompts(self, account_id: str) -> int:
        """Return how many prompts an account has asked for."""
        query = select(func.count()).where(Prompt.account_id == account_id)
        with self.reading() as session:
            return int(session.scalar(query) or 0)

    def count_open(self, account_id: str) -> dict[str, int]:
        """Return how many of an account's tunes have each status."""
        query = select(Tune.status, func.count()).where(Tune.account_id == account_id).group_by(Tune.status)
        with self.reading() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def get(self, subject_id: str) -> ApiObject | None:
        """Return how a tune or prompt is seen by its caller, or None when it did not come over HTTP."""
        with self.reading() as session:
            return session.get(ApiObject, subject_id)

    def request_id(self, subject_id: str) -> str | None:
        """Return the id of the HTTP request that a tune or prompt came with, or None."""
        seen = self.get(subject_id)
        return (seen.asked or {}).get("request_id") if seen is not None else None

    @repeatable
    def change(self, subject_id: str, **asked: Any) -> ApiObject | None:
        """Merge values into what a dialect keeps about a tune or prompt."""
        with self.writing() as session:
            row = lock_one(session, ApiObject, ApiObject.id == subject_id)
            if row is not None:
                row.asked = {**row.asked, **asked}
            return row

    def rename_tune(self, tune_id: str, *, title: str | None = None, class_name: str | None = None) -> Tune:
        """Change what people call a tune; what it was trained as stays in its recipe."""
        with self.writing() as session:
            tune = lock_tune(session, tune_id)
            tune.title, tune.class_name = title or tune.title, class_name or tune.class_name
            tune.updated_at = self.now()
            return tune

    def group_members(self, group_id: str) -> list[tuple[Prompt, ApiObject | None]]:
        """Return the prompts of a group, oldest first."""
        query = select(Prompt, ApiObject).join(ApiObject, ApiObject.id == Prompt.id)
        with self.reading() as session:
            rows = session.execute(query.where(ApiObject.group_id == group_id).order_by(Prompt.number))
            return [(row[0], row[1]) for row in rows]


_DELETED = "deleted"


def hide_prompt(session: Session, prompt: Prompt, seen: ApiObject | None, now: datetime) -> None:
    """Take a prompt, which is locked with its view, out of its caller's sight; its row stays for the books."""
    if seen is None:
        seen = ApiObject(
            id=prompt.id, account_id=prompt.account_id, dialect="", asked={}, events=[], created_at=now
        )
        session.add(seen)
    seen.asked = {**(seen.asked or {}), "deleted": True}
    seen.public_id = _DELETED


def _not_deleted() -> Any:
    return or_(ApiObject.public_id.is_(None), ApiObject.public_id != _DELETED)

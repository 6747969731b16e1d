"""Which of an account's tunes or prompts somebody wants to see, and which page of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Select, String, cast

from tunes_dagster.registry.api_tables import ApiObject
from tunes_dagster.registry.tables import Prompt, Tune


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page of a list, newest first.

    Attributes:
        limit: Its length.
        before: Only rows with a smaller number: the last one of the page before.
        offset: Rows to leave out.
    """

    limit: int
    before: int | None = None
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class TuneFilter:
    """Which tunes are wanted; a field that is left out asks for nothing.

    Attributes:
        title: Exactly.
        said: A part of the title, in any case.
        names: One of these class words.
        status: Of the tune.
        dialect: That it came through.
        asked: What that dialect keeps of it: `{"branch": "sd15"}`.
    """

    title: str | None = None
    said: str | None = None
    names: Sequence[str] = ()
    status: str | None = None
    dialect: str | None = None
    asked: Mapping[str, str] = field(default_factory=dict)

    def of(self, query: Select[Any]) -> Select[Any]:
        """Return a query of tunes and how they are seen, for these alone."""
        if self.title is not None:
            query = query.where(Tune.title == self.title)
        if self.said:
            query = query.where(Tune.title.icontains(self.said, autoescape=True))
        if self.names:
            query = query.where(Tune.class_name.in_(self.names))
        if self.status is not None:
            query = query.where(Tune.status == self.status)
        if self.dialect is not None:
            query = query.where(ApiObject.dialect == self.dialect)
        return _as_asked(query, self.asked)


@dataclass(frozen=True, kw_only=True)
class PromptFilter:
    """Which prompts are wanted; a field that is left out asks for nothing.

    Attributes:
        tune_id: Of this tune.
        base: On this base, as asked.
        text: A part of the text.
        liked: Whether its caller likes it.
        since: Accepted then or later.
        api: Whether it came over HTTP.
        asked: What its dialect keeps of it: `{"pack_id": "7"}`.
    """

    tune_id: str | None = None
    base: str | None = None
    text: str | None = None
    liked: bool | None = None
    since: datetime | None = None
    api: bool | None = None
    asked: Mapping[str, str] = field(default_factory=dict)

    def of(self, query: Select[Any]) -> Select[Any]:
        """Return a query of prompts and how they are seen, for these alone."""
        if self.tune_id is not None:
            query = query.where(Prompt.tune_id == self.tune_id)
        if self.base is not None:
            query = query.where(Prompt.base == self.base)
        if self.text is not None:
            query = query.where(Prompt.text.contains(self.text, autoescape=True))
        if self.liked is not None:
            liked = ApiObject.liked_at
            query = query.where(liked.is_not(None) if self.liked else liked.is_(None))
        if self.since is not None:
            query = query.where(Prompt.created_at >= self.since)
        if self.api is not None:
            query = query.where((Prompt.origin == "api") if self.api else (Prompt.origin != "api"))
        return _as_asked(query, self.asked)


def _as_asked(query: Select[Any], asked: Mapping[str, str]) -> Select[Any]:
    """Return the query for rows of which a dialect keeps these values."""
    for name, value in asked.items():
        query = query.where(cast(ApiObject.asked[name].as_string(), String) == value)
    return query

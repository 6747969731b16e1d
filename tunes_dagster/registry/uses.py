"""Which tunes a prompt uses: decided once, when it is accepted, within its account, and read by all that comes after.

What a person writes (a title, a number, a tag in a text) means one tune at that moment. From then on the id counts:
renaming a tune changes nothing for prompts that were accepted, and nobody else's tune is ever found by a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, ForeignKey, Index, Integer, String, and_, exists, insert, or_, select
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column

from tunes_dagster.registry.deletion_tables import Deletion
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.tables import Prompt, Table, Tune

# Values of one IN list; SQLite takes 32,766.
_CHUNK = 5_000


class PromptTune(Table):
    """A tune that a prompt uses.

    Attributes:
        place: Counts the tunes of a prompt from 0, in the order in which they were named.
        tune_id: None only for tags of before this table whose word meant no tune of the account, or several.
        kind: `tune` for the prompt's own (`Prompt.tune_id`), `lora` or `faceid` for a tag in its text.
        word: By which it was named; empty once it was forgotten.
        scale: Strength by the tag; None for the prompt's own, whose strength is in its settings.
    """

    __tablename__ = "prompt_tunes"
    __table_args__ = (Index("ix_prompt_tunes_tune", "tune_id", "prompt_id"),)

    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"), primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True)
    tune_id: Mapped[str | None] = mapped_column(ForeignKey("tunes.id"))
    kind: Mapped[str] = mapped_column(String(10))
    word: Mapped[str]
    scale: Mapped[float | None]


@dataclass(frozen=True)
class Use:
    """A tune that a prompt is going to use; see `PromptTune`."""

    tune_id: str
    kind: Literal["tune", "lora", "faceid"]
    word: str
    scale: float | None = None


@dataclass(frozen=True)
class DoubtfulUse:
    """A prompt of before `PromptTune` that names a tune in a way that an operator should look at.

    Attributes:
        prompt: That names it.
        word: By which.
        tune: What it was or would be rendered with; None when the word means no tune of its account, or several.
    """

    prompt: Prompt
    word: str
    tune: Tune | None

    def __str__(self) -> str:
        """Say in one sentence what is doubtful."""
        which = f"Prompt {self.prompt.number} of the account {self.prompt.account_id} ({self.prompt.status})"
        if self.tune is None:
            return f"{which} names {self.word!r}, which is no tune of its account, or several."
        return f"{which} uses tune {self.tune.number} of the account {self.tune.account_id}."


def own_use(tune_id: str | None, word: str | None = None) -> list[Use]:
    """Return the use of the tune that a prompt is made for; none for a prompt on a plain base."""
    return [Use(tune_id, "tune", word or tune_id)] if tune_id else []


def write_uses(session: Session, uses: Mapping[str, Sequence[Use]]) -> None:
    """Write what prompts use, by their ids; their rows have to be there already."""
    rows = [
        {
            "prompt_id": prompt_id,
            "place": place,
            "tune_id": use.tune_id,
            "kind": use.kind,
            "word": use.word,
            "scale": use.scale,
        }
        for prompt_id, some in uses.items()
        for place, use in enumerate(some)
    ]
    for part in _chunks(rows):
        session.execute(insert(PromptTune), part)


def used_with(tune_ids: Iterable[str]) -> ColumnElement[bool]:
    """Return the condition that a prompt uses any of some tunes, as its own or by a tag."""
    use = aliased(PromptTune)
    return Prompt.id.in_(select(use.prompt_id).where(use.tune_id.in_(list(tune_ids))))


def was_deleted() -> ColumnElement[bool]:
    """Return the condition that a prompt, or a tune that it uses, was deleted: nothing is kept of it any more."""
    use, tune = aliased(PromptTune), aliased(Tune)
    asked = exists().where(Deletion.subject_id == Prompt.id, Deletion.reason != "expired")
    gone = select(use.prompt_id).join(tune, tune.id == use.tune_id).where(tune.deleted_at.is_not(None))
    return or_(asked, Prompt.id.in_(gone))


def used_and_not_ready() -> ColumnElement[bool]:
    """Return the condition that a prompt uses a tune that is not ready."""
    use, tune = aliased(PromptTune), aliased(Tune)
    return exists().where(use.prompt_id == Prompt.id, tune.id == use.tune_id, tune.status != "ready")


class Uses(Part):
    """What prompts use, and what uses a tune."""

    def of(self, prompt_ids: Sequence[str]) -> dict[str, list[PromptTune]]:
        """Return by prompt what it uses, in the order in which it was named; prompts that use nothing are missing."""
        found: dict[str, list[PromptTune]] = {}
        with self.reading() as session:
            for part in _chunks(list(prompt_ids)):
                query = select(PromptTune).where(PromptTune.prompt_id.in_(part))
                for row in session.scalars(query.order_by(PromptTune.prompt_id, PromptTune.place)):
                    found.setdefault(row.prompt_id, []).append(row)
        return found

    def prompts_of(self, tune_ids: Sequence[str]) -> list[Prompt]:
        """Return the prompts that use any of some tunes, oldest first."""
        found: dict[int, Prompt] = {}
        with self.reading() as session:
            for part in _chunks(list(tune_ids)):
                found.update(
                    {row.number: row for row in session.scalars(select(Prompt).where(used_with(part)))}
                )
        return [found[number] for number in sorted(found)]

    def tunes_by_id(self, tune_ids: Iterable[str]) -> dict[str, Tune]:
        """Return tunes by their exact ids; unknown ones are missing."""
        with self.reading() as session:
            return {
                row.id: row
                for part in _chunks(list(set(tune_ids)))
                for row in session.scalars(select(Tune).where(Tune.id.in_(part)))
            }


def find_doubtful(session: Session, limit: int) -> list[DoubtfulUse]:
    """Return prompts that wait or have pictures, and whose tune is another account's or was not clear.

    Only prompts that were accepted before uses were kept can be among them.
    """
    foreign = and_(Tune.id.is_not(None), Tune.account_id != Prompt.account_id)
    alive = or_(
        Prompt.status.in_(("waiting", "queued", "rendering")),
        and_(Prompt.status == "done", Prompt.expired_at.is_(None)),
    )
    query = (
        select(Prompt, PromptTune, Tune)
        .join(PromptTune, PromptTune.prompt_id == Prompt.id)
        .outerjoin(Tune, Tune.id == PromptTune.tune_id)
        .where(or_(PromptTune.tune_id.is_(None), foreign), alive)
        .order_by(Prompt.number, PromptTune.place)
        .limit(limit)
    )
    return [DoubtfulUse(prompt, use.word, tune) for prompt, use, tune in session.execute(query)]


def _chunks(rows: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]

"""Prompts: adding, finding, listing, and what one of them came to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.core.results import PromptResult
from tunes_dagster.core.wishes import Unmet, ended
from tunes_dagster.registry.accepting import Acceptance, Accepted, keep, same_prompt
from tunes_dagster.registry.blobs import keys_of_settings, name_in
from tunes_dagster.registry.claims import owned
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.ledger import hold
from tunes_dagster.registry.locks import lock_each, lock_one
from tunes_dagster.registry.pages import newest
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.tables import Prompt, Tune, Work
from tunes_dagster.registry.transitions import (
    OPEN_PROMPT,
    PROMPT_STATUSES,
    check_statuses,
    note,
    prompt_ended,
)
from tunes_dagster.registry.uses import Use, own_use, was_deleted, write_uses

# What the names of rendered files begin with.
_PROMPT_ID = re.compile(r"prompt_[0-9a-z]+(?=[-.])")


def shape_of(settings: dict[str, Any]) -> str:
    """Return what prompts must share to go through one forward: size, steps, guidance, scheduler."""
    size = f"{settings.get('width')}x{settings.get('height')}"
    return f"{size}/{settings.get('steps')}/{settings.get('guidance_scale')}/{settings.get('scheduler')}"


@dataclass(frozen=True, kw_only=True)
class NewPrompt:
    """A prompt that is to be accepted.

    Attributes:
        request: With settings filled and the seed fixed; see `submit.submit_prompts`.
        base_id: The catalog's entry that is really used.
        base: The base as asked; None takes the tune's, or `base_id`.
        tune_id: Id of the tune, or None for the plain base.
        tags: The tunes that tags in its text name.
        price: Micro-dollars; None charges nothing.
        warnings: What was wished for and is not met.
        id: Its own; accepted twice, it is one prompt.
    """

    request: PromptRequest
    base_id: str
    base: str | None = None
    tune_id: str | None = None
    tags: tuple[Use, ...] = ()
    price: int | None = None
    warnings: Sequence[Unmet] = ()
    id: str = field(default_factory=lambda: new_id("prompt"))


def uses_of_prompts(prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    """Return the shared files that prompts start from: `(key, prompt)`."""
    return [(key, row.id) for row in prompts for key in keys_of_settings(row.settings)]


def is_deleted(session: Session, prompt: Prompt) -> bool:
    """Whether a prompt, or a tune that it uses, was deleted: nothing is kept of it any more."""
    return bool(session.scalar(select(exists().where(Prompt.id == prompt.id, was_deleted()))))


def new_prompt(
    asked: NewPrompt,
    account_id: str,
    base: str,
    origin: str,
    status: str,
    now: datetime,
    tune_id: str | None = None,
) -> Prompt:
    """Return a prompt row that is not in the database yet; what it uses is written beside it (`uses.write_uses`).

    Args:
        asked: What is asked for.
        account_id: Who asks.
        base: The base as asked, for people.
        origin: cli, api, drop, ui, demo, campaign.
        status: `queued` or `waiting`.
        now: By the registry's clock.
        tune_id: The tune it is of, when that is accepted with it.
    """
    settings = asked.request.settings.model_dump(mode="json")
    return Prompt(
        id=asked.id,
        account_id=account_id,
        tune_id=tune_id or asked.tune_id,
        base=base,
        base_id=asked.base_id,
        text=asked.request.text,
        settings=settings,
        shape=shape_of(settings),
        status=status,
        warnings=list(asked.warnings),
        callback_url=asked.request.callback_url,
        origin=origin,
        created_at=now,
        queued_at=now if status == "queued" else None,
        updated_at=now,
    )


def said_of_sibling(base_id: str, home: str) -> str:
    """Return what the timeline adds for a prompt that renders on another base than its tune was made on."""
    return "" if base_id == home else f" It renders on {base_id}, the few-step sibling of {home}."


def said_of_accepted(row: Prompt, home: str) -> str:
    """Return what the timeline says of an accepted prompt, whose tune was made on the base `home`."""
    return " ".join([f"The prompt was accepted.{said_of_sibling(row.base_id, home)}", *ended(row.warnings)])


def prompt_in(key: str) -> str | None:
    """Return the id of the prompt that a file was rendered for, by its key; None for sheets and pages."""
    named = _PROMPT_ID.match(key.rpartition("/")[2])
    return named.group() if named is not None else None


def unknown_tune(account_id: str, word: str) -> Failure:
    """Return what is said of a word that means no tune of an account, whatever it means to others."""
    return Failure(
        FailureCode.UNKNOWN_TUNE,
        f"There is no tune {word!r} in the account {account_id!r}.",
        "A tune is named by its id, number or title; `tunes list --account NAME` shows those of an account.",
    )


def lock_used(session: Session, account_id: str, uses: Sequence[Use]) -> dict[str, Tune]:
    """Return the tunes that prompts are going to use, locked.

    Raises:
        Failure: `UNKNOWN_TUNE` when one of them was deleted, or is another account's; `CONFLICT` when one has failed
            or was cancelled.
    """
    tunes = lock_each(session, Tune, Tune.id, {use.tune_id for use in uses})
    locked = {tune.id: tune for tune in tunes}
    for use in uses:
        tune = locked.get(use.tune_id)
        if tune is None or tune.status == "deleted" or tune.account_id != account_id:
            raise unknown_tune(account_id, use.word)
        if tune.status in ("failed", "cancelled"):
            raise Failure(
                FailureCode.CONFLICT,
                f"The tune {tune.id} is {tune.status}: it cannot render.",
                "Make a new tune, or materialize its failed asset again.",
            )
    return locked


class Prompts(Part):
    """Everything about prompts but their batches."""

    @repeatable
    def accept(
        self,
        asked: Sequence[NewPrompt],
        acceptance: Acceptance | None = None,
        *,
        account_id: str = "local",
        origin: str = "cli",
    ) -> Accepted:
        """Accept prompts, all or none: queued when they can be rendered, waiting while a tune that they use is made.

        Args:
            asked: What is asked for.
            acceptance: What their caller wants to be kept with them.
            account_id: Who asks; holds their prices, when it has a wallet.
            origin: cli, api, drop, ui, demo.

        Returns:
            The prompts, or the one that stands for them.

        Raises:
            Failure: As `lock_used`, `OUT_OF_CREDITS`, and `TakenOver`.
        """
        now = self.now()
        uses = [[*own_use(one.tune_id, one.request.tune), *one.tags] for one in asked]
        with self.writing() as session:
            kept = {
                row.id: row
                for row in session.scalars(select(Prompt).where(Prompt.id.in_([a.id for a in asked])))
            }
            if kept:
                return Accepted([kept[one.id] for one in asked])
            same = same_prompt(session, account_id, acceptance) if acceptance is not None else None
            if same is not None:
                return Accepted([same], again=True)
            locked = lock_used(session, account_id, [use for some in uses for use in some])
            prompts = []
            for one, some in zip(asked, uses, strict=True):
                tune = locked[one.tune_id] if one.tune_id else None
                waits = any(locked[use.tune_id].status != "ready" for use in some if use.tune_id)
                named = one.base or (tune.base if tune else one.base_id)
                status = "waiting" if waits else "queued"
                row = new_prompt(one, account_id, named, origin, status, now)
                prompts.append(row)
                said = said_of_accepted(row, tune.base_id if tune else row.base_id)
                note(session, row.id, row.status, said, now, origin=origin)
            session.add_all(prompts)
            session.flush()
            write_uses(session, {row.id: some for row, some in zip(prompts, uses, strict=True)})
            prices = {row.id: one.price for row, one in zip(prompts, asked, strict=True)}
            hold(session, account_id, prices, now, f"{len(prompts)} prompts")
            name_in(session, uses_of_prompts(prompts), now)
            accepted = Accepted(prompts)
            if acceptance is not None:
                accepted = keep(session, account_id, acceptance, prompts, now)
                if acceptance.dry_run:
                    session.rollback()
        return accepted

    def get(self, prompt_id: str) -> Prompt:
        """Return a prompt by its exact id; what a caller's word means is `find_prompt`'s to say.

        Raises:
            Failure: `INVALID_REQUEST` when there is none.
        """
        with self.reading() as session:
            prompt = session.scalars(select(Prompt).where(Prompt.id == prompt_id)).first()
        if prompt is None:
            raise Failure(FailureCode.INVALID_REQUEST, f"There is no prompt {prompt_id!r}.", "Check its id.")
        return prompt

    def owns_picture(self, account_id: str, key: str) -> bool:
        """Whether a file that was rendered, by its key in the store, was rendered for a prompt of an account.

        Sheets show the prompts of several accounts: they are nobody's.
        """
        prompt_id = prompt_in(key)
        if prompt_id is None:
            return False
        query = select(Prompt.id).where(
            Prompt.id == prompt_id, Prompt.account_id == account_id, Prompt.expired_at.is_(None)
        )
        with self.reading() as session:
            return session.scalar(query) is not None

    def rows(
        self,
        tune_id: str | None = None,
        batch_id: str | None = None,
        status: str | Sequence[str] | None = None,
        limit: int | None = None,
        before: int | None = None,
        account_id: str | None = None,
    ) -> list[Prompt]:
        """Return prompts, newest first; those of a batch all of them, oldest first.

        Args:
            tune_id: Only prompts of this tune.
            batch_id: Only prompts of this batch.
            status: One status or several.
            limit: Length of the page; None is 100, or all of a batch.
            before: Only prompts with a smaller number: the last one of the page before.
            account_id: Only this account's.

        Raises:
            Failure: `INVALID_REQUEST` for a status that no prompt has.
        """
        check_statuses(status, PROMPT_STATUSES)
        query = select(Prompt)
        if tune_id is not None:
            query = query.where(Prompt.tune_id == tune_id)
        if before is not None:
            query = query.where(Prompt.number < before)
        if account_id is not None:
            query = query.where(Prompt.account_id == account_id)
        with self.reading() as session:
            if batch_id is None:
                size = limit or 100
                query = query.order_by(Prompt.number.desc()).limit(size)
                return newest(session, Prompt, query, status, size)
            query = query.where(Prompt.batch_id == batch_id).order_by(Prompt.number)
            if status is not None:
                query = query.where(Prompt.status.in_([status] if isinstance(status, str) else status))
            return list(session.scalars(query.limit(limit) if limit else query))

    @repeatable
    def done(
        self,
        prompt_id: str,
        work_id: str,
        run_id: str,
        images: list[str],
        result: PromptResult | Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Record the pictures of a prompt, and owe its callback; a cancelled prompt stays cancelled.

        Raises:
            Failure: `CONFLICT` for a late writer.
        """
        with self.writing() as session:
            work, prompt = self._prompt_of(session, prompt_id, work_id, run_id)
            again = prompt.status == "done" and work.origin == "ui" and not is_deleted(session, prompt)
            if prompt.status in OPEN_PROMPT or again:
                prompt.images, prompt.result = images, PromptResult.of(result or {}).written({})
                prompt_ended(session, prompt, "done", self.now(), notify=work.origin != "ui")
            return prompt

    @repeatable
    def failed(self, prompt_id: str, work_id: str, run_id: str, failure: Failure) -> Prompt:
        """Record why one prompt of a batch has no pictures (`blocked` when safety refused them).

        Raises:
            Failure: `CONFLICT` for a late writer.
        """
        with self.writing() as session:
            work, prompt = self._prompt_of(session, prompt_id, work_id, run_id)
            if prompt.status in OPEN_PROMPT:
                status = {FailureCode.BLOCKED: "blocked", FailureCode.CANCELLED: "cancelled"}.get(
                    failure.code, "failed"
                )
                prompt_ended(session, prompt, status, self.now(), failure, notify=work.origin != "ui")
            return prompt

    def _prompt_of(self, session: Session, prompt_id: str, work_id: str, run_id: str) -> tuple[Work, Prompt]:
        work, batch = owned(session, work_id, run_id)
        prompt = lock_one(session, Prompt, Prompt.id == prompt_id)
        if prompt is None or prompt.batch_id != batch.id:
            raise Failure(
                FailureCode.CONFLICT, f"The prompt {prompt_id} is not in batch {batch.id}.", "Leave it out."
            )
        return work, prompt

"""Tunes: adding, finding, listing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TuneRequest, recipe_hash
from tunes_dagster.core.results import TuneResult
from tunes_dagster.core.wishes import Unmet, ended
from tunes_dagster.core.work import STAGES, WorkKind
from tunes_dagster.registry.accepting import Acceptance, Accepted, keep, same_tune
from tunes_dagster.registry.blobs import keys_of_request, name_in, share_uses
from tunes_dagster.registry.claims import owned
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.ledger import hold
from tunes_dagster.registry.pages import newest
from tunes_dagster.registry.prompts import (
    NewPrompt,
    lock_used,
    new_prompt,
    said_of_accepted,
    uses_of_prompts,
)
from tunes_dagster.registry.retrying import repeatable, unheard
from tunes_dagster.registry.tables import Prompt, Tune
from tunes_dagster.registry.transitions import (
    TUNE_STATUSES,
    check_statuses,
    kind_for,
    lock_tune,
    note,
    open_work,
    show,
)
from tunes_dagster.registry.uses import own_use, write_uses

# By the status in which a tune is accepted: the stage that it needs first, and what is said of its wait.
_FIRST = {
    "awaiting_images": (None, "Waiting for pictures."),
    "queued": (WorkKind.PREPARE, "Waiting to start."),
    "prepared": (WorkKind.TRAIN, STAGES[WorkKind.PREPARE].next),
}


def _add_its_prompts(
    session: Session, tune: Tune, asked: Sequence[NewPrompt], origin: str, now: datetime
) -> list[Prompt]:
    """Write the prompts that were accepted with a tune; they wait for it, and the timeline says what is unusual."""
    rows = [new_prompt(one, tune.account_id, tune.base, origin, "waiting", now, tune.id) for one in asked]
    session.add_all(rows)
    session.flush()
    uses = {row.id: [*own_use(tune.id), *one.tags] for row, one in zip(rows, asked, strict=True)}
    write_uses(session, uses)
    for row in rows:
        if row.warnings or row.base_id != tune.base_id:
            note(session, row.id, row.status, said_of_accepted(row, tune.base_id), now, origin=origin)
    return rows


def _its_prompts(session: Session, tune: Tune) -> list[Prompt]:
    return list(session.scalars(select(Prompt).where(Prompt.tune_id == tune.id).order_by(Prompt.number)))


def _write(session: Session, tune: Tune, new: NewTune, now: datetime) -> list[Prompt]:
    """Write the rows of a tune that is accepted; returns those of its prompts."""
    asked = new.its_prompts
    lock_used(session, tune.account_id, [use for one in asked for use in one.tags])
    session.add(tune)
    session.flush()
    rows = _add_its_prompts(session, tune, asked, new.origin, now)
    held = {row.id: one.price for row, one in zip(rows, asked, strict=True)}
    hold(session, tune.account_id, {tune.id: new.price, **held}, now, tune.id)
    needed = [(key, tune.id) for key in keys_of_request(tune.request)]
    name_in(session, [*needed, *uses_of_prompts(rows)], now)
    stage, _said = _FIRST[new.status]
    if stage is not None:
        open_work(session, kind_for(tune, stage), tune.id, new.origin, now)
    said = " ".join(["The tune was accepted.", *ended(new.warnings)])
    note(session, tune.id, "queued", said, now, origin=new.origin)
    return rows


def _lock_first(session: Session, tune_id: str) -> None:
    """Keep the tune that is to be trained again from being deleted meanwhile.

    Raises:
        Failure: `CONFLICT` when it was.
    """
    if lock_tune(session, tune_id).deleted_at is not None:
        raise Failure(FailureCode.CONFLICT, f"The tune {tune_id} was deleted meanwhile.", "Make a new one.")


@dataclass(frozen=True, kw_only=True)
class NewTune:
    """A tune that is to be accepted.

    Attributes:
        request: Complete.
        id: Id of the tune and its partition key.
        base_id: The catalog's entry that is really used.
        recipe: Everything known now that decides the result.
        origin: cli, api, drop, ui, demo.
        account_id: Who asks.
        status: `queued`, `awaiting_images` for a tune whose pictures come later, or `prepared` for one whose
            dataset lies in the store already, or that needs none.
        prompts: Its prompts; None takes the request's as they are, rendered on `base_id` and free.
        price: Micro-dollars, which its account holds when it has a wallet; None charges nothing.
        warnings: What was wished for and is not met.
        auto_extend: Kept instead of expiring; None leaves that to the account's rule.
        again: Id of the tune whose dataset it takes over, to be trained again; that one must not be deleted.
    """

    request: TuneRequest
    id: str
    base_id: str
    recipe: dict[str, Any]
    origin: str
    account_id: str = "local"
    status: str = "queued"
    prompts: Sequence[NewPrompt] | None = None
    price: int | None = None
    warnings: Sequence[Unmet] = ()
    auto_extend: bool | None = None
    again: str | None = None

    @cached_property
    def its_prompts(self) -> Sequence[NewPrompt]:
        """Its prompts as they are asked for."""
        if self.prompts is None:
            return [NewPrompt(request=one, base_id=self.base_id) for one in self.request.prompts]
        return self.prompts

    def row(self, now: datetime) -> Tune:
        """Return it as a row that is not in the database yet."""
        request = self.request
        tune = Tune(
            id=self.id,
            account_id=self.account_id,
            title=request.title or request.class_name,
            class_name=request.class_name,
            token=request.token,
            base=request.base,
            base_id=self.base_id,
            status=self.status,
            request=request.model_dump(mode="json"),
            recipe=self.recipe,
            recipe_hash=recipe_hash(self.recipe),
            origin=self.origin,
            warnings=list(self.warnings),
            callback_url=request.callback_url,
            labels=request.labels,
            created_at=now,
            updated_at=now,
        )
        if self.auto_extend is not None:
            tune.auto_extend = self.auto_extend
        show(tune, "queued", _FIRST[self.status][1])
        return tune


class Tunes(Part):
    """Everything about tunes but their ends."""

    @repeatable
    def accept(self, new: NewTune, acceptance: Acceptance | None = None) -> Accepted:
        """Accept a tune: its row, its prompts (waiting), its first work, and a line in the timeline.

        Args:
            new: The tune; see `submit.new_tune`, which every interface goes through.
            acceptance: What its caller wants to be kept with it.

        Returns:
            The tune and its prompts, or the tune that stands for it.

        Raises:
            Failure: `CONFLICT` when the id is taken or the tune to be trained again was deleted,
                `OUT_OF_CREDITS`, `TakenOver`, and for tags as `lock_used`.
        """
        now, account_id = self.now(), new.account_id
        tune = new.row(now)
        try:
            with self.writing() as session:
                if unheard() and (kept := session.scalar(select(Tune).where(Tune.id == new.id))) is not None:
                    return Accepted([kept, *_its_prompts(session, kept)])
                if new.again is not None:
                    _lock_first(session, new.again)
                wanted = acceptance is not None and acceptance.same_title
                if wanted and (same := same_tune(session, account_id, tune.title)) is not None:
                    return Accepted([same], again=True)
                rows = _write(session, tune, new, now)
                if new.again is not None:
                    tune.result = TuneResult(again=new.again).written(tune.result or {})
                    share_uses(session, new.again, tune.id, now)
                accepted = Accepted([tune, *rows])
                if acceptance is not None:
                    accepted = keep(session, account_id, acceptance, accepted.rows, now)
                    if acceptance.dry_run:
                        session.rollback()
        except IntegrityError as error:
            raise Failure(
                FailureCode.CONFLICT,
                f"The tune {new.id} exists already, or there is no account {account_id!r}.",
                "Use another id.",
            ) from error
        return accepted

    @repeatable
    def release(self, tune_id: str) -> Tune:
        """Queue a tune that was awaiting its pictures; any other one stays as it is."""
        now = self.now()
        with self.writing() as session:
            tune = lock_tune(session, tune_id)
            if tune.status == "awaiting_images":
                tune.status, tune.updated_at = "queued", now
                show(tune, "queued", "Waiting to start.")
                open_work(session, WorkKind.PREPARE, tune.id, tune.origin, now)
            return tune

    def get(self, tune_id: str) -> Tune:
        """Return a tune by its exact id, for code that holds one; what a person's word means is `tune_named`'s to say.

        Raises:
            Failure: `UNKNOWN_TUNE`.
        """
        with self.reading() as session:
            tune = session.scalars(select(Tune).where(Tune.id == tune_id)).first()
        if tune is None:
            raise Failure(FailureCode.UNKNOWN_TUNE, f"There is no tune {tune_id!r}.", "Check its id.")
        return tune

    def has(self, tune_id: str) -> bool:
        """Whether a tune of this id exists, deleted ones included."""
        with self.reading() as session:
            return session.scalars(select(Tune.number).where(Tune.id == tune_id)).first() is not None

    def rows(
        self,
        status: str | Sequence[str] | None = None,
        limit: int = 50,
        before: int | None = None,
        account_id: str | None = None,
    ) -> list[Tune]:
        """Return tunes, newest first; deleted ones only when asked for by status.

        Args:
            status: One status or several.
            limit: Length of the page.
            before: Only tunes with a smaller number: the last one of the page before.
            account_id: Only this account's.

        Raises:
            Failure: `INVALID_REQUEST` for a status that no tune has.
        """
        check_statuses(status, TUNE_STATUSES)
        query = select(Tune).order_by(Tune.number.desc()).limit(limit)
        if before is not None:
            query = query.where(Tune.number < before)
        if account_id is not None:
            query = query.where(Tune.account_id == account_id)
        if status is None:
            query = query.where(Tune.deleted_at.is_(None))
        with self.reading() as session:
            return newest(session, Tune, query, status, limit)

    def count(self) -> dict[str, int]:
        """Return how many tunes have each status."""
        with self.reading() as session:
            rows = session.execute(select(Tune.status, func.count()).group_by(Tune.status))
            return {row[0]: row[1] for row in rows}

    @repeatable
    def add_findings(self, work_id: str, run_id: str, findings: Sequence[str]) -> None:
        """Keep what an attempt found out that its tune's owner should know; of a batch its prompts say it themselves.

        Args:
            work_id: The claimed work.
            run_id: The run that owns it.
            findings: Whole sentences. They stay until the same kind of work begins anew.

        Raises:
            Failure: `CONFLICT` for a late writer.
        """
        with self.writing() as session:
            work, tune = owned(session, work_id, run_id)
            if isinstance(tune, Tune):
                kept = tune.made.findings
                mine = list(dict.fromkeys([*kept.get(work.kind, []), *findings]))
                tune.result = TuneResult(findings={**kept, work.kind: mine}).written(tune.result)

    @repeatable
    def set_recipe(
        self, work_id: str, run_id: str, recipe: dict[str, Any], request: TuneRequest | None = None
    ) -> Tune:
        """Replace the recipe of the tune that an attempt is about, once more of it is known.

        Args:
            work_id: The claimed work.
            run_id: The run that owns it.
            recipe: The whole new one.
            request: What was asked for from now on, when a person changed it in the Launchpad.

        Raises:
            Failure: `CONFLICT` for a late writer.
        """
        with self.writing() as session:
            _work, tune = owned(session, work_id, run_id)
            if not isinstance(tune, Tune):
                raise Failure(FailureCode.INVALID_REQUEST, f"The work {work_id} is not about a tune.")
            tune.recipe, tune.recipe_hash = recipe, recipe_hash(recipe)
            if request is not None:
                tune.request = request.model_dump(mode="json")
                tune.title, tune.class_name = request.title or request.class_name, request.class_name
                tune.token, tune.callback_url = request.token, request.callback_url
                name_in(session, [(key, tune.id) for key in keys_of_request(tune.request)], self.now())
            tune.updated_at = self.now()
            return tune

"""How a desk accepts work: its rows, prices, views and idempotency key in one transaction, or a rehearsal of it.

A request is accepted once. What it made stands in its key's row from the same transaction on, so that a repeat after a
server's death finds it, whatever that server still had to do.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.recipe import ImportRequest, PromptRequest, TuneRequest
from tunes_dagster.core.wishes import Wishes, renamed, together
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.problems import Problem, invalid, of_failure
from tunes_dagster.gateway.rehearsal import Rehearsed, is_rehearsing
from tunes_dagster.gateway.service import Service
from tunes_dagster.gateway.uploads import keep_files
from tunes_dagster.intake.payloads import Base64File, upload_key
from tunes_dagster.intake.weights import Found
from tunes_dagster.registry import ApiGroup, ApiObject, Prompt, Registry, Reservation, Tune
from tunes_dagster.registry.idempotency import bind_idempotent
from tunes_dagster.registry.ledger import lock_account
from tunes_dagster.registry.retrying import may_have_been_kept

# What a tune takes on a machine that has not made one yet.
GUESS_SECONDS = 300.0
# Loading a base and rendering what proves the files.
_IMPORT_SECONDS = 60.0
Row = TypeVar("Row", Tune, Prompt)
WARNINGS = "X-Tunes-Warnings"
# Characters of that header: servers and proxies take 8 KB of all of them.
_MOST_WARNINGS = 4000


@dataclass(frozen=True)
class View:
    """How the caller will see what is accepted; the fields are those of `registry.ApiObject`.

    Attributes:
        awaits_pictures: A tune whose pictures are sent afterwards, by whoever has its `Accepting.upload_token`.
        auto_extend: A tune that is kept instead of expiring.
        sameness: See `ApiObject`; one that is there already is answered with instead of made again.
        same_title: The same by the title of a tune.
        quality: Word for a preset that is sold by name; see `quote.prompt_price`.
        meant: Word → id of tunes that are settled already; see `submit_prompts`.
        names: Option → what the dialect calls it, for warnings.
    """

    dialect: str
    asked: dict[str, Any] = field(default_factory=dict)
    events: Sequence[str] = ()
    public_id: str | None = None
    on_unknown: str = ""
    group_id: str | None = None
    awaits_pictures: bool = False
    auto_extend: bool = False
    sameness: str | None = None
    same_title: bool = False
    quality: str = ""
    meant: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A request's hold of its `Idempotency-Key`; see `registry.IdempotencyKey`."""

    key: str
    token: str


class _Tried(Exception):
    """Ends a transaction that was only tried; carries what it would have cost, and what would not have been met."""

    def __init__(self, price: int, warnings: list[str]) -> None:
        super().__init__(price)
        self.price, self.warnings = price, warnings


class _Known(Exception):
    """Ends a transaction whose work was accepted before, with its id."""

    def __init__(self, subject_id: str) -> None:
        super().__init__(subject_id)
        self.subject_id = subject_id


class Accepting:
    """The part of a desk that takes work in; see `desk.Desk`."""

    service: Service
    registry: Registry
    account_id: str
    base_url: str
    request: Body | None
    unclaimed: list[str]
    headers: dict[str, str]
    wishes: Wishes

    def accept_tune(
        self,
        request: TuneRequest,
        view: View,
        prompt_views: Sequence[View] = (),
        *,
        files: Sequence[UploadFile] = (),
        group: ApiGroup | None = None,
    ) -> Tune:
        """Accept a tune with the prompts inside it; nothing is kept when anything is refused.

        Args:
            request: Canonical.
            view: Of the tune.
            prompt_views: Of its prompts, in their order.
            files: Pictures that came along.
            group: Its prompts are told of together, by this row.

        Returns:
            The tune, or the one that the same request, or one of the same title, made before.

        Raises:
            Rehearsed: In place of accepting, when the call is a rehearsal.
        """
        self.warn(*self.wishes.told())
        if (made := self.made_before()) is not None:
            return self._again(self.registry.tunes.get(made[0]), view)
        callbacks = [request.callback_url, *(one.callback_url for one in request.prompts)]
        try:
            if is_rehearsing(self.request):
                attempt = lambda: self._submit_tune(request, view, prompt_views, (), group, rehearse=True)  # noqa: E731
                raise Rehearsed(self._report(attempt, self.estimated_seconds(request.base), callbacks))
            tune = self._submit_tune(request, view, prompt_views, files, group)
        except _Known as known:
            return self._again(self.registry.tunes.get(known.subject_id), view)
        self._accepted([tune.id])
        return tune

    def accept_import(self, request: ImportRequest, found: Found | None, view: View) -> Tune:
        """Accept weights that another program made, as a tune; nothing is kept when anything is refused.

        Args:
            request: What is said of them.
            found: Their file; None when the request names where it is fetched from.
            view: Of the tune; its prompts are seen likewise.

        Raises:
            Rehearsed: In place of accepting, when the call is a rehearsal.
        """
        if (made := self.made_before()) is not None:
            return self._again(self.registry.tunes.get(made[0]), view)
        callbacks = [request.callback_url, *(one.callback_url for one in request.prompts)]
        if is_rehearsing(self.request):
            attempt = lambda: self._submit_import(request, found, view, rehearse=True)  # noqa: E731
            raise Rehearsed(self._report(attempt, _IMPORT_SECONDS, callbacks))
        tune = self._submit_import(request, found, view)
        self._accepted([tune.id])
        return tune

    def _submit_import(
        self, request: ImportRequest, found: Found | None, view: View, rehearse: bool = False
    ) -> Tune:
        from tunes_dagster.service.importing import import_weights

        def also(session: Session, tune: Tune, prompts: list[Prompt]) -> None:
            rows: list[tuple[Tune | Prompt, View]] = [(tune, view), *((one, view) for one in prompts)]
            self._keep(session, rows, None, [tune.id], rehearse)

        service = self.service
        return import_weights(service.installation, request, found, account_id=self.account_id, also=also)

    def _submit_tune(
        self,
        request: TuneRequest,
        view: View,
        prompt_views: Sequence[View],
        files: Sequence[UploadFile],
        group: ApiGroup | None,
        rehearse: bool = False,
    ) -> Tune:
        from tunes_dagster.service.submit import submit_tune

        chosen, service = new_id("tune"), self.service

        def before(session: Session) -> None:
            lock_account(session, self.account_id)
            same = select(Tune.id).where(Tune.account_id == self.account_id, Tune.deleted_at.is_(None))
            same = same.where(Tune.title == (request.title or request.name)).order_by(Tune.number.desc())
            if (known := session.scalar(same.limit(1))) is not None:
                raise _Known(known)

        def also(session: Session, tune: Tune, prompts: list[Prompt]) -> None:
            tune.auto_extend = True if view.auto_extend else tune.auto_extend
            rows: list[tuple[Tune | Prompt, View]] = [(tune, view), *zip(prompts, prompt_views, strict=True)]
            self._keep(session, rows, group, [tune.id], rehearse)

        try:
            self.check_trainable(request.base)
            if files:
                request = _with_uploads(request, keep_files(service.store, chosen, files))
            return submit_tune(
                service.installation,
                self._uploaded(request, chosen),
                account_id=self.account_id,
                origin="api",
                tune_id=chosen,
                before=before if view.same_title else None,
                also=also,
            )
        except (Failure, Problem, _Tried, _Known) as refused:
            if may_have_been_kept(refused):
                self.unclaimed.clear()
            else:
                service.store.delete_prefix(f"tunes/{chosen}")
            raise

    def accept_prompt(self, request: PromptRequest, view: View) -> Prompt:
        """Accept a prompt on one of the account's tunes or on a plain base; see `accept_prompts`."""
        return self.accept_prompts([(request, view)])[0]

    def accept_prompts(
        self, orders: Sequence[tuple[PromptRequest, View]], group: ApiGroup | None = None
    ) -> list[Prompt]:
        """Accept prompts, all or none.

        Args:
            orders: What is asked for, and how it will be shown.
            group: They are told of together, by this row.

        Returns:
            The prompts, or those that the same request made before.

        Raises:
            Rehearsed: In place of accepting, when the call is a rehearsal.
        """
        self.warn(*self.wishes.told())
        if (made := self.made_before()) is not None:
            views = [view for _request, view in orders]
            return [
                self._again(self.registry.prompts.get(one), view)
                for one, view in zip(made, views, strict=False)
            ]
        callbacks = [request.callback_url for request, _view in orders]
        try:
            if is_rehearsing(self.request):
                seconds = 2.0 * sum(request.settings.num_images for request, _view in orders)
                attempt = lambda: self._submit_prompts(orders, group, rehearse=True)  # noqa: E731
                raise Rehearsed(self._report(attempt, seconds, callbacks))
            prompts = self._submit_prompts(orders, group)
        except _Known as known:
            return [self._again(self.registry.prompts.get(known.subject_id), orders[0][1])]
        self._accepted([prompt.id for prompt in prompts])
        return prompts

    def _submit_prompts(
        self, orders: Sequence[tuple[PromptRequest, View]], group: ApiGroup | None, rehearse: bool = False
    ) -> list[Prompt]:
        from tunes_dagster.service.submit import DEFAULT_BASE, AskedPrompt, submit_prompts

        asked = []
        for request, view in orders:
            if request.tune is None:
                self.check_trainable(request.base or DEFAULT_BASE, tuned=False)
            on_tune, meant = self._on_its_tune(request, dict(view.meant))
            asked.append(AskedPrompt(on_tune, meant, view.quality))
        same = [view.sameness for _request, view in orders if view.sameness]

        def before(session: Session) -> None:
            lock_account(session, self.account_id)
            known = select(ApiObject.id).where(
                ApiObject.account_id == self.account_id,
                ApiObject.sameness.in_(same),
                ApiObject.public_id.is_(None),  # one that was deleted is made again
            )
            if (found := session.scalar(known.order_by(ApiObject.id).limit(1))) is not None:
                raise _Known(found)

        def also(session: Session, prompts: list[Prompt]) -> None:
            views = [view for _request, view in orders]
            rows = list(zip(prompts, views, strict=True))
            self._keep(session, rows, group, [one.id for one in prompts], rehearse)

        try:
            return submit_prompts(
                self.service.installation,
                asked,
                account_id=self.account_id,
                origin="api",
                before=before if same else None,
                also=also,
            )
        except Failure as refused:
            if may_have_been_kept(refused):
                self.unclaimed.clear()
            raise

    # What is checked and kept before it

    def check_trainable(self, base: str, tuned: bool = True) -> None:
        """Refuse a base whose family nobody here can train or render yet.

        Args:
            base: By any of its names.
            tuned: A tune is asked for; else a render, which models for enlarging and clips make as well.

        Raises:
            Problem: 422, naming the base.
        """
        from tunes_dagster.families.specs import families

        catalog = self.service.catalog
        entry = catalog.real(catalog.resolve(base))
        if entry.family not in families():
            from tunes_dagster.families.catalog import AUXILIARY

            if entry.family in AUXILIARY and not tuned:
                return
            known = ", ".join(one.branch for one in catalog.entries.values() if one.family in families())
            raise invalid("base", f"{entry.branch} cannot be used on this server yet; use one of {known}")

    def _uploaded(self, request: TuneRequest, tune_id: str) -> TuneRequest:
        """Return the request with its long base64 texts decoded into the store, piece by piece, as uploads."""
        texts = self.request.long_texts if self.request is not None else {}
        given, keys = request.sources.images_base64, list(request.sources.uploads)
        if not any(text in texts for text in given):
            return request
        for text in given:
            if text in texts:
                content = Base64File(texts[text], "The text")
                key = upload_key(tune_id, len(keys), f"image{content.suffix}")
                keys.append(self.service.store.write_stream(key, content))
        sources = {"images_base64": [text for text in given if text not in texts], "uploads": keys}
        return request.model_copy(update={"sources": request.sources.model_copy(update=sources)})

    def _on_its_tune(
        self, request: PromptRequest, meant: dict[str, str]
    ) -> tuple[PromptRequest, dict[str, str]]:
        """Return a prompt on a plain base with a single tag as one on the tune that this names.

        Then it may wait for the tune, as a prompt below the tune's own address does; several have to be ready.

        Returns:
            The prompt, and what its words mean.

        Raises:
            Problem: 422 for a tune that is not the account's, of another kind, or made on another base.
        """
        from tunes_dagster.rendering.prompts import split_tags, tag_of
        from tunes_dagster.service.naming import named_tune

        text, loras, faces = split_tags(request.text)
        named = [("lora", *one) for one in loras] + [("faceid", *one) for one in faces]
        if request.tune is not None or len(named) != 1:
            return request, meant
        tag, word, scale = named[0]
        try:
            tune = named_tune(self.registry, self.account_id, word, meant)
        except Failure as failure:
            if failure.code == FailureCode.STORE_UNAVAILABLE:
                raise
            raise invalid("text", f"names the tune {word!r}, which does not exist") from None
        if tag != (right := tag_of(tune.kind)):
            raise invalid("text", f"names the tune {word!r} as <{tag}:…>; it is used as <{right}:…>")
        catalog, base = self.service.catalog, request.base
        if base is not None and not catalog.fits(catalog.resolve(tune.branch), base):
            raise invalid("text", f"names the tune {word!r}, which was made on {tune.branch}, not on {base}")
        # A base that fits and is not the tune's own is that one's sibling.
        own = base is None or catalog.real(catalog.resolve(base)).branch == tune.branch
        settings = request.settings.model_copy(update={"lora_scale": scale})
        change = {"text": text, "tune": word, "base": None if own else base, "settings": settings}
        return request.model_copy(update=change), {**meant, word: tune.id}

    # Inside the transaction

    def _keep(
        self,
        session: Session,
        rows: Sequence[tuple[Tune | Prompt, View]],
        group: ApiGroup | None,
        subjects: list[str],
        rehearse: bool,
    ) -> None:
        """Write how the caller sees what is accepted, and what its key made; say what of it is not met."""
        now = self.registry.now()
        minutes = self.service.options.upload_token_minutes
        if group is not None:
            session.add(group)
        ids = [row.id for row, _view in rows]
        session.flush()
        held = select(Reservation.subject_id, Reservation.amount).where(Reservation.subject_id.in_(ids))
        prices: dict[str, int] = {row[0]: row[1] for row in session.execute(held)}
        session.add_all(
            ApiObject(
                id=row.id,
                account_id=self.account_id,
                dialect=view.dialect,
                public_id=view.public_id,
                asked={**self._asked(view), "price": prices.get(row.id, 0)},
                events=list(view.events),
                on_unknown=view.on_unknown,
                base_url=self.base_url,
                group_id=view.group_id,
                sameness=view.sameness,
                created_at=now,
                upload_hash=token_hash(self.upload_token(row.id)) if view.awaits_pictures else None,
                upload_expires_at=now + timedelta(minutes=minutes) if view.awaits_pictures else None,
            )
            for row, view in rows
        )
        unmet = together(said for row, view in rows for said in _unmet(row, view))
        if rehearse:
            raise _Tried(sum(prices.values()), unmet)
        self.warn(*unmet)
        self.bind(session, subjects)

    def _again(self, row: Row, view: View) -> Row:
        """Return what was accepted before, and say again what of it is not met."""
        self.warn(*_unmet(row, view))
        return row

    def warn(self, *said: str) -> None:
        """Say something in the answer's header: what is not met, what means nothing here."""
        before = self.headers.get(WARNINGS, "")
        words = [_in_a_header(one) for one in said]
        told = list(dict.fromkeys([*filter(None, before.split("; ")), *filter(None, words)]))
        if told:
            self.headers[WARNINGS] = "; ".join(told)[:_MOST_WARNINGS]

    def bind(self, session: Session, subjects: list[str]) -> None:
        """Write what is made into the row of the request's `Idempotency-Key`, if it has one.

        Raises:
            Problem: 409 when another request took the key over: this one must not make anything any more.
        """
        claim: Claim | None = getattr(self.request.state, "claim", None) if self.request is not None else None
        if claim is not None and not bind_idempotent(
            session, self.account_id, claim.key, claim.token, subjects
        ):
            said = "Another request with this Idempotency-Key has taken over; send it again for its answer"
            raise Problem(409, said, headers={"Retry-After": "5"}, code="idempotency_busy")

    def made_before(self) -> Sequence[str] | None:
        """Return what an earlier request of the same key made, when this one only has to be answered."""
        return getattr(self.request.state, "made", None) if self.request is not None else None

    def _accepted(self, subjects: Sequence[str]) -> None:
        """Note what a request led to: for its log line, and because its pictures are spoken for now."""
        self.unclaimed.clear()
        if self.request is not None:
            self.request.state.subject = subjects[-1]

    def _asked(self, view: View) -> dict[str, Any]:
        """Return what is kept of a request, with its id, which the pipeline's log lines carry on."""
        known = getattr(self.request.state, "id", None) if self.request is not None else None
        return {**view.asked, "request_id": known} if known else view.asked

    def upload_token(self, tune_id: str) -> str:
        """Return the token that lets its bearer send a tune's pictures; the same whenever it is asked for."""
        mac = hmac.new(self.service.secret, f"upload token\n{tune_id}".encode(), hashlib.sha256)
        return mac.hexdigest()[:48]

    # Trying

    def _report(
        self, attempt: Callable[[], Any], seconds: float, callbacks: Sequence[str | None]
    ) -> dict[str, Any]:
        """Return what an attempt would cost and take, and why it would be refused."""
        price, refused, known, unmet = 0, "", None, list[str]()
        try:
            attempt()
        except _Tried as tried:
            price, unmet = tried.price, tried.warnings
        except _Known as same:
            known = same.subject_id
        except Failure as failure:
            refused = of_failure(failure).message
            if failure.code == FailureCode.OUT_OF_CREDITS:
                price = int(failure.facts.get("price", 0))
        except Problem as problem:
            refused = problem.message
        urls = list(dict.fromkeys(url for url in callbacks if url))[:3]
        return {
            "dry_run": True,
            "price_usd": price / 1_000_000,
            "available_usd": self.registry.ledger.wallet(self.account_id).available / 1_000_000,
            "estimated_minutes": round(seconds / 60, 1),
            "would_be_refused": [refused] if refused else [],
            "warnings": unmet,
            "callbacks": self._tried(urls),
            **({"already_made": known} if known else {}),
        }

    def _tried(self, urls: Sequence[str]) -> list[dict[str, Any]]:
        """Return what became of each address when it was tried."""
        if not urls:
            return []
        from tunes_dagster.gateway.trial import try_callback

        with self.service.outward(self.account_id):
            return [try_callback(url, self.service.settings.allow_hosts) for url in urls]

    def estimated_seconds(self, base: str) -> float:
        """Return how long a tune on a base takes: the median of the latest ones made here."""
        try:
            entry = self.service.catalog.real(self.service.catalog.resolve(base))
        except Failure:
            return GUESS_SECONDS
        return self.service.recent_seconds(entry.branch) or GUESS_SECONDS


def _with_uploads(request: TuneRequest, keys: Sequence[str]) -> TuneRequest:
    sources = request.sources.model_copy(update={"uploads": [*request.sources.uploads, *keys]})
    return request.model_copy(update={"sources": sources})


def _unmet(row: Tune | Prompt, view: View) -> list[str]:
    """Return what of a row was wished for and is not met, in its dialect's words."""
    return [renamed(said, view.names) for said in row.warnings or []]


def _in_a_header(text: str) -> str:
    """Return a sentence as a header can carry it: printable ASCII, and nothing that separates it from others."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text.replace(";", ","))


def token_hash(token: str) -> str:
    """Return what is kept of an upload token."""
    return hashlib.sha256(token.encode()).hexdigest()

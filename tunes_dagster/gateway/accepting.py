"""How a desk accepts work: its rows, prices, views and idempotency key in one transaction, or a rehearsal of it.

A request is accepted once. What it made stands in its key's row from the same transaction on, so that a repeat after a
server's death finds it, whatever that server still had to do.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from starlette.datastructures import UploadFile

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.recipe import ImportRequest, PromptRequest, TuneRequest
from tunes_dagster.core.wishes import Wishes, together
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.problems import HttpProblem, invalid, of_failure
from tunes_dagster.gateway.rehearsal import Report, is_rehearsing
from tunes_dagster.gateway.service import Service
from tunes_dagster.gateway.uploads import keep_files
from tunes_dagster.intake.payloads import Base64File, upload_key
from tunes_dagster.intake.weights import Found
from tunes_dagster.registry import Prompt, Registry, Tune
from tunes_dagster.registry.accepting import Acceptance, Accepted, Claim, NewGroup, Seen
from tunes_dagster.registry.retrying import may_have_been_kept

# What a tune takes on a machine that has not made one yet.
GUESS_SECONDS = 300.0
# Loading a base and rendering what proves the files.
_IMPORT_SECONDS = 60.0
Row = TypeVar("Row", Tune, Prompt)
WARNINGS = "X-Tunes-Warnings"
# Characters of that header: servers and proxies take 8 KB of all of them.
_MOST_WARNINGS = 4000


@dataclass(frozen=True, kw_only=True)
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
        group: NewGroup | None = None,
    ) -> Tune | Report:
        """Accept a tune with the prompts inside it; nothing is kept when anything is refused.

        Args:
            request: Canonical.
            view: Of the tune.
            prompt_views: Of its prompts, in their order.
            files: Pictures that came along.
            group: Its prompts are told of together, by this row.

        Returns:
            The tune, or the one that the same request, or one of the same title, made before; of a rehearsal what it
            found.
        """
        self.warn(*self.wishes.told())
        if (made := self.made_before()) is not None:
            return self._again(self.registry.tunes.get(made[0]), view)
        views = [view, *prompt_views]
        if is_rehearsing(self.request):
            callbacks = [request.callback_url, *(one.callback_url for one in request.prompts)]
            verdict: list[str] = []
            attempt = partial(self._submit_tune, request, views, files, group, verdict)
            report = self._report(attempt, views, self.estimated_seconds(request.base), callbacks)
            return Report({**report, **({"dataset": verdict} if verdict else {})})
        accepted = self._submit_tune(request, views, files, group)
        self._accepted(accepted, views, [accepted.tune.id])
        return accepted.tune

    def accept_import(self, request: ImportRequest, found: Found | None, view: View) -> Tune | Report:
        """Accept weights that another program made, as a tune; nothing is kept when anything is refused.

        Args:
            request: What is said of them.
            found: Their file; None when the request names where it is fetched from.
            view: Of the tune; its prompts are seen likewise.

        Returns:
            As `accept_tune`.
        """
        if (made := self.made_before()) is not None:
            return self._again(self.registry.tunes.get(made[0]), view)
        from tunes_dagster.service.importing import accept_weights

        views = [view] * (1 + len(request.prompts))
        submit = partial(
            accept_weights, self.service.installation, request, found, account_id=self.account_id
        )
        if is_rehearsing(self.request):
            callbacks = [request.callback_url, *(one.callback_url for one in request.prompts)]
            attempt = partial(submit, acceptance=self._acceptance(views))
            return Report(self._report(attempt, views, _IMPORT_SECONDS, callbacks))
        accepted = submit(acceptance=self._acceptance(views))
        self._accepted(accepted, views, [accepted.tune.id])
        return accepted.tune

    def _submit_tune(
        self,
        request: TuneRequest,
        views: Sequence[View],
        files: Sequence[UploadFile],
        group: NewGroup | None,
        verdict: list[str] | None = None,
    ) -> Accepted:
        """Accept a tune, or try to; `verdict` gets what is seen of the pictures of one that is only tried."""
        from tunes_dagster.service.submit import new_tune

        chosen, service = new_id("tune"), self.service
        acceptance = self._acceptance(views, group, chosen)
        try:
            self.check_trainable(request.base)
            if files:
                request = _with_uploads(request, keep_files(service.store, chosen, files))
            complete = self._uploaded(request, chosen)
            new = new_tune(
                service.installation, complete, account_id=self.account_id, origin="api", tune_id=chosen
            )
            new = replace(new, auto_extend=True if views[0].auto_extend else None)
            accepted = self.registry.tunes.accept(new, acceptance)
            if verdict is not None and not accepted.again and not new.request.sources.empty:
                verdict += self._looked_over(new.request, chosen)
        except (Failure, HttpProblem) as refused:
            if may_have_been_kept(refused):
                self.unclaimed.clear()
            else:
                service.store.delete_prefix(f"tunes/{chosen}")
            raise
        if accepted.again or acceptance.dry_run:
            service.store.delete_prefix(f"tunes/{chosen}")
        return accepted

    def _looked_over(self, request: TuneRequest, tune_id: str) -> list[str]:
        """Return the verdict on the pictures of a request that is only tried."""
        from tunes_dagster.service.looking import rehearsed

        try:
            with self.service.outward(self.account_id):
                return rehearsed(request, tune_id, self.service.installation)
        except HttpProblem as busy:  # which refuses nothing of the request
            return [f"The pictures could not be looked at now: {busy.message}"]

    def accept_prompt(self, request: PromptRequest, view: View) -> Prompt | Report:
        """Accept a prompt on one of the account's tunes or on a plain base; see `accept_prompts`."""
        accepted = self.accept_prompts([(request, view)])
        return accepted if isinstance(accepted, Report) else accepted[0]

    def accept_prompts(
        self, orders: Sequence[tuple[PromptRequest, View]], group: NewGroup | None = None
    ) -> list[Prompt] | Report:
        """Accept prompts, all or none.

        Args:
            orders: What is asked for, and how it will be shown.
            group: They are told of together, by this row.

        Returns:
            The prompts, or those that the same request made before; of a rehearsal what it found.
        """
        self.warn(*self.wishes.told())
        if (made := self.made_before()) is not None:
            views = [view for _request, view in orders]
            return [
                self._again(self.registry.prompts.get(one), view)
                for one, view in zip(made, views, strict=False)
            ]
        views = [view for _request, view in orders]
        if is_rehearsing(self.request):
            callbacks = [request.callback_url for request, _view in orders]
            seconds = 2.0 * sum(request.settings.num_images for request, _view in orders)
            attempt = partial(self._submit_prompts, orders, group)
            return Report(self._report(attempt, views, seconds, callbacks))
        accepted = self._submit_prompts(orders, group)
        self._accepted(accepted, views, [prompt.id for prompt in accepted.prompts])
        return accepted.prompts

    def _submit_prompts(
        self, orders: Sequence[tuple[PromptRequest, View]], group: NewGroup | None
    ) -> Accepted:
        from tunes_dagster.service.completing import DEFAULT_BASE
        from tunes_dagster.service.submit import AskedPrompt, new_prompts

        asked = []
        for request, view in orders:
            if request.tune is None:
                self.check_trainable(request.base or DEFAULT_BASE, tuned=False)
            on_tune, meant = self._on_its_tune(request, dict(view.meant))
            asked.append(AskedPrompt(on_tune, meant, view.quality))
        acceptance = self._acceptance([view for _request, view in orders], group)
        try:
            new = new_prompts(self.service.installation, asked, self.account_id)
            return self.registry.prompts.accept(new, acceptance, account_id=self.account_id, origin="api")
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
            HttpProblem: 422, naming the base.
        """
        from tunes_dagster.families.specs import families

        catalog = self.service.catalog
        entry = catalog.real(catalog.resolve(base))
        if entry.family not in families():
            from tunes_dagster.families.catalog import AUXILIARY

            if entry.family in AUXILIARY and not tuned:
                return
            known = ", ".join(one.base_id for one in catalog.entries.values() if one.family in families())
            raise invalid("base", f"{entry.base_id} cannot be used on this server yet; use one of {known}")

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
            HttpProblem: 422 for a tune that is not the account's, of another kind, or made on another base.
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
        if base is not None and not catalog.fits(catalog.resolve(tune.base_id), base):
            raise invalid("text", f"names the tune {word!r}, which was made on {tune.base_id}, not on {base}")
        # A base that fits and is not the tune's own is that one's sibling.
        own = base is None or catalog.real(catalog.resolve(base)).base_id == tune.base_id
        settings = request.settings.model_copy(update={"lora_scale": scale})
        change = {"text": text, "tune": word, "base": None if own else base, "settings": settings}
        return request.model_copy(update=change), {**meant, word: tune.id}

    # What is kept with it

    @property
    def claim(self) -> Claim | None:
        """The request's hold of its `Idempotency-Key`, if it has one."""
        return getattr(self.request.state, "claim", None) if self.request is not None else None

    def _acceptance(
        self, views: Sequence[View], group: NewGroup | None = None, tune_id: str = ""
    ) -> Acceptance:
        """Return what is kept with the work: how its caller sees it, and what its key made.

        Args:
            views: Of the tune and then its prompts, or of the prompts.
            group: See `accept_tune`.
            tune_id: Of the tune, whose pictures may be sent afterwards.
        """
        return Acceptance(
            seen=[self._seen(view, tune_id if number == 0 else "") for number, view in enumerate(views)],
            group=group,
            claim=self.claim,
            same_title=views[0].same_title,
            dry_run=is_rehearsing(self.request),
        )

    def _seen(self, view: View, tune_id: str) -> Seen:
        token = token_hash(self.upload_token(tune_id)) if tune_id and view.awaits_pictures else None
        return Seen(
            dialect=view.dialect,
            asked=self._asked(view),
            events=view.events,
            public_id=view.public_id,
            on_unknown=view.on_unknown,
            base_url=self.base_url,
            group_id=view.group_id,
            sameness=view.sameness,
            upload_hash=token,
            upload_minutes=self.service.options.upload_token_minutes,
        )

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

    def made_before(self) -> Sequence[str] | None:
        """Return what an earlier request of the same key made, when this one only has to be answered."""
        return getattr(self.request.state, "made", None) if self.request is not None else None

    def _accepted(self, accepted: Accepted, views: Sequence[View], subjects: Sequence[str]) -> None:
        """Say what is not met of it; note what it led to: for its log line, and as its pictures are spoken for now."""
        self.warn(*_all_unmet(accepted, views))
        if accepted.again:
            return
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
        self,
        attempt: Callable[[], Accepted],
        views: Sequence[View],
        seconds: float,
        callbacks: Sequence[str | None],
    ) -> dict[str, Any]:
        """Return what an attempt would cost and take, and why it would be refused."""
        price, refused, known, unmet = 0, "", None, list[str]()
        try:
            tried = attempt()
            if tried.again:
                known = tried.rows[0].id
            else:
                price, unmet = sum(tried.prices.values()), _all_unmet(tried, views)
        except Failure as failure:
            refused = of_failure(failure).message
            if failure.code == FailureCode.OUT_OF_CREDITS:
                price = int(failure.facts.get("price", 0))
        except HttpProblem as problem:
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
        return self.service.recent_seconds(entry.base_id) or GUESS_SECONDS


def _with_uploads(request: TuneRequest, keys: Sequence[str]) -> TuneRequest:
    sources = request.sources.model_copy(update={"uploads": [*request.sources.uploads, *keys]})
    return request.model_copy(update={"sources": sources})


def _unmet(row: Tune | Prompt, view: View) -> list[str]:
    """Return what of a row was wished for and is not met, in its dialect's words."""
    return [said.called(view.names) for said in row.warnings or []]


def _all_unmet(accepted: Accepted, views: Sequence[View]) -> list[str]:
    """Return what of all that was accepted is not met; what stands for it is the first one."""
    pairs = zip(accepted.rows, views, strict=False)
    return together(said for row, view in pairs for said in _unmet(row, view))


def _in_a_header(text: str) -> str:
    """Return a sentence as a header can carry it: printable ASCII, and nothing that separates it from others."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text.replace(";", ","))


def token_hash(token: str) -> str:
    """Return what is kept of an upload token."""
    return hashlib.sha256(token.encode()).hexdigest()

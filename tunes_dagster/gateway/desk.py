"""What a dialect may ask for, on behalf of one account: the canonical requests, and nothing of anybody else's.

Every lookup goes through the account, so that what belongs to another tenant answers like what does not exist.
Whatever is accepted becomes its row, its price and its view for the caller in one transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import IO, Any, NoReturn

from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile

from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.recipe import PromptRequest, TuneRequest
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.files import file_url
from tunes_dagster.gateway.problems import Problem, invalid, not_found, of_failure
from tunes_dagster.gateway.rehearsal import Rehearsed, is_rehearsing
from tunes_dagster.gateway.service import Caller, Service
from tunes_dagster.gateway.uploads import keep_files
from tunes_dagster.intake.payloads import Base64File, upload_key
from tunes_dagster.registry import ApiObject, Prompt, Tune, Wallet
from tunes_dagster.registry.ledger import reserve

# Beginnings of keys of the store that a prompt may name; a caller may not.
_KEYS = ("uploads/", "blobs/", "batches/", "tunes/")

# What a tune takes on a machine that has not made one yet.
GUESS_SECONDS = 300.0


@dataclass(frozen=True)
class View:
    """How the caller will see what is accepted; the fields are those of `registry.ApiObject`.

    Attributes:
        meant: Word → id of tunes that are settled already; see `submit_prompt`.
    """

    dialect: str
    asked: dict[str, Any] = field(default_factory=dict)
    events: Sequence[str] = ()
    public_id: str | None = None
    on_unknown: str = ""
    group_id: str | None = None
    upload_token: str | None = None
    price: int = 0
    meant: Mapping[str, str] = field(default_factory=dict)


class _Rehearsal(Exception):
    """Ends a transaction that was only tried."""


class Desk:
    """The account's door to the registry and the store."""

    def __init__(self, service: Service, caller: Caller, base_url: str, request: Body | None = None) -> None:
        self.service = service
        self.caller = caller
        self.account_id = caller.account_id
        self.base_url = base_url
        self.registry = service.registry
        self.request = request
        self.headers: dict[str, str] = {}
        """What the answer carries beside its body, also that of a rehearsal."""
        self.unclaimed: list[str] = []
        """Keys of pictures that were kept for what is not accepted yet."""

    # Accepting

    def accept_tune(
        self,
        request: TuneRequest,
        view: View,
        prompt_views: Sequence[View] = (),
        *,
        files: Sequence[UploadFile] = (),
    ) -> Tune:
        """Accept a tune with the prompts inside it; nothing is kept when anything is refused.

        Args:
            request: Canonical.
            view: Of the tune.
            prompt_views: Of its prompts, in their order.
            files: Pictures that came along.

        Raises:
            Rehearsed: In place of accepting, when the call is a rehearsal.
        """
        from tunes_dagster.service.submit import submit_tune

        if is_rehearsing(self.request):
            raise Rehearsed(self._rehearsed_tune(request, view, prompt_views))
        chosen, service = new_id("tune"), self.service
        try:
            self.check_trainable(request.base)
            if files:
                request = _with_uploads(request, keep_files(service.store, chosen, files))
            tune = submit_tune(
                self.registry,
                service.store,
                service.catalog,
                service.settings,
                self._uploaded(request, chosen),
                account_id=self.account_id,
                origin="api",
                tune_id=chosen,
                also=self._keeper(view, prompt_views),
            )
        except (Failure, Problem):
            service.store.delete_prefix(f"tunes/{chosen}")
            raise
        self._accepted(tune.id)
        return tune

    def _accepted(self, subject_id: str) -> None:
        """Note what a request led to: for its log line, and because its pictures are spoken for now."""
        self.unclaimed.clear()
        if self.request is not None:
            self.request.state.subject = subject_id

    def drop_unclaimed(self) -> None:
        """Delete pictures of what was not accepted."""
        while self.unclaimed:
            self.service.store.delete(self.unclaimed.pop())

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

    def _keeper(
        self, view: View, prompt_views: Sequence[View], rehearse: bool = False
    ) -> Callable[[Session, Tune, list[Prompt]], None]:
        def keep(session: Session, tune: Tune, prompts: list[Prompt]) -> None:
            self._keep(session, tune.id, view)
            for prompt, its in zip(prompts, prompt_views, strict=True):
                self._keep(session, prompt.id, its)
            if rehearse:
                raise _Rehearsal

        return keep

    def _keep(self, session: Session, subject_id: str, view: View) -> None:
        now = self.registry.now()
        token = view.upload_token
        minutes = self.service.options.upload_token_minutes
        session.add(
            ApiObject(
                id=subject_id,
                account_id=self.account_id,
                dialect=view.dialect,
                public_id=view.public_id,
                asked=self._asked(view),
                events=list(view.events),
                on_unknown=view.on_unknown,
                base_url=self.base_url,
                group_id=view.group_id,
                upload_hash=token_hash(token) if token else None,
                upload_expires_at=now + timedelta(minutes=minutes) if token else None,
                created_at=now,
            )
        )
        reserve(session, self.account_id, subject_id, view.price, now)

    def _asked(self, view: View) -> dict[str, Any]:
        """Return what is kept of a request, with its id, which the pipeline's log lines carry on."""
        known = getattr(self.request.state, "id", None) if self.request is not None else None
        return {**view.asked, "request_id": known} if known else view.asked

    def accept_prompt(self, request: PromptRequest, view: View) -> Prompt:
        """Accept a prompt on one of the account's tunes or on a plain base; see `accept_prompts`."""
        return self.accept_prompts([(request, view)])[0]

    def accept_prompts(self, orders: Sequence[tuple[PromptRequest, View]]) -> list[Prompt]:
        """Accept prompts.

        Raises:
            Rehearsed: In place of accepting, when the call is a rehearsal.
        """
        if is_rehearsing(self.request):
            raise Rehearsed(self._rehearsed_prompts(orders))
        prompts = [self._prompt(request, view) for request, view in orders]
        for prompt in prompts:
            self._accepted(prompt.id)
        return prompts

    def _prompt(self, request: PromptRequest, view: View, rehearse: bool = False) -> Prompt:
        from tunes_dagster.service.submit import DEFAULT_BASE, submit_prompt

        def also(session: Session, prompt: Prompt) -> None:
            self._keep(session, prompt.id, view)
            if rehearse:
                raise _Rehearsal

        service = self.service
        if request.tune is None:
            self.check_trainable(request.base or DEFAULT_BASE, tuned=False)
        request, meant = self._on_its_tune(request, dict(view.meant))
        return submit_prompt(
            self.registry,
            service.catalog,
            service.settings,
            request,
            account_id=self.account_id,
            origin="api",
            store=service.store,
            meant=meant,
            also=also,
        )

    def is_long(self, text: str) -> bool:
        """Whether a text stands for one that is too long to be kept in memory: a picture or an archive."""
        return self.request is not None and text in self.request.long_texts

    def picture(self, name: str, value: str | None) -> str | None:
        """Return a picture that a caller named in a text field: a URL, base64 or a data URI; a long one by its key.

        Raises:
            Problem: 422 for a key of the store: those lead to files that may be somebody else's.
        """
        if value is not None and self.request is not None and value in self.request.long_texts:
            return self._kept(Base64File(self.request.long_texts[value], name))
        if value and value.startswith(_KEYS):
            raise invalid(name, "is neither an http(s) URL, nor a data URI, nor base64")
        return value or None

    def keep_picture(self, file: UploadFile) -> str:
        """Copy an uploaded picture into the store and return its key, for a prompt to start from."""
        file.file.seek(0)
        return self._kept(file.file)

    def _kept(self, content: IO[bytes] | Base64File) -> str:
        key = f"uploads/{new_id('up')}.picture"
        self.unclaimed.append(key)
        return self.service.store.write_stream(key, content)

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
        except Failure:
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

    # Trying

    def _rehearsed_tune(
        self, request: TuneRequest, view: View, prompt_views: Sequence[View]
    ) -> dict[str, Any]:
        """Return what accepting a tune would cost and take, and why it would be refused; keeps nothing."""
        from tunes_dagster.service.submit import submit_tune

        service, chosen = self.service, new_id("tune")

        def attempt() -> None:
            self.check_trainable(request.base)
            try:
                submit_tune(
                    self.registry,
                    service.store,
                    service.catalog,
                    service.settings,
                    self._uploaded(request, chosen),
                    account_id=self.account_id,
                    origin="api",
                    tune_id=chosen,
                    also=self._keeper(view, prompt_views, rehearse=True),
                )
            finally:
                service.store.delete_prefix(f"tunes/{chosen}")

        price = view.price + sum(one.price for one in prompt_views)
        callbacks = [request.callback_url, *(prompt.callback_url for prompt in request.prompts)]
        return self._report([attempt], price, self.estimated_seconds(request.base), callbacks)

    def _rehearsed_prompts(self, orders: Sequence[tuple[PromptRequest, View]]) -> dict[str, Any]:
        """The same for prompts."""
        attempts = [partial(self._prompt, request, view, rehearse=True) for request, view in orders]
        seconds = 2.0 * sum(request.settings.num_images for request, _view in orders)
        callbacks = [request.callback_url for request, _view in orders]
        return self._report(attempts, sum(view.price for _request, view in orders), seconds, callbacks)

    def _report(
        self,
        attempts: Sequence[Callable[[], Any]],
        price: int,
        seconds: float,
        callbacks: Sequence[str | None],
    ) -> dict[str, Any]:
        refused: dict[str, None] = {}
        for attempt in attempts:
            try:
                attempt()
            except _Rehearsal:
                pass
            except Failure as failure:
                refused[of_failure(failure).message] = None
            except Problem as problem:
                refused[problem.message] = None
        urls = list(dict.fromkeys(url for url in callbacks if url))[:3]
        return {
            "dry_run": True,
            "price_usd": price / 1_000_000,
            "available_usd": self.wallet().available / 1_000_000,
            "estimated_minutes": round(seconds / 60, 1),
            "would_be_refused": list(refused),
            "callbacks": self._tried(urls),
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

    # Looking

    def tune(self, key: str | int, what: str = "Tune") -> tuple[Tune, ApiObject | None]:
        """Return one of the account's tunes.

        Raises:
            Problem: 404.
        """
        found = self.registry.find_tune(self.account_id, key)
        if found is None:
            raise not_found(what)
        return found

    def prompt(self, key: str | int, what: str = "Prompt") -> tuple[Prompt, ApiObject | None]:
        """Return one of the account's prompts.

        Raises:
            Problem: 404.
        """
        found = self.registry.find_prompt(self.account_id, key)
        if found is None:
            raise not_found(what)
        return found

    def wallet(self) -> Wallet:
        """Return what the account may spend."""
        return self.registry.get_wallet(self.account_id)

    def price(self, dialect: str, item: str) -> int:
        """Return a price in micro-dollars."""
        return self.service.prices.micro(dialect, item)

    def entry(self, base: str) -> BaseModelEntry:
        """Return the catalog's entry that a word means."""
        return self.service.catalog.resolve(base)

    def url(self, key: str, since: datetime | None, hours: float | None = None) -> str:
        """Return a signed URL of a file, which leads there until so many hours after a moment."""
        life = timedelta(hours=hours or self.service.options.picture_url_hours)
        return file_url(self.service.secret, self.base_url, key, (since or clock.now()) + life)

    def images(self, prompt: Prompt, hours: float | None = None) -> list[str]:
        """Return the URLs of a prompt's pictures."""
        return [self.url(key, prompt.done_at, hours) for key in prompt.images or []]

    def progress(self, prompt: Prompt) -> float:
        """Return how far a prompt is, in percent: as far as the batch that it is rendered in."""
        if prompt.status == "done":
            return 100.0
        batch = self.registry.get_batch(prompt.batch_id) if prompt.batch_id else None
        return round(batch.progress, 1) if batch is not None else 0.0

    # Ending

    def delete_tune(self, tune: Tune) -> None:
        """Delete a tune with everything that was made of its pictures; prompts that wait for it are cancelled.

        It is gone for its owner at once; the files follow behind the answer, and what a dying server leaves is
        removed by the daily housekeeping.
        """
        from tunes_dagster.service.erase import erase_tunes

        gone = self.registry.delete_tune(tune.id, by_caller=True)
        self.service.later(erase_tunes, self.registry, self.service.store, [gone], rule="asked over HTTP")

    def delete_prompt(self, prompt: Prompt) -> None:
        """Cancel a prompt that is open, and take its pictures away."""
        if prompt.status in ("waiting", "queued", "rendering"):
            self.registry.cancel_prompt(prompt.id, by_caller=True)
        from tunes_dagster.service.erase import erase_outputs

        self.registry.hide_prompt(prompt.id)
        self.service.later(erase_outputs, self.registry, self.service.store, [prompt])


def _with_uploads(request: TuneRequest, keys: Sequence[str]) -> TuneRequest:
    sources = request.sources.model_copy(update={"uploads": [*request.sources.uploads, *keys]})
    return request.model_copy(update={"sources": sources})


def refuse(name: str, why: str) -> NoReturn:
    """Refuse a field by name."""
    raise invalid(name, why)


def token_hash(token: str) -> str:
    """Return what is kept of an upload token."""
    return hashlib.sha256(token.encode()).hexdigest()


def desk_for(service: Service, account_id: str, base_url: str) -> Desk:
    """Return the desk of an account without a request: for callbacks, and for bearers of an upload token."""
    return Desk(service, Caller(account_id, "", 0, {}), base_url)

"""The door of the library: every request for a tune or a prompt is checked, completed and made a row here.

What is refused is refused now, by name, before anything is queued; what is left open (seed, size, steps of a
render, the base's training defaults) is filled in now, so that the row always says what was really done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.recipe import PromptRequest, TuneRequest
from tunes_dagster.core.wishes import Unmet, Wishes
from tunes_dagster.families.catalog import AuxiliaryEntry, BaseModelEntry
from tunes_dagster.intake.subject import is_style
from tunes_dagster.registry import Prompt, Tune
from tunes_dagster.registry.prompts import NewPrompt
from tunes_dagster.registry.tunes import NewTune
from tunes_dagster.service.checks import check_callback_url, check_id, check_sources, check_training
from tunes_dagster.service.companions import missing
from tunes_dagster.service.completing import Completed, Own, complete_within, completed_prompt
from tunes_dagster.service.continuing import check_same_base, continued
from tunes_dagster.service.naming import Named, named_tune
from tunes_dagster.service.quote import import_price, prompt_price, tune_price

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation

# Of a name: `coffee mug` is one thing, `red coffee mug` describes one.
_MANY_WORDS = 3


@dataclass(frozen=True, kw_only=True)
class Handed:
    """Weights that are taken in instead of trained; see `service/importing.py`.

    Attributes:
        name: Of the file.
        key: Where it lies in the store; empty when it is still to be fetched.
        url: Where it is fetched from.
        sha256: Of the file; empty when it is still to be fetched.
        config: What is known of its strength from elsewhere.
        doubts: What is unusual, in the form of wishes that are not met.
    """

    name: str
    key: str = ""
    url: str = ""
    sha256: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    doubts: tuple[Unmet, ...] = ()

    def as_recipe(self) -> dict[str, Any]:
        """Return what a tune's recipe says of it."""
        said = {"name": self.name, "key": self.key, "url": self.url, "sha256": self.sha256}
        return {**said, "config": dict(self.config)}


def submit_tune(
    installation: Installation,
    request: TuneRequest,
    *,
    account_id: str = "local",
    origin: str = "cli",
    allow_folder: str | Sequence[str] | None = None,
    tune_id: str | None = None,
) -> Tune:
    """Accept a tune; see `new_tune`.

    Returns:
        The tune: queued, or awaiting_images when no source was named.
    """
    new = new_tune(
        installation,
        request,
        account_id=account_id,
        origin=origin,
        allow_folder=allow_folder,
        tune_id=tune_id,
    )
    return installation.registry.tunes.accept(new).tune


def new_tune(
    installation: Installation,
    request: TuneRequest,
    *,
    account_id: str = "local",
    origin: str = "cli",
    allow_folder: str | Sequence[str] | None = None,
    tune_id: str | None = None,
    handed: Handed | None = None,
) -> NewTune:
    """Return a tune that can be accepted: its request is checked and completed, its payloads lie in the store.

    Args:
        installation: Where the row and base64 pictures go; says what the base means.
        request: As handed in.
        account_id: Who asks.
        origin: cli, api, drop, ui, demo.
        allow_folder: Folders that this request may name beside those that the operator allows; what the
            command line was given.
        tune_id: Id, when it exists already as a partition; None makes one.
        handed: Weights that take the place of training; then it needs no pictures.

    Raises:
        Failure: `INVALID_REQUEST`, `UNKNOWN_BASE`, `BASE_NOT_INSTALLED`, `SOURCE_REFUSED`, `CONFLICT`,
            `OUT_OF_CREDITS`; nothing is kept then.
    """
    registry, settings = installation.registry, installation.settings
    request, continues = continued(registry, request, account_id)
    entry = _base_of_tunes(installation, request.base)
    check_same_base(continues, entry)
    wishes = Wishes(settings.unmet_wishes)
    request = check_training(installation, request, entry, wishes)
    chosen = check_id(tune_id) if tune_id else new_id("tune")
    request = check_sources(request, chosen, settings, allow_folder)
    check_callback_url(request.callback_url, settings)
    named = Named(installation, entry, account_id)
    completed = _completed(installation, request, entry, named)
    complete = request.model_copy(update={"prompts": [one.request for one in completed]})
    recipe = make_recipe(complete, entry, continues)
    if handed is not None:
        recipe["imported"] = handed.as_recipe()
    if registry.tunes.has(chosen):
        raise Failure(FailureCode.CONFLICT, f"The tune {chosen} exists already.", "Use another id.")
    from tunes_dagster.intake.payloads import move_payloads

    complete = move_payloads(complete, installation.store, chosen)
    price = import_price if handed is not None else tune_price
    doubts = handed.doubts if handed is not None else ()
    return NewTune(
        request=complete,
        id=chosen,
        base_id=entry.base_id,
        recipe=recipe,
        account_id=account_id,
        origin=origin,
        status=_first_status(complete, handed),
        prompts=_its_prompts(installation, complete, completed, named),
        price=price(installation.prices, installation.catalog, complete),
        warnings=[*wishes.told(), *_doubts(request), *_lacking(installation), *doubts],
    )


def _completed(
    installation: Installation, request: TuneRequest, entry: BaseModelEntry, named: Named
) -> list[Completed]:
    """Return the prompts inside of a tune with everything filled in."""
    own = Own(request.training.kind, request.class_name, request.characteristics)
    return [
        complete_within(one, entry, installation, own=own, asked=request.base, named=named)
        for one in request.prompts
    ]


def _its_prompts(
    installation: Installation, request: TuneRequest, completed: Sequence[Completed], named: Named
) -> list[NewPrompt]:
    """Return the prompts inside of a tune that is complete, each at its price."""
    prompts = []
    for one, done in zip(request.prompts, completed, strict=True):
        tags = tuple(named.tags(one.text))
        price = prompt_price(
            installation.prices,
            installation.catalog,
            request.base,
            one.settings,
            tuned=True,
            worn=[named.seen[use.word].base for use in tags],
        )
        prompts.append(
            NewPrompt(request=one, base_id=done.entry.base_id, tags=tags, price=price, warnings=done.warnings)
        )
    return prompts


def _first_status(request: TuneRequest, handed: Handed | None) -> str:
    if not request.sources.empty:
        return "queued"
    return "awaiting_images" if handed is None else "prepared"


def _base_of_tunes(installation: Installation, word: str) -> BaseModelEntry:
    """Return the base that a word means and tunes can be made on."""
    entry, _folder = installation.usable(word)
    if isinstance(entry, AuxiliaryEntry):
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"No tune is made on {entry.base_id!r}, a model for {entry.family}.",
            f"Choose one of {', '.join(installation.catalog.entries)}.",
        )
    return entry


def _doubts(request: TuneRequest) -> list[Unmet]:
    """Return what is accepted and hardly meant, in the form of wishes that are not met."""
    said, words = list[Unmet](), request.class_name.split()
    if request.token.lower() in request.class_name.lower().split():
        why = (
            f"is a word of the name ({request.token}): what the base knows by it and what it learns mix; "
            "a rare word like ohwx keeps them apart"
        )
        said.append(Unmet("token", why))
    if len(words) >= _MANY_WORDS and not is_style(request.class_name):
        why = (
            f"has {len(words)} words: each caption and prompt must hold all of them; "
            "one that the base knows is enough"
        )
        said.append(Unmet("name", why))
    return said


def _lacking(installation: Installation) -> list[Unmet]:
    """Return what a tune will go without for want of a model beside its base."""
    return [
        Unmet(one.entry.base_id, f"is not installed: {one.without}. {one.remedy}")
        for one in missing(installation.settings, installation.catalog)
    ]


def submit_prompt(
    installation: Installation,
    request: PromptRequest,
    *,
    account_id: str = "local",
    origin: str = "cli",
    meant: Mapping[str, str] | None = None,
) -> Prompt:
    """Accept a prompt, on a tune or on a plain base; see `new_prompts`."""
    new = new_prompts(installation, [AskedPrompt(request, meant or {})], account_id)
    return installation.registry.prompts.accept(new, account_id=account_id, origin=origin).prompts[0]


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt as it is handed in.

    Attributes:
        request: The request.
        meant: Word → id of tunes that are settled already, because an earlier prompt is asked for again.
        quality: Word of an API for a preset that it sells by name; see `quote.prompt_price`.
    """

    request: PromptRequest
    meant: Mapping[str, str] = field(default_factory=dict)
    quality: str = ""


def new_prompts(
    installation: Installation, asked: Sequence[AskedPrompt], account_id: str = "local"
) -> list[NewPrompt]:
    """Return prompts that can be accepted, on tunes or on plain bases, with every setting and the seed filled in.

    Args:
        installation: Where base64 pictures go; says what the bases mean.
        asked: As handed in.
        account_id: Who asks.

    Raises:
        Failure: `INVALID_REQUEST`, `UNKNOWN_TUNE`, `UNKNOWN_BASE`, `BASE_NOT_INSTALLED`, `CONFLICT`, `OUT_OF_CREDITS`.
    """
    registry, catalog, prices = installation.registry, installation.catalog, installation.prices
    new = []
    for one in asked:
        request, seen = one.request, dict[str, Tune]()
        tune = named_tune(registry, account_id, request.tune, one.meant) if request.tune else None
        done = completed_prompt(
            installation, request, tune, account_id=account_id, meant=one.meant, seen=seen
        )
        tuned = tune is not None or bool(done.tags)
        price = prompt_price(
            prices,
            catalog,
            tune.base if tune else done.asked,
            done.request.settings,
            tuned=tuned,
            quality=one.quality,
            worn=[seen[use.word].base for use in done.tags],
        )
        new.append(
            NewPrompt(
                request=done.request,
                base_id=done.entry.base_id,
                base=done.asked,
                tune_id=tune.id if tune else None,
                tags=done.tags,
                price=price,
                warnings=done.warnings,
            )
        )
    return new


def make_recipe(
    request: TuneRequest, entry: BaseModelEntry, continues: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return everything known at submission that decides the result; steps may still be None.

    Args:
        request: The request.
        entry: The base that is really trained on.
        continues: The tune whose weights are the start, from `continued`; empty or None for none.
    """
    return {
        **({"continues": continues} if continues else {}),
        **({"one_picture": True} if request.dataset.one_picture else {}),
        "name": request.class_name,
        "token": request.token,
        "base": request.base,
        "branch": entry.base_id,
        "repo_id": entry.repo_id,
        "revision": entry.revision,
        "dataset": request.dataset.model_dump(mode="json"),
        "captions": dict(request.captions),
        "training": entry.training_options(request.training).model_dump(mode="json"),
    }

"""Completing prompts: every setting and the seed filled in from the base that renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import PromptRequest, TuneRequest
from tunes_dagster.core.wishes import Unmet, Wishes
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.registry import Tune, Use
from tunes_dagster.service.checks import check_callback_url
from tunes_dagster.service.naming import Named

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation

# What a prompt renders on that names neither tune nor base: what a tune would be trained on.
DEFAULT_BASE = str(TuneRequest.model_fields["base"].default)


@dataclass(frozen=True)
class Completed:
    """A prompt that can be accepted.

    Attributes:
        request: With everything filled in.
        entry: The base that renders it.
        asked: The base as asked.
        tags: The tunes that tags in its text name.
        warnings: What was wished for and is not met.
    """

    request: PromptRequest
    entry: BaseModelEntry
    asked: str
    tags: tuple[Use, ...] = ()
    warnings: Sequence[Unmet] = ()


def completed_prompt(
    installation: Installation,
    request: PromptRequest,
    tune: Tune | None,
    *,
    account_id: str = "local",
    meant: Mapping[str, str] | None = None,
    seen: dict[str, Tune] | None = None,
) -> Completed:
    """Return a prompt with everything filled in, and the tunes that it names.

    Args:
        installation: Knows bases, and the tunes that tags in the text name. Base64 pictures are written into its
            store; nothing else is.
        request: As handed in.
        tune: That it names.
        account_id: Whose tunes tags may name.
        meant: See `submit_prompt`.
        seen: See `Named`; for many prompts at once.

    Raises:
        Failure: As `submit_prompt`.
    """
    if tune is not None:
        home, _folder = installation.usable(tune.base_id)
        asked = request.base or tune.base
    else:
        asked = request.base or DEFAULT_BASE
        home, _folder = installation.usable(asked)
    named = Named(installation, home, account_id, meant, seen)
    completed = complete_within(
        request,
        home,
        installation,
        asked=asked,
        own=Own.of(tune) if tune is not None else None,
        named=named,
    )
    return replace(completed, tags=tuple(named.tags(completed.request.text)))


@dataclass(frozen=True)
class Own:
    """What is to be known of a prompt's own tune.

    Attributes:
        kind: Of tune.
        class_name: Of its subject.
        characteristics: Of its subject.
        id: Empty while the tune does not exist yet.
    """

    kind: str
    class_name: str
    characteristics: Mapping[str, str]
    id: str = ""

    @classmethod
    def of(cls, tune: Tune) -> Own:
        """Return it of a tune that exists."""
        known = (tune.request or {}).get("characteristics") or {}
        return cls(tune.kind, tune.class_name, dict(known), tune.id)


def complete_within(
    request: PromptRequest,
    home: BaseModelEntry,
    installation: Installation,
    *,
    own: Own | None = None,
    asked: str = "",
    named: Named,
) -> Completed:
    """Return the prompt with its settings checked and filled from the base that renders it, with a seed; without tags.

    Args:
        request: As handed in.
        home: The base that its tunes were made on.
        installation: Knows bases; keeps pictures that come with it.
        own: Its tune; one that does not exist yet when the prompt came inside of it, and then it may name no other.
        asked: The base by the caller's word.
        named: Looks up the tunes that tags name.
    """
    from tunes_dagster.rendering.siblings import rendering_base
    from tunes_dagster.rendering.submission import PromptContext, complete_prompt

    catalog, settings = installation.catalog, installation.settings
    if own is not None and not own.id and request.tune is not None:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The prompt {request.text[:60]!r} names the tune {request.tune!r}, but it is part of a new tune.",
            "Leave `tune` out here, or submit the prompt by itself.",
        )
    kinds = [own.kind] if own is not None else []
    entry = rendering_base(request, home, [*kinds, *named.kinds(request.text)], catalog, settings)
    if request.base is not None and not catalog.fits(home, request.base):
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The prompt asks for the base {request.base!r}, but its tune was made on {home.base_id!r}.",
            "Leave `base` out: a tune only fits the base it was made on, and that one's sibling if it has one.",
        )
    check_callback_url(request.callback_url, settings)
    base = catalog.resolve(asked) if asked else entry
    wishes = Wishes(settings.unmet_wishes)
    store = installation.store.naming(installation.registry.blobs.hold)
    subjects = [own.class_name] if own is not None else []
    context = PromptContext(
        base,
        entry,
        catalog,
        settings,
        store,
        own.characteristics if own is not None else {},
        named,
        tuned=own is not None,
        own_tag=own is not None and any(use.tune_id == own.id for use in named.tags(request.text)),
        subjects=[*subjects, *named.subjects(request.text)],
        owns=named.owns_picture,
        wishes=wishes,
    )
    named.check_sums(request.text)
    complete = complete_prompt(request, context)
    return Completed(complete, entry, asked, warnings=wishes.told())

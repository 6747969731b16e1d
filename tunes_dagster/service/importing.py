"""Taking in weights that another program made: a tune whose training was done elsewhere.

A file that is here is looked through in a child process and held against its base before it is accepted; one that is
still to be fetched is refused later, by its work, which does the same. From then on it is a tune like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.recipe import ImportRequest, TrainingOptions, TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.wishes import Unmet
from tunes_dagster.families.catalog import AuxiliaryEntry, BaseModelEntry
from tunes_dagster.intake.weights import Found, LookedAt, look_at
from tunes_dagster.registry import Tune
from tunes_dagster.registry.accepting import Acceptance, Accepted
from tunes_dagster.registry.retrying import may_have_been_kept
from tunes_dagster.service.submit import Handed, new_tune
from tunes_dagster.training.files import sha256_of
from tunes_dagster.training.foreign.fitting import check_known
from tunes_dagster.training.foreign.names import Entry, Reading, read_names
from tunes_dagster.training.foreign.scales import check_strength, read_scales
from tunes_dagster.training.foreign.shapes import looks_like, why_not

if TYPE_CHECKING:
    from tunes_dagster.intake.guard import Guard
    from tunes_dagster.service.installation import Installation

# What a subject is called that nobody named.
_SUBJECT, _TOKEN = "subject", "ohwx"
_OURS = "tunes_dagster."


@dataclass(frozen=True)
class Recognised:
    """A file and the base that it is for.

    Attributes:
        entry: The base.
        word: That the file teaches.
        words: Whether it teaches one.
        header: Its metadata.
        doubts: What its owner should know, in the form of wishes that are not met.
        says_alpha: Whether each layer says its alpha.
    """

    entry: BaseModelEntry
    word: str
    words: bool
    header: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[Unmet, ...] = ()
    says_alpha: bool = False


def import_weights(
    installation: Installation,
    request: ImportRequest,
    found: Found | None = None,
    *,
    account_id: str = "local",
    allow_folder: str | None = None,
) -> Tune:
    """Accept weights as a tune; see `accept_weights`."""
    return accept_weights(installation, request, found, account_id=account_id, allow_folder=allow_folder).tune


def accept_weights(
    installation: Installation,
    request: ImportRequest,
    found: Found | None = None,
    *,
    account_id: str = "local",
    allow_folder: str | None = None,
    acceptance: Acceptance | None = None,
) -> Accepted:
    """Accept weights as a tune.

    Args:
        installation: Where the row and the file go; says what bases there are.
        request: What was said of it.
        found: The file; None when `request.url` is to be fetched by the work.
        account_id: Who asks.
        allow_folder: A folder of pictures that the request may name.
        acceptance: What the caller wants to be kept with it.

    Returns:
        The tune: waiting for its pictures to be prepared when some were given, else to be taken in.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` for a file that cannot be taken whole, `INVALID_REQUEST` when nobody knows its base,
            and what `new_tune` raises; nothing is kept then.
    """
    store, chosen = installation.store, new_id("tune")
    if found is None:
        complete, handed = _to_be_fetched(request, installation.settings)
    else:
        complete, handed = _taken_in(installation, request, found, chosen)
    try:
        new = new_tune(
            installation,
            complete,
            account_id=account_id,
            origin="import",
            allow_folder=allow_folder,
            tune_id=chosen,
            handed=handed,
        )
        accepted = installation.registry.tunes.accept(new, acceptance)
    except BaseException as refused:
        if not may_have_been_kept(refused):
            store.delete_prefix(f"tunes/{chosen}")
        raise
    if acceptance is not None and acceptance.dry_run:
        store.delete_prefix(f"tunes/{chosen}")
    return accepted


def _to_be_fetched(request: ImportRequest, settings: Settings) -> tuple[TuneRequest, Handed]:
    """Return the request of a tune whose weights are still elsewhere, and what is known of these."""
    check_address(request.url, settings)
    if request.base is None:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "Which base the weights are for is known only once they are here.",
            "Name it with `base`, or upload the file.",
        ).about("base")
    name = request.url.rpartition("/")[2][:200] or "weights"
    return _as_tune(request, None), Handed(name=name, url=request.url, config=_strength(request))


def _taken_in(
    installation: Installation, request: ImportRequest, found: Found, tune_id: str
) -> tuple[TuneRequest, Handed]:
    """Return the request of a tune whose weights are here, and these, which lie in the store then."""
    config = {**_strength(request), **found.config}
    looked = look_at(found.path, found.name, installation.settings.import_max_mb)
    seen = recognise(looked, installation, request.base, config)
    key = installation.store.write_file(f"tunes/{tune_id}/uploads/weights.safetensors", found.path)
    handed = Handed(
        name=found.name,
        key=key,
        sha256=sha256_of(found.path),
        config=config,
        doubts=(*seen.doubts, *_idle_alpha(request, found, seen)),
    )
    return _as_tune(request, seen), handed


def _strength(request: ImportRequest) -> dict[str, Any]:
    return {"lora_alpha": request.alpha} if request.alpha else {}


def _idle_alpha(request: ImportRequest, found: Found, seen: Recognised) -> Iterator[Unmet]:
    """Yield that an alpha was given for a file which says its own."""
    beside = found.config.get("lora_alpha") is not None
    if request.alpha is not None and (beside or seen.says_alpha):
        who = "adapter_config.json" if beside else "each layer of the file"
        yield Unmet("alpha", f"is {request.alpha:g}, but {who} says one, which counts: it is left out")


def check_address(url: str, settings: Settings) -> None:
    """Refuse an address that is not fetched from.

    Raises:
        Failure: `SOURCE_REFUSED`, `INVALID_REQUEST`.
    """
    from tunes_dagster.intake.guard import Guard

    if url.startswith("hf://"):
        return
    guard: Guard = Guard(settings.allow_hosts)
    try:
        guard.check_url(url)
    except Failure as failure:
        failure.about("url")
        raise


def recognise(
    looked: LookedAt, installation: Installation, base: str | None, config: Mapping[str, Any]
) -> Recognised:
    """Return which base a file is for.

    Args:
        looked: The file.
        installation: Knows the bases.
        base: That was named; None asks the file.
        config: See `Found`.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`, `INVALID_REQUEST`.
    """
    entries = {key: Entry(key, kind, shape) for key, (kind, shape) in looked.tensors.items()}
    reading = read_names(entries.values())
    check_known(reading)
    check_strength(reading.bare, read_scales(looked.metadata, config))
    word = next(iter(reading.words), "")
    if base is not None:
        entry, folder = _base(installation, base)
        if failure := why_not(reading, entries, entry, folder):
            raise failure
        return Recognised(entry, word, bool(reading.words), looked.metadata, (), reading.says_alpha)
    fitting = _fitting(reading, entries, installation)
    entry = fitting[0]
    named = looked.metadata.get(f"{_OURS}base")
    entry = next((one for one in fitting if one.base_id == named), entry)
    others = [one.base_id for one in fitting if one.base_id != entry.base_id]
    doubts: tuple[Unmet, ...] = ()
    if others and entry.base_id != named:
        doubts = (
            Unmet(
                "base",
                f"was not named: the file fits {entry.base_id}, which was taken, and {', '.join(others)} as well",
            ),
        )
    return Recognised(entry, word, bool(reading.words), looked.metadata, doubts, reading.says_alpha)


def _base(installation: Installation, word: str) -> tuple[BaseModelEntry, Path]:
    entry, folder = installation.usable(word)
    if isinstance(entry, AuxiliaryEntry):
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{entry.base_id!r} is a model for {entry.family}, which no LoRA is for.",
            f"Choose one of {', '.join(installation.catalog.entries)}.",
        ).about("base")
    return entry, folder


def _fitting(
    reading: Reading, entries: Mapping[str, Entry], installation: Installation
) -> list[BaseModelEntry]:
    """Return the installed bases that a file fits, each once, in the catalog's order."""
    found: dict[str, BaseModelEntry] = {}
    last: Failure | None = None
    catalog, bases = installation.catalog, installation.settings.bases_folder
    for listed in catalog.entries.values():
        entry = catalog.real(listed)
        folder = entry.location(bases)
        if entry.base_id in found or not folder.is_dir():
            continue
        why = why_not(reading, entries, entry, folder)
        if why is None:
            found[entry.base_id] = entry
        elif last is None or why.facts["missing"] < last.facts["missing"]:
            last = why  # of the base that it comes closest to
    if not found:
        like = looks_like(entries)
        made_for = f" It looks like one for {like}." if like else ""
        known = "" if last is None or like else f" {last.message}"
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The file fits none of the bases that are installed here.{made_for}{known}",
            "Install its base (`tunes bases list`, `tunes bases pull`), or name it with `base`.",
        )
    return list(found.values())


def _as_tune(request: ImportRequest, seen: Recognised | None) -> TuneRequest:
    """Return the request for the tune that the weights become."""
    header = seen.header if seen else {}
    name = request.name or header.get(f"{_OURS}class_name", "") or _SUBJECT
    token = request.token or (seen.word if seen else "") or header.get(f"{_OURS}token", "") or _TOKEN
    title = request.title or header.get("modelspec.title", "")[:200] or name
    return TuneRequest.model_validate(
        {
            "name": name[:60],
            "title": title,
            "token": "".join(c if c.isalnum() or c in "-_" else "-" for c in token)[:40],
            "base": request.base or (seen.entry.base_id if seen else None),
            "sources": request.sources.model_dump(),
            "training": TrainingOptions(kind="pti" if seen and seen.words else "lora"),
            "prompts": [one.model_dump(exclude_unset=True) for one in request.prompts],
            "callback_url": request.callback_url,
            "labels": request.labels,
        }
    )

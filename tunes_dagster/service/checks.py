"""What is refused of a request by itself: ids, addresses, sources, training that cannot be done."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.wishes import Wishes
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.ipadapter import adapter_for
from tunes_dagster.training.checks import check_tune

if TYPE_CHECKING:
    from tunes_dagster.intake.guard import Guard
    from tunes_dagster.service.installation import Installation

# What means something in partition keys and selections of Dagster's, in paths, or in tags of prompts.
_FORBIDDEN_IN_IDS = ("...", *"|/\\,:;<>[]{}()*?\"'`")
# Bytes: `.<id>-kohya.safetensors.<random>` is a file name, too.
_LONGEST_ID = 160


def check_training(
    installation: Installation, request: TuneRequest, entry: BaseModelEntry, wishes: Wishes
) -> TuneRequest:
    """Return the request with options that can be trained on its base.

    Args:
        installation: Knows the bases and what is installed beside them.
        request: As handed in.
        entry: The base that is really used.
        wishes: Told what is not met.

    Raises:
        Failure: `INVALID_REQUEST`, `BASE_NOT_INSTALLED`.
    """
    catalog, settings = installation.catalog, installation.settings
    checked = check_tune(request, catalog.resolve(request.base), entry, settings, wishes)
    if checked.training.kind == "faceid":
        adapter_for(catalog, entry, settings.bases_folder)
    return checked


def check_id(text: str) -> str:
    """Return an id that a person typed when it can be a partition key, a folder and file of the store, and in a tag.

    Dagster's selections of partitions give a meaning to commas, brackets, quotes and asterisks, `<lora:ID:0.8>` to
    colons and angle brackets; file names end at 255 bytes, of which other parts need some.

    Raises:
        Failure: `INVALID_REQUEST`.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    bad = (
        not text
        or len(text) > 80
        or size > _LONGEST_ID
        or text.startswith(".")
        or text != text.strip()
        or text != unicodedata.normalize("NFC", text)
        or any(part in text for part in _FORBIDDEN_IN_IDS)
        # Control characters, what shows nothing or turns text round, halves of letters, odd spaces.
        or any(unicodedata.category(letter)[0] in "CZ" and letter != " " for letter in text)
    )
    if bad:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{text[:90]!r} cannot be the id of a tune.",
            f"Use up to 80 letters and digits ({_LONGEST_ID} bytes in UTF-8), spaces, '-', '_' and '.' "
            f"between them; not {' '.join(_FORBIDDEN_IN_IDS)}.",
        )
    return text


def check_callback_url(url: str | None, settings: Settings, field: str = "callback_url") -> None:
    """Refuse a callback address that could never be delivered to.

    Args:
        url: As handed in.
        settings: The operator's.
        field: What it was handed in as.

    Raises:
        Failure: `SOURCE_REFUSED` for other schemes than http(s) and for addresses that lead inside.
    """
    if url is None:
        return
    from tunes_dagster.intake.guard import Guard

    _check_address(Guard(settings.allow_hosts), url, field)


def _check_address(guard: Guard, url: str, field: str) -> None:
    try:
        guard.check_url(url)
    except Failure as failure:
        failure.about(field)
        raise


def check_sources(
    request: TuneRequest, tune_id: str, settings: Settings, allow_folder: str | Sequence[str] | None
) -> TuneRequest:
    """Return the request with its folder as it was allowed.

    Raises:
        Failure: For a source that it may not name.
    """
    from tunes_dagster.intake.folders import check_folder, settled
    from tunes_dagster.intake.guard import Guard
    from tunes_dagster.intake.payloads import check_upload_key

    sources = request.sources
    guard = Guard(settings.allow_hosts)
    if sources.archive_url is not None:
        _check_address(guard, sources.archive_url, "archive_url")
    for url in sources.image_urls:
        _check_address(guard, url, "image_urls")
    for key in sources.uploads:
        check_upload_key(key, tune_id)
    if sources.folder is not None:
        extra = [allow_folder] if isinstance(allow_folder, str) else list(allow_folder or [])
        check_folder(sources.folder, [*settings.allow_folders, settings.resolved_drop_folder, *extra])
    named = len(sources.image_urls) + len(sources.images_base64)
    if named > request.dataset.max_pictures:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{named} pictures were handed in, but dataset.max_pictures is {request.dataset.max_pictures}.",
            "Send fewer pictures, or raise dataset.max_pictures.",
        )
    if sources.folder is None:
        return request
    return request.model_copy(
        update={"sources": sources.model_copy(update={"folder": settled(sources.folder)})}
    )

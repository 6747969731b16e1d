"""Pictures that come with a prompt: what is kept at submission, and how the renderer gets at them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from tunes_dagster.failures import Failure, FailureCode
from tunes_dagster.settings import Settings
from tunes_dagster.store import Store

# Keys that a request may name: what was uploaded, content by hash, and renders (whose ids cannot be guessed).
_KEYS = ("uploads/", "blobs/", "batches/")


def keep_picture(value: str, name: str, settings: Settings, store: Store | None) -> str:
    """Return what the row keeps of a picture: an address as it is, a payload as a key in the store.

    Args:
        value: URL, base64 text, data URI, or key.
        name: Of the setting, for messages.
        settings: The operator's.
        store: Where payloads go; None opens the operator's.

    Raises:
        Failure: `INVALID_REQUEST`, `PICTURE_UNREADABLE`, `SOURCE_REFUSED` for an address that leads inside.
    """
    from tunes_dagster.intake.guard import Guard
    from tunes_dagster.intake.payloads import decode_payload
    from tunes_dagster.intake.pictures import decode

    if value.lower().startswith(("http://", "https://")):
        Guard(settings.allow_hosts).check_url(value)
        return value
    place = store or Store(settings.resolved_store_url, settings.store_options)
    if value.startswith(_KEYS) and len(value) < 500:
        if ".." in value or not place.exists(value):
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"{name}: there is no file {value!r} in the store.",
                "Name an upload, a URL, or send the picture as base64.",
            )
        return value
    data, _ = decode_payload(value, name)
    decode(data, name)
    return place.write_blob(data, ".png" if data.startswith(b"\x89PNG") else ".picture")


def read_picture(value: str, store: Store, allow_hosts: list[str] | tuple[str, ...] = ()) -> Image.Image:
    """Return a picture that a prompt names, as RGB.

    Args:
        value: URL or key in the store.
        store: Where keys lie.
        allow_hosts: Hosts that an address may lead to although it is private.

    Raises:
        Failure: `SOURCE_UNREACHABLE`, `SOURCE_REFUSED`, `PICTURE_UNREADABLE`, `INVALID_REQUEST`.
    """
    from tunes_dagster.intake.pictures import decode

    if value.lower().startswith(("http://", "https://")):
        return decode(_download(value, allow_hosts), "the input image")
    try:
        return decode(store.read_bytes(value), "the input image")
    except FileNotFoundError as error:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The picture {value!r} is no longer in the store.",
            "Upload it again.",
        ) from error


def _download(url: str, allow_hosts: list[str] | tuple[str, ...]) -> bytes:
    from tunes_dagster.intake.fetch import Fetcher

    with tempfile.TemporaryDirectory() as folder, Fetcher(allow_hosts=tuple(allow_hosts)) as fetcher:
        return fetcher.fetch(url, Path(folder) / "input").path.read_bytes()

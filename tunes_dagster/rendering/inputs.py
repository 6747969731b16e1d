"""Pictures that come with a prompt: what is kept at submission, and how the renderer gets at them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tunes_dagster.core.failures import Failure, FailureCode, Problem
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.rendering.controls import control_map
from tunes_dagster.rendering.pictures import Picture
from tunes_dagster.rendering.sizes import enlarge

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase
    from tunes_dagster.rendering.aids import Aids

_RENDERED = "batches/"
# Keys that a request may name: what was uploaded and content by hash, which cannot be guessed, and one's own renders.
_KEYS = ("uploads/", "blobs/", _RENDERED)


def keep_picture(
    value: str,
    name: str,
    settings: Settings,
    store: Store | None,
    owns: Callable[[str], bool] | None = None,
) -> str:
    """Return what the row keeps of a picture: an address as it is, a payload as a key in the store.

    Args:
        value: URL, base64 text, data URI, or key.
        name: Of the setting, for messages.
        settings: The operator's.
        store: Where payloads go; None opens the operator's.
        owns: Whether a rendered picture may be named; None lets all be.

    Raises:
        Failure: `INVALID_REQUEST`, `PICTURE_UNREADABLE`, `SOURCE_REFUSED` for an address that leads inside.
    """
    from tunes_dagster.intake.guard import Guard
    from tunes_dagster.intake.payloads import decode_payload
    from tunes_dagster.intake.pictures import check

    if value.lower().startswith(("http://", "https://")):
        Guard(settings.allow_hosts).check_url(value)
        return value
    place = store or Store(settings.resolved_store_url, settings.store_options)
    if value.startswith(_KEYS) and len(value) < 500:
        place.need(value)
        foreign = value.startswith(_RENDERED) and owns is not None and not owns(value)
        if ".." in value or foreign or not place.exists(value):
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"{name}: there is no file {value!r} in the store.",
                "Name an upload, a URL, or send the picture as base64.",
                problems=(Problem(name, f"there is no file {value!r} in the store", alone=True),),
            )
        return value
    data, _ = decode_payload(value, name)
    try:
        check(data, name)
    except Failure as failure:
        failure.about(name)
        raise
    return place.write_blob(data, ".png" if data.startswith(b"\x89PNG") else ".picture")


def check_masks(settings: RenderSettings, store: Store) -> None:
    """Refuse a mask whose shape is not its picture's, when both lie in the store; addresses are read when rendering.

    Raises:
        Failure: `INVALID_REQUEST`.
    """
    from tunes_dagster.intake.pictures import size_of

    if not (settings.input_image and settings.mask_image):
        return
    picture, mask = settings.input_image, settings.mask_image
    if any(value.lower().startswith(("http://", "https://")) for value in (picture, mask)):
        return
    check_mask_size(
        size_of(store.read_bytes(mask), "mask_image"), size_of(store.read_bytes(picture), "input_image")
    )


def check_mask_size(mask: tuple[int, int], picture: tuple[int, int]) -> None:
    """Refuse a mask of another shape than its picture.

    Raises:
        Failure: `INVALID_REQUEST`.
    """
    from tunes_dagster.intake.pictures import same_shape

    if not same_shape(mask, picture):
        sizes = f"is {mask[0]} x {mask[1]}, but input_image is {picture[0]} x {picture[1]}"
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"mask_image {sizes}: their shapes differ.",
            "Draw the mask on the input image itself, at any size.",
            problems=(Problem("mask_image", sizes),),
        )


def read_picture(
    value: str, store: Store, allow_hosts: Sequence[str] = (), as_mask: bool = False
) -> Image.Image:
    """Return a picture that a prompt names, as RGB.

    Args:
        value: URL or key in the store.
        store: Where keys lie.
        allow_hosts: Hosts that an address may lead to although it is private.
        as_mask: Whether what is transparent counts as black.

    Raises:
        Failure: `SOURCE_UNREACHABLE`, `SOURCE_REFUSED`, `PICTURE_UNREADABLE`, `INVALID_REQUEST`.
    """
    from tunes_dagster.intake.pictures import decode

    name = "the mask image" if as_mask else "the input image"
    if value.lower().startswith(("http://", "https://")):
        return decode(_download(value, allow_hosts), name, as_mask=as_mask)
    try:
        return decode(store.read_bytes(value), name, as_mask=as_mask)
    except FileNotFoundError as error:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The picture {value!r} is no longer in the store.",
            "Upload it again.",
        ) from error


def _download(url: str, allow_hosts: Sequence[str]) -> bytes:
    from tunes_dagster.intake.fetch import Fetcher

    with tempfile.TemporaryDirectory() as folder, Fetcher(allow_hosts=tuple(allow_hosts)) as fetcher:
        return fetcher.fetch(url, Path(folder) / "input").path.read_bytes()


class Inputs:
    """The pictures that the prompts of a batch name, each read once.

    Args:
        store: Where keys lie.
        aids: Says which hosts may be private and which ControlNets there are.
    """

    def __init__(self, store: Store, aids: Aids) -> None:
        self._store, self._aids = store, aids
        self._read: dict[tuple[str, bool], Image.Image] = {}

    def picture(self, value: str, as_mask: bool = False) -> Image.Image:
        """Return a picture by URL or key."""
        if (value, as_mask) not in self._read:
            self._read[value, as_mask] = read_picture(value, self._store, self._aids.allow_hosts, as_mask)
        return self._read[value, as_mask]

    def mask(self, value: str, of: Image.Image) -> Image.Image:
        """Return the mask of a picture in grey, at its size.

        Raises:
            Failure: When it has another shape.
        """
        seen = self.picture(value, as_mask=True)
        check_mask_size(seen.size, of.size)
        return seen.convert("L").resize(of.size, Image.Resampling.BOX)

    def given(self, picture: Picture, settings: RenderSettings, base: LoadedBase) -> Picture:
        """Return a picture with what its settings give it to start from, at the size it is rendered at.

        Raises:
            Failure: When a picture cannot be read, or a ControlNet is not there.
        """
        if settings.input_image is None:
            return picture
        shape = picture.shape
        image = enlarge(self.picture(settings.input_image), shape.width, shape.height)
        pixels = np.asarray(image)
        if settings.controlnet is not None:
            base_id = self._aids.control_id(settings.controlnet, base.entry.family)
            shape = replace(shape, control=base_id)
            seen = np.asarray(control_map(settings.controlnet, image))
            picture = replace(picture, control=seen, control_scale=settings.controlnet_conditioning_scale)
        if settings.controlnet_txt2img:
            return replace(picture, shape=shape)
        strength = 0.8 if settings.denoising_strength is None else settings.denoising_strength
        mask = None
        if settings.mask_image is not None:
            whole = self.mask(settings.mask_image, self.picture(settings.input_image))
            grey = enlarge(whole, shape.width, shape.height)
            mask = (np.asarray(grey, np.float32) / 255 >= 0.5).astype(np.float32)
        shape = replace(shape, strength=strength, masked=mask is not None)
        return replace(picture, shape=shape, start=pixels, mask=mask)

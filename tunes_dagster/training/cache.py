"""Latents and text embeddings, computed once before the loop and kept in the store by content hash.

Keys name everything that decides the content (picture, crop, bucket, weights of the encoder), so entries are
never stale, are shared by all tunes, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageEnhance

from tunes_dagster.core.failures import Failure, FailureCode, detail_of, is_out_of_memory
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import Conditioning, Latents, LoadedBase
from tunes_dagster.intake.sandbox.pool import Session, get_pool
from tunes_dagster.training.jobs import TrainExample

if TYPE_CHECKING:
    import torch

# Rows per encoder call; small enough for the VAE at 1024 pixels beside a loaded UNet.
_TEXT_ROWS = 16
_PICTURE_PIXELS = 1024 * 1024
_READERS = 8


@dataclass
class CacheCount:
    """How many entries were asked for and how many lay in the store already."""

    asked: int = 0
    hits: int = 0

    def __str__(self) -> str:
        return f"{self.hits} of {self.asked} from the cache"


def in_parts(count: int, rows: int, work: Callable[[int, int], None]) -> None:
    """Call work(start, stop) over `count` rows in parts of `rows`, smaller ones when memory runs out.

    Raises:
        Failure: `OUT_OF_MEMORY` when not even one row fits.
    """
    done, size = 0, max(1, min(rows, count))
    while done < count:
        stop = min(count, done + size)
        try:
            work(done, stop)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise Failure(
                    FailureCode.OUT_OF_MEMORY,
                    "The device has no memory for encoding a single picture or caption.",
                    "Free the device's memory, or choose a lower resolution or a smaller base.",
                    detail_of(error),
                ) from error
            stop, size = done, size // 2
        if stop == done:  # outside of the handler, so that the traceback no longer holds the tensors
            from tunes_dagster.rendering.denoise import release_memory

            release_memory()
        done = stop


def digest(*parts: object) -> str:
    """Return a short hash of the parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def read_tensors(store: Store, key: str) -> dict[str, torch.Tensor] | None:
    """Return the tensors under a cache key, or None when there are none or they are damaged."""
    from safetensors.torch import load

    try:
        return load(store.read_bytes(key))
    except (FileNotFoundError, ValueError, OSError, RuntimeError):
        return None
    except Failure as failure:
        if failure.code == FailureCode.STORE_UNAVAILABLE:
            return None  # what is cached can be made again
        raise
    except Exception as error:  # safetensors' own error class is not exported under one name
        if type(error).__name__ == "SafetensorError":
            return None
        raise


def write_tensors(store: Store, key: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors under a cache key."""
    from safetensors.torch import save

    store.write_bytes(key, save({name: value.contiguous().cpu() for name, value in tensors.items()}))


def owner_note(tune_id: str, keys: Sequence[str]) -> str:
    """Return where it is noted which entries of the cache were made of a tune."""
    return f"tunes/{tune_id}/cached/{digest(*keys)}.json"


def note_owner(store: Store, owner: str, keys: Sequence[str]) -> None:
    """Note in the folder of a tune, before they are written, which entries are made of it: they are deleted with it.

    Args:
        store: Where cache and folder lie.
        owner: Id of the tune; empty notes nothing.
        keys: Of the entries.
    """
    if owner and keys:
        store.write_json(owner_note(owner, keys), list(keys))


def load_picture(store: Store, item: TrainExample, among: Session | None = None) -> Image.Image:
    """Return the item's crop, resized to its bucket with an area-true filter, mirrored and toned as it says.

    Args:
        store: Where the picture lies.
        item: Names it.
        among: More pictures of the same owner are opened there.

    Raises:
        Failure: `PICTURE_UNREADABLE` when the stored picture is missing or damaged.
    """
    picture = open_stored(store, item.key, "The training picture", among)
    picture = picture.resize(
        item.bucket, Image.Resampling.LANCZOS, box=item.crop or centred_crop(picture.size, item.bucket)
    )
    if item.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    brightness, contrast = item.tone
    if item.tone != (1.0, 1.0):
        picture = ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(brightness)).enhance(
            contrast
        )
    return picture


def open_stored(store: Store, key: str, what: str, among: Session | None = None) -> Image.Image:
    """Return a picture of the store, which a stranger handed in.

    Raises:
        Failure: `PICTURE_UNREADABLE` when it is missing or damaged, with what to do about that.
    """
    from tunes_dagster.intake.pictures import decode

    remedy = "Prepare the tune again (source_images, training_set and captions), then train it."
    try:
        return decode(store.read_bytes(key), f"{what} {key}", among)
    except OSError as error:
        raise Failure(
            FailureCode.PICTURE_UNREADABLE, f"{what} {key} cannot be read.", remedy, detail_of(error)
        ) from error
    except Failure as failure:
        if failure.code == FailureCode.PICTURE_UNREADABLE:
            failure.remedy = remedy
        raise


def centred_crop(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest centred rectangle of a bucket's aspect inside a picture."""
    (width, height), (bw, bh) = size, bucket
    if width * bh > height * bw:
        wide = max(1, round(height * bw / bh))
        left = (width - wide) // 2
        return left, 0, left + wide, height
    high = max(1, round(width * bh / bw))
    top = (height - high) // 2
    return 0, top, width, top + high


def picture_key(store: Store, item: TrainExample, fingerprint: str) -> str:
    """Return the cache key of an item's latents."""
    blob = item.key.startswith("blobs/")
    content = item.key if blob else hashlib.sha256(store.read_bytes(item.key)).hexdigest()
    changed = (item.mirrored, item.tone) if item.mirrored or item.tone != (1.0, 1.0) else ()
    return f"cache/latents/{fingerprint}/{digest(content, item.bucket, item.crop, *changed)}.safetensors"


def cached_latents(
    items: Sequence[TrainExample],
    base: LoadedBase,
    store: Store,
    on_picture: Callable[[int, int], None] = lambda done, total: None,
    owner: str = "",
) -> tuple[list[Latents], CacheCount]:
    """Return the posterior of each item, from the store or encoded now and stored.

    Args:
        items: The pictures; items of one bucket are encoded together.
        base: Whose VAE.
        store: Where pictures and cache lie.
        on_picture: Told (done, total) as items become available.
        owner: See `note_owner`.
    """
    fingerprint = base.fingerprint("vae")
    with ThreadPoolExecutor(_READERS) as readers:
        keys = list(readers.map(lambda item: picture_key(store, item, fingerprint), items))
    note_owner(store, owner, keys)
    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(lambda key: _posterior(store, key), keys))
    count = CacheCount(len(items), sum(entry is not None for entry in found))
    latents = {i: Latents(e["mean"], e["std"]) for i, e in enumerate(found) if e is not None}
    missing: dict[tuple[int, int], list[int]] = {}
    for i, item in enumerate(items):
        if i not in latents:
            missing.setdefault(item.bucket, []).append(i)
    on_picture(len(latents), len(items))
    for (width, height), indices in missing.items():

        def encode(start: int, stop: int, indices: list[int] = indices) -> None:
            chunk = indices[start:stop]
            with get_pool().session() as among:
                pictures = [load_picture(store, items[i], among) for i in chunk]
            encoded = base.encode_images(_stack(pictures))
            for i, mean, std in zip(chunk, encoded.mean.cpu(), encoded.std.cpu(), strict=True):
                latents[i] = Latents(mean.clone(), std.clone())
                write_tensors(store, keys[i], {"mean": mean, "std": std})
            on_picture(len(latents), len(items))

        in_parts(len(indices), _PICTURE_PIXELS // (width * height), encode)
    return [latents[i] for i in range(len(items))], count


def _posterior(store: Store, key: str) -> dict[str, torch.Tensor] | None:
    """Return what lies under a key of latents; what is of another kind or not finite is none."""
    found = read_tensors(store, key)
    if found is None or not {"mean", "std"} <= set(found) or found["mean"].shape != found["std"].shape:
        return None
    return found if all(bool(value.isfinite().all()) for value in found.values()) else None


def _stack(pictures: Sequence[Image.Image]) -> torch.Tensor:
    import numpy as np
    import torch

    arrays = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def cached_text(
    texts: Sequence[str],
    base: LoadedBase,
    store: Store,
    owner: str = "",
    own: Sequence[str] = (),
    heard: str = "",
    whole: bool = True,
) -> tuple[dict[str, Conditioning], CacheCount]:
    """Return {text: conditioning of one row without the row dimension}, from the store or encoded now.

    Args:
        texts: What is said.
        base: Whose text encoders.
        store: Where the cache lies.
        owner: See `note_owner`.
        own: Which of the texts are the owner's.
        heard: What tells adapted encoders from the base's own, see `inherited.heard`.
        whole: Whether texts beyond what an encoder reads at once are encoded in chunks; else they are cut.
    """
    from tunes_dagster.rendering.texts import encode_plain, plain_chunks

    fingerprint = base.fingerprint("text")
    how = (heard,) if heard else ()
    wanted = list(dict.fromkeys(texts))
    spoken = {text: base.as_spoken(text) for text in wanted}
    chunks = {text: plain_chunks(base, spoken[text]) if whole else 1 for text in wanted}
    long = {text: (f"{chunks[text]} chunks",) if chunks[text] > 1 else () for text in wanted}
    keys = {
        text: f"cache/text/{fingerprint}/{digest(text, *how, *long[text])}.safetensors" for text in wanted
    }
    note_owner(store, owner, [keys[text] for text in own])
    with ThreadPoolExecutor(_READERS) as readers:
        found = dict(zip(wanted, readers.map(lambda t: read_tensors(store, keys[t]), wanted), strict=True))
    done: dict[str, Conditioning] = {text: entry for text, entry in found.items() if entry is not None}
    count = CacheCount(len(wanted), len(done))
    missing = [text for text in wanted if text not in done and chunks[text] == 1]
    longer = [text for text in wanted if text not in done and chunks[text] > 1]

    def encode(start: int, stop: int) -> None:
        encoded = base.encode_text(missing[start:stop])
        for row, text in enumerate(missing[start:stop]):
            done[text] = {name: value[row].clone().cpu() for name, value in encoded.items()}

    if missing:
        in_parts(len(missing), _TEXT_ROWS, encode)
    for text in longer:
        encoded = encode_plain(base, spoken[text])
        done[text] = {name: value[0].clone().cpu() for name, value in encoded.items()}
    with ThreadPoolExecutor(_READERS) as writers:
        list(writers.map(lambda text: write_tensors(store, keys[text], done[text]), [*missing, *longer]))
    return done, count

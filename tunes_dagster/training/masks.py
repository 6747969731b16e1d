"""Where the loss looks: masks of pictures in latent space, with a floor for what is masked out.

A mask says what counts (white) and what does not (black). Its edges are blurred by the grid of the latents anyway
(one position is 8 or 16 pixels), and the floor keeps the rest of the picture from becoming noise: published advice
is never to use 0 (OneTrainer's and ai-toolkit's masked training both have such a floor).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tunes_dagster.core.store import Store
from tunes_dagster.training.cache import centred_crop, open_stored
from tunes_dagster.training.jobs import TrainExample

Bucket = tuple[int, int]


def masks_by_bucket(
    items: Sequence[TrainExample], means: Mapping[Bucket, Tensor], floor: float, store: Store
) -> dict[Bucket, Tensor] | None:
    """Return what each latent position counts in the loss, or None when no item has a mask.

    Args:
        items: The training pictures, in the order in which each bucket's rows are.
        means: Latents by bucket, [pictures, c, h, w]; only their shapes matter.
        floor: Weight outside of a mask, 0 to 1.
        store: Where mask pictures lie.

    Returns:
        By bucket [pictures, 1, h, w] with mean 1 over each picture, so that a small subject weighs as much as a
        large one; a picture without mask counts alike everywhere.
    """
    if not any(item.mask_key or item.mask_box for item in items):
        return None
    rows: dict[Bucket, list[Tensor]] = {}
    for item in items:
        height, width = means[item.bucket].shape[-2:]
        rows.setdefault(item.bucket, []).append(_weights(item, (width, height), floor, store))
    return {bucket: torch.stack(some) for bucket, some in rows.items()}


def _weights(item: TrainExample, size: tuple[int, int], floor: float, store: Store) -> Tensor:
    if not (item.mask_key or item.mask_box):
        return torch.ones(1, size[1], size[0])
    seen = np.asarray(picture_mask(item, size, store), dtype=np.float32) / 255
    weights = torch.from_numpy(floor + (1 - floor) * seen)[None]
    mean = float(weights.mean())
    # A mask that is black throughout, without a floor, would leave nothing to learn from.
    return weights / mean if mean > 1e-6 else torch.ones_like(weights)


def _size(item: TrainExample, store: Store) -> tuple[int, int]:
    return open_stored(store, item.key, "The training picture").size


def picture_mask(item: TrainExample, size: tuple[int, int], store: Store) -> Image.Image:
    """Return an item's mask in grey, cropped and mirrored as the picture is, at a size (width, height)."""
    if item.mask_key is not None:
        mask = open_stored(store, item.mask_key, "The mask").convert("L")
    else:
        picture = open_stored(store, item.key, "The training picture")
        mask = Image.new("L", picture.size, 0)
        assert item.mask_box is not None
        left, top, width, height = item.mask_box
        ImageDraw.Draw(mask).ellipse((left, top, left + width, top + height), fill=255)
    box: Any = item.crop or centred_crop(mask.size, item.bucket)
    if item.crop is not None and item.mask_key is not None:
        # The crop is in the picture's pixels; the mask may have been drawn at another size.
        across, down = (a / b for a, b in zip(mask.size, _size(item, store), strict=True))
        left, top, right, bottom = item.crop
        box = (left * across, top * down, min(right * across, mask.width), min(bottom * down, mask.height))
    mask = mask.resize(size, Image.Resampling.BOX, box=box)
    return mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if item.mirrored else mask

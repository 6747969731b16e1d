"""Pictures to tensors for the tiny models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image


def to_batch(images: list[Image.Image], size: int = 128) -> Any:
    """PIL pictures to float32 [n, 3, size, size] in -1 .. 1; other shapes are cut to a centred square first."""
    import numpy as np
    import torch

    rows = [np.asarray(square(image, size), dtype=np.float32) for image in images]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def square(image: Image.Image, size: int = 128) -> Image.Image:
    """The centred square of `image` as RGB `size` x `size`."""
    from PIL import Image as Pillow

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.convert("RGB").crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Pillow.Resampling.LANCZOS, reducing_gap=3.0)

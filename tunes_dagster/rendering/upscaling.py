"""Four times as wide and high, by a diffusers upscaling pipeline (`StableDiffusionUpscalePipeline`).

Larger pictures are enlarged in overlapping tiles whose seams are blended, so that memory does not grow with them. What
comes out has the colours of what went in: such models shift those of large areas a little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tunes_dagster.core.failures import Failure, FailureCode, as_failure

FACTOR = 4
# Sides in pixels of a tile of the picture that goes in, and of the part that neighbours share.
_TILE, _OVERLAP = 512, 64
# How much noise the picture gets before it is denoised at four times its size; the pipeline's own default.
_NOISE_LEVEL = 20
# Standard deviation in pixels of the given picture of the blur over the difference of colours that is made up for:
# wider than noise and the rings of JPEG, which should not come back, and narrower than what has a colour.
_COLOR_BLUR = 1.0


class Upscaler:
    """A loaded upscaling pipeline.

    Args:
        folder: In diffusers layout.
        device: torch device.
        dtype: torch dtype.
        tile: Side of a tile of the picture that goes in.

    Attributes:
        pipeline: The stock pipeline.
    """

    def __init__(self, folder: Path, device: Any, dtype: Any, tile: int = _TILE) -> None:
        from diffusers import StableDiffusionUpscalePipeline

        try:
            pipeline: Any = StableDiffusionUpscalePipeline.from_pretrained(str(folder), torch_dtype=dtype)
        except Exception as error:
            unusable = Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                "The upscaler cannot be loaded.",
                "Pull it again: `tunes bases pull upscale-4x`.",
                str(folder),
            )
            raise as_failure(error, unusable) from error
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline, self._tile = pipeline.to(device), tile

    def enlarge(
        self,
        image: Image.Image,
        text: str,
        seed: int,
        *,
        steps: int = 30,
        guidance: float = 4.0,
        negative: str = "",
        on_step: Callable[[], None] = lambda: None,
    ) -> Image.Image:
        """Return a picture four times as wide and high.

        Args:
            image: RGB.
            text: What it shows; may be empty.
            seed: Decides the noise.
            steps: Denoising steps.
            guidance: Guidance scale.
            negative: Negative prompt.
            on_step: Called after every step; may raise `Cancelled`.
        """
        import torch

        def stepped(step: int, moment: Any, latents: Any) -> None:
            on_step()

        width, height = image.size
        out = np.zeros((height * FACTOR, width * FACTOR, 3), np.float32)
        total = np.zeros((height * FACTOR, width * FACTOR, 1), np.float32)
        for left, top in tiles(width, height, self._tile):
            part = image.convert("RGB").crop(
                (left, top, min(width, left + self._tile), min(height, top + self._tile))
            )
            # The UNet halves three times: sides that are no multiples of 8 are padded and cut off again.
            padded = _padded(part)
            with torch.inference_mode():
                made = self.pipeline(
                    text,
                    image=padded,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    negative_prompt=negative or None,
                    noise_level=_NOISE_LEVEL,
                    generator=torch.Generator("cpu").manual_seed(seed),
                    callback=stepped,
                ).images[0]
            large = np.asarray(made, np.float32)[: part.height * FACTOR, : part.width * FACTOR]
            weight = feather(part.width * FACTOR, part.height * FACTOR, _OVERLAP * FACTOR // 2)
            rows = slice(top * FACTOR, top * FACTOR + large.shape[0])
            columns = slice(left * FACTOR, left * FACTOR + large.shape[1])
            out[rows, columns] += large * weight
            total[rows, columns] += weight
        return colored_as(image, out / np.maximum(total, 1e-6))


def colored_as(image: Image.Image, large: np.ndarray) -> Image.Image:
    """Return an enlarged picture, `[4h, 4w, 3]` in 0 .. 255, whose areas have the colours of the picture `[h, w]`."""
    import cv2

    given = np.asarray(image.convert("RGB"), np.float32)
    reduced = cv2.resize(large, image.size, interpolation=cv2.INTER_AREA)
    missing = cv2.GaussianBlur(given - reduced, (0, 0), _COLOR_BLUR)
    size = (large.shape[1], large.shape[0])
    kept = large + cv2.resize(missing, size, interpolation=cv2.INTER_LINEAR)
    return Image.fromarray((kept + 0.5).clip(0, 255).astype(np.uint8))


def tiles(width: int, height: int, tile: int, overlap: int = _OVERLAP) -> Iterator[tuple[int, int]]:
    """Yield the left and top of tiles that cover a picture and share at least `overlap` pixels with neighbours."""
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            yield left, top


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def feather(width: int, height: int, edge: int) -> np.ndarray:
    """Return weights `[height, width, 1]` that rise from the edges over `edge` pixels; 0 < weight <= 1."""

    def rise(length: int) -> np.ndarray:
        near = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
        return np.clip(near / max(1, min(edge, length // 2)), 0, 1)

    return (rise(height)[:, None] * rise(width)[None, :]).astype(np.float32)[..., None]


def _padded(image: Image.Image) -> Image.Image:
    width, height = -(-image.width // 8) * 8, -(-image.height // 8) * 8
    if (width, height) == image.size:
        return image
    pixels = np.pad(
        np.asarray(image), ((0, height - image.height), (0, width - image.width), (0, 0)), mode="edge"
    )
    return Image.fromarray(pixels)

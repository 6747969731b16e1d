"""The picture half of the content policy: diffusers' `StableDiffusionSafetyChecker` over finished pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# What CLIP's vision models were trained with.
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class SafetyChecker:
    """A loaded checker.

    Args:
        folder: Of the weights.
        device: torch device.
    """

    def __init__(self, folder: Path, device: Any) -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        checker = StableDiffusionSafetyChecker.from_pretrained(str(folder))
        self._checker: Any = checker.to(device).requires_grad_(False).eval()
        self._side = int(self._checker.config.vision_config.image_size)
        self._device = device

    def unsafe(self, images: Sequence[Image.Image]) -> list[bool]:
        """Return for each picture whether it must not be handed out."""
        import torch

        rows = np.stack([self._prepared(image) for image in images])
        pixels = torch.from_numpy(rows).permute(0, 3, 1, 2).to(self._device)
        # The checker blacks out what it finds; it gets copies that nobody looks at.
        blank = [np.zeros((1, 1, 3), np.float32) for _ in images]
        with torch.no_grad():
            _, found = self._checker(images=blank, clip_input=pixels)
        return [bool(one) for one in found]

    def _prepared(self, image: Image.Image) -> np.ndarray:
        side = self._side
        factor = side / min(image.size)
        size = (max(side, round(image.width * factor)), max(side, round(image.height * factor)))
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(small.crop((left, top, left + side, top + side)), np.float32) / 255
        return (pixels - np.array(_MEAN, np.float32)) / np.array(_DEVIATION, np.float32)

"""The picture half of the content policy: diffusers' `StableDiffusionSafetyChecker` over finished pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.families.clip import ClipPixels


class SafetyChecker:
    """A loaded checker.

    Args:
        folder: Of the weights.
        device: torch device.
    """

    def __init__(self, folder: Path, device: Any) -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        try:
            checker = StableDiffusionSafetyChecker.from_pretrained(str(folder))
            self._checker: Any = checker.to(device).requires_grad_(False).eval()
            self._pixels = ClipPixels(folder, int(self._checker.config.vision_config.image_size))
        except Exception as error:
            unusable = Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The checker of pictures {folder.name!r} cannot be loaded, and without it none may be handed out.",
                "Pull it again with `tunes bases pull`.",
                str(folder),
            )
            raise as_failure(error, unusable) from error
        self._device = device

    def unsafe(self, images: Sequence[Image.Image]) -> list[bool]:
        """Return for each picture whether it must not be handed out."""
        import torch

        pixels = self._pixels(images).to(self._device)
        # The checker blacks out what it finds; it gets copies that nobody looks at.
        blank = [np.zeros((1, 1, 3), np.float32) for _ in images]
        with torch.no_grad():
            _, found = self._checker(images=blank, clip_input=pixels)
        return [bool(one) for one in found]

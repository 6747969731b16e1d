"""ControlNets: a second network looks at a picture and steers the denoiser at every step (Zhang et al., 2302.05543).

What it looks at is drawn from the input image where that takes no further model (`canny`, `lineart`); `tile` takes the
picture itself; for `depth`, `pose`, `hed`, `mlsd` and `segroom` the input image is the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tunes_dagster.core.failures import Failure, FailureCode, as_failure

if TYPE_CHECKING:
    import torch

    from tunes_dagster.families.base import Conditioning, LoadedBase
    from tunes_dagster.rendering.pictures import Picture

Steer = Callable[["torch.Tensor", "torch.Tensor", "Conditioning"], "Conditioning"]


def control_map(name: str, image: Image.Image) -> Image.Image:
    """Return what the ControlNet of that name looks at, for an input image of the same size."""
    import cv2

    grey = np.asarray(image.convert("L"))
    if name == "canny":
        return Image.fromarray(cv2.Canny(grey, 100, 200)).convert("RGB")
    if name == "lineart":
        fine, coarse = (cv2.GaussianBlur(grey.astype(np.float32), (0, 0), s) for s in (0.8, 2.0))
        lines = np.clip((coarse - fine) * 8, 0, 255).astype(np.uint8)
        return Image.fromarray(lines).convert("RGB")
    return image.convert("RGB")


class Control:
    """A ControlNet on the device of a base.

    Args:
        folder: Of a `ControlNetModel`.
        base: That it steers.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it cannot be loaded or was made for another kind of base.
    """

    def __init__(self, folder: Path, base: LoadedBase) -> None:
        from diffusers import ControlNetModel

        self._base = base
        try:
            network = ControlNetModel.from_pretrained(str(folder), torch_dtype=base.dtype)
        except Exception as error:
            unusable = Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The ControlNet {folder.name!r} cannot be loaded.",
                "Pull it again with `tunes bases pull`.",
                str(folder),
            )
            raise as_failure(error, unusable) from error
        fits = network.config.cross_attention_dim == getattr(
            base.denoiser.config, "cross_attention_dim", None
        )
        if not fits or network.config.in_channels != base.latent_channels:
            raise Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The ControlNet {folder.name!r} was not made for {base.entry.base_id!r}.",
                "Choose a ControlNet of the base's own family.",
            )
        self.network: Any = network.to(base.device).requires_grad_(False).eval()

    def steer(self, pictures: Sequence[Picture], repeat: int) -> Steer:
        """Return what makes, at each step, the residuals that `predict` adds: `control.0` …, `control.mid`.

        Args:
            pictures: With what the network looks at.
            repeat: Rows per picture.
        """
        import torch

        arrays = np.stack([picture.control for picture in pictures if picture.control is not None])
        seen = torch.from_numpy(arrays).permute(0, 3, 1, 2).to(self._base.device, self._base.dtype) / 255
        seen = seen.repeat_interleave(repeat, dim=0)
        scales = torch.tensor([picture.control_scale for picture in pictures], device=self._base.device)
        scales = scales.to(self._base.dtype).repeat_interleave(repeat).view(-1, 1, 1, 1)

        def residuals(noisy: torch.Tensor, timesteps: torch.Tensor, rows: Conditioning) -> Conditioning:
            added = (
                {"text_embeds": rows["pooled"], "time_ids": rows["time_ids"]} if "time_ids" in rows else None
            )
            down, mid = self.network(
                noisy,
                timesteps,
                encoder_hidden_states=rows["hidden"],
                controlnet_cond=seen,
                added_cond_kwargs=added,
                return_dict=False,
            )
            named = {f"control.{i}": one * scales for i, one in enumerate(down)}
            return {**named, "control.mid": mid * scales}

        return residuals

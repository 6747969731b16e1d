"""How pictures are prepared for whoever looks at them with CLIP's eyes, or with others of their kind: in one way.

Scorers, the content policy and IP-Adapters use it. It is transformers' own processor, in its Pillow form: the other one
needs torchvision, which not every torch build has, and scales pictures by another filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# Where transformers keeps what a processor does, in the order in which it looks.
_CONFIGURATIONS = ("processor_config.json", "preprocessor_config.json")


class ClipPixels:
    """Makes pixels of pictures: the centred square, at the side that the network takes, in the colours it was taught.

    Args:
        folder: Of the model. What its processor's configuration leaves out, or all where there is none, is as CLIP has
            it.
        side: Of the square, where the configuration names none.
    """

    def __init__(self, folder: Path, side: int) -> None:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        known = any((folder / name).is_file() for name in _CONFIGURATIONS)
        own = CLIPImageProcessorPil.from_pretrained(folder) if known else None
        if own is not None and own.do_center_crop and own.crop_size is not None:
            side = int(own.crop_size["height"])
        # DINO's configuration scales to more than it cuts out, and so leaves the edges of a picture out.
        square: dict[str, Any] = {
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "do_resize": True,
            "do_center_crop": True,
            "do_convert_rgb": True,
        }
        self.side = side
        self._processor: Any = (
            CLIPImageProcessorPil.from_pretrained(folder, **square)
            if known
            else CLIPImageProcessorPil(**square)
        )

    def __call__(self, pictures: Sequence[Image]) -> torch.Tensor:
        """Return float32 `[pictures, 3, side, side]`."""
        made: torch.Tensor = self._processor(list(pictures), return_tensors="pt").pixel_values
        return made

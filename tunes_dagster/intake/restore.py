"""Face restoration before training (GFPGAN), for pictures that are small, old or much compressed.

GFPGAN's loader needs torchvision, which the plain installation does without; it comes with the extra `restore`.
Whether it is there is checked when a tune is handed in, long before this file does any work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from tunes_dagster.core import extras
from tunes_dagster.core.failures import Failure, FailureCode, detail_of

# Released at https://github.com/TencentARC/GFPGAN/releases/tag/v1.3.0
WEIGHTS = "GFPGANv1.4.pth"


class Restorer(Protocol):
    """Makes faces clearer; `name` goes into the record of what was done."""

    name: str

    def restore(self, image: Image.Image) -> Image.Image:
        """Return an RGB picture of the same size whose faces are restored."""


@dataclass(frozen=True)
class Missing:
    """What restoring faces lacks here: the rest of a sentence, and what to do about it."""

    why: str
    remedy: str


def restorer_missing(bases_folder: Path) -> Missing | None:
    """Return what restoring faces lacks on this installation, or None where it works."""
    if not extras.has("gfpgan"):
        return Missing("needs the package gfpgan, which is not installed", f"{extras.how_to_get('gfpgan')}.")
    if not weights_path(bases_folder).is_file():
        return Missing(
            f"needs the weights {WEIGHTS}, which are not installed",
            f"Put them into the folder of the bases, as restore/{WEIGHTS}.",
        )
    return None


def weights_path(bases_folder: Path) -> Path:
    """Return where the restorer's weights are looked for."""
    return bases_folder / "restore" / WEIGHTS


class GfpganRestorer:
    """GFPGAN 1.4; the face is pasted back into the untouched picture."""

    name = "gfpgan-1.4"

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        try:
            from gfpgan import GFPGANer
        except ImportError as error:
            without = "turn dataset.face_correct off"
            raise extras.missing("gfpgan", "Restoring faces", without, detail_of(error)) from error
        if not weights.is_file():
            raise Failure(
                FailureCode.BASE_NOT_INSTALLED,
                "The weights of the face restorer are missing.",
                f"Put {WEIGHTS} into the folder of the bases, or turn dataset.face_correct off.",
                f"There is no file {weights}.",
            )
        self._restorer: Any = GFPGANer(model_path=str(weights), upscale=1, bg_upsampler=None, device=device)

    def restore(self, image: Image.Image) -> Image.Image:
        """Return the picture with its faces restored, in the same size."""
        pixels = np.asarray(image.convert("RGB"))[:, :, ::-1].copy()
        _, _, restored = self._restorer.enhance(
            pixels, has_aligned=False, only_center_face=False, paste_back=True
        )
        result = Image.fromarray(np.ascontiguousarray(restored[:, :, ::-1]))
        return result if result.size == image.size else result.resize(image.size, Image.Resampling.LANCZOS)


def open_restorer(bases_folder: Path) -> Restorer:
    """Return the face restorer.

    Raises:
        Failure: When its package or its weights are missing.
    """
    return GfpganRestorer(weights_path(bases_folder))

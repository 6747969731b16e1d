"""Where a picture's subject lies when no face says it: what differs from the rest, for crops that lose much.

A point stands out as far as its colour (CIE Lab) is from that of its surroundings at three scales and from what the
picture mostly shows (Achanta et al., 2009; Itti et al., 1998); along the side that is cropped, a window is chosen that
holds most of it near its middle. It is a guess, so that only clear ones move a crop away from the middle.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from tunes_dagster.intake.buckets import Crop
from tunes_dagster.intake.faces import Box

# Pixels of the shorter side that is looked at: subjects are larger than a sixteenth of a picture.
_LOOKED_AT = 64
_SCALES = (2.0, 6.0, 16.0)
# How much more of what stands out a window must hold than the middle one.
_CLEARLY = 1.15


def standing_out(image: Image.Image) -> np.ndarray:
    """Return how far each point stands out, `[height, width]`, of a small copy of a picture; the sum is 1."""
    import cv2

    share = _LOOKED_AT / min(image.size)
    small = image.convert("RGB").resize(
        (max(1, round(image.width * share)), max(1, round(image.height * share))), Image.Resampling.BOX
    )
    lab = cv2.cvtColor(np.asarray(small, np.float32) / 255, cv2.COLOR_RGB2LAB)
    fine = cv2.GaussianBlur(lab, (0, 0), 1.0)
    seen = np.linalg.norm(fine - np.median(lab.reshape(-1, 3), axis=0), axis=-1)
    for scale in _SCALES:
        seen += np.linalg.norm(fine - cv2.GaussianBlur(lab, (0, 0), scale * 2), axis=-1)
    seen = np.clip(seen - np.percentile(seen, 60), 0, None)
    total = float(seen.sum())
    return seen / total if total > 0 else np.full(seen.shape, 1 / seen.size)


def subject_in(image: Image.Image, crop: Crop) -> Box | None:
    """Return a box whose middle a crop of this size should have, or None where its own middle is as good.

    Args:
        image: The whole picture.
        crop: Around its middle, which says the size; as high or as wide as the picture.
    """
    seen = standing_out(image)
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    across = width < image.width
    profile = seen.sum(axis=0 if across else 1)
    whole, part = (image.width, width) if across else (image.height, height)
    window = max(1, round(part / whole * len(profile)))
    if window >= len(profile):
        return None
    # What lies near the window's middle counts more: a subject should not lie at its edge.
    weights = np.hanning(window + 2)[1:-1]
    held = np.convolve(profile, weights, "valid")
    middle, best = len(held) // 2, int(held.argmax())
    if held[best] < _CLEARLY * held[middle]:
        return None
    centre = round((best + window / 2) / len(profile) * whole)
    return (centre, image.height // 2, 0, 0) if across else (image.width // 2, centre, 0, 0)

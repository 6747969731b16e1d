"""Numbers from embeddings. Rows are unit vectors, so that products are cosines; nothing here knows a model.

No measure has a scale of its own: likeness is read between the untuned base and the subject's real pictures,
variety against the real pictures, copying against how near real pictures come to each other, coherence against
what the base renders for the class. So the same limits serve scorers whose cosines mean different things.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Side of the small copy in which two pictures are compared point by point.
_SIDE = 16
# How much of the way from the nearest real neighbours to identity counts as a copy.
_COPY_SHARE = 0.5
# Pictures this like point by point are copies however alike the real ones are.
_ALWAYS_COPY = 0.985


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows scaled to length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)


def likeness(pictures: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean cosine of pictures to the mean of the reference pictures."""
    return float((pictures @ unit(reference.mean(axis=0))).mean())


def real_likeness(training: np.ndarray, held_out: np.ndarray) -> float:
    """Return how like the subject its own pictures are: those not in the reference, or each to the others.

    Args:
        training: [n, d].
        held_out: The reference, or empty when the training pictures are it.
    """
    if len(held_out):
        return likeness(training, held_out)
    if len(training) < 2:
        return 1.0
    total = training.sum(axis=0)
    return float((training * unit(total - training)).sum(axis=1).mean())


def learned(value: float, base: float, real: float) -> float:
    """Return where a likeness lies between the untuned base (0) and the subject's real pictures (1)."""
    return (value - base) / max(real - base, 1e-3)


def margins(pictures: np.ndarray, texts: np.ndarray, own: Sequence[int]) -> np.ndarray:
    """Return per picture how much better its own text fits than the other texts do on average.

    Args:
        pictures: [n, d].
        texts: [k, d] of the distinct texts.
        own: Row of `texts` that each picture was asked for with.
    """
    cosines = pictures @ texts.T
    mine = cosines[np.arange(len(own)), list(own)]
    others = (cosines.sum(axis=1) - mine) / max(1, len(texts) - 1)
    return mine - others


def recognised(pictures: np.ndarray, texts: np.ndarray, own: Sequence[int]) -> float:
    """Return the share of pictures that fit their own text best."""
    return float(((pictures @ texts.T).argmax(axis=1) == np.asarray(own)).mean())


def variety(pictures: np.ndarray) -> float:
    """Return the mean pairwise distance (1 - cosine); 0 for fewer than two pictures."""
    count = len(pictures)
    if count < 2:
        return 0.0
    cosines = pictures @ pictures.T
    return float(1 - (cosines.sum() - np.trace(cosines)) / (count * (count - 1)))


def coherence(pictures: np.ndarray, strangers: np.ndarray) -> float:
    """Return how much more alike the pictures are than strangers of the class: 1 is identical, 0 is no more.

    Args:
        pictures: Of the subject, [n, d].
        strangers: What the untuned base renders for the class.
    """
    own, others = variety(pictures), variety(strangers)
    return 1 - own / max(others, 1e-6)


def points(pictures: Sequence[Image]) -> np.ndarray:
    """Return small copies of pictures as unit vectors, contrast and brightness taken out: [n, 768]."""
    from PIL import Image as images

    small = [
        np.asarray(p.convert("RGB").resize((_SIDE, _SIDE), images.Resampling.BOX), np.float32)
        for p in pictures
    ]
    rows = np.stack([one.reshape(-1) for one in small]) if small else np.zeros((0, 3 * _SIDE**2), np.float32)
    return unit(rows - rows.mean(axis=-1, keepdims=True))


def nearest(pictures: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each picture the cosine of its nearest other one, and which that is."""
    cosines = pictures @ others.T
    return cosines.max(axis=1), cosines.argmax(axis=1)


def copy_limit(training: np.ndarray) -> float:
    """Return from which cosine to a training picture on a render counts as its copy, point by point.

    Half of the way from how near the training pictures come to each other to identity.
    """
    if len(training) < 2:
        return 0.95
    cosines = training @ training.T
    np.fill_diagonal(cosines, -1.0)
    natural = float(np.median(cosines.max(axis=1)))
    return min(_ALWAYS_COPY, max(natural, 0.0) * (1 - _COPY_SHARE) + _COPY_SHARE)


def votes(pictures: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return for each picture which text fits it best."""
    return (pictures @ texts.T).argmax(axis=1)

"""The arithmetic of the fidelity benchmark: what is kept of each tune, and the figures made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.subjects import Subject

_BOOTSTRAPS = 2000


@dataclass
class Tune:
    """One trained tune and its renders.

    Attributes:
        subject: Of whom.
        seed: Of training.
        result: From the training loop.
        with_token: Embeddings of renders with the token.
        without_token: Embeddings of renders without.
        obeyed: Per obedience prompt, the share of its attributes recognised.
        pictures: Some renders for the grid, with and without token.
    """

    subject: Subject
    seed: int
    result: Any
    with_token: np.ndarray = field(default_factory=lambda: np.zeros((0, 1)))
    without_token: np.ndarray = field(default_factory=lambda: np.zeros((0, 1)))
    obeyed: np.ndarray = field(default_factory=lambda: np.zeros(0))
    pictures: list[Image.Image] = field(default_factory=list)


@dataclass
class Before:
    """What the untuned base renders for the same prompts and seeds, by subject name."""

    with_token: dict[str, np.ndarray] = field(default_factory=dict)
    without_token: dict[str, np.ndarray] = field(default_factory=dict)
    obeyed: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    pictures: dict[str, list[Image.Image]] = field(default_factory=dict)


@dataclass
class Measured:
    """The figures of one tune.

    Attributes:
        likeness: With the token, to its own subject.
        base_likeness: The same prompts on the untuned base.
        others: With the token, to the other subjects on average.
        nearest: Share of renders nearest to the right subject.
        plain: Without the token, to its subject.
        base_plain: The same prompts on the untuned base.
        obeyed: After, per prompt.
        obeyed_before: Before, per prompt.
    """

    likeness: float
    base_likeness: float
    others: float
    nearest: float
    plain: float
    base_plain: float
    obeyed: np.ndarray
    obeyed_before: np.ndarray

    @property
    def gained(self) -> float:
        """Likeness that the tune brought."""
        return self.likeness - self.base_likeness

    @property
    def leaked(self) -> float:
        """Likeness that it brought where nobody asked for the subject."""
        return self.plain - self.base_plain


def measure(tune: Tune, before: Before, centres: dict[str, np.ndarray]) -> Measured:
    """Return the figures of a tune."""
    names = list(centres)
    own, name = names.index(tune.subject.name), tune.subject.name
    matrix = np.stack([centres[n] for n in names])
    near = tune.with_token @ matrix.T
    return Measured(
        likeness=float(near[:, own].mean()),
        base_likeness=float((before.with_token[name] @ centres[name]).mean()),
        others=float(np.delete(near, own, axis=1).mean()),
        nearest=float((near.argmax(axis=1) == own).mean()),
        plain=float((tune.without_token @ centres[name]).mean()),
        base_plain=float((before.without_token[name] @ centres[name]).mean()),
        obeyed=tune.obeyed,
        obeyed_before=before.obeyed[name, tune.seed],
    )


def figures_of(rows: Sequence[Measured]) -> dict[str, float]:
    """Return the headline figures over tunes."""
    gained = sum(row.gained for row in rows)
    return {
        "nearest_subject_accuracy": float(np.mean([row.nearest for row in rows])),
        "likeness": float(np.mean([row.likeness for row in rows])),
        "base_likeness": float(np.mean([row.base_likeness for row in rows])),
        "likeness_to_others": float(np.mean([row.others for row in rows])),
        "leak": sum(row.leaked for row in rows) / gained if gained > 0 else float("nan"),
        "obedience_before": float(np.concatenate([row.obeyed_before for row in rows]).mean()),
        "obedience_after": float(np.concatenate([row.obeyed for row in rows]).mean()),
        "obedience_lost": float(np.concatenate([row.obeyed_before - row.obeyed for row in rows]).mean()),
    }


def intervals(rows: Sequence[Measured]) -> dict[str, tuple[float, float]]:
    """Return 95 % bootstrap intervals of the headline figures, tunes drawn with replacement."""
    source = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(_BOOTSTRAPS):
        chosen = [rows[i] for i in source.integers(len(rows), size=len(rows))]
        for name, value in figures_of(chosen).items():
            drawn.setdefault(name, []).append(value)
    return {
        name: (float(np.nanpercentile(values, 2.5)), float(np.nanpercentile(values, 97.5)))
        for name, values in drawn.items()
    }

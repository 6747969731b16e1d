"""The embedded default models: small, but really trained on a drawn world.

Weights live in `weights_dir()`, one folder per model; this module loads them. `python -m tunes_dagster.tiny`
makes them again from nothing. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .classifier import Classifier
    from .loaders import Captioner, Scorer

SDXL, CAPTIONER, SCORER, CLASSIFIER = "sdxl", "captioner", "scorer", "classifier"
MODELS = (SDXL, CAPTIONER, SCORER, CLASSIFIER)
NATIVE_SIZE = 128
"""Side of the pictures the base was trained on, in pixels."""


def weights_dir() -> Path:
    """The folder that holds one folder per model (`MODELS`)."""
    return Path(__file__).parent / "weights"


def load_captioner(folder: Path | None = None) -> Captioner:
    """The BLIP-class captioner: `caption(list[PIL.Image]) -> list[str]`."""
    from .loaders import Captioner

    return Captioner.load(folder or weights_dir() / CAPTIONER)


def load_scorer(folder: Path | None = None) -> Scorer:
    """The CLIP-class scorer: `embed_images` and `embed_texts` give float32 [n, d], L2-normalised."""
    from .loaders import Scorer

    return Scorer.load(folder or weights_dir() / SCORER)


def load_classifier(folder: Path | None = None) -> Classifier:
    """The attribute classifier: `predict(list[PIL.Image]) -> list[dict[str, str]]`."""
    from .classifier import Classifier

    return Classifier.load(folder or weights_dir() / CLASSIFIER)

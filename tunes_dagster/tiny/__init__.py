"""The embedded default models: small, but really trained on a drawn world.

Weights live in `weights_dir()`, one folder per model; this module loads them. `python -m tunes_dagster.tiny`
makes them again from nothing. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifier import Classifier
    from .faces import DrawnFaces
    from .loaders import Captioner, Scorer

SDXL, FLUX, CAPTIONER, SCORER, CLASSIFIER = "sdxl", "flux", "captioner", "scorer", "classifier"
STUDENT = "sdxl-4step"
"""The SDXL-class base, distilled to four steps."""
UPSCALER = "upscaler"
"""A pipeline that makes pictures of the drawn world four times as wide and high; none ships yet."""
FACES = "faces"
FACEADAPTER = "faceadapter"
"""The IP-Adapter of the SDXL-class base; its image encoder is the scorer."""
FACEADAPTER_FILE = "ip-adapter-face_tiny-sdxl.safetensors"
BASES = (SDXL, FLUX)
"""The text-to-image bases among the models."""
MODELS = (*BASES, CAPTIONER, SCORER, CLASSIFIER, FACES, FACEADAPTER)
NATIVE_SIZE = 128
"""Side of the pictures the bases were trained on, in pixels."""
FLUX_SEQUENCE = 48
"""`max_sequence_length` that the FLUX-class base was trained with."""


def weights_dir() -> Path:
    """The folder that holds one folder per model (`MODELS`)."""
    return Path(__file__).parent / "weights"


def load_base(name: str = SDXL, weights: Path | None = None) -> Any:
    """One of `BASES` as a stock diffusers pipeline, in float32 on the CPU."""
    import torch
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained((weights or weights_dir()) / name, dtype=torch.float32)


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


def load_faces(folder: Path | None = None, threshold: float | None = None) -> DrawnFaces:
    """The detector of drawn faces: `detect(PIL.Image) -> list of (x, y, width, height)`. Needs no torch.

    `threshold` is the certainty (0 .. 1) from which a face counts, if it should be another than the usual one.
    """
    from .faces import DrawnFaces

    found = DrawnFaces.load(folder or weights_dir() / FACES)
    return found if threshold is None else DrawnFaces(found.layers, threshold)

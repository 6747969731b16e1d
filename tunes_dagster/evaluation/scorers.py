"""The models that look at pictures for a report card, by their entry in `scorers.yaml`.

A scorer turns pictures into unit vectors; one of the CLIP class turns texts into the same space. torch and
transformers are imported when one is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from tunes_dagster.core.environment import read_overlay
from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.core.recipe import Strict
from tunes_dagster.evaluation.measures import unit
from tunes_dagster.families.clip import ClipPixels

if TYPE_CHECKING:
    from PIL.Image import Image

    from tunes_dagster.core.settings import Settings
    from tunes_dagster.evaluation.scoring import Scorers
    from tunes_dagster.families.catalog import AuxiliaryEntry

_BATCH = 32
# Numbers that SFace says of a face, and the confidence from which YuNet counts one.
_FACE_WIDTH, _FACE_SCORE = 128, 0.8


@runtime_checkable
class Scorer(Protocol):
    """Looks at pictures.

    Attributes:
        name: Of its entry.
    """

    name: str

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        """Return float32 [n, d], rows of length 1; the cosine of two rows is the likeness of two pictures."""


@runtime_checkable
class TextScorer(Scorer, Protocol):
    """Looks at pictures and reads texts.

    Attributes:
        class_words: Group → words that a wrong class word is recognised with.
    """

    class_words: Mapping[str, Sequence[str]]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, d], rows of length 1, in the space of the pictures."""


class ScorerEntry(Strict):
    """One model of `scorers.yaml`."""

    name: str
    """Its name there."""
    kind: Literal["clip", "dino", "sface"]
    """Which class loads it."""
    repo_id: str
    """Hub repository, local folder or file, or `embedded:NAME`."""
    revision: str | None = None
    """Commit on the hub."""
    detector: str = ""
    """For `sface`, the ONNX file of YuNet, which finds eyes, nose and mouth; empty does without."""
    licence: str = ""
    """Of the weights."""
    download_gb: float = 0.0
    """Size of the download."""
    class_words: dict[str, list[str]] = Field(default_factory=dict)
    """See `TextScorer`."""

    def location(self, bases_folder: Path) -> Path:
        """Return where the model lies, whether or not it is there."""
        if self.repo_id.startswith("embedded:"):
            from tunes_dagster.tiny import weights_dir

            return weights_dir() / self.repo_id.removeprefix("embedded:")
        local = Path(self.repo_id).expanduser()
        return local if local.is_absolute() else bases_folder / self.repo_id.replace("/", "--")

    def as_model(self) -> AuxiliaryEntry:
        """Return it as what `tunes bases pull` brings."""
        from tunes_dagster.families.catalog import AuxiliaryEntry

        return AuxiliaryEntry(
            base_id=self.name,
            family="scorer",
            repo_id=self.repo_id,
            revision=self.revision,
            licence=self.licence,
            download_gb=self.download_gb,
        )


class ScorerCatalog(Strict):
    """All of `scorers.yaml`."""

    profiles: dict[str, dict[str, str]]
    """Profile → question (`likeness`, `text`, `faces`) → name of a scorer."""
    scorers: dict[str, ScorerEntry]
    """By name."""

    def entry(self, name: str) -> ScorerEntry:
        """Return a scorer by name.

        Raises:
            Failure: `INVALID_REQUEST`, naming the known ones.
        """
        if name not in self.scorers:
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"There is no scorer called {name!r}.",
                f"Known: {', '.join(self.scorers)}. Add others to a file named by TUNES_SCORERS.",
            )
        return self.scorers[name]


@lru_cache(maxsize=4)
def load_scorer_catalog(extra: str = "") -> ScorerCatalog:
    """Load the shipped list, overlaid by an operator's file (`extra` or `$TUNES_SCORERS`)."""
    profiles: dict[str, dict[str, str]] = {}
    scorers: dict[str, Any] = {}
    overlay = extra or os.environ.get("TUNES_SCORERS", "")
    for path in filter(None, (str(Path(__file__).with_name("scorers.yaml")), overlay)):
        raw = read_overlay("TUNES_SCORERS", path)
        for profile, chosen in (raw.get("profiles") or {}).items():
            profiles[profile] = profiles.get(profile, {}) | chosen
        scorers |= {name: {"name": name, **fields} for name, fields in (raw.get("scorers") or {}).items()}
    return ScorerCatalog.model_validate({"profiles": profiles, "scorers": scorers})


def load_scorer(entry: ScorerEntry, bases_folder: Path, device: str = "cpu") -> Scorer:
    """Load a scorer.

    Args:
        entry: Which.
        bases_folder: Where models from a hub lie.
        device: torch's name of the device.

    Raises:
        Failure: `BASE_NOT_INSTALLED` naming the command that installs it.
    """
    place = entry.location(bases_folder)
    if not place.exists():
        raise Failure(
            FailureCode.BASE_NOT_INSTALLED,
            f"The scorer {entry.name!r} is not installed.",
            f"{_download(entry)}, or name another scorer.",
            f"It belongs at {place}.",
        )
    try:
        return _LOADERS[entry.kind](entry, place, device)
    except Exception as error:
        unusable = Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The scorer {entry.name!r} cannot be loaded.",
            f"{_download(entry)} again, or name another scorer.",
            str(place),
        )
        raise as_failure(error, unusable) from error


def _download(entry: ScorerEntry) -> str:
    """Return what installs a scorer, without where this installation lies."""
    if Path(entry.repo_id).expanduser().is_absolute():
        return "Put its model where the scorer's entry says"
    return f"Run `tunes bases pull {entry.name}`"


class ClipScorer:
    """`CLIPModel` with its processor: pictures and texts in one space."""

    def __init__(self, entry: ScorerEntry, folder: Path, device: str) -> None:
        import torch
        from transformers import AutoTokenizer, CLIPModel

        self.name, self.class_words = entry.name, dict(entry.class_words)
        self._device = device
        self._model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._pixels = ClipPixels(folder, int(self._model.config.vision_config.image_size))

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        """See `Scorer`."""

        def look(pixels: Any) -> Any:
            pooled = self._model.vision_model(pixel_values=pixels).pooler_output
            return self._model.visual_projection(pooled)

        return _embedded(images, self._pixels, look, self._device, int(self._model.config.projection_dim))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `TextScorer`."""
        import torch

        # As the processors of this class do it: no attention mask, since CLIP's is causal and padding is last.
        ids = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").input_ids
        with torch.inference_mode():
            pooled = self._model.text_model(input_ids=ids.to(self._device)).pooler_output
            return unit(self._model.text_projection(pooled).float().cpu().numpy())


class DinoScorer:
    """`Dinov2Model`: the class token of each picture."""

    def __init__(self, entry: ScorerEntry, folder: Path, device: str) -> None:
        import torch
        from transformers import Dinov2Model

        self.name, self._device = entry.name, device
        self._model = Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        self._pixels = ClipPixels(folder, int(self._model.config.image_size))

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        """See `Scorer`."""
        return _embedded(
            images,
            self._pixels,
            lambda pixels: self._model(pixel_values=pixels).pooler_output,
            self._device,
            int(self._model.config.hidden_size),
        )


class SfaceScorer:
    """OpenCV's SFace: the largest face of each picture, or zeros where none is found.

    Args:
        entry: Its entry; the file is `face_recognition_sface_….onnx`.
        file: The ONNX file.
        device: Not used; OpenCV computes on the CPU.

    Raises:
        Failure: `BASE_NOT_INSTALLED` when the entry names a detector that is not there.
    """

    def __init__(self, entry: ScorerEntry, file: Path, device: str = "cpu") -> None:
        import cv2

        from tunes_dagster.intake.faces import load_detector

        self.name = entry.name
        self._network = cv2.FaceRecognizerSF.create(str(file), "")
        self._landmarks: Any = None
        if entry.detector:
            detector = Path(entry.detector).expanduser()
            if not detector.is_file():
                raise Failure(
                    FailureCode.BASE_NOT_INSTALLED,
                    f"The face detector of the scorer {entry.name!r} is missing.",
                    "Put YuNet's ONNX file where `detector` says, or leave `detector` out.",
                    f"There is no file {detector}.",
                )
            self._landmarks = cv2.FaceDetectorYN.create(str(detector), "", (320, 320), _FACE_SCORE)
        else:
            self._detector = load_detector()

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        """See `Scorer`; a row of zeros is a picture without a face."""
        faces = [self._face(image) for image in images]
        nothing = np.zeros(_FACE_WIDTH, np.float32)
        rows = [nothing if face is None else self._network.feature(face).reshape(-1) for face in faces]
        return unit(np.stack(rows)) if rows else np.zeros((0, _FACE_WIDTH), np.float32)

    def _face(self, image: Image) -> Any:
        """Return the largest face, `[112, 112, 3]` as OpenCV has colours, or None."""
        import cv2

        pixels = cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)
        if self._landmarks is not None:
            self._landmarks.setInputSize((image.width, image.height))
            _, found = self._landmarks.detect(pixels)
            if found is None or not len(found):
                return None
            return self._network.alignCrop(pixels, max(found, key=lambda row: row[2] * row[3]))
        boxes = self._detector.detect(image)
        if not boxes:
            return None
        x, y, width, height = boxes[0]
        return cv2.resize(pixels[y : y + height, x : x + width], (112, 112), interpolation=cv2.INTER_AREA)


_LOADERS: dict[str, Any] = {"clip": ClipScorer, "dino": DinoScorer, "sface": SfaceScorer}


def _embedded(images: Sequence[Image], pixels: ClipPixels, look: Any, device: str, width: int) -> np.ndarray:
    import torch

    rows = []
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            said = look(pixels(images[start : start + _BATCH]).to(device))
            rows.append(said.float().cpu().numpy())
    return unit(np.concatenate(rows)) if rows else np.zeros((0, width), np.float32)


def open_scorers(
    settings: Settings, device: str = "cpu", likeness: str = "", text: str = "", faces: str = ""
) -> Scorers:
    """Load the models that look at pictures for a report card.

    Args:
        settings: Name the profile, whose scorers are taken where none is named.
        device: torch device.
        likeness: Name in the scorer catalog of the one that says how alike pictures are.
        text: Of the one that says how well pictures fit texts; `none` is none.
        faces: Of the one that compares faces.

    Raises:
        Failure: `BASE_NOT_INSTALLED` naming what to install, or `INVALID_REQUEST` for an unknown name.
    """
    from tunes_dagster.evaluation.scoring import Scorers

    catalog = load_scorer_catalog()
    names = catalog.profiles.get(settings.profile, {})
    loaded: dict[str, Any] = {"none": None, "": None}

    def scorer(question: str, asked: str) -> Any:
        name = asked or names.get(question, "")
        if name not in loaded:
            loaded[name] = load_scorer(catalog.entry(name), settings.bases_folder, device)
        return loaded[name]

    return Scorers(scorer("likeness", likeness), scorer("text", text), scorer("faces", faces))

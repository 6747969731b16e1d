"""Face detectors: what ships (OpenCV's cascade for photos, our own for drawings), and YuNet from its model file."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from tunes_dagster.core.failures import Failure, FailureCode

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels of the picture."""

DETECTION_SIDE = 640
_PEOPLE = frozenset(
    (
        *("man", "woman", "boy", "girl", "person", "people", "human", "male", "female", "guy", "lady"),
        *("gentleman", "baby", "toddler", "child", "kid", "teen", "teenager", "adult", "couple", "bride"),
        *("groom", "actor", "actress", "model", "portrait", "face", "headshot", "selfie"),
    )
)


def is_person(class_name: str) -> bool:
    """Whether a class name means a person, so that pictures are expected to show one face."""
    return any(word in _PEOPLE for word in class_name.lower().replace("-", " ").replace("_", " ").split())


class FaceDetector(Protocol):
    """Finds faces.

    Attributes:
        name: Goes into the manifest; another detector means that pictures are looked at again.
    """

    name: str

    def detect(self, image: Image.Image) -> list[Box]:
        """Return the faces of an RGB picture, largest first."""


class EitherDetector:
    """Asks one detector after another; the first that finds a face answers."""

    def __init__(self, *detectors: FaceDetector) -> None:
        self.detectors = detectors
        self.name = "+".join(detector.name for detector in detectors)

    def detect(self, image: Image.Image) -> list[Box]:
        """Return the faces of an RGB picture, largest first."""
        for detector in self.detectors:
            if faces := detector.detect(image):
                return faces
        return []


def _shrunk(image: Image.Image) -> tuple[Any, float]:
    """Return the RGB array that detectors look at, and its scale: 640 pixels are enough to find a face."""
    scale = min(1.0, DETECTION_SIDE / max(image.size))
    if scale < 1.0:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BOX)
    return np.asarray(image.convert("RGB")), scale


def _in_picture(boxes: list[Any], scale: float, image: Image.Image) -> list[Box]:
    found = []
    for x, y, w, h in boxes:
        left, top = max(0, round(x / scale)), max(0, round(y / scale))
        right = min(image.width, round((x + w) / scale))
        bottom = min(image.height, round((y + h) / scale))
        if right > left and bottom > top:
            found.append((left, top, right - left, bottom - top))
    return sorted(found, key=lambda box: (-box[2] * box[3], box))


class CascadeDetector:
    """The frontal-face Haar cascade that ships in OpenCV's wheel: fast, no download, frontal faces only."""

    name = "opencv-haar-alt2"

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a cascade keeps state while it runs

    @cached_property
    def _cascade(self) -> Any:
        import cv2

        folder = Path(cv2.__file__).parent / "data"
        return cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_alt2.xml"))

    def detect(self, image: Image.Image) -> list[Box]:
        """Return the faces of an RGB picture, largest first; a face smaller than a tenth is not looked for."""
        import cv2

        pixels, scale = _shrunk(image)
        grey = cv2.equalizeHist(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
        smallest = max(20, min(grey.shape) // 10)
        with self._lock:
            boxes = self._cascade.detectMultiScale(
                grey, scaleFactor=1.1, minNeighbors=4, minSize=(smallest, smallest)
            )
        return _in_picture(list(boxes), scale, image)


class YuNetDetector:
    """YuNet (Wu et al. 2023), OpenCV's small face network, from an ONNX file; finds turned and small faces.

    Args:
        model: Path of `face_detection_yunet_….onnx`.
        score: Confidence from which a face counts.
    """

    def __init__(self, model: Path, score: float = 0.8) -> None:
        self.model = model
        self.score = score
        self.name = f"yunet-{model.stem}"
        self._lock = threading.Lock()

    @cached_property
    def _network(self) -> Any:
        import cv2

        return cv2.FaceDetectorYN.create(str(self.model), "", (320, 320), self.score)

    def detect(self, image: Image.Image) -> list[Box]:
        """Return the faces of an RGB picture, largest first."""
        import cv2

        pixels, scale = _shrunk(image)
        with self._lock:
            self._network.setInputSize((pixels.shape[1], pixels.shape[0]))
            _, rows = self._network.detect(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        return _in_picture([row[:4] for row in rows] if rows is not None else [], scale, image)


CERTAIN = 0.8
"""From here on what the detector of drawings says is believed before anybody asks the one of photos.

Of drawn faces 99 % have more, most renders of the shipped bases too, and nothing on photos (0.75 at most). The cascade,
asked first, would answer for one drawn face in six, with a height that is a fifth off.
"""


def load_detector(model: str | Path = "") -> FaceDetector:
    """Return what finds the faces of drawings and of photos (those by YuNet when a model file is given).

    Raises:
        Failure: `INVALID_REQUEST` when the file is not there.
    """
    from tunes_dagster.tiny import load_faces

    if not model:
        return EitherDetector(load_faces(threshold=CERTAIN), CascadeDetector(), load_faces())
    path = Path(model).expanduser()
    if not path.is_file():
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "The face detector's model that the settings name is missing.",
            "Download YuNet's ONNX file to where TUNES_FACE_DETECTOR says, or leave that empty for the shipped one.",
            f"There is no file {path}.",
        )
    return EitherDetector(load_faces(threshold=CERTAIN), YuNetDetector(path))

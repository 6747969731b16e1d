"""The helper models of intake: the captioner and the face detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from tunes_dagster.intake.faces import FaceDetector


class CaptionerResource(dg.ConfigurableResource):
    """Writes a caption where none came along with a picture."""

    model: str = Field(default="tiny", description="`tiny` is the shipped one; `none` leaves the template.")

    def open(self) -> Any | None:
        """Return an object with `caption(pictures) -> texts`, or None when captioning is off."""
        if self.model == "none":
            return None
        from tunes_dagster.tiny import load_captioner

        return load_captioner()


class FaceDetectorResource(dg.ConfigurableResource):
    """Finds faces for the manifest and for face crops."""

    model_path: str = Field(default="", description="YuNet ONNX file; empty means OpenCV's shipped cascade.")

    def open(self) -> FaceDetector:
        """Return the detector."""
        from tunes_dagster.intake.faces import load_detector

        return load_detector(self.model_path or None)

"""Detectors of faces for tests that want none found, or found by their own rule."""

from __future__ import annotations

from PIL import Image

from tunes_dagster.intake.manifest import Box


class NoDetector:
    """Finds nothing."""

    name = "none"

    def detect(self, image: Image.Image) -> list[Box]:
        return []

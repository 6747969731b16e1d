"""The helper models: the captioner and the face detector of intake, the scorers of report cards."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from tunes_dagster.families.catalog import SHIPPED
from tunes_dagster.resources.texts import of_setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from tunes_dagster.core.settings import Settings
    from tunes_dagster.evaluation.card import CardOptions
    from tunes_dagster.evaluation.scoring import Scorers
    from tunes_dagster.families.catalog import Catalog
    from tunes_dagster.intake.captions import Captioner
    from tunes_dagster.intake.faces import FaceDetector


class CaptionerResource(dg.ConfigurableResource):
    """Writes a caption where none came along with a picture."""

    model: str = Field(default="", description=of_setting("captioner"))

    def open(self, settings: Settings, catalog: Catalog) -> Captioner | None:
        """Return the captioner, or None when captioning is off or its model is not installed.

        Raises:
            Failure: `INVALID_REQUEST` for a name that is no captioner.
        """
        from tunes_dagster.service.companions import captioner_of

        chosen = settings.model_copy(update={"captioner": self.model}) if self.model else settings
        if chosen.captioner == "none":
            return None
        entry = captioner_of(chosen, catalog)
        if entry is None:
            return LazyCaptioner(SHIPPED / "captioner", "tiny")
        if not entry.installed(settings.bases_folder):
            return None
        return LazyCaptioner(entry.location(settings.bases_folder), entry.base_id)


class LazyCaptioner:
    """A captioner that is loaded when it is first asked: pictures that came with captions never ask it.

    Args:
        folder: Of its model, a `BlipForConditionalGeneration`.
        name: Answers are cached under it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self.name = folder, name

    @cached_property
    def _model(self) -> Any:
        from tunes_dagster.tiny import load_captioner

        return load_captioner(self._folder)

    def caption(self, images: list[Image]) -> list[str]:
        """Return one sentence per RGB picture."""
        said: list[str] = self._model.caption(images)
        return said


class FaceDetectorResource(dg.ConfigurableResource):
    """Finds faces for the manifest and for face crops."""

    model_path: str = Field(default="", description=of_setting("face_detector"))

    def open(self, settings: Settings) -> FaceDetector:
        """Return the detector."""
        from tunes_dagster.intake.faces import load_detector

        return load_detector(self.model_path or settings.face_detector)


class ScorersResource(dg.ConfigurableResource):
    """The models that look at pictures for a report card, by name in the scorer catalog."""

    likeness: str = Field(default="", description="Says how alike pictures are; empty means the profile's.")
    text: str = Field(
        default="", description="Says how well pictures fit texts; empty means the profile's, `none` none."
    )
    faces: str = Field(default="", description="Compares faces; empty means the profile's, mostly none.")

    def options(self, settings: Settings) -> CardOptions:
        """Return how much a card looks at, as the settings say."""
        from tunes_dagster.evaluation.card import options_of

        return options_of(settings)

    def open(self, settings: Settings, device: str = "cpu") -> Scorers:
        """Load the scorers.

        Raises:
            Failure: `BASE_NOT_INSTALLED` naming what to install, or `INVALID_REQUEST` for an unknown name.
        """
        from tunes_dagster.evaluation.scorers import open_scorers

        return open_scorers(settings, device, self.likeness, self.text, self.faces)

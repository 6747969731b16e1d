"""A picture to be made, and the shape that pictures share to be denoised together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from tunes_dagster.rendering.faceid import Face


# Levels of noise that the bases were trained on; no schedule is finer.
_FINEST = 1000
# Steps that are done at least where a picture is there to start from.
_FEWEST = 2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What pictures must share to be denoised together.

    Attributes:
        width: Pixels.
        height: Pixels.
        steps: As asked.
        scheduler: Public name; None is the base's own.
        guided: Whether each picture takes a second row without text.
        chunks: In which its texts are encoded.
        strength: Of starting from a picture; None starts from noise.
        masked: Whether only a part is painted.
        control: Branch of the ControlNet; empty for none.
    """

    width: int
    height: int
    steps: int
    scheduler: str | None
    guided: bool
    chunks: int = 1
    strength: float | None = None
    masked: bool = False
    control: str = ""

    @property
    def kept(self) -> bool:
        """Whether the picture to start from is handed back: its strength is below the finest noise there is."""
        return self.strength is not None and self.strength * _FINEST < 1

    @property
    def schedule(self) -> int:
        """Steps of the whole schedule: as asked, or so many more that two lie within the strength.

        Four steps have nothing below a strength of a quarter: 0.05 is done as the last two of forty. A last step alone
        would not do: schedules that count from the clean end have it at the same noise however many there are.
        """
        if not self.strength or self.strength == 1 or self.kept:
            return self.steps
        return max(self.steps, min(_FINEST, math.ceil(_FEWEST / self.strength)))

    @property
    def skipped(self) -> int:
        """Steps of the schedule that are left out because a picture is there to start from."""
        if self.strength is None:
            return 0
        if self.kept:
            return self.steps
        return self.schedule - min(self.schedule, max(1, int(self.schedule * self.strength)))

    @property
    def steps_done(self) -> int:
        """Steps that are really computed."""
        return self.schedule - self.skipped


@dataclass(frozen=True)
class Voice:
    """Adapters of text encoders that a picture's texts are encoded with.

    Attributes:
        name: Tells them apart: files and strengths.
        states: In peft's format.
        scales: Strength of each.
    """

    name: str
    states: Sequence[Mapping[str, Tensor]] = field(compare=False, repr=False)
    scales: Sequence[float] = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture to be made.

    Attributes:
        job: Index of its prompt in the batch.
        number: Which of the prompt's pictures.
        seed: Its own seed.
        shape: See `Shape`.
        guidance_scale: Of this picture.
        text: The prompt.
        negative: The negative prompt; empty means none.
        slot: Of the stacked adapters; -1 is the plain base.
        start: Pixels to start from, uint8 `[height, width, 3]`.
        mask: What is painted anew, 0…1 `[height, width]`.
        control: What the ControlNet sees, uint8 `[height, width, 3]`.
        control_scale: Its strength.
        faces: What the IP-Adapter is shown beside the text.
        voice: What its tunes adapt of the text encoders; None for most.
    """

    job: int
    number: int
    seed: int
    shape: Shape
    guidance_scale: float
    text: str
    negative: str
    slot: int
    start: np.ndarray | None = field(default=None, compare=False, repr=False)
    mask: np.ndarray | None = field(default=None, compare=False, repr=False)
    control: np.ndarray | None = field(default=None, compare=False, repr=False)
    control_scale: float = 1.0
    faces: tuple[Face, ...] = field(default=(), compare=False, repr=False)
    voice: Voice | None = field(default=None, repr=False)

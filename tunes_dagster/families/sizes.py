"""How large a base is, known before anything of it is loaded: from `sizes.yaml`, or from the files' headers.

Nothing here needs torch.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import yaml

from tunes_dagster.core.recipe import Strict, TrainingOptions
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.headers import shapes_in
from tunes_dagster.families.specs import spec_of

_BILLION = 1e9


class Sizes(Strict):
    """Sizes of one base; see the head of `sizes.yaml` for the words."""

    denoiser: float
    """Parameters in billions."""
    text: float
    """Of all text encoders."""
    vae: float
    """Of the VAE."""
    position: int
    """Side in pixels of one position."""
    text_positions: int
    """Text positions that the denoiser sees beside the picture's."""
    kept: dict[str, float]
    """Bytes per position that wait for the backward, in half precision, by targets of an adapter; `full` when all
    weights are trained.
    """
    kept_checkpointed: float
    """The same with gradient checkpointing."""
    forward: float
    """Bytes per position that a forward without gradients needs at its peak, in half precision."""
    widths: dict[str, int]
    """Numbers per rank of an adapter, by targets."""
    text_kept: float = 0.0
    """Bytes per text that wait for the backward in the text encoders while words are learned."""

    def kept_bytes(self, options: TrainingOptions) -> float:
        """Return the bytes per position that wait for the backward of what the options train."""
        return self.kept["full" if options.is_whole else options.targets or "attention"]

    def positions(self, resolution: int) -> int:
        """Return the positions of one row at a resolution."""
        return math.ceil(resolution / self.position) ** 2 + self.text_positions

    def forward_bytes(self, width: int, height: int, itemsize: float = 2) -> float:
        """Return the bytes that one row of a forward without gradients needs at its peak.

        Args:
            width: Pixels.
            height: Pixels.
            itemsize: Bytes of a number.
        """
        positions = math.ceil(width / self.position) * math.ceil(height / self.position)
        return (positions + self.text_positions) * self.forward * itemsize / 2

    def adapter_numbers(self, options: TrainingOptions) -> int:
        """Return the parameters of the adapter that the options ask for."""
        return self.widths[options.targets or "attention"] * (options.rank or 16)


@lru_cache(maxsize=1)
def known_sizes() -> dict[str, Sizes]:
    """Return the sizes of the real models by id."""
    raw = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {base_id: Sizes.model_validate(fields) for base_id, fields in raw.items()}


def sizes_of(entry: BaseModelEntry, folder: Path | None = None) -> Sizes:
    """Return the sizes of a base: as known, or measured from the headers of its files in diffusers layout.

    Args:
        entry: The base.
        folder: Where its files lie, if they do.
    """
    if entry.base_id in known_sizes():
        return known_sizes()[entry.base_id]
    # A base of unknown make is taken to be like the best known one of its family, scaled by its parameters.
    like = known_sizes()[spec_of(entry.family).sizes_like]
    counts = _counted(folder) if folder is not None and folder.is_dir() else {}
    if "denoiser" not in counts:
        return like
    # Width and depth each grow with about the square root of the parameters, and so does what a position keeps.
    factor = math.sqrt(counts["denoiser"] / like.denoiser)
    return like.model_copy(
        update={
            **counts,
            "kept": {name: size * factor for name, size in like.kept.items()},
            "kept_checkpointed": like.kept_checkpointed * factor,
            "forward": like.forward * factor,
            "widths": {name: max(1, round(width * factor)) for name, width in like.widths.items()},
        }
    )


def _counted(folder: Path) -> dict[str, float]:
    """Return billions of parameters by role, from the headers of the safetensors files of a pipeline's folder."""
    roles = {"unet": "denoiser", "transformer": "denoiser", "vae": "vae"}
    counts: dict[str, float] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        part = file.parent.name
        role = roles.get(part) or ("text" if part.startswith("text_encoder") else None)
        if role and not _is_variant(file):
            numbers = sum(math.prod(shape) for shape in shapes_in(file).values())
            counts[role] = counts.get(role, 0.0) + numbers / _BILLION
    return {role: count for role, count in counts.items() if count}


def _is_variant(file: Path) -> bool:
    """Whether a file repeats another one in fewer bits (`model.fp16.safetensors`)."""
    plain = file.with_name(file.name.replace(".fp16.", ".").replace(".bf16.", "."))
    return plain != file and plain.exists()

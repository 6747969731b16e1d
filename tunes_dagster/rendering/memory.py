"""How many pictures go through one forward, and how much one run takes, reckoned from memory.

The queue decides before anything is loaded, from what a device has and what a base is known to need (`plan_room`); the
renderer decides again before every forward, from what is really free then (`rendering/denoise.py`). Both use the same
arithmetic. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunes_dagster.rendering.sizes import rendered_size

if TYPE_CHECKING:
    from tunes_dagster.families.catalog import BaseModelEntry
    from tunes_dagster.families.sizes import Sizes
    from tunes_dagster.training.planner import Machine

# Of the free memory, what one forward may take; the rest is for embeddings, pictures on their way and fragments.
FORWARD_SHARE = 0.6
# Of the free memory, what the adapters of a run may take.
ADAPTER_SHARE = 0.3
# On a CPU more rows save nothing, and a small batch lets saving and cancelling keep up; on a GPU it is full by then.
MOST_AT_ONCE = {"cpu": 8}
MOST_AT_ONCE_ELSEWHERE = 32
# Forwards of one run: enough to be worth a model load, few enough that whoever comes next does not wait long.
FORWARDS = 16
_GIB = 2**30


@dataclass(frozen=True)
class Room:
    """What one render run has room for.

    Attributes:
        at_once: Pictures that are denoised together.
        pictures: Pictures of the run.
        gib: Memory of the device.
        source: Where that figure is from, for people.
    """

    at_once: int
    pictures: int
    gib: float
    source: str

    def sentence(self) -> str:
        """Return it in words."""
        return f"{self.at_once} pictures at once, {self.pictures} a run ({self.gib:.0f} GiB, {self.source})"


def most_at_once(device: str) -> int:
    """Return how many pictures are worth denoising together on a kind of device, whatever its memory."""
    return MOST_AT_ONCE.get(device, MOST_AT_ONCE_ELSEWHERE)


def pictures_that_fit(free_bytes: float, picture_bytes: float, most: int) -> int:
    """Return how many pictures are denoised at once; one when not even that is known to fit."""
    return max(1, min(most, int(free_bytes * FORWARD_SHARE / max(1.0, picture_bytes))))


def parts_that_fit(sizes: Sequence[int], room: float) -> list[list[int]]:
    """Cut adapters into parts that lie in memory together; stacked, each takes as much as the largest of its part.

    Args:
        sizes: Bytes of each.
        room: Bytes that a part may take; one alone may take more.

    Returns:
        Indices of each part, in order.
    """
    parts: list[list[int]] = []
    widest = 0
    for index, size in enumerate(sizes):
        widest = max(widest, size)
        if not parts or (len(parts[-1]) + 1) * widest > room:
            parts.append([])
            widest = size
        parts[-1].append(index)
    return parts


def plan_room(
    entry: BaseModelEntry, sizes: Sizes, shape: str, machine: Machine, source: str, max_pictures: int
) -> Room:
    """Return what a run on a base has room for, before anything of it is loaded.

    Args:
        entry: The base.
        sizes: What it is known to weigh.
        shape: Of the prompts, see `registry.prompts.shape_of`.
        machine: The device.
        source: Where its memory is known from.
        max_pictures: The operator's upper limit of a run.
    """
    width, height, guidance = _read(shape, entry)
    weights = (sizes.denoiser + sizes.text + sizes.vae) * 1e9 * machine.itemsize
    free = max(0.0, machine.usable_gib * _GIB - weights)
    rows = 2 if guidance > 1 and entry.acting_guidance == "classifier-free" else 1
    picture = rows * sizes.forward_bytes(*rendered_size(entry, width, height), machine.itemsize)
    at_once = pictures_that_fit(free, picture, most_at_once(machine.kind))
    return Room(at_once, max(1, min(max_pictures, at_once * FORWARDS)), machine.gib, source)


def _read(shape: str, entry: BaseModelEntry) -> tuple[int, int, float]:
    """Return width, height and guidance of a shape; what it leaves open is the base's own."""
    size, _, rest = shape.partition("/")
    width, _, height = size.partition("x")
    guidance = rest.split("/")[1] if rest.count("/") else ""
    own = entry.native_size
    return (
        int(width) if width.isdigit() else own,
        int(height) if height.isdigit() else own,
        float(guidance) if _is_number(guidance) else float(entry.rendering.get("guidance_scale") or 1),
    )


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdigit()

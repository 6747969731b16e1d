"""The bases that a session keeps loaded: those that were used last, as many as fit beside what is being done."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunes_dagster.families.loading import Placement
from tunes_dagster.sessions.aside import is_lent

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase
    from tunes_dagster.families.catalog import BaseModelEntry
    from tunes_dagster.rendering.aids import Aids
    from tunes_dagster.sessions.hardware import Device

# Of a device's memory; the rest goes to fragmentation and drivers, as in the planner.
_USABLE = 0.94
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_Key = tuple[str, str, Placement]


@dataclass
class Kept:
    """A base that is loaded.

    Attributes:
        base: The base.
        gib: About what its weights take.
        aids: What rendering on it has loaded beside it.
    """

    base: LoadedBase
    gib: float
    aids: Aids | None = field(default=None)


class Bases:
    """Loads bases onto a device and keeps them.

    Args:
        device: Where.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kept: OrderedDict[_Key, Kept] = OrderedDict()
        # GiB that what is being done needs beside the weights of its base.
        self.reserved_gib = 0.0

    def names(self) -> list[str]:
        """Return the bases that are loaded, the one used last at the end."""
        return list(dict.fromkeys(key[0] for key in self._kept))

    def loaded(self) -> list[LoadedBase]:
        """Return all bases that are loaded."""
        return [kept.base for kept in self._kept.values()]

    def load(self, entry: BaseModelEntry, folder: Path, device: Device, placement: Placement) -> LoadedBase:
        """Return a base, loaded unless it is there; see `cohorts.Place.load`."""
        return self.get(entry, folder, placement).base

    def get(self, entry: BaseModelEntry, folder: Path, placement: Placement | None = None) -> Kept:
        """Return a base with what goes with it, loaded unless it is there.

        Those that were not used for longest leave first when there is no room.

        Args:
            entry: Of the catalog.
            folder: Where it lies.
            placement: How its networks lie in memory; None saves as much as pictures need to fit.
        """
        from tunes_dagster.families.base import load_family
        from tunes_dagster.families.loading import placed

        placement = placement or fitting(entry, folder, self._device)
        key = (entry.base_id, str(folder), placement)
        kept = self._kept.get(key)
        if kept is None:
            self.make_room(gib := self.gib_of(entry, folder))
            with placed(placement):
                base = load_family(entry, folder, self._device.name, self._device.torch_dtype)
            kept = self._kept[key] = Kept(base, gib)
        self._kept.move_to_end(key)
        return kept

    def usable(self, entry: BaseModelEntry, folder: Path) -> bool:
        """Whether a base can be computed with in the middle of other work: it is there whole, or there is room."""
        kept = self._kept.get((entry.base_id, str(folder), fitting(entry, folder, self._device)))
        if kept is not None:
            return not is_lent(kept.base)
        return self.room_gib() >= self.gib_of(entry, folder)

    def gib_of(self, entry: BaseModelEntry, folder: Path) -> float:
        """Return about what the weights of a base take."""
        from tunes_dagster.families.sizes import sizes_of

        sizes = sizes_of(entry, folder)
        return (sizes.denoiser + sizes.text + sizes.vae) * 1e9 * _BYTES[self._device.dtype] / 2**30

    def room_gib(self) -> float:
        """Return about how much memory is free for more bases."""
        taken = sum(kept.gib for kept in self._kept.values())
        return self._device.memory_gb * _USABLE - taken - self.reserved_gib

    def make_room(self, gib: float) -> None:
        """Drop the bases that were not used for longest until so much is free, or none is left."""
        while self._kept and self.room_gib() < gib:
            self._kept.popitem(last=False)
            _give_back_memory()

    def clear(self) -> None:
        """Drop them all."""
        self._kept.clear()
        _give_back_memory()


def fitting(entry: BaseModelEntry, folder: Path, device: Device, scoring: bool = False) -> Placement:
    """Return how a base is loaded for pictures, so that they fit; see `training/road.py`."""
    from tunes_dagster.training.road import serving

    way = serving(entry, folder, device.machine(), scoring)
    return Placement(way.offload, way.quantize)


def _give_back_memory() -> None:
    from tunes_dagster.rendering.denoise import release_memory

    release_memory()

"""What a render run has room for on the machine that will render it, as far as the queue can know.

The memory is, in this order: what the operator says (`TUNES_RENDER_MEMORY_GB`), what the machine of the last run had,
this machine's where it has no GPU, what the catalog says that the base needs at least. Nothing here needs torch.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tunes_dagster.families.catalog import Catalog, load_catalog
from tunes_dagster.rendering.memory import FORWARDS, Room, plan_room

if TYPE_CHECKING:
    from tunes_dagster.core.results import Machine as LastMachine
    from tunes_dagster.core.settings import Settings
    from tunes_dagster.registry import Registry
    from tunes_dagster.training.planner import Machine

_NVIDIA = Path("/proc/driver/nvidia/version")


class Rooms:
    """Answers for every base and shape of one decision; the registry and the catalog are read once.

    Args:
        registry: Holds the machines of the last runs.
        settings: The operator's.
        catalog: The one that the settings name, unless given.
    """

    def __init__(self, registry: Registry, settings: Settings, catalog: Catalog | None = None) -> None:
        self._registry, self._settings, self._given = registry, settings, catalog
        self._known: dict[tuple[str, str], Room] = {}

    @cached_property
    def _catalog(self) -> Catalog:
        return self._given or load_catalog(self._settings.profile)

    @cached_property
    def _last(self) -> LastMachine | None:
        return self._registry.groups.last_machine()

    def room(self, base_id: str, shape: str) -> Room:
        """Return what a run has room for.

        Args:
            base_id: Of the catalog.
            shape: Of its prompts, see `registry.prompts.shape_of`.
        """
        if (base_id, shape) not in self._known:
            self._known[base_id, shape] = self._room(base_id, shape)
        return self._known[base_id, shape]

    def _room(self, base_id: str, shape: str) -> Room:
        from tunes_dagster.families.sizes import sizes_of

        most = self._settings.max_batch_pictures
        entry = self._catalog.entries.get(base_id)
        if entry is None:  # models beside the bases make one picture or clip after the other
            return Room(1, min(most, FORWARDS), 0.0, "one after the other")
        machine, source = self._machine(entry.memory_gb)
        sizes = sizes_of(entry, entry.location(self._settings.bases_folder))
        return plan_room(entry, sizes, shape, machine, source, most)

    def _machine(self, least_gb: float) -> tuple[Machine, str]:
        from tunes_dagster.training.planner import Machine

        last, asked = self._last, self._settings.render_memory_gb
        kind, dtype = (last.kind, last.dtype) if last else ("cuda", "bfloat16")
        if asked:
            return Machine(kind, asked, dtype), "as set"
        if last:
            return Machine(kind, last.gib, dtype), "as the last run had"
        if self._settings.device == "cpu" or (self._settings.device == "auto" and not _NVIDIA.exists()):
            return Machine("cpu", psutil.virtual_memory().total / 2**30, "float32"), "this machine"
        return Machine(kind, least_gb, dtype), "the least that its base needs"

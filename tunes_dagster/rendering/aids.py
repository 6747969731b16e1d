"""What rendering needs beside the base: ControlNets, upscaler, face detector, restorer, safety checker, the rules.

Each is loaded when the first prompt asks for it, and kept for the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.families.catalog import AuxiliaryEntry, Catalog
from tunes_dagster.rendering.policy import Rule, load_rules

if TYPE_CHECKING:
    from tunes_dagster.core.settings import Settings
    from tunes_dagster.families.base import LoadedBase
    from tunes_dagster.families.ipadapter import IpAdapter
    from tunes_dagster.intake.faces import FaceDetector
    from tunes_dagster.intake.restore import Restorer
    from tunes_dagster.rendering.controls import Control
    from tunes_dagster.rendering.safety import SafetyChecker
    from tunes_dagster.rendering.upscaling import Upscaler


@dataclass
class Aids:
    """Models and rules of one batch.

    Attributes:
        catalog: Says which there are; None has none.
        bases_folder: Where pulled weights lie.
        rules: Over the words of prompts.
        allow_hosts: Hosts that pictures may come from although their address is private.
        check_pictures: Use the catalog's safety checker when it is installed.
        face_detector: YuNet's ONNX file; empty for the shipped detectors.
    """

    catalog: Catalog | None = None
    bases_folder: Path = Path()
    rules: Sequence[Rule] = ()
    allow_hosts: Sequence[str] = ()
    check_pictures: bool = True
    face_detector: str = ""
    _controls: dict[str, Control] = field(default_factory=dict, repr=False)

    def control_id(self, name: str, family: str) -> str:
        """Return the ControlNet that a setting asks for on a family.

        Raises:
            Failure: `BASE_NOT_INSTALLED`.
        """
        entry = self.catalog.control(name, family) if self.catalog else None
        return self._installed(entry, f"controlnet {name!r}").base_id

    def control(self, base_id: str, base: LoadedBase) -> Control:
        """Return a ControlNet, loaded once."""
        from tunes_dagster.rendering.controls import Control

        if base_id not in self._controls:
            assert self.catalog is not None
            folder = self.catalog.auxiliary[base_id].location(self.bases_folder)
            self._controls[base_id] = Control(folder, base)
        return self._controls[base_id]

    def face_adapter(self, base: LoadedBase) -> IpAdapter:
        """Return the IP-Adapter of a base, loaded once.

        Raises:
            Failure: `INVALID_REQUEST` when the catalog has none for it, `BASE_NOT_INSTALLED`, `WEIGHTS_UNUSABLE`.
        """
        from tunes_dagster.families.ipadapter import adapter_for, read_adapter

        if "_face_adapter" not in self.__dict__:
            entry = adapter_for(self.catalog, base.entry, self.bases_folder)
            self.__dict__["_face_adapter"] = read_adapter(entry, self.bases_folder)
        found: IpAdapter = self.__dict__["_face_adapter"]
        return found

    def upscaler(self, base: LoadedBase) -> Upscaler:
        """Return the upscaler on the device of a base, loaded once.

        Raises:
            Failure: `BASE_NOT_INSTALLED`.
        """
        from tunes_dagster.rendering.upscaling import Upscaler

        if "_upscaler" not in self.__dict__:
            entry = self._installed(
                self.catalog.first("upscale") if self.catalog else None, "super_resolution"
            )
            self.__dict__["_upscaler"] = Upscaler(entry.location(self.bases_folder), base.device, base.dtype)
        found: Upscaler = self.__dict__["_upscaler"]
        return found

    def checker(self, device: Any) -> SafetyChecker | None:
        """Return the safety checker on a device, loaded once, or None when it is switched off or not installed."""
        from tunes_dagster.rendering.safety import SafetyChecker

        if "_checker" not in self.__dict__:
            entry = self.catalog.first("safety") if self.catalog and self.check_pictures else None
            there = entry is not None and entry.installed(self.bases_folder)
            checker = SafetyChecker(entry.location(self.bases_folder), device) if entry and there else None
            self.__dict__["_checker"] = checker
        found: SafetyChecker | None = self.__dict__["_checker"]
        return found

    @cached_property
    def detector(self) -> FaceDetector:
        """The face detector."""
        from tunes_dagster.intake.faces import load_detector

        return load_detector(self.face_detector)

    @cached_property
    def restorer(self) -> Restorer:
        """The face restorer; raises a Failure that names what is missing."""
        from tunes_dagster.intake.restore import GfpganRestorer, weights_path

        return GfpganRestorer(weights_path(self.bases_folder))

    def _installed(self, entry: AuxiliaryEntry | None, what: str) -> AuxiliaryEntry:
        if entry is not None and entry.installed(self.bases_folder):
            return entry
        name = entry.base_id if entry else what
        raise Failure(
            FailureCode.BASE_NOT_INSTALLED,
            f"{what} needs weights that are not installed.",
            f"Run `tunes bases pull {name}`." if entry else "Add an entry to the operator's catalog file.",
        )


def make_aids(catalog: Catalog, settings: Settings) -> Aids:
    """Return what an installation has.

    Raises:
        Failure: `INVALID_REQUEST` when its content rules cannot be read.
    """
    return Aids(
        catalog,
        settings.bases_folder,
        load_rules(settings),
        settings.allow_hosts,
        settings.safety_checker,
        settings.face_detector,
    )

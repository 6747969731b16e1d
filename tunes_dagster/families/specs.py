"""What a model family can do, said once: every family that is known here, and how another package adds one.

A `FamilySpec` stands beside the class that it describes, in the family's own file. The catalog, the checks at
submission, the sizes, the memory planner, the documents and the error messages ask it; nobody else lists families or
asks which one a base is of. An installed package adds one through an entry point:

    [project.entry-points."tunes_dagster.families"]
    mine = "my_package.mine:SPEC"

Nothing here needs torch, and neither may a module that a spec stands in.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase

ENTRY_POINTS = "tunes_dagster.families"
_SHIPPED = ("sd15", "sdxl", "flux", "flux2")

Guidance = Literal["classifier-free", "distilled", "none"]
Prediction = Literal["noise", "flow"]


@dataclass(frozen=True, kw_only=True)
class FamilySpec:
    """One model family, as far as it is known before anything is loaded.

    Attributes:
        name: Its word in catalogs (`family: sdxl`).
        title: Its name for people.
        base_class: The class that loads, trains and renders it.
        kinds: Kinds of tune that can be made on it (`TrainingOptions.kind`).
        prediction: How it learns: by predicting noise (epsilon or v), which a signal-to-noise weighting fits, or by
            flow matching.
        guidance: How a guidance scale acts where the catalog entry does not say it.
        weighted_text: Whether its text encoders take weights of words and chunks of long texts.
        controlnets: Whether ControlNets can steer it.
        ip_adapter: Whether its denoiser takes an IP-Adapter's embeddings row by row, which faces need.
        dora: Whether DoRA can be trained on it and exported.
        quantize: Values of `training.quantize`, beside `none`, that it can be trained with.
        sizes_like: The id in `sizes.yaml` that a base of unknown make is measured by.
        default_guidance: Guidance scale of a prompt where neither it nor the catalog entry names one.
        programs: Programs beside diffusers that read its LoRAs in kohya layout.
        word_programs: Those of them that read the words of a pti tune as well.
        dora_programs: Those of them that render a DoRA as it was trained.
    """

    name: str
    title: str
    base_class: type[LoadedBase]
    kinds: tuple[str, ...]
    prediction: Prediction
    guidance: Guidance
    weighted_text: bool
    controlnets: bool
    ip_adapter: bool
    dora: bool
    quantize: tuple[str, ...]
    sizes_like: str
    default_guidance: float
    programs: tuple[str, ...] = ()
    word_programs: tuple[str, ...] = ()
    dora_programs: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def families() -> Mapping[str, FamilySpec]:
    """Return every known family by name: those that ship, then those of installed packages.

    Raises:
        Failure: `UNKNOWN_BASE` when an installed package's family cannot be read or takes a name that exists.
    """
    found: dict[str, FamilySpec] = {}
    for name in _SHIPPED:
        found[name] = importlib.import_module(f"tunes_dagster.families.{name}").SPEC
    for point in entry_points(group=ENTRY_POINTS):
        spec = point.load()
        if not isinstance(spec, FamilySpec) or spec.name in found:
            raise Failure(
                FailureCode.UNKNOWN_BASE,
                f"The entry point {point.name!r} ({point.value}) adds no new model family.",
                "It should name a FamilySpec whose name is not taken; mend or uninstall that package.",
            )
        found[spec.name] = spec
    return MappingProxyType(found)


def spec_of(family: str) -> FamilySpec:
    """Return a family's spec.

    Raises:
        Failure: `UNKNOWN_BASE`, naming the families that there are.
    """
    known = families()
    if family not in known:
        raise Failure(
            FailureCode.UNKNOWN_BASE,
            f"There is no trainer for the family {family!r}.",
            f"Choose a base of the families {', '.join(known)}, or install a package that adds it.",
        )
    return known[family]


def in_words(specs: Iterable[FamilySpec]) -> str:
    """Return the names of families as a sentence lists them: `sd15 and sdxl`."""
    names = [spec.name for spec in specs]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

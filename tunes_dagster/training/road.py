"""What each moment of a tune's life takes on a device, from loading the base to a rendered picture.

The planner decides how training is laid out. Once a tune is there, its report card and its pictures load the base
again: whole where it fits, else saved in the order of what it costs (text encoders and VAE off the device, a packed
denoiser). Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.sizes import Sizes, sizes_of
from tunes_dagster.families.specs import spec_of
from tunes_dagster.training import planner
from tunes_dagster.training.planner import Machine, MemoryPlan

_GIB = 2**30
# Side of the tiles that a picture is decoded by when memory is too short for the whole.
_TILE = 512
# Guidance takes a row more.
_ROWS = 2
# The adapters that a picture of one tune wears, and those of the checkpoints that a sheet of samples shows.
_WORN, _SHOWN = 1, 4
# Scorers are loaded beside the base: CLIP-L and DINOv2-base in float32.
_SCORERS_GIB = (0.428 + 0.087) * 4e9 / _GIB


@dataclass(frozen=True)
class Serving:
    """How a base is loaded for rendering.

    Attributes:
        offload: Each network is on the device only while it works.
        quantize: Bits of the denoiser: `none`, `int8`, `nf4`.
        needed_gib: What one picture at the base's own size is expected to need.
        fits: Whether the device has as much.
    """

    offload: bool
    quantize: str
    needed_gib: float
    fits: bool


def plan_rendering(
    sizes: Sizes, native_size: int, machine: Machine, packings: tuple[str, ...] = (), beside_gib: float = 0.0
) -> Serving:
    """Decide how a base is loaded for pictures: the cheapest way that fits, else the one that needs least.

    Args:
        sizes: Of the base.
        native_size: Side of its pictures.
        machine: The device.
        packings: Bits that its family can be packed in.
        beside_gib: What else lies on the device meanwhile.
    """
    found = []
    for offload, quantize in _ways(machine, packings):
        needed = _rendering(sizes, native_size, machine, offload, quantize) + beside_gib
        fits = needed <= machine.gib * planner.USABLE
        found.append(Serving(offload, quantize, needed, fits))
        if fits:
            return found[-1]
    return min(found, key=lambda one: one.needed_gib)


def serving(entry: BaseModelEntry, folder: Path, machine: Machine, scoring: bool = False) -> Serving:
    """Return how a base of the catalog is loaded for pictures on a device.

    Args:
        entry: The base.
        folder: Where it lies.
        machine: The device.
        scoring: Whether scorers look at the pictures at the same time.
    """
    packings = tuple(one for one in spec_of(entry.family).quantize if one in ("int8", "nf4"))
    beside = _SCORERS_GIB if scoring and machine.kind != "cpu" else 0.0
    return plan_rendering(sizes_of(entry, folder), entry.native_size, machine, packings, beside)


def road(
    plan: MemoryPlan, options: TrainingOptions, entry: BaseModelEntry, folder: Path, machine: Machine
) -> dict[str, float]:
    """Return GiB on the device by moment, as the plan lays a tune out.

    Args:
        plan: Of its training.
        options: Its own, with the base's defaults.
        entry: Its base.
        folder: Where that lies.
        machine: The device.
    """
    sizes, parts = sizes_of(entry, folder), plan.parts_gib
    offload, quantize = plan.choice.offload, plan.choice.quantize
    overhead = parts["overhead"]
    adapter = 0.0 if options.is_whole else sizes.adapter_numbers(options) * 4 / _GIB
    beside = parts["trained"]  # other tunes go on training while the files of one are looked at
    looking = _rendering(sizes, entry.native_size, machine, offload, quantize)
    training = sum(value for name, value in parts.items() if not name.startswith("while "))
    moments = {
        "load": parts["base"] + (0.0 if offload else _others(sizes, machine)) + overhead,
        "encode": parts["while encoding"],
        "learn words": parts["while learning words"] if options.kind == "pti" else 0.0,
        "train": training,
        "verify": looking + beside + _WORN * adapter,
        "samples": looking + _SHOWN * adapter,
        "score": serving(entry, folder, machine, scoring=True).needed_gib + _SHOWN * adapter,
        "render": serving(entry, folder, machine).needed_gib + _WORN * adapter,
    }
    return {name: round(value, 1) for name, value in moments.items() if value}


def described(
    plan: MemoryPlan, options: TrainingOptions, entry: BaseModelEntry, folder: Path, machine: Machine
) -> dict[str, Any]:
    """Return a plan's values with the whole road: GiB by moment, the highest one, and how pictures are rendered."""
    moments = road(plan, options, entry, folder, machine)
    worst = max(moments, key=lambda name: moments[name])
    rendering = serving(entry, folder, machine)
    return {
        "moments_gib": moments,
        "worst_moment": worst,
        "rendering": {**asdict(rendering), "needed_gib": round(rendering.needed_gib, 1)},
    }


def _ways(machine: Machine, packings: tuple[str, ...]) -> Iterator[tuple[bool, str]]:
    yield False, "none"
    if machine.kind == "cuda":
        yield True, "none"
        if machine.bitsandbytes:
            yield from ((True, bits) for bits in ("int8", "nf4") if bits in packings)


def _others(sizes: Sizes, machine: Machine) -> float:
    return (sizes.text * machine.itemsize + sizes.vae * 4) * 1e9 / _GIB


def _rendering(sizes: Sizes, side: int, machine: Machine, offload: bool, quantize: str) -> float:
    """Return GiB of one picture of a side: its text, its steps and its decoding, with the base as it lies."""
    width = machine.itemsize
    denoiser = sizes.denoiser * 1e9 * planner.QUANTIZED_BYTES.get(quantize, width)
    forward = _ROWS * sizes.forward_bytes(side, side, width)
    decoding = min(side, _TILE) ** 2 * planner.VAE_BYTES_PER_PIXEL
    text, vae = sizes.text * 1e9 * width, sizes.vae * 4e9
    if offload:  # one network at a time
        most = max(text, denoiser + forward, vae + decoding)
    else:
        most = denoiser + text + vae + max(forward, decoding)
    return most / _GIB + planner.OVERHEAD_GIB.get(machine.kind, 1.0)

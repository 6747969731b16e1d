"""What makes a recipe fit a device, decided from arithmetic before anything is loaded.

Ways of saving memory are tried in the order of what they cost: text encoders and VAE off the device (seconds, once),
gradient checkpointing (a third more time per step), 8-bit moments, a quantized base (slower steps in every published
measurement). The first that fits is taken; then as many tunes share the run as fit beside each other. What a person
fixed is never changed. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tunes_dagster.core import extras
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.families.sizes import Sizes

if TYPE_CHECKING:
    from tunes_dagster.training.jobs import TuneJob

_GIB = 2**30
# Of a device's memory; the rest goes to fragmentation, and on a GPU to its driver.
USABLE = 0.94
# CUDA context, cuBLAS and cuDNN workspaces; on a CPU the interpreter and its libraries.
OVERHEAD_GIB = {"cuda": 1.2, "mps": 0.8, "cpu": 0.6}
_BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# bitsandbytes: one number per 64 weights beside them, and embeddings and norms that stay as they are.
QUANTIZED_BYTES = {"int8": 1.1, "nf4": 0.6}
# Values, gradients and two moments of what is trained; 8-bit moments take a byte each.
_ADAMW_BYTES, _ADAMW8BIT_BYTES = 16, 10
# The block that is being recomputed, as a share of what all blocks keep: UNets have few and uneven blocks.
_UNET_POSITION = 8
_RECOMPUTED = {_UNET_POSITION: 0.15, 16: 0.03}
# The lowest resolution that people train at.
_LOW = 512
# Blocks of text encoders are many and even: their inputs, and the one that is being recomputed.
_TEXT_RECOMPUTED = 0.06
# A VAE encoder's first maps at full size: 128 channels, about five alive, in float32.
VAE_BYTES_PER_PIXEL = 128 * 5 * 4


@dataclass(frozen=True)
class Choice:
    """One way to lay things out.

    Attributes:
        offload: Text encoders and VAE leave the device once everything is encoded.
        gradient_checkpointing: Blocks are recomputed in the backward.
        optimizer: Of the tunes.
        quantize: Bits of the frozen base: `none`, `int8`, `nf4`.
    """

    offload: bool
    gradient_checkpointing: bool
    optimizer: str
    quantize: str


@dataclass(frozen=True)
class MemoryPlan:
    """What was decided.

    Attributes:
        choice: How things are laid out.
        cohort: Tunes that may share the run.
        device_gib: Memory of the device.
        needed_gib: What a cohort of that size is expected to need at its peak.
        parts_gib: Where it goes.
        precision: The base's dtype.
    """

    choice: Choice
    cohort: int
    device_gib: float
    needed_gib: float
    parts_gib: dict[str, float]
    precision: str

    def applied(self, options: TrainingOptions) -> TrainingOptions:
        """Return a tune's options as they will be carried out."""
        chosen = {
            "gradient_checkpointing": self.choice.gradient_checkpointing,
            "quantize": self.choice.quantize,
            "offload": self.choice.offload,
        }
        if options.optimizer == "adamw":
            chosen["optimizer"] = self.choice.optimizer if self.choice.optimizer == "adamw8bit" else "adamw"
        return options.model_copy(update=chosen)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for recipes and metadata."""
        rounded = {name: round(value, 2) for name, value in self.parts_gib.items()}
        return {
            **asdict(self.choice),
            "precision": self.precision,
            "cohort": self.cohort,
            "device_gib": round(self.device_gib, 1),
            "needed_gib": round(self.needed_gib, 1),
            "parts_gib": rounded,
        }

    def sentence(self) -> str:
        """Return it in one sentence for logs."""
        on = [
            name
            for name, chosen in (
                ("text encoders and VAE are offloaded after encoding", self.choice.offload),
                ("gradient checkpointing", self.choice.gradient_checkpointing),
                ("8-bit moments", self.choice.optimizer == "adamw8bit"),
                (f"base in {self.choice.quantize}", self.choice.quantize != "none"),
            )
            if chosen
        ]
        tunes = "1 tune" if self.cohort == 1 else f"up to {self.cohort} tunes"
        return (
            f"Memory plan: {self.precision}, {', '.join(on) or 'nothing saved'}; {tunes} at a time; about "
            f"{self.needed_gib:.1f} of {self.device_gib:.0f} GiB."
        )


@dataclass(frozen=True)
class Machine:
    """The device as far as memory goes.

    Attributes:
        kind: `cuda`, `mps`, `cpu`.
        gib: Its memory.
        dtype: What the base computes in.
        bitsandbytes: Whether 8-bit moments and quantized bases can be had on it.
    """

    kind: str
    gib: float
    dtype: str
    bitsandbytes: bool = False

    @property
    def usable_gib(self) -> float:
        """What models and what they compute may take of it."""
        return self.gib * USABLE - OVERHEAD_GIB.get(self.kind, 1.0)

    @property
    def itemsize(self) -> float:
        """Bytes of a number in the base's dtype."""
        return _BYTES[self.dtype]


def plan_memory(
    options: Sequence[TrainingOptions], sizes: Sizes, native_size: int, machine: Machine, most: int = 8
) -> MemoryPlan:
    """Decide how tunes of one base are trained on a device.

    Args:
        options: Of the tunes, with the base's defaults filled in; the most demanding one decides.
        sizes: Of the base.
        native_size: Resolution when the options name none.
        machine: The device.
        most: Most tunes that may share a run.

    Raises:
        Failure: `OUT_OF_MEMORY`, saying what is needed, what there is and what would help.
    """
    least: tuple[float, Choice] | None = None
    usable = machine.gib * USABLE
    for choice in _choices(options, sizes, machine):
        needed = _peak(_needs(options, sizes, native_size, machine, choice, 1))
        if least is None or needed < least[0]:
            least = needed, choice
        if needed > usable:
            continue
        sharing = not all(trains_alone(option) for option in options)
        cohort = 1
        while sharing and cohort < most:
            if _peak(_needs(options, sizes, native_size, machine, choice, cohort + 1)) > usable:
                break
            cohort += 1
        parts = _needs(options, sizes, native_size, machine, choice, cohort)
        return MemoryPlan(choice, cohort, machine.gib, _peak(parts), parts, machine.dtype)
    assert least is not None
    small = [option.model_copy(update={"resolution": _LOW}) for option in options]
    lower = _peak(_needs(small, sizes, native_size, machine, least[1], 1))
    raise _refusal(least, lower, options, machine)


def carry_out(plan: MemoryPlan, job: TuneJob) -> None:
    """Write a plan into a job: its options, its recipe, and a note for who watches."""
    job.options = plan.applied(job.options)
    job.recipe = {**job.recipe, "memory": {**asdict(plan.choice), "precision": plan.precision}}
    job.report.note(plan.sentence())


def _choices(options: Sequence[TrainingOptions], sizes: Sizes, machine: Machine) -> Iterator[Choice]:
    """Yield the ways to lay things out, cheapest first, within what the tunes' options fix."""
    fixed = {
        name: {getattr(option, name) for option in options} - {None}
        for name in ("offload", "gradient_checkpointing", "quantize")
    }
    optimizer = next((o.optimizer for o in options if o.optimizer != "adamw"), "adamw")
    # An adapter's moments are too few to matter.
    wanted = optimizer == "adamw" and any(o.is_whole for o in options)
    eight = "adamw8bit" if wanted and machine.bitsandbytes else optimizer
    # Only transformers: the convolutions of UNets stay as they are, and little would be gained.
    transformer = sizes.position > _UNET_POSITION
    quantizable = machine.bitsandbytes and transformer and not any(o.is_whole for o in options)
    steps = [
        Choice(False, False, optimizer, "none"),
        Choice(True, False, optimizer, "none"),
        Choice(True, True, optimizer, "none"),
        Choice(True, True, eight, "none"),
    ]
    if quantizable:
        steps += [Choice(True, True, optimizer, "int8"), Choice(True, True, optimizer, "nf4")]
    if machine.kind != "cuda":  # text encoders would only go from memory to the same memory
        steps = [replace(step, offload=False) for step in steps]
    seen = set()
    for step in steps:
        asked = {name: values for name, values in fixed.items() if values}
        # Where tunes of one run disagree, the saving way is taken for all: it changes no weights.
        changed = Choice(
            offload=any(asked["offload"]) if "offload" in asked else step.offload,
            gradient_checkpointing=(
                any(asked["gradient_checkpointing"])
                if "gradient_checkpointing" in asked
                else step.gradient_checkpointing
            ),
            optimizer=step.optimizer,
            quantize=min(asked["quantize"]) if "quantize" in asked else step.quantize,
        )
        if changed not in seen:
            seen.add(changed)
            yield changed


def trains_alone(options: TrainingOptions) -> bool:
    """Whether a tune shares its forwards with no other one; as `methods.method_of` says, which needs torch."""
    return options.is_whole or options.dora or options.optimizer == "adamw8bit"


def _needs(
    options: Sequence[TrainingOptions],
    sizes: Sizes,
    native_size: int,
    machine: Machine,
    choice: Choice,
    tunes: int,
) -> dict[str, float]:
    """Return what the most demanding part of a run needs: so many tunes that share, or one that trains alone."""
    groups = [([option], 1) for option in options if trains_alone(option)]
    if together := [option for option in options if not trains_alone(option)]:
        groups.append((together, tunes))
    found = [_parts(group, sizes, native_size, machine, choice, count) for group, count in groups]
    return max(found, key=_peak)


def _parts(
    options: Sequence[TrainingOptions],
    sizes: Sizes,
    native_size: int,
    machine: Machine,
    choice: Choice,
    tunes: int,
) -> dict[str, float]:
    """Return GiB by purpose for tunes that train together.

    Those that begin with `while` are peaks of their own, the others add up while training.
    """
    width = _BYTES[machine.dtype]
    worst = max(options, key=lambda o: _rows(o) * sizes.positions(o.resolution or native_size))
    per_weight = QUANTIZED_BYTES.get(choice.quantize, width)
    per_trained = _ADAMW8BIT_BYTES if choice.optimizer == "adamw8bit" else _ADAMW_BYTES
    denoiser = sizes.denoiser * 1e9 * per_weight
    encoders = (sizes.text * width + sizes.vae * 4) * 1e9
    resolution = worst.resolution or native_size
    positions = _rows(worst) * sizes.positions(resolution)
    kept = max(sizes.kept_bytes(option) for option in options)
    if choice.gradient_checkpointing:
        kept = sizes.kept_checkpointed + _RECOMPUTED.get(sizes.position, 0.1) * kept
    per_trained += 4 if any(option.ema_decay for option in options) else 0
    if options[0].is_whole:
        # The base's own weights wait in the machine's memory; `base` is what the network computes with.
        trained = sizes.denoiser * 1e9 * per_trained
    else:
        numbers = max(sizes.adapter_numbers(option) for option in options)
        # The working copies that the layers compute with, and their gradients, are in the base's precision.
        trained = tunes * numbers * (per_trained + 2 * width)
    overhead = OVERHEAD_GIB.get(machine.kind, 1.0)
    pixels = resolution**2 * VAE_BYTES_PER_PIXEL
    if choice.offload:  # one network at a time
        encoding = max(sizes.text * width * 1e9, sizes.vae * 4e9 + pixels)
    else:
        encoding = encoders + pixels + denoiser
    return {
        "base": denoiser / _GIB,
        "encoders": 0.0 if choice.offload else encoders / _GIB,
        "trained": trained / _GIB,
        "activations": tunes * positions * kept * (width / 2) / _GIB,
        "overhead": overhead,
        "while encoding": encoding / _GIB + overhead,
        "while learning words": _words(options, sizes, resolution, kept, choice, width, denoiser) / _GIB
        + overhead,
    }


def _words(
    options: Sequence[TrainingOptions],
    sizes: Sizes,
    resolution: int,
    kept: float,
    choice: Choice,
    width: float,
    denoiser: float,
) -> float:
    """Return the bytes of pivotal tuning's first phase: text encoders and denoiser side by side, one tune at a time."""
    rows = max((option.batch_size or 1 for option in options if option.kind == "pti"), default=0)
    if not rows:
        return 0.0
    texts = sizes.text_kept * (_TEXT_RECOMPUTED if choice.gradient_checkpointing else 1.0)
    activations = rows * (sizes.positions(resolution) * kept + texts) * (width / 2)
    return denoiser + sizes.text * width * 1e9 + (0.0 if choice.offload else sizes.vae * 4e9) + activations


def _rows(options: TrainingOptions) -> int:
    """Return the rows of a step: pictures, and as many prior rows unless told otherwise."""
    pictures = options.batch_size or 1
    prior = (options.prior_batch_size or pictures) if options.prior_weight and options.prior_prompts else 0
    return pictures + prior


def _peak(parts: dict[str, float]) -> float:
    phases = [value for name, value in parts.items() if name.startswith("while ")]
    return max(*phases, sum(parts.values()) - sum(phases))


def _refusal(
    least: tuple[float, Choice], lower: float, options: Sequence[TrainingOptions], machine: Machine
) -> Failure:
    """Return why nothing fits: the least that is needed, and what a low resolution would need (`lower`)."""
    needed, choice = least
    helps = [f"a device with at least {math.ceil(needed / USABLE)} GiB"]
    if max(_rows(option) for option in options) > 1:
        helps.append("a smaller batch_size, or prior_weight 0")
    if lower <= machine.gib * USABLE:
        helps.append(f"a lower resolution (at {_LOW} it needs {lower:.1f} GiB)")
    if not choice.gradient_checkpointing:
        helps.append("gradient_checkpointing (it was turned off)")
    if choice.quantize == "none" and machine.kind == "cuda" and not machine.bitsandbytes:
        helps.append(f"a quantized base ({extras.how_to_get('bitsandbytes')})")
    if any(option.is_whole for option in options):
        helps.append("a `lora` instead of a `checkpoint`")
    return Failure(
        FailureCode.OUT_OF_MEMORY,
        f"The recipe needs at least {needed:.1f} GiB on the device, which has {machine.gib:.0f} GiB "
        f"({machine.gib * USABLE:.1f} usable).",
        f"What would help: {'; '.join(helps)}.",
        facts={"needed_gib": round(needed, 1), "device_gib": round(machine.gib, 1)},
    )

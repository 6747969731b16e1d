"""How each kind of tune is trained: what it prepares, what the loop trains for it, and what it writes.

The loop knows no kind of tune by name: it asks `method_of` and uses these four answers. Tunes of one method that
stacks share their forwards; a solo method goes through the same loop, one tune at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import LoadedBase
from tunes_dagster.training import export, pti, run
from tunes_dagster.training.full import FullWeights
from tunes_dagster.training.jobs import TrainingResult, TuneJob
from tunes_dagster.training.run import PreparedTune
from tunes_dagster.training.weights import StackedWeights, TrainedWeights

Prepare = Callable[[TuneJob, LoadedBase, Store], PreparedTune]
MakeWeights = Callable[[Sequence[TrainingOptions], LoadedBase, torch.dtype], TrainedWeights]
Write = Callable[..., TrainingResult]


@dataclass(frozen=True)
class Method:
    """One way to train a tune.

    Attributes:
        name: For people.
        stacks: Whether tunes of it share forwards; else they are trained one at a time.
        prepare: Encodes data, without any trained weights on the base; may report and be cancelled.
        weights: Puts what is trained onto the base, with a slot per tune.
        write: Writes the files of a finished tune; the signature of `export.write`.
    """

    name: str
    stacks: bool
    prepare: Prepare
    weights: MakeWeights
    write: Write


# Looked up when called, so that tests can put their own in the place of a part.
LORA = Method(
    "lora",
    stacks=True,
    prepare=lambda *given: run.prepare(*given),
    weights=lambda *given: StackedWeights(*given),
    write=lambda *given: export.write(*given),
)


# Its norms of every layer's weights are work that others should not wait for.
DORA = replace(LORA, name="dora", stacks=False)


PTI = replace(
    LORA,
    name="pti",
    prepare=lambda *given: pti.prepare(*given),
    write=lambda *given: pti.write(*given),
)


# All weights have room for one tune, and nothing to share.
WHOLE = replace(LORA, name="checkpoint", stacks=False, weights=lambda *given: FullWeights(*given))


def method_of(options: TrainingOptions) -> Method:
    """Return the method that options ask for."""
    if options.is_whole:
        return WHOLE
    method = PTI if options.kind == "pti" else DORA if options.dora else LORA
    # The blocks of 8-bit moments belong to one layout of the buffer, which a cohort changes as tunes come and go.
    return replace(method, stacks=False) if options.optimizer == "adamw8bit" else method

"""How much of the store a tune fills while it trains, before anything of it is written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunes_dagster.families.sizes import Sizes
    from tunes_dagster.training.jobs import TuneJob

# Of one number: the weight in float32; what resuming needs of it (two moments and an average); and the exports, in
# half precision and in two layouts.
_WEIGHT, _STATE, _EXPORTS = 4, 12, 4


def bytes_of(job: TuneJob, sizes: Sizes) -> float:
    """Return about how many bytes the checkpoints and exports of a tune take; caches of pictures are small beside.

    A network that is trained whole keeps what resuming needs once, an adapter in each checkpoint.
    """
    checkpoints = math.ceil(job.total_steps / job.checkpoint_every) + 1
    if job.options.is_whole:
        return sizes.denoiser * 1e9 * (checkpoints * _WEIGHT + _STATE + _EXPORTS)
    return sizes.adapter_numbers(job.options) * (checkpoints * (_WEIGHT + _STATE) + _EXPORTS)

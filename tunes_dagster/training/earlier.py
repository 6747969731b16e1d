"""The weights of a finished tune as another one starts from them: read with that tune's settings, not with its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.core.store import Store
from tunes_dagster.training.export import parse_recipe
from tunes_dagster.training.files import read_header
from tunes_dagster.training.names import split_encoders, split_state
from tunes_dagster.training.weights import export_scale

if TYPE_CHECKING:
    from torch import Tensor

    from tunes_dagster.families.base import LoadedBase
    from tunes_dagster.training.jobs import TuneJob


def read_earlier(job: TuneJob, base: LoadedBase, store: Store) -> dict[str, Tensor]:
    """Return the weights that a tune continues, in diffusers layout, as they were trained.

    The export's scale is taken out again: it is the earlier tune's, which its file's header names, whatever this one
    asks for. That the base is not the one they were made on is said, and refused when it predicts something else.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`.
    """
    from tunes_dagster.training.verify import read_weights

    key = job.start_from
    assert key is not None
    check_there(key, store)
    header = read_header(store, key)
    recipe = parse_recipe(header.get("tunes_dagster.recipe", "{}"), key)
    predicted = header.get("modelspec.prediction_type", base.prediction)
    if predicted != base.prediction:
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The weights {key} to continue from were trained to predict {predicted!r}, and the base "
            f"{base.entry.base_id} predicts {base.prediction!r} now.",
            "Start a tune of its own.",
        )
    made_on = recipe.get("base_fingerprint", "")
    if made_on and made_on != base.fingerprint():
        job.report.finding(
            f"The base {base.entry.base_id} is another one than the weights {key} were made on: the start is not "
            "exactly where that tune ended."
        )
    with store.local(key) as path:
        state, _ = split_encoders(read_weights(path))
    if "imported" in recipe:
        return _filled(state, base, job.options)
    scale = _export_scale(recipe.get("training", {}))
    if scale == 1:
        return state
    return {name: value / scale if ".lora_B." in name else value for name, value in state.items()}


def check_there(key: str, store: Store) -> None:
    """Refuse to continue from weights that are gone.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`.
    """
    if not store.exists(key):
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The weights {key} to continue from are not in the store any more.",
            "Start a tune of its own.",
        )


def _filled(state: Mapping[str, Tensor], base: LoadedBase, options: TrainingOptions) -> dict[str, Tensor]:
    """Return the weights of another program with every layer and the whole rank that are trained on.

    What they lack begins as a new adapter does: A drawn, B zero, so that nothing is added at first.
    """
    import torch

    from tunes_dagster.training import order

    pairs, rank = split_state(state), options.rank or 16
    source = order.generator(options.seed, order.INITIAL)
    filled = dict(state)
    for name in base.adapter_targets(options.targets or "attention"):
        weight = base.denoiser.get_submodule(name).weight
        down, up = pairs.get(name, (weight.new_zeros(0, *weight.shape[1:]), weight.new_zeros(len(weight), 0)))
        lacking, bound = rank - len(down), weight[0].numel() ** -0.5
        if lacking <= 0:
            continue
        drawn = (torch.rand(lacking, *weight.shape[1:], generator=source) * 2 - 1) * bound
        up = up.flatten(1) if up.numel() else up
        widened = torch.cat([up.cpu().float(), torch.zeros(len(weight), lacking)], dim=1)
        key = f"{base.denoiser_name}.{name}"
        filled[f"{key}.lora_A.weight"] = torch.cat([down.cpu().float(), drawn])
        filled[f"{key}.lora_B.weight"] = widened if weight.ndim == 2 else widened[:, :, None, None]
    return filled


def _export_scale(training: dict[str, Any]) -> float:
    """Return what an adapter of these options, perhaps of an earlier version's, was multiplied by."""
    known = {name: training[name] for name in ("dora", "export_scale") if name in training}
    return export_scale(TrainingOptions(**known))

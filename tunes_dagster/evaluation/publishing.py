"""The chosen checkpoint as the tune's files, when it is not the one that training wrote last.

Nothing is overwritten: the files lie beside the last ones, in a folder named by the step, so that renders made
before keep what they were made with.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import recipe_hash
from tunes_dagster.core.results import TuneResult
from tunes_dagster.core.store import Store

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase

_RECIPE, _HASH = "tunes_dagster.recipe", "tunes_dagster.recipe_hash"


def publish_checkpoint(
    weights_key: str, checkpoint_key: str, step: int, base: LoadedBase, store: Store
) -> TuneResult:
    """Write a checkpoint in every layout with the header of the last files, its step in place of theirs.

    Args:
        weights_key: What training wrote last, in diffusers layout.
        checkpoint_key: The checkpoint.
        step: Its step.
        base: What it was trained on.
        store: Where everything lies.

    Returns:
        The changed fields of the tune's result.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when the checkpoint does not hold what the files hold.
    """
    from tunes_dagster.training import checkpoints
    from tunes_dagster.training.export import recipe_beside, shareable, storage_dtype, written
    from tunes_dagster.training.files import read_fields
    from tunes_dagster.training.layouts import write_layouts

    header, names = read_fields(store, weights_key)
    state = checkpoints.load_weights(store, checkpoint_key)
    if set(state) != set(names):
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The checkpoint {checkpoint_key} does not hold the layers of {weights_key}.",
            "The last checkpoint stays published.",
        )
    recipe = recipe_beside(store, weights_key) | {"steps_done": step}
    name = recipe_hash(recipe)
    changed = {
        _RECIPE: written(shareable(recipe)),
        _HASH: name,
        "ss_steps": str(step),
    }
    trained = checkpoint_key.rpartition("/checkpoints/")[0]
    files = write_layouts(
        store,
        f"{trained}/step-{step:06d}",
        weights_key.rpartition("/")[2].removesuffix(".safetensors"),
        base,
        state,
        {**header, **changed},
        storage_dtype(base),
    )
    if files.pipeline_key:
        card = store.read_text(f"{weights_key.rsplit('/', 2)[0]}/README.md")
        steps = f"| steps | {json.loads(header[_RECIPE])['steps_done']} |"
        card = card.replace(steps, f"| steps | {step} |").replace(header[_HASH], name)
        store.write_text(f"{files.pipeline_key}/README.md", card)
    return TuneResult(
        weights_key=files.weights_key,
        kohya_key=files.kohya_key,
        pipeline_key=files.pipeline_key,
        weights_recipe_hash=name,
        published_step=step,
    )

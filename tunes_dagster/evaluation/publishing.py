"""The chosen checkpoint as the tune's files, when it is not the one that training wrote last.

Nothing is overwritten: the files lie beside the last ones, in a folder named by the step, so that renders made
before keep what they were made with.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tunes_dagster.failures import Failure, FailureCode
from tunes_dagster.recipe import recipe_hash
from tunes_dagster.store import Store

if TYPE_CHECKING:
    from tunes_dagster.training.families.base import LoadedBase

_RECIPE, _HASH = "tunes_dagster.recipe", "tunes_dagster.recipe_hash"


def publish_checkpoint(
    weights_key: str, kohya_key: str, checkpoint_key: str, step: int, base: LoadedBase, store: Store
) -> dict[str, Any]:
    """Write a checkpoint in both layouts with the header of the last files, its step in place of theirs.

    Args:
        weights_key: What training wrote last, in diffusers layout.
        kohya_key: The same in kohya layout.
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

    header, names = _header_of(store, weights_key)
    adapter = checkpoints.load_weights(store, checkpoint_key)
    if set(adapter) != set(names):
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The checkpoint {checkpoint_key} does not hold the layers of {weights_key}.",
            "The last checkpoint stays published.",
        )
    recipe = json.loads(header[_RECIPE]) | {"steps_done": step}
    name = recipe_hash(recipe)
    changed = {
        _RECIPE: json.dumps(recipe, sort_keys=True, ensure_ascii=False),
        _HASH: name,
        "ss_steps": str(step),
    }
    stored = {key: adapter[key].to(dtype).contiguous() for key, dtype in names.items()}
    folder = f"{weights_key.rpartition('/')[0]}/step-{step:06d}"
    published = {
        "weights_key": f"{folder}/{weights_key.rpartition('/')[2]}",
        "kohya_key": f"{folder}/{kohya_key.rpartition('/')[2]}",
    }
    _save(store, published["weights_key"], stored, {**header, **changed})
    kohya_header, _ = _header_of(store, kohya_key)
    _save(store, published["kohya_key"], base.kohya_layout(stored), {**kohya_header, **changed})
    return {**published, "weights_recipe_hash": name, "published_step": step}


def _header_of(store: Store, key: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return a file's header, and the dtype of each of its tensors by name."""
    from safetensors import safe_open

    with store.local(key) as path, safe_open(str(path), framework="pt") as file:
        names = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
        return dict(file.metadata() or {}), names


def _save(store: Store, key: str, tensors: dict[str, Any], header: dict[str, str]) -> None:
    from safetensors.torch import save

    from tunes_dagster.training.export import with_sorted_header

    store.write_bytes(key, with_sorted_header(save(tensors, metadata=header)))

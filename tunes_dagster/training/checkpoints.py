"""Checkpoints: one safetensors file each, with adapter, optimizer moments and average, and all else in its header.

Random numbers are functions of (seed, step), so the step is all that has to be remembered of them. A file is
written in one piece under its step; the newest one that belongs to the same recipe is where a tune resumes.

Whole networks would make these files too large: what only resuming needs lies beside them, as
`step-….state.safetensors`, written first and gone as soon as a newer checkpoint is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.core.store import Store
from tunes_dagster.training.files import read_header, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"/checkpoints/step-(\d+)\.safetensors$")
_STATE_NAME = re.compile(r"/checkpoints/step-\d+\.state\.safetensors$")
_HEADER = "tunes_dagster.checkpoint"


@dataclass
class CheckpointInfo:
    """What a checkpoint says about itself.

    Attributes:
        step: Steps done.
        data_hash: `TuneJob.data_hash`; another one must not be resumed from it.
        scale: alpha / rank.
        rank: Of the adapter.
        layers: Adapted layers, in the order in which the vectors are packed.
        curve: Loss curve so far.
        earlier: Keys of the checkpoints before this one.
        apart: Whether what resuming needs lies in a file beside this one.
    """

    step: int
    data_hash: str
    scale: float
    rank: int
    layers: list[str]
    curve: list[tuple[int, float]] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)
    apart: bool = False


def checkpoint_key(out_prefix: str, step: int) -> str:
    """Return where the checkpoint of a step lies."""
    return f"{out_prefix}/checkpoints/step-{step:06d}.safetensors"


def state_key(key: str) -> str:
    """Return where what resuming needs lies when a checkpoint keeps it apart."""
    return f"{key.removesuffix('.safetensors')}.state.safetensors"


def save(
    store: Store, key: str, info: CheckpointInfo, adapter: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Write a checkpoint.

    Args:
        store: Where to.
        key: From `checkpoint_key`.
        info: What the header says, and whether the state is kept apart.
        adapter: What would be exported now: an adapter in peft's format, alpha folded in, or a whole network.
        state: From `TrainedWeights.state`.
    """
    header = {_HEADER: json.dumps(asdict(info))}
    tensors = {f"adapter/{name}": value for name, value in adapter.items()}
    states = {f"state/{name}": value for name, value in state.items()}
    if not info.apart:
        write_tensors(store, key, {**tensors, **states}, header)
        return
    write_tensors(store, state_key(key), states, {})
    write_tensors(store, key, tensors, header)
    for one in info.earlier:
        store.delete(state_key(one))


def load(store: Store, key: str) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Return a checkpoint's header and what resuming needs."""
    info = read_info(store, key)
    state = _read(store, state_key(key) if info.apart else key, "state/")
    if not state:
        raise _unreadable(key, ValueError("nothing to resume from"))
    return info, state


def load_weights(store: Store, key: str) -> dict[str, Tensor]:
    """Return what a checkpoint would export: an adapter in peft's format, or a whole network."""
    return _read(store, key, "adapter/")


def forget_states(store: Store, prefix: str) -> None:
    """Delete what only resuming needs of the checkpoints below a prefix, where it is kept apart."""
    for key in list(store.list(prefix)):
        if _STATE_NAME.search(key):
            store.delete(key)


def read_info(store: Store, key: str) -> CheckpointInfo:
    """Return what a checkpoint says about itself, without reading its tensors.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it says nothing.
    """
    try:
        raw: dict[str, Any] = json.loads(read_header(store, key)[_HEADER])
        raw["curve"] = [(int(step), float(loss)) for step, loss in raw["curve"]]
        return CheckpointInfo(**raw)
    except Exception as error:  # whatever a damaged file holds
        raise _unreadable(key, error) from error


def _read(store: Store, key: str, prefix: str) -> dict[str, Tensor]:
    """Return the tensors below a prefix; of a local file they are read when they are looked at."""
    from safetensors import safe_open

    try:
        with store.local(key) as path, safe_open(str(path), framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except Exception as error:  # whatever a damaged file holds
        raise _unreadable(key, error) from error


def _unreadable(key: str, error: Exception) -> Failure:
    """Return the failure of a damaged checkpoint; the store's trouble and a lack of memory stand for themselves."""
    if isinstance(error, Failure) and error.code != FailureCode.WEIGHTS_UNUSABLE:
        return error
    damaged = Failure(
        FailureCode.WEIGHTS_UNUSABLE,
        f"The checkpoint {key} cannot be read.",
        "Delete it; training resumes from the one before.",
    )
    return damaged if isinstance(error, Failure) else as_failure(error, damaged)


def find_newest(
    store: Store,
    prefix: str,
    data_hash: str | None = None,
    *,
    most: int | None = None,
    passed_over: Callable[[str], None] = lambda key: None,
) -> str | None:
    """Return the key of the checkpoint with the most steps below a prefix, or None.

    Args:
        store: Where to look.
        prefix: `tunes/<tune>/lora` covers all attempts; a checkpoint's own key is found too.
        data_hash: Only checkpoints of this recipe count.
        most: Only checkpoints of so many steps or fewer count.
        passed_over: Told the keys of those that are damaged.
    """
    if _NAME.search(prefix) and store.exists(prefix):
        keys = [prefix]
    else:
        keys = [key for key in store.list(prefix) if _NAME.search(key)]
    for key in sorted(keys, key=lambda k: (_step(k), k), reverse=True):
        try:
            info = read_info(store, key)
            if (data_hash is None or info.data_hash == data_hash) and (most is None or info.step <= most):
                load(store, key)
                return key
        except Failure as failure:
            if (
                failure.code != FailureCode.WEIGHTS_UNUSABLE
            ):  # it may be whole, and training must not begin anew
                raise
            passed_over(key)
    return None


def _step(key: str) -> int:
    found = _NAME.search(key)
    return int(found.group(1)) if found else -1

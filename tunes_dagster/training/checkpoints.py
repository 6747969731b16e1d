"""Checkpoints: one safetensors file each, with adapter, optimizer moments and average, and all else in its header.

Random numbers are functions of (seed, step), so the step is all that has to be remembered of them. A file is
written in one piece under its step; the newest one that belongs to the same recipe is where a tune resumes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tunes_dagster.failures import Failure, FailureCode
from tunes_dagster.store import Store

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"/checkpoints/step-(\d+)\.safetensors$")
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
    """

    step: int
    data_hash: str
    scale: float
    rank: int
    layers: list[str]
    curve: list[tuple[int, float]] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)


def checkpoint_key(out_prefix: str, step: int) -> str:
    """Return where the checkpoint of a step lies."""
    return f"{out_prefix}/checkpoints/step-{step:06d}.safetensors"


def save(
    store: Store, key: str, info: CheckpointInfo, adapter: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Write a checkpoint.

    Args:
        store: Where to.
        key: From `checkpoint_key`.
        info: What the header says.
        adapter: What would be exported now, in peft's format, alpha folded in.
        state: From `TrainedWeights.state`.
    """
    from safetensors.torch import save as serialise

    tensors = {f"adapter/{name}": value for name, value in adapter.items()}
    tensors |= {f"state/{name}": value for name, value in state.items()}
    store.write_bytes(key, serialise(tensors, metadata={_HEADER: json.dumps(asdict(info))}))


def load(store: Store, key: str) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Return a checkpoint's header and packed vectors."""
    info, tensors = _read(store, key, "state/")
    return info, tensors


def load_weights(store: Store, key: str) -> dict[str, Tensor]:
    """Return a checkpoint's adapter in peft's format, ready for `AdapterBank.load_slot` or for export."""
    return _read(store, key, "adapter/")[1]


def _read(store: Store, key: str, prefix: str) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with store.local(key) as path, safe_open(str(path), framework="pt") as file:
            raw: dict[str, Any] = json.loads((file.metadata() or {})[_HEADER])
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The checkpoint {key} cannot be read: {error}.",
            "Delete it; training resumes from the one before.",
        ) from error
    raw["curve"] = [(int(step), float(loss)) for step, loss in raw["curve"]]
    return CheckpointInfo(**raw), tensors


def find_newest(store: Store, prefix: str, data_hash: str | None = None) -> str | None:
    """Return the key of the checkpoint with the most steps below a prefix, or None.

    Args:
        store: Where to look.
        prefix: `tunes/<tune>/lora` covers all attempts; a checkpoint's own key is found too.
        data_hash: Only checkpoints of this recipe count.
    """
    if _NAME.search(prefix) and store.exists(prefix):
        keys = [prefix]
    else:
        keys = [key for key in store.list(prefix) if _NAME.search(key)]
    for key in sorted(keys, key=lambda k: (_step(k), k), reverse=True):
        try:
            info, _ = load(store, key)
        except Failure:
            continue
        if data_hash is None or info.data_hash == data_hash:
            return key
    return None


def _step(key: str) -> int:
    found = _NAME.search(key)
    return int(found.group(1)) if found else -1

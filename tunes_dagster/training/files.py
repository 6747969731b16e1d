"""Safetensors files in the store, written tensor by tensor and with a header in sorted order.

The library's own writer orders the header's fields anew every time, so that the same weights would make another file.
The format (https://github.com/huggingface/safetensors#format) is a length, a JSON header whose offsets count from its
end, and data; here no more than one tensor is copied at a time, whatever the size of the file. Nothing but the writer
needs torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tunes_dagster.core.store import Store

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def write_tensors(
    store: Store,
    key: str,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> str:
    """Write a safetensors file and return its key.

    Args:
        store: Where to.
        key: Under which key.
        tensors: On any device, in any memory layout.
        header: The file's metadata.
        dtype: Floating point numbers are written in it; None keeps each tensor's own.
    """
    import torch

    kinds = {
        name: dtype if dtype is not None and value.is_floating_point() else value.dtype
        for name, value in tensors.items()
    }
    # As the library does: wide numbers first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))
    fields: dict[str, object] = {"__metadata__": dict(header)}
    start = 0
    for name in names:
        stop = start + tensors[name].numel() * kinds[name].itemsize
        kind = _NAMES[str(kinds[name]).removeprefix("torch.")]
        fields[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with store.writing(key) as file, torch.no_grad():
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            plain = tensors[name].detach().to("cpu", kinds[name]).contiguous().reshape(-1)
            file.write(plain.view(torch.uint8).numpy().data)
    return key


def read_header(store: Store, key: str) -> dict[str, str]:
    """Return the metadata of a safetensors file without reading its tensors; empty when it has none."""
    return read_fields(store, key)[0]


def read_fields(store: Store, key: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the metadata of a safetensors file, and the type of each tensor by its name.

    Raises:
        ValueError: When the file is not of this format.
    """
    with store.open_read(key) as file:
        size = int.from_bytes(file.read(8), "little")
        fields = json.loads(file.read(size))
    header: dict[str, str] = fields.pop("__metadata__", {})
    return header, {name: str(tensor["dtype"]) for name, tensor in fields.items()}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (hex) of a local file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

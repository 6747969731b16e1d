"""Safetensors files in the store, written tensor by tensor and with a header in sorted order.

The library's own writer orders the header's fields anew every time, so that the same weights would make another file.
The format (https://github.com/huggingface/safetensors#format) is a length, a JSON header whose offsets count from its
end, and data; here no more than one tensor is copied at a time, whatever the size of the file. Nothing but the writer
needs torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode, as_failure
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
# Bytes; the library refuses longer ones as well. What is no header at all would be any number.
_LONGEST_HEADER = 100_000_000
# Of a file, what kohya's first way of recognising a network looks at.
_LEGACY_RANGE = (0x100000, 0x110000)


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
    with store.writing(key) as file:
        file.write(_head(tensors, header, dtype))
        for piece in _payload(tensors, dtype):
            file.write(piece)
    return key


def with_hashes(
    tensors: Mapping[str, Tensor], header: Mapping[str, str], dtype: torch.dtype | None = None
) -> dict[str, str]:
    """Return a file's header and in it the hashes by which kohya's tools and A1111 recognise a network.

    `sshs_model_hash` and `modelspec.hash_sha256` are of the tensors alone; `sshs_legacy_hash` is of the 64 KiB at
    1 MiB of the file as it is with the `ss_` fields only, as sd-scripts computes it.

    Args:
        tensors: As of `write_tensors`.
        header: As of `write_tensors`.
        dtype: As of `write_tensors`.
    """
    whole, legacy = hashlib.sha256(), hashlib.sha256()
    fields = {name: value for name, value in header.items() if name.startswith("ss_")}
    at = len(_head(tensors, fields, dtype))
    for piece in _payload(tensors, dtype):
        whole.update(piece)
        start, stop = (min(max(bound - at, 0), len(piece)) for bound in _LEGACY_RANGE)
        legacy.update(piece[start:stop])
        at += len(piece)
    return {
        **header,
        "modelspec.hash_sha256": f"0x{whole.hexdigest()}",
        "sshs_model_hash": whole.hexdigest(),
        "sshs_legacy_hash": legacy.hexdigest()[:8],
    }


def _order(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """Return the types in which tensors are written, in the order of the file."""
    kinds = {
        name: dtype if dtype is not None and value.is_floating_point() else value.dtype
        for name, value in tensors.items()
    }
    # As the library does: wide numbers first, so that every tensor is aligned.
    return {name: kinds[name] for name in sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))}


def _head(tensors: Mapping[str, Tensor], header: Mapping[str, str], dtype: torch.dtype | None) -> bytes:
    """Return everything of a file before its tensors."""
    kinds = _order(tensors, dtype)
    fields: dict[str, object] = {"__metadata__": dict(header)}
    start = 0
    for name in kinds:
        stop = start + tensors[name].numel() * kinds[name].itemsize
        kind = _NAMES[str(kinds[name]).removeprefix("torch.")]
        fields[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _payload(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Iterator[memoryview]:
    """Yield the bytes of a file's tensors, one after the other."""
    import torch

    for name, kind in _order(tensors, dtype).items():
        plain = tensors[name].detach().to("cpu", kind).contiguous().reshape(-1)
        yield plain.view(torch.uint8).numpy().data


def read_header(store: Store, key: str) -> dict[str, str]:
    """Return the metadata of a safetensors file without reading its tensors; empty when it has none."""
    return read_fields(store, key)[0]


def read_fields(store: Store, key: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the metadata of a safetensors file, and the type of each tensor by its name.

    Raises:
        FileNotFoundError: When it is not there.
        Failure: `WEIGHTS_UNUSABLE` when the file is not of this format.
    """
    try:
        with store.open_read(key) as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= _LONGEST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            fields = json.loads(file.read(size))
        header = fields.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in header.values()):
            raise ValueError("metadata that is no text")
        return header, {name: str(tensor["dtype"]) for name, tensor in fields.items()}
    except (FileNotFoundError, Failure):
        raise
    except Exception as error:  # whatever bytes that are no header look like to those who read one
        damaged = Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The file {key} is damaged: it holds no weights.",
            "Put it back from a backup, or train the tune again.",
        )
        raise as_failure(error, damaged) from error


def read_entries(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]]]:
    """Return the metadata of a local safetensors file, and the type and shape of each tensor, by the library's reader.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it is none.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
            return file.metadata() or {}, found
    except Exception as error:  # whatever bytes that are no such file look like to the library
        damaged = Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"{path.name} is no safetensors file, or a damaged one.",
            "Hand in a .safetensors file; pickles (.pt, .bin, .ckpt) are not opened.",
        )
        raise as_failure(error, damaged) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (hex) of a local file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

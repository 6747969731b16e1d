"""Looks through a file of weights: the header of a safetensors file, and every number that it says is there.

The format (https://github.com/huggingface/safetensors#format) is a length, JSON, and bytes; pickles are not opened at
all. What is counted here honest files stay far below.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from typing import IO, Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.intake.sandbox.child.tasks import Work

# An SDXL LoRA of all layers has 3,000 tensors and a header of 300 KB; what trainers write of tags takes megabytes.
_HEADER_BYTES = 16 * 1024 * 1024
_TENSORS = 50_000
_NAME = 500
_DIMENSIONS = 8
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# Tensors in a message, which may have 1 MB.
_AT_A_TIME = 500
# Of the header's own fields: what is handed on.
_FIELD = 200_000
_FIELDS = 400_000
_PIECE = 4 * 1024 * 1024
# How files begin that people take for safetensors.
_OTHERS = {
    b"PK": "a zip or a PyTorch pickle",
    b"\x80": "a pickle",
    b"<": "a web page",
    b"{": "JSON",
    b"GGUF": "GGUF",
}


def look_through(work: Work) -> None:
    """Say the header's fields, then the tensors, once all of them were read."""
    name = str(work.arguments["name"])
    size = int(work.arguments["size"])
    fields, start = _header(work.file, size, name)
    said = fields.pop("__metadata__", None) or {}
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise _refused(name, "has metadata that is no text")
    tensors = list(_tensors(fields, size - start, name))
    for key, kind, _shape, begin, end in tensors:
        _check_numbers(work.file, start + begin, end - begin, kind, key, name)
    work.say(metadata=_kept(said))
    for first in range(0, len(tensors), _AT_A_TIME):
        work.say(
            tensors=[[key, kind, shape] for key, kind, shape, _b, _e in tensors[first : first + _AT_A_TIME]]
        )


def _header(file: IO[bytes], size: int, name: str) -> tuple[dict[str, Any], int]:
    """Return the header of a file, and where its numbers begin."""
    head = file.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= min(_HEADER_BYTES, size - 8):
        # Only now: a header's length may begin with any byte.
        other = next((what for start, what in _OTHERS.items() if head.startswith(start)), "")
        why = f"it is {other}" if other else "its header has no sensible length"
        raise _refused(name, f"is no safetensors file: {why}")
    try:
        fields = json.loads(file.read(length), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError):
        raise _refused(name, "is no safetensors file: its header cannot be read") from None
    if not isinstance(fields, dict) or not 0 < len(fields) <= _TENSORS:
        raise _refused(name, "holds no tensors, or more than any adapter has")
    return fields, 8 + length


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name that is there twice")
    return made


def _tensors(fields: dict[str, Any], room: int, name: str) -> Iterator[tuple[str, str, list[int], int, int]]:
    """Yield (key, type, shape, begin, end) of each tensor, in the order in which they lie; they fill the file."""
    found = []
    for key, said in fields.items():
        known: dict[str, Any] = said if isinstance(said, dict) else {}
        kind, shape, offsets = known.get("dtype"), known.get("shape"), known.get("data_offsets")
        good = (
            len(key) <= _NAME
            and key.isprintable()
            and isinstance(shape, list)
            and len(shape) <= _DIMENSIONS
            and isinstance(offsets, list)
            and len(offsets) == 2
            and all(type(number) is int and 0 <= number <= room for number in (*shape, *offsets))
        )
        if not good or not isinstance(shape, list) or not isinstance(offsets, list):
            raise _refused(name, f"says nothing sensible of the tensor {key[:100]!r}")
        if kind not in _SIZES:
            raise _refused(
                name, f"holds {key[:100]!r} in the type {str(kind)[:20]!r}, which is not read here"
            )
        if math.prod(shape) * _SIZES[kind] != offsets[1] - offsets[0]:
            raise _refused(name, f"has another number of bytes than it says for {key[:100]!r}")
        found.append((key, kind, shape, offsets[0], offsets[1]))
    at = 0
    for one in sorted(found, key=lambda one: (one[3], one[4])):
        if one[3] != at:
            raise _refused(name, "has tensors that overlap, or bytes that belong to none")
        at = one[4]
        yield one
    if at != room:
        raise _refused(name, "ends before its numbers do, or goes on behind them")


def _check_numbers(file: IO[bytes], start: int, length: int, kind: str, key: str, name: str) -> None:
    """Refuse numbers that are not finite; what is no floating point is read as it is."""
    import numpy as np

    types = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    file.seek(start)
    while length > 0:
        piece = file.read(min(_PIECE, length))
        if not piece:
            raise _refused(name, "ends before its numbers do")
        length -= len(piece)
        if kind not in types:
            continue
        numbers = np.frombuffer(piece, types[kind])
        finite = (numbers & 0x7F80) != 0x7F80 if kind == "BF16" else np.isfinite(numbers)
        if not finite.all():
            raise _refused(name, f"holds numbers that are not finite, at {key[:100]!r}")


def _kept(said: dict[str, str]) -> dict[str, str]:
    """Return the header's own fields as far as they fit a message: the longest are people's tags and captions."""
    kept: dict[str, str] = {}
    room = _FIELDS
    for field, value in sorted(said.items(), key=lambda one: len(one[1])):
        size = len(field) + len(value)
        if len(field) <= _NAME and len(value) <= _FIELD and size <= room:
            kept[field] = value
            room -= size
    return kept


def _refused(name: str, why: str) -> Failure:
    return Failure(
        FailureCode.WEIGHTS_UNUSABLE,
        f"{name} {why}.",
        "Hand in a .safetensors file that a trainer wrote, whole.",
    )

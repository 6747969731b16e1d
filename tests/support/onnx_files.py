"""A small ONNX file, written by hand: the `onnx` package would be needed for nothing else.

Only what one network needs of the format (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto) is here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def _number(value: int) -> bytes:
    """A protobuf varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _field(tag: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _number(tag << 3) + _number(value)
    data = value.encode() if isinstance(value, str) else value
    return _number(tag << 3 | 2) + _number(len(data)) + data


def _node(kind: str, inputs: list[str], output: str, ints: dict[str, list[int]] | None = None) -> bytes:
    attributes = b"".join(
        _field(5, _field(1, name) + b"".join(_field(8, one) for one in values) + _field(20, 7))
        for name, values in (ints or {}).items()
    )
    return _field(
        1, b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, kind) + attributes
    )


def _tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_field(1, size) for size in array.shape)
    return _field(5, dims + _field(2, 1) + _field(8, name) + _field(9, array.astype("<f4").tobytes()))


def _value(tag: int, name: str, shape: list[int]) -> bytes:
    dims = b"".join(_field(1, _field(1, size)) for size in shape)
    return _field(tag, _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims))))


def write_face_network(file: Path, seed: int = 0) -> np.ndarray:
    """Write a network with SFace's input and output: means of 14 x 14 pixels times random weights.

    Returns:
        The weights, `[128, 192]`: features are weights @ (means of RGB, channel by channel).
    """
    weights = np.random.default_rng(seed).standard_normal((128, 192)).astype(np.float32)
    graph = [
        _node("AveragePool", ["data"], "means", {"kernel_shape": [14, 14], "strides": [14, 14]}),
        _node("Flatten", ["means"], "flat"),
        _node("MatMul", ["flat", "weights"], "fc1"),
        _field(2, "faces"),
        _tensor("weights", weights.T),
        _value(11, "data", [1, 3, 112, 112]),
        _value(12, "fc1", [1, 128]),
    ]
    file.write_bytes(_field(1, 8) + _field(7, b"".join(graph)) + _field(8, _field(2, 13)))
    return weights

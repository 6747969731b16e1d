"""The detector of drawn faces: a small convolutional net that marks the middle of each face and tells its size.

It computes with NumPy, so that a process that only looks for faces need not load torch. Loading needs only its
folder: `config.json` and `model.safetensors` (batch norms are folded into the convolutions).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

STRIDE = 8
"""Pixels per cell of the net's answer."""
UNIT = 40.0
"""Height in pixels of the face whose logarithm of size is 0."""
LEVELS = (256, 128, 64)
"""Longest sides at which a picture is looked at; at each the net knows faces of about 18 to 90 pixels."""
CHANNELS = 5
"""Per cell: whether a face's middle is here, its offset in cells (x, y), the logarithms of its width and height."""

# Width, stride and dilation of the 3 x 3 convolutions; two 1 x 1 convolutions follow.
LAYERS = ((16, 2, 1), (24, 2, 1), (32, 2, 1), (40, 1, 1), (40, 1, 2), (40, 1, 4))
_SAME = 0.45
"""Boxes that overlap more than this (intersection over union) are the same face."""


def build() -> Any:
    """An untrained net: pictures [n, 3, h, w] in -1 .. 1 to [n, CHANNELS, h / 8, w / 8]; `h`, `w` multiples of 8."""
    import torch
    from torch import nn

    layers: list[Any] = []
    before = 3
    for width, stride, dilation in LAYERS:
        layers += [
            nn.Conv2d(before, width, 3, stride, dilation, dilation, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        before = width
    layers += [nn.Conv2d(before, before, 1, bias=False), nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
    last = nn.Conv2d(before, CHANNELS, 1)
    assert last.bias is not None
    with torch.no_grad():
        last.bias[0] = -4.0  # faces are rare among cells
    return nn.Sequential(*layers, last)


def folded(net: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight [out, in, k, k] and bias [out] of each convolution of a trained net, batch norms folded in, float32."""
    from torch import nn

    found: list[tuple[np.ndarray, np.ndarray]] = []
    modules = [*net, None]
    for conv, norm in zip(modules, modules[1:], strict=False):
        if not isinstance(conv, nn.Conv2d):
            continue
        weight = _array(conv.weight)
        if isinstance(norm, nn.BatchNorm2d):
            gain = _array(norm.weight) / np.sqrt(_array(norm.running_var) + norm.eps)
            weight, bias = (
                weight * gain[:, None, None, None],
                _array(norm.bias) - _array(norm.running_mean) * gain,
            )
        else:
            bias = _array(conv.bias)
        found.append((weight, bias))
    return found


def _array(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy().copy()
    return array


class DrawnFaces:
    """Finds drawn faces in pictures of any size; a `FaceDetector` of intake.

    Args:
        layers: As `folded` gives them.
        threshold: Certainty (0 .. 1) from which a face counts.
    """

    def __init__(self, layers: list[tuple[np.ndarray, np.ndarray]], threshold: float = 0.5) -> None:
        self.layers, self.threshold = layers, threshold
        self.name = f"drawn-1-{threshold:g}"

    @classmethod
    def load(cls, folder: Path) -> DrawnFaces:
        """From a weights folder."""
        from safetensors.numpy import load_file

        state = {k: v.astype(np.float32) for k, v in load_file(folder / "model.safetensors").items()}
        config = json.loads((folder / "config.json").read_text())
        count = len(state) // 2
        return cls([(state[f"{i}.weight"], state[f"{i}.bias"]) for i in range(count)], config["threshold"])

    def save(self, folder: Path) -> None:
        """Write `config.json` and fp16 `model.safetensors`."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, np.ndarray] = {}
        for i, (weight, bias) in enumerate(self.layers):
            state |= {f"{i}.weight": weight.astype(np.float16), f"{i}.bias": bias.astype(np.float16)}
        save_file(state, folder / "model.safetensors")
        config = {
            "threshold": self.threshold,
            "levels": LEVELS,
            "layers": LAYERS,
            "stride": STRIDE,
            "unit": UNIT,
        }
        (folder / "config.json").write_text(json.dumps(config) + "\n")

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [3, h, w] in -1 .. 1 to the net's answer [CHANNELS, h / 8, w / 8]."""
        x = pixels
        for i, (weight, bias) in enumerate(self.layers):
            _, stride, dilation = LAYERS[i] if i < len(LAYERS) else (0, 1, 1)
            x = _convolved(x, weight, bias, stride, dilation)
            if i < len(self.layers) - 1:
                np.maximum(x, 0, out=x)
        return x

    def scored(self, image: Image.Image) -> list[tuple[float, tuple[float, float, float, float]]]:
        """Certainty and left, top, width, height in pixels of each face of a picture, most certain first."""
        rows: list[np.ndarray] = []
        for level in LEVELS:
            pixels, scale = _at_level(image, level)
            peaks = _peaks(self.forward(pixels), self.threshold)
            trust = peaks[:, :1] * np.exp(
                -2 * np.log(peaks[:, 4:] / UNIT) ** 2
            )  # sizes it knows best weigh most
            rows.append(np.hstack([peaks / np.array([1, scale, scale, scale, scale]), trust]))
        found = np.concatenate(rows)
        merged = _merged(found[np.argsort(-found[:, 0], kind="stable")])
        return [(float(row[0]), (row[1] - row[3] / 2, row[2] - row[4] / 2, row[3], row[4])) for row in merged]

    def detect(self, image: Image.Image) -> list[tuple[int, int, int, int]]:
        """Return x, y, width, height of the faces of a picture inside it, largest first."""
        boxes = []
        for _, (x, y, width, height) in self.scored(image):
            left, top = max(0, round(x)), max(0, round(y))
            right, bottom = min(image.width, round(x + width)), min(image.height, round(y + height))
            if right > left and bottom > top:
                boxes.append((left, top, right - left, bottom - top))
        return sorted(boxes, key=lambda box: (-box[2] * box[3], box))


def _at_level(image: Image.Image, level: int) -> tuple[np.ndarray, float]:
    """The picture with its longest side at `level`, in grey up to a multiple of the stride, and its scale."""
    from PIL import Image as Pillow

    scale = level / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.convert("RGB").resize((width, height), Pillow.Resampling.BILINEAR, reducing_gap=3.0)
    padded = np.zeros((3, -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE), np.float32)
    padded[:, :height, :width] = np.asarray(small, np.float32).transpose(2, 0, 1) / 127.5 - 1
    return padded, scale


def _convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, dilation: int) -> np.ndarray:
    """A convolution of [in, h, w] with zeros around it: one matrix product for each cell of the kernel."""
    outer, inner, side, _ = weight.shape
    margin = dilation * (side // 2)
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin)))
    total = np.repeat(bias[:, None], height * width, axis=1)
    for row in range(side):
        for column in range(side):
            top, left = row * dilation, column * dilation
            part = padded[:, top : top + stride * height : stride, left : left + stride * width : stride]
            total += weight[:, :, row, column] @ part.reshape(inner, -1)
    return total.reshape(outer, height, width)


def _peaks(answer: np.ndarray, threshold: float) -> np.ndarray:
    """Rows of certainty, centre x, centre y, width, height in the level's pixels: cells above their neighbours."""
    certain = 1 / (1 + np.exp(-np.clip(answer[0], -30, 30)))
    around = np.pad(certain, 1)
    near = [
        around[y : y + certain.shape[0], x : x + certain.shape[1]]
        for y in range(3)
        for x in range(3)
        if (y, x) != (1, 1)
    ]
    ys, xs = np.nonzero((certain >= np.max(near, axis=0)) & (certain >= threshold))
    rows = np.empty((len(ys), 5))
    rows[:, 0] = certain[ys, xs]
    rows[:, 1] = (xs + 0.5 + answer[1, ys, xs]) * STRIDE
    rows[:, 2] = (ys + 0.5 + answer[2, ys, xs]) * STRIDE
    rows[:, 3:] = np.exp(np.clip(answer[3:, ys, xs].T, -3, 3)) * UNIT
    return rows


def _merged(rows: np.ndarray) -> list[np.ndarray]:
    """One row for each face: boxes of the same face become their mean, weighted by the last column.

    A box that lies mostly inside a more certain one is part of that face.
    """
    groups: list[list[np.ndarray]] = []
    for row in rows:
        for group in groups:
            union, part = overlap(group[0][1:5], row[1:5])
            if union > _SAME:
                group.append(row)
                break
            if part > 0.7:
                break
        else:
            groups.append([row])
    merged = []
    for group in groups:
        together = np.stack(group)
        mean = np.average(together, axis=0, weights=together[:, 5])
        mean[0] = together[0, 0]
        merged.append(mean)
    return merged


def overlap(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Intersection over union, and over the smaller one, of two boxes given by centre x, centre y, width, height."""
    across, down = (
        min(first[i] + first[i + 2] / 2, second[i] + second[i + 2] / 2)
        - max(first[i] - first[i + 2] / 2, second[i] - second[i + 2] / 2)
        for i in (0, 1)
    )
    both = max(0.0, across) * max(0.0, down)
    sizes = first[2] * first[3], second[2] * second[3]
    return both / (sizes[0] + sizes[1] - both), both / min(sizes)

"""Runs diffusers' training script as it is, for measuring, also where two of its imports are not installed.

It wants torchvision (four transforms of pictures) and datasets (a folder with captions). Where these are missing,
small stand-ins do the same work on the same data; the script itself is not changed.
"""

from __future__ import annotations

import json
import random
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any


def run_script(path: Path, arguments: Sequence[str]) -> None:
    """Run a script as `__main__` with these arguments."""
    # What these two find out about their environment must not be what the stand-ins look like.
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    if find_spec("torchvision") is None:
        _stand_in_for_torchvision()
    if find_spec("datasets") is None:
        _module("datasets", load_dataset=_load_dataset)
    before = sys.argv
    sys.argv = [str(path), *arguments]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = before


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    return module


class _Folder:
    """A dataset of pictures with captions from `metadata.jsonl`."""

    def __init__(self, folder: Path) -> None:
        from PIL import Image

        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        self._columns = {
            "image": [Image.open(folder / row["file_name"]).copy() for row in rows],
            "text": [row["text"] for row in rows],
        }
        self.column_names = list(self._columns)

    def __getitem__(self, column: str) -> list[Any]:
        return self._columns[column]


def _load_dataset(name: str, *_: Any, **__: Any) -> dict[str, _Folder]:
    return {"train": _Folder(Path(name))}


class _Modes:
    """torchvision's InterpolationMode, with PIL's numbers."""

    NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = 0, 1, 2, 3, 4, 5


def _resize(size: int, interpolation: int = _Modes.BILINEAR) -> Callable[[Any], Any]:
    def work(picture: Any) -> Any:
        width, height = picture.size
        scale = size / min(width, height)
        if scale == 1:
            return picture
        return picture.resize((round(width * scale), round(height * scale)), interpolation)

    return work


def _crop(picture: Any, top: int, left: int, height: int, width: int) -> Any:
    return picture.crop((left, top, left + width, top + height))


class _RandomCrop:
    def __init__(self, size: int) -> None:
        self._size = size

    def get_params(self, picture: Any, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return (top, left, height, width)."""
        top = random.randint(0, picture.height - size[0])
        return top, random.randint(0, picture.width - size[1]), *size

    def __call__(self, picture: Any) -> Any:
        return _crop(picture, *self.get_params(picture, (self._size, self._size)))


def _to_tensor(picture: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)


def _stand_in_for_torchvision() -> None:
    from PIL import ImageOps

    def compose(parts: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
        def work(picture: Any) -> Any:
            for part in parts:
                picture = part(picture)
            return picture

        return work

    def centre_crop(size: int) -> Callable[[Any], Any]:
        return lambda p: _crop(p, (p.height - size) // 2, (p.width - size) // 2, size, size)

    functional = _module("torchvision.transforms.functional", crop=_crop)
    transforms = _module(
        "torchvision.transforms",
        InterpolationMode=_Modes,
        Resize=_resize,
        CenterCrop=centre_crop,
        RandomCrop=_RandomCrop,
        RandomHorizontalFlip=lambda p=0.5: ImageOps.mirror,
        Compose=compose,
        ToTensor=lambda: _to_tensor,
        functional=functional,
        Normalize=lambda mean, std: lambda tensor: (tensor - mean[0]) / std[0],
    )
    _module("torchvision", transforms=transforms)

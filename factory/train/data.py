"""The training pictures on disk: one uint8 array of drawn pictures, made once by several processes."""

from __future__ import annotations

import os
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from tunes_dagster.tiny.world import SIZE, attributes, caption, picture, shot

HELD_OUT = 10_000_000
"""Picture numbers from here on are never trained on."""
CHUNK = 500


def draw_pictures(path: Path, count: int, start: int = 0, workers: int = 0, size: int = SIZE) -> np.ndarray:
    """Pictures `start` .. `start + count - 1` as a read-only uint8 array [count, size, size, 3] kept at `path`.

    A finished file of the right size is used again.
    """
    shape = (count, size, size, 3)
    if not path.exists() or path.stat().st_size < int(np.prod(shape)):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape).flush()
        jobs = [(part, start, i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
        with ProcessPoolExecutor(workers or os.cpu_count() or 1) as pool:
            list(pool.map(_draw_chunk, jobs))
        part.rename(path)
    return np.load(path, mmap_mode="r")


def _draw_chunk(job: tuple[Path, int, int, int]) -> None:
    path, start, first, last = job
    pictures = np.load(path, mmap_mode="r+")
    for i in range(first, last):
        pictures[i] = np.asarray(picture(start + i, pictures.shape[1])[0])
    pictures.flush()


def captions_of(number: int, variants: int) -> list[str]:
    """`variants` different captions of picture `number`; the first is the one `picture` returns."""
    content, name = shot(number)
    return [caption(content, random.Random(seed), name)[0] for seed in caption_seeds(number, variants)]


def caption_seeds(number: int, variants: int) -> list[str]:
    """Seeds of the captions of picture `number`."""
    return [f"caption-{number}"] + [f"caption-{number}-{i}" for i in range(1, variants)]


def labels_of(number: int) -> dict[str, str]:
    """The true attributes of picture `number`, without drawing it."""
    return attributes(shot(number)[0])


def to_tensor(pictures: np.ndarray):
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] in -1 .. 1."""
    import torch

    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1

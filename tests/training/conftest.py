"""What the training tests share: the random base in both precisions, a store, pictures, ready-made jobs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tunes_dagster.core.failures import Cancelled
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.training.jobs import TrainExample, TuneJob


class Recorder(Silent):
    """Keeps what it is told; cancels at a step when asked to."""

    def __init__(self, cancel_at: int | None = None, keep: bool = False) -> None:
        self.steps: list[tuple[int, int, dict]] = []
        self.notes: list[str] = []
        self.cancel_at, self.keep = cancel_at, keep

    def step(self, done: int, total: int, **numbers: float) -> None:
        self.steps.append((done, total, numbers))

    def note(self, message: str) -> None:
        self.notes.append(message)

    def check_cancelled(self) -> None:
        trained = [done for done, _, numbers in self.steps if "loss" in numbers]
        if self.cancel_at is not None and trained and trained[-1] >= self.cancel_at:
            raise Cancelled(keep=self.keep)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def entry():
    return load_catalog().entries["tiny-sdxl"]


@pytest.fixture(scope="session")
def base(base_folder: Path, entry):
    from tunes_dagster.families.base import load_family

    return load_family(entry, base_folder, dtype="float32")


@pytest.fixture(scope="session")
def base64(base_folder: Path, entry):
    """The same base in double precision, where what must be equal is equal to many digits."""
    from tunes_dagster.families.base import load_family

    return load_family(entry, base_folder, dtype="float64")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def add_picture(store: Store, seed: int, size: tuple[int, int] = (64, 64)) -> str:
    """Store a colourful picture and return its key."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    data = io.BytesIO()
    picture.save(data, "PNG")
    return store.write_blob(data.getvalue(), ".png")


@pytest.fixture
def make_job(store: Store) -> Callable[..., TuneJob]:
    """Return a function that makes a small job; keyword arguments are training options."""

    def make(name: str = "one", *, pictures: int = 3, buckets=((64, 64),), report=None, **options) -> TuneJob:
        items = [
            TrainExample(
                key=add_picture(store, hash_of(name) + i),
                caption=f"a photo of ohwx woman {i}",
                bucket=buckets[i % len(buckets)],
            )
            for i in range(pictures)
        ]
        chosen = {
            "steps": 4,
            "rank": 4,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "batch_size": 2,
            "targets": "all",
            "prior_weight": 1.0,
            "prior_prompts": 2,
            "min_snr_gamma": 5.0,
            "resolution": 64,
            "caption_dropout": 0.2,
            "seed": hash_of(name),
        }
        return TuneJob(
            tune_id=f"tune_{name}",
            options=TrainingOptions(**{**chosen, **options}),
            items=items,
            token="ohwx",
            class_name="woman",
            out_prefix=f"tunes/tune_{name}/lora/1",
            report=report or Recorder(),
        )

    return make


def hash_of(name: str) -> int:
    """A small number that a name always has."""
    return sum(map(ord, name))

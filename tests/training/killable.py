"""A tune that a test kills: run as a program it trains and says each step; the test resumes the same job."""

from __future__ import annotations

import sys

from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.training.jobs import TrainExample, TuneJob


class Loud(Silent):
    """Writes the steps to standard output."""

    def step(self, done: int, total: int, **numbers: float) -> None:
        if numbers:
            sys.stdout.write(f"{done}\n")
            sys.stdout.flush()


def make_killable(attempt: str, keys: list[str], report: Silent) -> TuneJob:
    """The same 60 steps in every attempt."""
    return TuneJob(
        tune_id="tune_k",
        options=TrainingOptions(
            steps=60,
            rank=4,
            learning_rate=1e-2,
            warmup_steps=2,
            batch_size=2,
            targets="all",
            prior_weight=1.0,
            prior_prompts=2,
            checkpoint_every=4,
            seed=5,
            min_snr_gamma=0.0,
        ),
        items=[TrainExample(key=key, caption="a photo of ohwx woman", bucket=(64, 64)) for key in keys],
        token="ohwx",
        class_name="woman",
        out_prefix=f"tunes/tune_k/lora/{attempt}",
        report=report,
        resume_from="tunes/tune_k/lora",
    )


if __name__ == "__main__":
    import torch

    from tunes_dagster.core.store import Store
    from tunes_dagster.families.base import load_family
    from tunes_dagster.families.catalog import load_catalog
    from tunes_dagster.training.loop import train

    torch.set_num_threads(1)
    folder, root, *pictures = sys.argv[1:]
    base = load_family(load_catalog().entries["tiny-sdxl"], folder, dtype="float32")
    train([make_killable("1", pictures, Loud())], base, Store(root))

"""Tunes that are made to be bad, on the shipped base, with their report cards."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.core.store import Store
from tunes_dagster.evaluation.card import Card, CardOptions
from tunes_dagster.evaluation.scorers import load_scorer, load_scorer_catalog
from tunes_dagster.evaluation.scoring import Scored, Scorers, Subject, score_tune
from tunes_dagster.families.catalog import load_catalog
from tunes_dagster.tiny.world.subjects import SUBJECTS, draw_subject
from tunes_dagster.training.jobs import TrainExample, TrainingResult, TuneJob

Drawn = Sequence[tuple[Image.Image, str]]
# As fast as a tune can be made: no prior preservation, attention only.
QUICK = {"prior_weight": 0, "prior_prompts": 0, "targets": "attention", "warmup_steps": 5}


@dataclass
class Workshop:
    """The shipped base and scorer, loaded once."""

    base: Any
    scorers: Scorers
    store: Store

    def card(
        self, name: str, class_name: str, training: Drawn, held_out: Drawn, options: dict, renders: int = 8
    ) -> tuple[Card, Scored]:
        """Train a tune with the token ohwx and score it."""
        items = [
            TrainExample(key=self._kept(picture), caption=text, bucket=(128, 128))
            for picture, text in training
        ]
        chosen = self.base.entry.training_options(TrainingOptions.model_validate(options))
        job = TuneJob(
            tune_id=name,
            options=chosen,
            items=items,
            token="ohwx",
            class_name=class_name,
            out_prefix=f"tunes/{name}/lora/1",
        )
        from tunes_dagster.training.loop import train

        result = train([job], self.base, self.store)[name]
        assert isinstance(result, TrainingResult), result
        subject = Subject(
            name, "ohwx", class_name, [p for p, _ in training], [p for p, _ in held_out], result.checkpoints
        )
        size = CardOptions(checkpoints=2, renders=renders)
        scored = score_tune(subject, self.base, self.scorers, self.store, size, Silent())
        return scored.card, scored

    def _kept(self, picture: Image.Image) -> str:
        data = io.BytesIO()
        picture.save(data, "PNG")
        return self.store.write_blob(data.getvalue(), ".png")


def open_workshop(folder: Path) -> Workshop:
    """Load the shipped base and scorer."""
    from tunes_dagster.families.base import load_family

    catalog = load_catalog()
    entry = catalog.real(catalog.resolve("tiny"))
    scorer: Any = load_scorer(load_scorer_catalog().entry("tiny-clip"), folder)
    return Workshop(load_family(entry, entry.location(folder)), Scorers(scorer, scorer), Store(folder))


def drawn(name: str, count: int, class_name: str = "", seed: int = 0) -> list[tuple[Image.Image, str]]:
    """Draw a held-out subject; captions may name another class."""
    kind = SUBJECTS[name].kind
    return [
        (p, t.replace(kind, class_name or kind)) for p, t in draw_subject(name, count, seed, token="ohwx")
    ]

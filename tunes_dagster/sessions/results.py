"""What came of a piece of work, as whoever shows it (Dagster's event log) gets it; files lie in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.results import TuneResult

if TYPE_CHECKING:
    from tunes_dagster.evaluation.card import Card
    from tunes_dagster.registry import Batch, Prompt, Tune
    from tunes_dagster.rendering.jobs import RenderJob, RenderResult
    from tunes_dagster.sessions.hardware import Device
    from tunes_dagster.training import jobs
    from tunes_dagster.training.jobs import TrainExample

# What is verified of a tune's weights, by the names that its row and Dagster's checks have for it.
FINITE, LOADS, DIFFERS = "finite_weights", "loads_into_fresh_pipeline", "differs_from_base"


@dataclass(frozen=True)
class Answer:
    """What was found when something was verified.

    Attributes:
        name: What was asked.
        passed: Whether it is as it should be.
        said: A sentence.
        numbers: Behind the sentence.
    """

    name: str
    passed: bool
    said: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Trained:
    """A tune that has its weights.

    Attributes:
        tune: Its row.
        result: What the training loop says.
        answers: What was verified of its files.
        device: That it was trained on; None for one that trains nothing.
        looked_at: The pictures that such a one keeps an encoder's answer to.
    """

    tune: Tune
    result: jobs.TrainingResult
    answers: list[Answer] = field(default_factory=list)
    device: Device | None = None
    looked_at: Sequence[TrainExample] = ()

    def row_result(self) -> TuneResult:
        """Return what the tune's row keeps."""
        result = self.result
        return TuneResult(
            weights_key=result.weights_key,
            kohya_key=result.kohya_key,
            words_key=result.figures.get("embeddings", ""),
            card_key=result.card_key,
            samples_key=result.samples_key,
            steps=result.steps,
            seconds=round(result.seconds, 1),
            stopped=result.stopped,
            weights_recipe_hash=result.recipe_hash,
            # What the report card chooses from; it may publish another checkpoint than the last one.
            checkpoints=list(result.checkpoints),
            published_step=result.steps,
            last_weights_key=result.weights_key,
            last_kohya_key=result.kohya_key,
            pipeline_key=result.pipeline_key,
            last_pipeline_key=result.pipeline_key,
            report_card=None,
            checks={answer.name: answer.passed for answer in self.answers},
        )


@dataclass
class Evaluated:
    """A tune that was scored, or a card that says why it was not.

    Attributes:
        card: The card.
        shown: Its files.
        result: What changes in the tune's result.
    """

    card: Card
    shown: Any
    result: TuneResult = field(default_factory=TuneResult)


@dataclass
class Rendered:
    """A batch that was rendered.

    Attributes:
        batch: Its row.
        prompts: Its prompts by id.
        jobs: Those of them that could be rendered.
        results: What came of each prompt, by id.
        prefix: Where the files lie in the store.
        seconds: Of everything, loading included.
        device: On which.
    """

    batch: Batch
    prompts: dict[str, Prompt]
    jobs: list[RenderJob]
    results: dict[str, RenderResult]
    prefix: str
    seconds: float
    device: Device

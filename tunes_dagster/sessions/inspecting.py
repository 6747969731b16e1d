"""Checking the weights of a tune that was just trained, and rendering samples over its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Cancelled
from tunes_dagster.core.progress import Phase, Reporter
from tunes_dagster.intake.subject import example_prompt
from tunes_dagster.sessions.results import DIFFERS, FINITE, LOADS, Answer, Trained

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.registry import Tune
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.sessions.hardware import Device
    from tunes_dagster.training.jobs import TrainingResult, TuneJob


class Inspector:
    """Checks the weights of tunes as they are trained, on the base that they were trained on."""

    def __init__(self, base: Any, device: Device, store: Store) -> None:
        self._base, self._device, self._store = base, device, store

    def inspect(self, tune: Tune, result: TrainingResult, report: Reporter) -> Trained:
        """Check a tune's files and make what people look at."""
        from tunes_dagster.training.layouts import Files
        from tunes_dagster.training.verify import verify
        from tunes_dagster.training.words import speaking

        report.phase(Phase.EVALUATING, "Loading the weights into a stock pipeline.")
        prompt = example_prompt(tune.token, tune.class_name)
        files = Files(result.weights_key, result.kohya_key, result.pipeline_key)
        seen = verify(files, prompt, self._base, self._store)
        trained = Trained(tune, result, answers_of(seen), self._device)
        with speaking(self._base, self._store, result.weights_key):
            result.samples_key = self._samples(tune, result, report)
        return trained

    def _samples(self, tune: Tune, result: TrainingResult, report: Reporter) -> str | None:
        """Render over the checkpoints; a tune is good without, so that nothing but a cancel stops it here."""
        from tunes_dagster.training.samples import sample_prompts, write_samples

        key = f"{result.folder}/samples.png"
        report.phase(Phase.EVALUATING, "Rendering samples over the checkpoints.")
        try:
            write_samples(
                key,
                result.checkpoints,
                sample_prompts(tune.token, tune.class_name),
                self._base,
                self._store,
                report,
                title=f"{tune.title} over training",
            )
        except Cancelled:
            raise
        except Exception as error:
            report.finding("Samples over the checkpoints could not be rendered; the weights are as they are.")
            report.note(f"Samples over the checkpoints could not be rendered: {type(error).__name__}.")
            return None
        return key


def answers_of(seen: Any) -> list[Answer]:
    """Return what `training.verify` saw, as answers."""
    differences = {"diffusers": seen.diffusers_difference}
    if seen.kohya_difference is not None:
        differences["kohya"] = seen.kohya_difference
    return [
        Answer(FINITE, seen.finite, f"{seen.layers} layers looked at."),
        Answer(
            LOADS,
            seen.loads,
            f"Largest pixel difference {seen.furthest:.2g}, allowed {seen.tolerance:g} (of 1).",
            differences,
        ),
        Answer(
            DIFFERS, seen.differs, f"Mean pixel difference to the base {seen.base_difference:.2g} (of 1)."
        ),
    ]


def embed(tune: Tune, job: TuneJob, installation: Installation) -> Trained:
    """Look at the pictures of a tune that trains nothing (`faceid`), write its files and check them, on the CPU.

    Args:
        tune: Its row.
        job: What training would need to know of it.
        installation: Where its base and the IP-Adapter are looked up, and its files are kept.

    Raises:
        Failure: `BASE_NOT_INSTALLED`, `WEIGHTS_UNUSABLE`, `TOO_FEW_PICTURES`.
    """
    from tunes_dagster.families.ipadapter import adapter_for, read_adapter
    from tunes_dagster.training import faceid

    store, folder = installation.store, installation.settings.bases_folder
    base, _ = installation.usable(tune.base_id)
    entry = adapter_for(installation.catalog, base, folder)
    result = faceid.make(job, base, entry, folder, store)
    job.report.phase(Phase.EVALUATING, "Looking at what the base will be told.")
    seen = faceid.verify(result.weights_key, read_adapter(entry, folder), store)
    return Trained(tune, result, _answers_of_face(seen), looked_at=faceid.chosen_pictures(job.items))


def _answers_of_face(seen: Any) -> list[Answer]:
    said = (
        (FINITE, seen.finite, "Every number of the embeddings."),
        (LOADS, seen.loads, "The adapter's projection, by diffusers' own code, makes finite tokens of it."),
        (
            DIFFERS,
            seen.differs,
            f"Its tokens differ from those of no picture by {seen.difference:.2g} on average.",
        ),
    )
    return [Answer(name, bool(passed), sentence) for name, passed, sentence in said]

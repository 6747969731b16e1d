"""The training loop: any number of tunes over one frozen base, one forward and backward per step for all of them.

What a tune computes depends on the tune alone: its rows, loss, gradients, clipping, moments, learning rate and
random numbers are its own, and the loop only decides which rows share a forward. Tunes leave when they end, and
waiting ones join at any step. Nothing is encoded inside a step, and nothing is read back from the device between
reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from tunes_dagster.core.failures import Cancelled, Failure, FailureCode, as_failure, is_out_of_memory
from tunes_dagster.core.progress import Keeping, Phase, Reporter
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import LoadedBase
from tunes_dagster.training import checkpoints
from tunes_dagster.training.batches import Group, RowLayout, collate, lay_out, make_groups
from tunes_dagster.training.jobs import History, TrainingResult, TuneJob, learning_rate
from tunes_dagster.training.methods import Method, method_of
from tunes_dagster.training.repeatable import repeatable
from tunes_dagster.training.run import PreparedTune, StepRows, TextTable, TuneRun
from tunes_dagster.training.weights import TrainedWeights

Outcome = TrainingResult | Failure
OnFinished = Callable[[str, Outcome], None]
# Given the number of free places, returns at most as many jobs that join now.
Waiting = Callable[[int], Sequence[TuneJob]]

# How often a cohort with free places looks for tunes that could join.
SECONDS_BETWEEN_LOOKS = 2.0


def train(
    cohort: Sequence[TuneJob],
    base: LoadedBase,
    store: Store,
    on_finished: OnFinished | None = None,
    *,
    waiting: Waiting | None = None,
    places: int | None = None,
) -> dict[str, Outcome]:
    """Train tunes on one base: those that stack together, the others one after another.

    Args:
        cohort: The tunes, each with its own options, data and reporter.
        base: The base, without adapters; it is left as it was.
        store: Where pictures, caches, checkpoints and results lie.
        on_finished: Told (tune id, outcome) as soon as a tune is through.
        waiting: Asked now and then, while there are free places, for tunes that join the running ones.
        places: Most tunes that share a forward; None is as many as came in `cohort`. The rest of them join
            as others leave.

    Returns:
        The outcome of each tune: its result, or why it ended without one. A tune that diverges, is cancelled
        or has broken data does not touch the others.
    """
    with repeatable(base.device):
        return _Session(base, store, on_finished, waiting).run(cohort, places)


class _Session:
    """One call of `train`: who waits, who trains, what came of each."""

    def __init__(
        self, base: LoadedBase, store: Store, on_finished: OnFinished | None, waiting: Waiting | None
    ) -> None:
        self.base, self.store = base, store
        self.outcomes: dict[str, Outcome] = {}
        self._on_finished, self._waiting = on_finished, waiting
        self._queue: list[TuneJob] = []
        self._solos: list[TuneJob] = []

    def run(self, cohort: Sequence[TuneJob], places: int | None) -> dict[str, Outcome]:
        """Train everybody and return the outcomes."""
        self._queue = self._stackable(cohort)
        most = max(1, places or len(self._queue))
        while self._queue:
            first = self._prepare(self._from_queue(most))
            if first:
                method = method_of(first[0].job.options)
                Trainer(method, self.base, self.store, self._done).run(first, most, self._join)
        while self._solos:
            job = self._solos.pop(0)
            for one in self._prepare([job]):
                Trainer(method_of(job.options), self.base, self.store, self._done).run([one], 1)
        return self.outcomes

    def _from_queue(self, places: int) -> list[TuneJob]:
        """Take the next jobs of one method from the queue."""
        method = method_of(self._queue[0].options).name if self._queue else ""
        chosen = [job for job in self._queue if method_of(job.options).name == method][:places]
        self._queue = [job for job in self._queue if job not in chosen]
        return chosen

    def _join(self, method: Method, free: int) -> list[PreparedTune]:
        """Return tunes for free places of a running cohort: from this call's queue, then from outside."""
        if self._waiting is not None and not self._queue:
            self._queue = self._stackable(self._waiting(free))
        if not self._queue or method_of(self._queue[0].options).name != method.name:
            return []
        return self._prepare(self._from_queue(free))

    def _stackable(self, jobs: Sequence[TuneJob]) -> list[TuneJob]:
        """Return the jobs that share forwards; the others are put aside for later."""
        self._solos += [job for job in jobs if not method_of(job.options).stacks]
        return [job for job in jobs if method_of(job.options).stacks]

    def _prepare(self, jobs: Sequence[TuneJob]) -> list[PreparedTune]:
        prepared = []
        for job in jobs:
            report, job.report = job.report, patient(job, self.store)
            try:
                prepared.append(method_of(job.options).prepare(job, self.base, self.store))
            except Exception as error:
                self._done(job, as_failure(error))
            finally:
                job.report = report
        return prepared

    def _done(self, job: TuneJob, outcome: Outcome) -> None:
        self.outcomes[job.tune_id] = outcome
        if self._on_finished is not None:
            self._on_finished(job.tune_id, outcome)


def patient(job: TuneJob, store: Store) -> Reporter:
    """Return who is told of the way to a tune's first step.

    What an interrupted attempt has learned is kept on request once the tune is back where that one stopped.
    """
    resumes = job.resume_from is not None and checkpoints.find_newest(store, job.resume_from) is not None
    return Keeping([job.report]) if resumes else job.report


class Trainer:
    """Tunes that share their forwards, step by step."""

    def __init__(
        self, method: Method, base: LoadedBase, store: Store, done: Callable[[TuneJob, Outcome], None]
    ) -> None:
        self.method, self.base, self.store, self._done = method, base, store, done
        # Losses and noise are kept in float32 under half precision, and in float64 for proofs.
        self.dtype = torch.promote_types(base.dtype, torch.float32)
        self.runs: list[TuneRun] = []
        self.weights: TrainedWeights | None = None
        self.table = TextTable(base)
        self.totals = torch.zeros(0, device=base.device, dtype=self.dtype)
        self._layouts: dict[tuple, RowLayout] = {}
        self._left: list[tuple[TuneJob, Outcome]] = []
        self._looked = time.monotonic()

    def run(
        self,
        prepared: Sequence[PreparedTune],
        places: int,
        arrivals: Callable[[Method, int], Sequence[PreparedTune]] | None = None,
    ) -> None:
        """Train until every tune has left.

        Args:
            prepared: Who begins.
            places: Most tunes at a time.
            arrivals: Asked for tunes of a method that join, with the number of free places.
        """
        checkpointed = self.base.denoiser.is_gradient_checkpointing
        try:
            self._admit(prepared)
            while self.runs:
                self._step()
                self._each(self._after_step)
                if arrivals is not None and self.runs:
                    self._look(arrivals, places)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            for run in list(self.runs):
                self._leave(run, as_failure(error))
            self._tell()
        finally:
            if self.weights is not None:
                self.weights.close()
            self._save_memory(checkpointed)

    def _look(self, arrivals: Callable[[Method, int], Sequence[PreparedTune]], places: int) -> None:
        """Let waiting tunes join when there is room and the last look was long enough ago."""
        free = places - len(self.runs)
        if free <= 0 or time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        # Encoding asks the bare base.
        self._weights.assign(None)
        joining = arrivals(self.method, free)
        self._looked = time.monotonic()
        if joining:
            self._admit(joining)

    @property
    def _weights(self) -> TrainedWeights:
        assert self.weights is not None
        return self.weights

    def _admit(self, prepared: Sequence[PreparedTune]) -> None:
        """Give tunes their slots and let them begin or resume."""
        fresh = [TuneRun(one, self.base) for one in prepared]
        if self.weights is not None and self.weights.fits([run.options for run in fresh]):
            taken = {run.slot for run in self.runs}
            free = (slot for slot in range(self.weights.slots) if slot not in taken)
            for run in fresh:
                run.slot = next(free)
        else:
            self._seat_anew(fresh)
        self._layouts.clear()
        self.runs = [*self.runs, *fresh]
        # A new table forgets the texts of those who left.
        self.table = TextTable(self.base)
        for run in self.runs:
            run.speak(self.table)
        self._save_memory(any(run.options.gradient_checkpointing for run in self.runs))
        self._each(self._enter, fresh)

    def _seat_anew(self, fresh: Sequence[TuneRun]) -> None:
        """Make weights with room for everybody and move those who are here into them, exactly as they are."""
        runs = [*self.runs, *fresh]
        states = [self._weights.state(run.slot) for run in self.runs]
        totals = torch.zeros(2 * len(runs), device=self.base.device, dtype=self.dtype)
        for slot, run in enumerate(self.runs):
            totals[2 * slot : 2 * slot + 2] = self.totals[2 * run.slot : 2 * run.slot + 2]
        if self.weights is not None:
            self.weights.close()
        self.weights, self.totals = None, totals
        self.weights = self.method.weights([run.options for run in runs], self.base, self.dtype)
        for slot, run in enumerate(runs):
            run.slot = slot
        for run, state in zip(self.runs, states, strict=True):
            self.weights.restore(run.slot, run.options, state, run.step)

    def _save_memory(self, wanted: bool) -> None:
        """Turn the denoiser's gradient checkpointing on or off."""
        denoiser = self.base.denoiser
        if wanted and not denoiser.is_gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        elif denoiser.is_gradient_checkpointing and not wanted:
            denoiser.disable_gradient_checkpointing()

    def _each(self, work: Callable[[TuneRun], None], runs: Sequence[TuneRun] | None = None) -> None:
        for run in list(self.runs if runs is None else runs):
            self._guarded(run, work)
        self._tell()

    def _tell(self) -> None:
        """Hand over who has left; outside the guard, since what the caller does then is not the tune's doing."""
        while self._left:
            self._done(*self._left.pop(0))

    def _guarded(self, run: TuneRun, work: Callable[[TuneRun], None]) -> None:
        """Do one tune's work; whatever goes wrong in it ends that tune alone."""
        try:
            work(run)
        except Cancelled as cancelled:
            if cancelled.keep and run.step > 0:
                self._guarded(run, partial(self._finish, stopped=True))
                return
            if run.step > 0:
                run.save(self._weights, self.store)
            self._leave(run, cancelled)
        except Exception as error:
            if is_out_of_memory(error):
                raise  # of all that train together, see `run`
            self._leave(run, as_failure(error))

    def _enter(self, run: TuneRun) -> None:
        run.enter(self._weights, self.store)
        run.job.report.phase(Phase.TRAINING, f"Training {run.total} steps")
        run.job.report.step(run.step, run.total)
        if run.step >= run.total:
            self._finish(run)

    def _leave(self, run: TuneRun, outcome: Outcome) -> None:
        self.runs = [other for other in self.runs if other is not run]
        self._weights.leave(run.slot)
        self.totals[2 * run.slot : 2 * run.slot + 2] = 0
        # A place is free: look at once.
        self._looked = 0.0
        self._left.append((run.job, outcome))

    def _step(self) -> None:
        """One optimizer step of every tune that is still here."""
        rows = {run.slot: run.rows() for run in self.runs}
        for group in make_groups(self.runs, rows):
            self._backward(group, rows)
        weights = self._weights
        weights.step({run.slot: learning_rate(run.options, run.step, run.total) for run in self.runs})
        for run in self.runs:
            if run.options.ema_decay:
                weights.average(run.slot, run.options.ema_decay, run.step)
            run.step += 1

    def _layout(self, group: Group, rows: dict[int, StepRows]) -> RowLayout:
        key = (
            tuple(run.slot for run in group.pictures),
            tuple(run.slot for run in group.priors),
        )
        if key not in self._layouts:
            self._layouts[key] = lay_out(group, rows, self.base.device, self.dtype)
        return self._layouts[key]

    def _backward(self, group: Group, rows: dict[int, StepRows]) -> None:
        """Forward and backward of a group; gradients add up in the weights."""
        layout = self._layout(group, rows)
        batch = collate(group, layout, rows, self.base, self.dtype)
        conditioning = self.base.with_size(self.table.rows(batch.texts), *group.bucket)
        self._weights.assign(layout.slots)
        model_pred = self.base.predict(batch.noisy.to(self.base.dtype), batch.timesteps, conditioning)
        errors = (model_pred.to(self.dtype) - batch.target).square()
        if batch.masks is not None:
            errors = errors * batch.masks
        losses = errors.flatten(1).mean(1)
        (losses * batch.weights).sum().backward()
        self.totals.index_add_(0, layout.totals, losses.detach() * layout.shares)

    def _after_step(self, run: TuneRun) -> None:
        """Report, save, stop or finish a tune after its step."""
        last = run.step >= run.total
        if last or run.step % run.report_every == 0:
            self._report(run)
        if run.step % run.job.checkpoint_every == 0 or last:
            self._check_finite(run)
            run.save(self._weights, self.store)
        if last:
            self._finish(run)
        else:
            run.job.report.check_cancelled()

    def _report(self, run: TuneRun) -> None:
        """Read the mean losses since the last report from the device and pass them on."""
        steps = run.step - (run.curve[-1][0] if run.curve else 0)
        mine = slice(2 * run.slot, 2 * run.slot + 2)
        loss, prior_loss = (self.totals[mine] / max(1, steps)).tolist()
        self.totals[mine] = 0
        if not (abs(loss) < float("inf") and abs(prior_loss) < float("inf")):
            self._diverged(run)
        run.curve.append((run.step, loss))
        numbers = {"loss": loss, "lr": learning_rate(run.options, run.step - 1, run.total)}
        if run.prior_rows:
            numbers["prior_loss"] = prior_loss
        run.job.report.step(run.step, run.total, **numbers)

    def _check_finite(self, run: TuneRun) -> None:
        if not self._weights.finite(run.slot):
            self._diverged(run)

    def _diverged(self, run: TuneRun) -> None:
        raise Failure(
            FailureCode.DIVERGED,
            f"Training diverged by step {run.step}: the loss or the weights are not finite any more.",
            f"Lower the learning rate ({run.options.learning_rate:g}){' or the rank' if run.options.rank else ''}, "
            "and look at the pictures for broken ones.",
        )

    def _finish(self, run: TuneRun, stopped: bool = False) -> None:
        """Write a tune's files and let it leave with its result."""
        run.job.report.phase(Phase.PACKAGING, "Writing the tune's files")
        self._check_finite(run)
        run.save(self._weights, self.store)
        result = self.method.write(
            run.job,
            self.base,
            self.store,
            self._weights.adapter(run.slot),
            History(steps=run.step, curve=run.curve, checkpoints=run.saved, stopped=stopped),
        )
        result.seconds = round(time.monotonic() - run.prepared.started, 3)
        result.figures |= run.prepared.figures
        self._leave(run, result)

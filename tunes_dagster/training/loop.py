"""The training loop: any number of tunes over one frozen base, one forward and backward per step for all of them.

What a tune computes depends on the tune alone: its rows, loss, gradients, clipping, moments, learning rate and
random numbers are its own, and the loop only decides which rows share a forward. Nothing is encoded here, and
nothing is read back from the device between reports.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tunes_dagster.failures import Cancelled, Failure, FailureCode
from tunes_dagster.progress import Phase
from tunes_dagster.store import Store
from tunes_dagster.training import export
from tunes_dagster.training.adapters import AdapterBank, attach
from tunes_dagster.training.families.base import LoadedBase
from tunes_dagster.training.jobs import TuneJob, TuneResult, learning_rate
from tunes_dagster.training.optimizer import SlotOptimizer
from tunes_dagster.training.run import PreparedTune, StepRows, TextTable, TuneRun, prepare

Outcome = TuneResult | Failure
OnFinished = Callable[[str, Outcome], None]


def train(
    cohort: Sequence[TuneJob], base: LoadedBase, store: Store, on_finished: OnFinished | None = None
) -> dict[str, Outcome]:
    """Train a cohort of tunes on one base.

    Args:
        cohort: The tunes, each with its own options, data and reporter.
        base: The base, without adapters; it is left as it was.
        store: Where pictures, caches, checkpoints and results lie.
        on_finished: Told (tune id, outcome) as soon as a tune is through.

    Returns:
        The outcome of each tune: its result, or why it ended without one. A tune that diverges, is cancelled
        or has broken data does not touch the others.
    """
    outcomes: dict[str, Outcome] = {}

    def done(job: TuneJob, outcome: Outcome) -> None:
        outcomes[job.tune_id] = outcome
        if on_finished is not None:
            on_finished(job.tune_id, outcome)

    prepared = []
    for job in cohort:
        try:
            prepared.append(prepare(job, base, store))
        except Exception as error:
            done(job, _as_failure(error))
    if prepared:
        Trainer(prepared, base, store, done).run()
    return outcomes


def _as_failure(error: Exception) -> Failure:
    """Return a tune's exception as the reason of its end; a bug is named with its last lines."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return Failure(
            FailureCode.OUT_OF_MEMORY,
            "The device ran out of memory.",
            "Turn gradient_checkpointing on, lower batch_size or resolution, or take fewer tunes at a time.",
        )
    trace = "".join(traceback.format_exception(error)[-4:])
    return Failure(FailureCode.INTERNAL, f"{type(error).__name__}: {error}", "", {"trace": trace})


@dataclass(frozen=True)
class Group:
    """Rows that share a latent shape and therefore a forward.

    Attributes:
        bucket: (width, height) in pixels.
        pictures: Runs whose picture rows are here.
        priors: Runs whose prior rows are here.
    """

    bucket: tuple[int, int]
    pictures: tuple[TuneRun, ...]
    priors: tuple[TuneRun, ...]


@dataclass(frozen=True)
class Plan:
    """What stays the same while a group has the same members; everything on the device.

    Rows are ordered run by run, pictures before prior rows, so that equally large runs are blocks.

    Attributes:
        slots: Slot of each row.
        order: Position of each row in [all pictures, all prior rows].
        weights: Of each row in the loss: 1 / rows for pictures, prior_weight / rows for prior rows.
        gammas: min-SNR gamma of each picture row in the unordered layout, or None when all are 0.
        totals: Which of the running totals each row adds to: 2 * slot, and one more for prior rows.
        shares: What a row adds to its total: 1 / rows.
    """

    slots: list[int]
    order: Tensor
    weights: Tensor
    gammas: Tensor | None
    totals: Tensor
    shares: Tensor


def make_plan(group: Group, rows: Mapping[int, StepRows], device: torch.device, dtype: torch.dtype) -> Plan:
    """Lay out a group; see `Plan`."""
    pictures = [run for run in group.pictures for _ in rows[run.slot].texts]
    priors = [run for run in group.priors for _ in range(run.prior_rows)]
    runs = [*pictures, *priors]
    is_prior = [False] * len(pictures) + [True] * len(priors)
    slots = [run.slot for run in runs]
    order = sorted(range(len(runs)), key=lambda i: (slots[i], is_prior[i], i))
    shares = [
        1 / (run.prior_rows if late else run.batch_size) for run, late in zip(runs, is_prior, strict=True)
    ]
    scale = [
        run.options.prior_weight or 0.0 if late else 1.0 for run, late in zip(runs, is_prior, strict=True)
    ]
    gammas = [run.options.min_snr_gamma or 0.0 for run in pictures]

    def put(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=device, dtype=dtype)

    return Plan(
        slots=[slots[i] for i in order],
        order=torch.tensor(order, device=device),
        weights=put([shares[i] * scale[i] for i in order]),
        gammas=put(gammas) if any(gammas) else None,
        totals=torch.tensor([2 * slots[i] + is_prior[i] for i in order], device=device),
        shares=put([shares[i] for i in order]),
    )


class Trainer:
    """The tunes of a cohort in one bank."""

    def __init__(
        self,
        prepared: Sequence[PreparedTune],
        base: LoadedBase,
        store: Store,
        done: Callable[[TuneJob, Outcome], None],
    ) -> None:
        self.base, self.store, self._done = base, store, done
        # Losses and noise are kept in float32 under half precision, and in float64 for proofs.
        self.dtype = torch.promote_types(base.dtype, torch.float32)
        self.table = TextTable(base)
        self.runs = [TuneRun(one, slot, base, self.table) for slot, one in enumerate(prepared)]
        self.bank = self._attach()
        self.optimizer = SlotOptimizer(self.bank)
        self.totals = torch.zeros(2 * len(self.runs), device=base.device, dtype=self.dtype)
        self._plans: dict[tuple, Plan] = {}
        self._left: list[tuple[TuneJob, Outcome]] = []

    def _attach(self) -> AdapterBank:
        wanted = {
            name
            for run in self.runs
            for name in self.base.adapter_targets(run.options.targets or "attention")
        }
        names = [name for name in self.base.adapter_targets("all") if name in wanted]
        rank = max(run.options.rank or 16 for run in self.runs)
        return attach(self.base.denoiser, names, len(self.runs), rank, self.dtype)

    def run(self) -> None:
        """Train until every tune has left."""
        try:
            with self._memory_saver():
                self._each(self._enter)
                while self.runs:
                    self._step()
                    self._each(self._after_step)
        except torch.OutOfMemoryError as error:
            for run in list(self.runs):
                self._leave(run, _as_failure(error))
            self._tell()
        finally:
            self.bank.detach()

    def _each(self, work: Callable[[TuneRun], None]) -> None:
        for run in list(self.runs):
            self._guarded(run, work)
        self._tell()

    def _tell(self) -> None:
        """Hand over who has left; outside the guard, since what the caller does then is not the tune's doing."""
        while self._left:
            self._done(*self._left.pop(0))

    @contextmanager
    def _memory_saver(self) -> Iterator[None]:
        wanted = any(run.options.gradient_checkpointing for run in self.runs)
        before = self.base.denoiser.is_gradient_checkpointing
        if wanted and not before:
            self.base.denoiser.enable_gradient_checkpointing()
        try:
            yield
        finally:
            if wanted and not before:
                self.base.denoiser.disable_gradient_checkpointing()

    def _guarded(self, run: TuneRun, work: Callable[[TuneRun], None]) -> None:
        """Do one tune's work; whatever goes wrong in it ends that tune alone."""
        try:
            work(run)
        except Cancelled as cancelled:
            if cancelled.keep and run.step > 0:
                self._guarded(run, partial(self._finish, stopped=True))
                return
            if run.step > 0:
                run.save(self.bank, self.optimizer, self.store)
            self._leave(run, cancelled)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._leave(run, _as_failure(error))

    def _enter(self, run: TuneRun) -> None:
        run.enter(self.bank, self.optimizer, self.store)
        run.job.report.phase(Phase.TRAINING, f"Training {run.total} steps")
        run.job.report.step(run.step, run.total)
        if run.step >= run.total:
            self._finish(run)

    def _leave(self, run: TuneRun, outcome: Outcome) -> None:
        self.runs = [other for other in self.runs if other is not run]
        self.bank.assign(None)
        self.bank.clear(run.slot)
        self.optimizer.release(run.slot)
        self._left.append((run.job, outcome))

    def _step(self) -> None:
        """One optimizer step of every tune that is still here."""
        rows = {run.slot: run.rows() for run in self.runs}
        for group in self._groups(rows):
            self._backward(group, rows)
        self.optimizer.step({run.slot: learning_rate(run.options, run.step, run.total) for run in self.runs})
        for run in self.runs:
            if run.options.ema_decay:
                self.optimizer.average(run.slot, run.options.ema_decay, run.step)
            run.step += 1

    def _groups(self, rows: Mapping[int, StepRows]) -> list[Group]:
        buckets = dict.fromkeys(
            [rows[run.slot].bucket for run in self.runs]
            + [run.prior_bucket for run in self.runs if run.prior_rows]
        )
        return [
            Group(
                bucket,
                tuple(run for run in self.runs if rows[run.slot].bucket == bucket),
                tuple(run for run in self.runs if run.prior_rows and run.prior_bucket == bucket),
            )
            for bucket in buckets
        ]

    def _plan(self, group: Group, rows: Mapping[int, StepRows]) -> Plan:
        key = (
            tuple(run.slot for run in group.pictures),
            tuple(run.slot for run in group.priors),
        )
        if key not in self._plans:
            self._plans[key] = make_plan(group, rows, self.base.device, self.dtype)
        return self._plans[key]

    def _backward(self, group: Group, rows: Mapping[int, StepRows]) -> None:
        """Forward and backward of a group; gradients add up in the bank's buffer."""
        plan = self._plan(group, rows)
        noisy, target, timesteps, texts, weights = self._collate(group, plan, rows)
        conditioning = self.base.with_size(self.table.rows(texts), *group.bucket)
        self.bank.assign(plan.slots)
        said = self.base.predict(noisy.to(self.base.dtype), timesteps, conditioning)
        losses = (said.to(self.dtype) - target).square().flatten(1).mean(1)
        (losses * weights).sum().backward()
        self.totals.index_add_(0, plan.totals, losses.detach() * plan.shares)

    def _collate(
        self, group: Group, plan: Plan, rows: Mapping[int, StepRows]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return (noisy, target, timesteps, text numbers, loss weights) of a group, rows in the plan's order."""
        base, weights = self.base, plan.weights
        noisy, target, moments, texts = [], [], [], []
        if group.pictures:
            mine = [rows[run.slot] for run in group.pictures]
            clean = self._put(torch.cat([one.clean for one in mine]).to(self.dtype))
            noise = self._put(torch.cat([one.noise for one in mine]).to(self.dtype))
            moment = self._put(torch.cat([one.timesteps for one in mine]))
            noisy.append(base.add_noise(clean, noise, moment))
            target.append(base.target(clean, noise, moment))
            moments.append(moment)
            texts += [one.texts for one in mine]
        for run in group.priors:
            assert run.prior_set is not None and run.prior_texts is not None
            chosen = rows[run.slot].prior
            noisy.append(self._put(run.prior_set.noisy[chosen].to(self.dtype)))
            target.append(self._put(run.prior_set.predictions[chosen].to(self.dtype)))
            moments.append(self._put(run.prior_set.timesteps[chosen]))
            texts.append(run.prior_texts[chosen])
        if plan.gammas is not None:
            factors = torch.ones(len(plan.slots), device=base.device, dtype=self.dtype)
            factors[: len(plan.gammas)] = base.loss_weights(moments[0], plan.gammas)
            weights = weights * factors[plan.order]
        parts = (noisy, target, moments, [self._put(torch.cat(texts))])
        ordered = [torch.cat(part).index_select(0, plan.order) for part in parts]
        return ordered[0], ordered[1], ordered[2], ordered[3], weights

    def _put(self, tensor: Tensor) -> Tensor:
        if self.base.device.type == "cuda":
            return tensor.pin_memory().to(self.base.device, non_blocking=True)
        return tensor.to(self.base.device)

    def _after_step(self, run: TuneRun) -> None:
        """Report, save, stop or finish a tune after its step."""
        last = run.step >= run.total
        if last or run.step % run.report_every == 0:
            self._report(run)
        if run.step % run.job.checkpoint_every == 0 or last:
            self._check_finite(run)
            run.save(self.bank, self.optimizer, self.store)
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
        if not bool(torch.isfinite(self.optimizer.rows[run.slot]).all()):
            self._diverged(run)

    def _diverged(self, run: TuneRun) -> None:
        raise Failure(
            FailureCode.DIVERGED,
            f"Training diverged by step {run.step}: the loss or the weights are not finite any more.",
            f"Lower the learning rate ({run.options.learning_rate:g}) or the rank, and look at the pictures "
            "for broken ones.",
        )

    def _finish(self, run: TuneRun, stopped: bool = False) -> None:
        """Write a tune's files and let it leave with its result."""
        run.job.report.phase(Phase.PACKAGING, "Writing the tune's files")
        self._check_finite(run)
        run.save(self.bank, self.optimizer, self.store)
        result = export.write(
            run.job,
            self.base,
            self.store,
            run.adapter(self.bank, self.optimizer),
            steps=run.step,
            curve=run.curve,
            checkpoints=run.saved,
            stopped=stopped,
        )
        result.seconds = round(time.monotonic() - run.prepared.started, 3)
        result.figures |= run.prepared.figures
        self._leave(run, result)

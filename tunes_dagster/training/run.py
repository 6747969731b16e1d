"""One tune inside the loop: its data, its place in the bank, its progress; and how it is prepared and resumed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Phase
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import Conditioning, LoadedBase
from tunes_dagster.intake.subject import is_style
from tunes_dagster.training import cache, checkpoints, inherited, order, prior
from tunes_dagster.training.captions import cut_captions, joined, stacked, tokens_of
from tunes_dagster.training.earlier import read_earlier
from tunes_dagster.training.jobs import TrainExample, TuneJob
from tunes_dagster.training.masks import masks_by_bucket
from tunes_dagster.training.weights import TrainedWeights

# What a style must not take over.
_KEPT_FROM_STYLES = ("woman", "man", "dog", "mug", "car")
_UNUSED = (
    "{} regularisation pictures are not used: training.prior_weight is 0. "
    "Set it to 1 to have them preserve the class."
)


class TextTable:
    """The conditioning of every text of the cohort on the device; rows of a batch are picked by number."""

    def __init__(self, base: LoadedBase) -> None:
        self._base = base
        self._numbers: dict[str, int] = {}
        self._tensors: Conditioning = {}
        self._lengths: list[int] = []

    def add(self, entries: dict[str, Conditioning]) -> None:
        """Add texts that are not in the table yet."""
        fresh = {text: entry for text, entry in entries.items() if text not in self._numbers}
        if not fresh:
            return
        for text in fresh:
            self._numbers[text] = len(self._numbers)
        rows = stacked(list(fresh.values()))
        new = {name: value.to(self._base.device, self._base.dtype) for name, value in rows.items()}
        self._lengths += [tokens_of(entry) for entry in fresh.values()]
        self._tensors = joined(self._tensors, new, self._lengths)

    def numbers(self, texts: Sequence[str]) -> Tensor:
        """Return the numbers of texts, on the CPU."""
        return torch.tensor([self._numbers[text] for text in texts], dtype=torch.long)

    def rows(self, numbers: Tensor) -> Conditioning:
        """Return the conditioning of numbered texts (on the device)."""
        return {name: value.index_select(0, numbers) for name, value in self._tensors.items()}


@dataclass
class PreparedTune:
    """A tune's data, encoded: all that the loop needs and nothing that depends on the cohort.

    Attributes:
        job: What was asked.
        means: Posterior means by bucket, [pictures in it, c, h, w].
        stds: Posterior standard deviations alike.
        position: Of each picture: (bucket, row in it).
        prior_set: Rows of prior preservation, or None.
        texts: Conditioning of every text in use, the empty one included.
        data_hash: See `TuneJob.data_hash`.
        figures: Cache hits, for the result.
        started: When its preparation began, in monotonic seconds.
        masks: What each position of a picture counts in the loss, by bucket, [pictures in it, …] broadcastable
            to what the denoiser predicts and with mean 1 over each picture; None counts all alike.
    """

    job: TuneJob
    means: dict[tuple[int, int], Tensor]
    stds: dict[tuple[int, int], Tensor]
    position: list[tuple[tuple[int, int], int]]
    prior_set: prior.PriorSet | None
    texts: dict[str, Conditioning]
    data_hash: str
    figures: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    masks: dict[tuple[int, int], Tensor] | None = None


def prepare(job: TuneJob, base: LoadedBase, store: Store) -> PreparedTune:
    """Encode a tune's pictures and texts and get its prior set; all of it cached in the store.

    Raises:
        Failure: `TOO_FEW_PICTURES` when there is none.
    """
    if not job.items:
        raise Failure(
            FailureCode.TOO_FEW_PICTURES, "There is no picture to train on.", "Hand in at least one picture."
        )
    started, report = time.monotonic(), job.report
    inherited.inherit(job, base, store)
    report.phase(Phase.ENCODING, f"Encoding {len(job.items)} pictures and their captions")

    def on_row(done: int, total: int) -> None:
        report.step(done, total)
        report.check_cancelled()

    latents, pictures = cache.cached_latents(job.items, base, store, on_row, owner=job.tune_id)
    means, stds, position = _by_bucket(job, latents)
    options = job.options
    widest = Counter(item.bucket for item in job.items).most_common(1)[0][0]
    wants_prior = bool(options.prior_weight) and bool(options.prior_prompts or job.prior_pictures)
    if job.prior_pictures and not wants_prior:
        report.finding(_UNUSED.format(len(job.prior_pictures)))
    if cut := cut_captions(job.items, base):
        report.finding(cut)
    captions = job.captions
    given, prompts, own = _kept_by_prior(job, widest) if wants_prior else ([], [], [])
    spoken = [text for text in own if text != prior.NO_TEXT]
    # What is said of the class alone is everybody's; the rest goes with the tune.
    shared = {"", *(prompts if job.prior_prompts is None else ())}
    every = list(dict.fromkeys([*captions, "", *prompts, *(one.caption for one in given), *spoken]))
    with inherited.heard(job, base) as heard:
        # What adapted encoders say of any text is this tune's alone.
        mine = every if heard else [text for text in every if text not in shared]
        texts, text_count = cache.cached_text(every, base, store, job.tune_id, mine, heard)
        if len(spoken) < len(own):
            texts[prior.NO_TEXT] = {name: value[0].cpu() for name, value in base.no_text(1).items()}
    prior_set, hit = None, False
    if wants_prior:
        report.phase(Phase.ENCODING, "Asking the untuned base about the class")
        plain = _plainly([*own, *(one.caption for one in given)], base, store, job, texts)
        if given:
            prior_set = _given_set(job, given, base, store, plain, on_row)
        else:
            prior_set, hit = prior.class_set(base, store, prompts, *widest, on_row)
        prior_set = prior_set.joined(prior.own_set(base, means[widest], own, plain, options.seed))
    figures = {
        "pictures_cached": f"{pictures.hits}/{pictures.asked}",
        "texts_cached": f"{text_count.hits}/{text_count.asked}",
        "prior_cached": hit,
    }
    report.note(
        f"Latents: {pictures}. Text embeddings: {text_count}. "
        + (f"Prior predictions: {'from the cache' if hit else 'computed'}." if wants_prior else "No prior.")
    )
    return PreparedTune(
        job,
        means,
        stds,
        position,
        prior_set,
        texts,
        job.data_hash(base.fingerprint()),
        figures,
        started,
        masks=masks_by_bucket(job.items, means, options.mask_floor, store),
    )


def _kept_by_prior(job: TuneJob, widest: tuple[int, int]) -> tuple[list[TrainExample], list[str], list[str]]:
    """Return what prior preservation keeps as it is: pictures of others, or prompts for them, and the tune's own texts.

    Args:
        job: Wants it.
        widest: The bucket of most pictures.
    """
    given = prior.given(job, widest)
    prompts = [] if given else _prior_prompts(job)
    own = [c for c, item in zip(job.captions, job.items, strict=True) if item.bucket == widest]
    own = prior.own_texts(own, job.spoken or job.token, job.class_name, job.options.seed)
    return given, prompts, own


def _given_set(
    job: TuneJob,
    given: Sequence[TrainExample],
    base: LoadedBase,
    store: Store,
    texts: dict[str, Conditioning],
    on_row: Callable[[int, int], None],
) -> prior.PriorSet:
    """Return the set of the class pictures that came along, which belong to the tune."""
    latents, _ = cache.cached_latents(given, base, store, owner=job.tune_id)
    clean = torch.stack([one.mean for one in latents])
    return prior.given_set(base, clean, [one.caption for one in given], texts, job.options.seed, on_row)


def _plainly(
    own: Sequence[str], base: LoadedBase, store: Store, job: TuneJob, texts: dict[str, Conditioning]
) -> dict[str, Conditioning]:
    """Return the conditioning of texts as the untuned base has it, which is asked what must be preserved."""
    if not job.encoders:
        return texts
    spoken = [text for text in dict.fromkeys(own) if text != prior.NO_TEXT]
    plain, _ = cache.cached_text(spoken, base, store, job.tune_id, spoken)
    nothing = {name: value[0].cpu() for name, value in base.no_text(1).items()}
    return {**plain, prior.NO_TEXT: nothing}


def _prior_prompts(job: TuneJob) -> list[str]:
    if job.prior_prompts is not None:
        return list(job.prior_prompts)
    count = job.options.prior_prompts or 0
    if is_style(job.class_name):
        # A style has no class whose meaning could drift: people and things of all kinds must keep their looks.
        each = [prior.class_prompts(word, -(-count // len(_KEPT_FROM_STYLES))) for word in _KEPT_FROM_STYLES]
        return [text for some in zip(*each, strict=True) for text in some][:count]
    return prior.class_prompts(job.class_name, count)


def _by_bucket(job: TuneJob, latents: Sequence[Any]) -> tuple[dict, dict, list]:
    members: dict[tuple[int, int], list[int]] = {}
    position = []
    for i, item in enumerate(job.items):
        rows = members.setdefault(item.bucket, [])
        position.append((item.bucket, len(rows)))
        rows.append(i)
    means = {bucket: torch.stack([latents[i].mean for i in rows]) for bucket, rows in members.items()}
    stds = {bucket: torch.stack([latents[i].std for i in rows]) for bucket, rows in members.items()}
    return means, stds, position


@dataclass(kw_only=True)
class StepRows:
    """A tune's rows of one step, on the CPU: pictures first, then prior rows of the same shape or another.

    Attributes:
        bucket: Of the pictures.
        clean: Sampled latents of the pictures.
        noise: Their noise.
        timesteps: Their timesteps.
        texts: Their text numbers.
        prior: Positions in the prior set.
        masks: Of the pictures, see `PreparedTune`.
    """

    bucket: tuple[int, int]
    clean: Tensor
    noise: Tensor
    timesteps: Tensor
    texts: Tensor
    prior: Tensor
    masks: Tensor | None = None


class TuneRun:
    """A prepared tune in a slot of the trained weights, step by step."""

    def __init__(self, prepared: PreparedTune, base: LoadedBase) -> None:
        self.prepared, self.slot, self.job = prepared, -1, prepared.job
        self.options, self.total = self.job.options, self.job.total_steps
        self.base, self.step = base, 0
        self.batch_size = self.options.batch_size or 1
        self.order = order.BucketOrder(
            [item.bucket for item in self.job.items],
            self.batch_size,
            self.options.seed,
            [item.repeats for item in self.job.items],
        )
        self.captions, self.empty = torch.empty(0), 0
        self.prior_set = prepared.prior_set
        self.prior_texts: Tensor | None = None
        self.prior_rows = 0
        if self.prior_set:
            self.prior_rows = self.options.prior_batch_size or self.batch_size
        self.curve: list[tuple[int, float]] = []
        self.saved: list[str] = []
        self.report_every = max(1, self.total // 100)

    def speak(self, table: TextTable) -> None:
        """Put this tune's texts into a table and refer to it from now on."""
        table.add(self.prepared.texts)
        self.captions = table.numbers(self.job.captions)
        self.empty = int(table.numbers([""])[0])
        self.prior_texts = table.numbers(self.prior_set.texts) if self.prior_set else None

    @property
    def prior_bucket(self) -> tuple[int, int]:
        """Bucket of the prior rows: the one that most of the pictures have."""
        assert self.prior_set is not None
        height, width = self.prior_set.noisy.shape[2:]
        return width * self.base.pixels_per_latent, height * self.base.pixels_per_latent

    def rows(self) -> StepRows:
        """Return the rows of the current step."""
        indices = self.order.batch(self.step)
        bucket = self.prepared.position[indices[0]][0]
        inside = torch.tensor([self.prepared.position[i][1] for i in indices])
        mean, std = self.prepared.means[bucket][inside], self.prepared.stds[bucket][inside]
        draws = order.draw(
            self.options.seed,
            self.step,
            len(indices),
            mean.shape[1:],
            self.options.caption_dropout,
            self.prior_rows,
            len(self.prior_set) if self.prior_set else 0,
        )
        texts = self.captions[torch.tensor(indices)]
        masks = self.prepared.masks
        return StepRows(
            bucket=bucket,
            clean=mean + std * draws.posterior.to(mean.dtype),
            noise=draws.noise.to(mean.dtype),
            timesteps=self.base.draw_timesteps(draws.uniform, *bucket),
            texts=torch.where(draws.dropped, self.empty, texts),
            prior=draws.prior,
            masks=None if masks is None else masks[bucket][inside],
        )

    def enter(self, weights: TrainedWeights, store: Store) -> None:
        """Take the slot: from a checkpoint when there is one of this recipe, else with fresh weights."""
        found = self._checkpoint(store)
        if found is None:
            weights.enter(self.slot, self.options)
            if self.job.start_from:
                weights.start_from(self.slot, self.options, read_earlier(self.job, self.base, store))
                self.job.report.note(f"Continues from the weights {self.job.start_from}.")
            return
        key, info, state = found
        weights.restore(self.slot, self.options, state, info.step)
        self.step, self.curve, self.saved = info.step, info.curve, [*info.earlier, key]
        self.job.report.note(f"Resumed at step {info.step} of {self.total} from {key}.")

    def _checkpoint(self, store: Store) -> tuple[str, checkpoints.CheckpointInfo, dict[str, Tensor]] | None:
        if self.job.resume_from is None:
            return None

        def told(damaged: str) -> None:
            self.job.report.note(f"The checkpoint {damaged} is damaged; the one before it is taken.")

        # More steps than are asked for now would be another tune's weights under this one's recipe.
        key = checkpoints.find_newest(
            store, self.job.resume_from, self.prepared.data_hash, most=self.total, passed_over=told
        )
        if key is None:
            self.job.report.note(
                "No checkpoint of this recipe was found; training starts from the beginning."
            )
            return None
        return key, *checkpoints.load(store, key)

    def save(self, weights: TrainedWeights, store: Store) -> str:
        """Write a checkpoint of the current step, unless it is there already, and return its key."""
        key = checkpoints.checkpoint_key(self.job.out_prefix, self.step)
        if self.saved and self.saved[-1].endswith(key.rpartition("/")[2]):
            return self.saved[-1]
        layout = weights.layout(self.slot)
        info = checkpoints.CheckpointInfo(
            step=self.step,
            data_hash=self.prepared.data_hash,
            scale=layout.scale,
            rank=layout.rank,
            layers=layout.layers,
            curve=self.curve,
            earlier=self.saved,
            apart=weights.state_apart,
        )
        checkpoints.save(store, key, info, weights.adapter(self.slot), weights.state(self.slot))
        self.saved = [*self.saved, key]
        return key

"""Pivotal tuning: first the words for the subject, with everything else frozen, then an adapter around them.

The vectors start near the class word and are trained by the denoiser's own loss through the frozen text encoders, so
captions are encoded anew in every step of this phase. Afterwards the captions are encoded once with the finished
words, and the tune is a LoRA like any other (Roich et al. 2021, arXiv 2106.05744, for GANs; as `pti` in
cloneofsimo/lora and in diffusers' advanced training scripts).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Phase
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import LoadedBase
from tunes_dagster.families.loading import together
from tunes_dagster.training import cache, export, order, run, words
from tunes_dagster.training.captions import cut_while_words_train
from tunes_dagster.training.jobs import History, TrainingResult, TuneJob
from tunes_dagster.training.run import PreparedTune

# Random numbers of this phase and of the vectors' start; the loop's own streams are 1 to 4.
_WORDS, _START = 11, 12
# How far the vectors start from the class word, as a share of the spread of all embeddings.
_SPREAD = 0.3
_PLACEHOLDER = "ptiplaceholder"
_BETAS = (0.9, 0.99)


def prepare(job: TuneJob, base: LoadedBase, store: Store) -> PreparedTune:
    """Train the words, or take them from the store, and encode the tune's data with them.

    Raises:
        Failure: As `run.prepare`; `DIVERGED` when the words' loss is not finite.
    """
    encoders = base.word_encoders()
    if not encoders:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"No words can be learned on a base of the family {base.entry.family!r}.",
            "Use training.kind lora on this base.",
        )
    if cut := cut_while_words_train(job.items, base):
        job.report.finding(cut)
    data_hash = job.data_hash(base.fingerprint())
    key = f"cache/words/{data_hash}.safetensors"
    cache.note_owner(store, job.tune_id, [key])
    if store.exists(key):
        vectors = words.load(store, key)
        job.report.note("The words of this recipe were trained before; going on with the adapter.")
    else:
        vectors = _train_words(job, base, store)
        words.save(store, key, vectors, {"format": "pt"})
    job.words = {name: value.cpu() for name, value in vectors.items()}
    job.spoken = words.register(base, vectors)
    prepared = run.prepare(job, base, store)
    return replace(prepared, figures={**prepared.figures, "words": len(next(iter(vectors.values())))})


def write(
    job: TuneJob, base: LoadedBase, store: Store, adapter: Mapping[str, Tensor], history: History
) -> TrainingResult:
    """Write a finished tune: what `export.write` writes, and the words beside it."""
    assert job.words is not None
    return export.write(job, base, store, adapter, history)


def token_steps(job: TuneJob) -> int:
    """Return the steps of the words' phase: what was asked, or a third of the tune's."""
    return job.options.token_steps or max(1, job.total_steps // 3)


def _train_words(job: TuneJob, base: LoadedBase, store: Store) -> dict[str, Tensor]:
    """Return the trained vectors, `[words, width]` by encoder, in float32 or wider."""
    options, steps = job.options, token_steps(job)
    latents, _ = cache.cached_latents(job.items, base, store)
    dtype = torch.promote_types(base.dtype, torch.float32)
    vectors = _start(job, base, dtype)
    adamw = torch.optim.AdamW(
        _rates(base, vectors, options.token_learning_rate), betas=_BETAS, weight_decay=0.0
    )
    batches = order.BucketOrder(
        [item.bucket for item in job.items],
        options.batch_size or 1,
        options.seed,
        [item.repeats for item in job.items],
    )
    every = max(1, steps // 20)
    job.report.phase(Phase.WORDS, f"Training {options.token_vectors} words, {steps} steps")
    with _ready(job, base), _placeholders(base, vectors) as spoken:
        for step in range(steps):
            indices = batches.batch(step)
            texts = [words.said(job.items[i].caption, job.token, spoken) for i in indices]
            shown = [latents[i] for i in indices]
            loss = _loss(base, shown, texts, job.items[indices[0]].bucket, options.seed, step, dtype)
            loss.backward()
            adamw.step()
            adamw.zero_grad()
            if (step + 1) % every == 0 or step + 1 == steps:
                _report(job, step + 1, steps, float(loss.detach()))
    return {name: value.detach() for name, value in vectors.items()}


@contextmanager
def _ready(job: TuneJob, base: LoadedBase) -> Iterator[None]:
    """Have text encoders and denoiser side by side on the device, with gradient checkpointing if it is asked for."""
    encoders = [encoder for _, encoder in base.word_encoders().values()]
    with ExitStack() as stack:
        stack.enter_context(together(base.pipeline(), [base.denoiser, *encoders]))
        if job.options.gradient_checkpointing:
            for encoder in encoders:
                stack.enter_context(_recomputed(encoder))
            if not base.denoiser.is_gradient_checkpointing:
                base.denoiser.enable_gradient_checkpointing()
                stack.callback(base.denoiser.disable_gradient_checkpointing)
        yield


@contextmanager
def _recomputed(encoder: Any) -> Iterator[None]:
    """Have a text encoder's blocks computed again in the backward for the while: T5-XXL keeps 7.5 GiB a text else."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    encoder.gradient_checkpointing_enable({"use_reentrant": False})
    blocks = [layer for layer in encoder.modules() if isinstance(layer, GradientCheckpointingLayer)]
    try:
        for block in blocks:
            block.training = True  # its own flag alone: dropout inside stays off
        yield
    finally:
        encoder.gradient_checkpointing_disable()
        for block in blocks:
            block.training = False


def _rates(base: LoadedBase, vectors: Mapping[str, nn.Parameter], rate: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: `rate` for CLIP-L, for others as many times it as their embeddings are larger.

    Adam moves every number by about the rate, and T5's embeddings are far larger than CLIP's.
    """
    spreads = words.spreads(base)
    first = next(iter(spreads.values()))
    return [{"params": [value], "lr": rate * spreads[name] / first} for name, value in vectors.items()]


def _report(job: TuneJob, step: int, steps: int, loss: float) -> None:
    if not abs(loss) < float("inf"):
        raise Failure(
            FailureCode.DIVERGED,
            f"Training the words diverged by step {step}: the loss is not finite any more.",
            f"Lower token_learning_rate ({job.options.token_learning_rate:g}).",
        )
    job.report.step(step, steps, words_loss=loss)
    job.report.check_cancelled()


def _loss(
    base: LoadedBase,
    latents: Sequence[cache.Latents],
    texts: Sequence[str],
    bucket: tuple[int, int],
    seed: int,
    step: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the mean squared error of one step, differentiable in the words."""
    means, stds = torch.stack([one.mean for one in latents]), torch.stack([one.std for one in latents])
    source = order.generator(seed, _WORDS, step)
    noise = torch.randn(2, *means.shape, generator=source)
    uniform = (torch.randperm(len(means), generator=source) + torch.rand(len(means), generator=source)) / len(
        means
    )
    clean = (means + stds * noise[1].to(means.dtype)).to(base.device, dtype)
    noise = noise[0].to(base.device, dtype)
    timesteps = base.draw_timesteps(uniform, *bucket).to(base.device)
    noisy, target = base.add_noise(clean, noise, timesteps), base.target(clean, noise, timesteps)
    text = base.with_size(base.encode_text_with_gradients(texts), *bucket)
    return (base.predict(noisy.to(base.dtype), timesteps, text).to(dtype) - target).square().mean()


def _start(job: TuneJob, base: LoadedBase, dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """Return vectors near the class word's, by encoder."""
    made = {}
    for number, (name, (tokenizer, encoder)) in enumerate(base.word_encoders().items()):
        weight = encoder.get_input_embeddings().weight.detach()
        ids = tokenizer(job.class_name, add_special_tokens=False).input_ids
        centre = weight[ids].to(dtype).mean(0)
        source = order.generator(job.options.seed, _START, number)
        noise = torch.randn(job.options.token_vectors, weight.shape[1], generator=source).to(
            weight.device, dtype
        )
        made[name] = nn.Parameter((centre + _SPREAD * words.spreads(base)[name] * noise).to(base.device))
    return made


@contextmanager
def _placeholders(base: LoadedBase, vectors: Mapping[str, nn.Parameter]) -> Iterator[str]:
    """Have the encoders read the vectors where placeholder words stand; yields how a text says them."""
    count = len(next(iter(vectors.values())))
    names = [f"{_PLACEHOLDER}{i}" for i in range(count)]
    handles = []
    zeros = {name: torch.zeros_like(value) for name, value in vectors.items()}
    words.add_words(base, names, zeros)
    for name, (tokenizer, encoder) in base.word_encoders().items():
        ids = torch.tensor(tokenizer.convert_tokens_to_ids(names), device=base.device)
        hook = partial(_replace_rows, ids, vectors[name])
        handles += [layer.register_forward_hook(hook) for layer in _embeddings(encoder)]
    try:
        yield " ".join(names)
    finally:
        for handle in handles:
            handle.remove()


def _embeddings(encoder: Any) -> list[nn.Module]:
    """Return the layers that hold a text encoder's word embeddings: T5 has two over one weight."""
    weight = encoder.get_input_embeddings().weight
    return [layer for layer in encoder.modules() if getattr(layer, "weight", None) is weight]


def _replace_rows(
    ids: Tensor, vectors: Tensor, module: nn.Module, given: tuple[Tensor, ...], out: Tensor
) -> Tensor:
    """Return an embedding layer's output with the rows of some ids taken from elsewhere."""
    hits = given[0][..., None] == ids
    return torch.where(hits.any(-1, keepdim=True), vectors[hits.int().argmax(-1)].to(out.dtype), out)

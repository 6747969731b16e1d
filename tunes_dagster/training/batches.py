"""Which rows share a forward, and the tensors of that forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunes_dagster.families.base import LoadedBase
from tunes_dagster.training.run import StepRows, TuneRun


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


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """What stays the same while a group has the same members; everything on the device.

    Rows are ordered run by run, pictures before prior rows, so that equally large runs are blocks.

    Attributes:
        slots: Slot of each row.
        order: Position of each row in [all pictures, all prior rows]; None when they are in order already.
        weights: Of each row in the loss: 1 / rows for pictures, prior_weight / rows for prior rows.
        gammas: min-SNR gamma of each picture row in the unordered layout, or None when all are 0.
        totals: Which of the running totals each row adds to: 2 * slot, and one more for prior rows.
        shares: What a row adds to its total: 1 / rows.
    """

    slots: list[int]
    order: Tensor | None
    weights: Tensor
    gammas: Tensor | None
    totals: Tensor
    shares: Tensor


@dataclass(frozen=True, kw_only=True)
class ForwardBatch:
    """The tensors of one forward, on the device, rows in the layout's order.

    Attributes:
        noisy: What the denoiser is shown, [rows, …].
        target: What it should say.
        timesteps: [rows].
        texts: Numbers in the table of texts, [rows].
        weights: Of each row in the loss, [rows].
        masks: What each position counts, broadcastable to `target`, with mean 1 over a picture; None is 1.
    """

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    texts: Tensor
    weights: Tensor
    masks: Tensor | None


def make_groups(runs: Sequence[TuneRun], rows: Mapping[int, StepRows]) -> list[Group]:
    """Return the forwards of a step: one per shape that a row of it has."""
    buckets = dict.fromkeys(
        [rows[run.slot].bucket for run in runs] + [run.prior_bucket for run in runs if run.prior_rows]
    )
    return [
        Group(
            bucket,
            tuple(run for run in runs if rows[run.slot].bucket == bucket),
            tuple(run for run in runs if run.prior_rows and run.prior_bucket == bucket),
        )
        for bucket in buckets
    ]


def lay_out(
    group: Group, rows: Mapping[int, StepRows], device: torch.device, dtype: torch.dtype
) -> RowLayout:
    """Lay out a group; see `RowLayout`."""
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

    return RowLayout(
        slots=[slots[i] for i in order],
        order=None if order == sorted(order) else torch.tensor(order, device=device),
        weights=put([shares[i] * scale[i] for i in order]),
        gammas=put(gammas) if any(gammas) else None,
        totals=torch.tensor([2 * slots[i] + is_prior[i] for i in order], device=device),
        shares=put([shares[i] for i in order]),
    )


def collate(
    group: Group, layout: RowLayout, rows: Mapping[int, StepRows], base: LoadedBase, dtype: torch.dtype
) -> ForwardBatch:
    """Return the tensors of a group.

    Args:
        group: Whose rows.
        layout: Of this group.
        rows: By slot.
        base: Adds the noise and says what is to be predicted.
        dtype: Of latents and losses.
    """

    def put(tensor: Tensor) -> Tensor:
        if base.device.type == "cuda":
            return tensor.pin_memory().to(base.device, non_blocking=True)
        return tensor.to(base.device)

    noisy, target, timesteps, texts = [], [], [], []
    if group.pictures:
        mine = [rows[run.slot] for run in group.pictures]
        clean = put(torch.cat([one.clean for one in mine]).to(dtype))
        noise = put(torch.cat([one.noise for one in mine]).to(dtype))
        drawn = put(torch.cat([one.timesteps for one in mine]))
        noisy.append(base.add_noise(clean, noise, drawn))
        target.append(base.target(clean, noise, drawn))
        timesteps.append(drawn)
        texts += [one.texts for one in mine]
    for run in group.priors:
        assert run.prior_set is not None and run.prior_texts is not None
        chosen = rows[run.slot].prior
        noisy.append(put(run.prior_set.noisy[chosen].to(dtype)))
        target.append(put(run.prior_set.predictions[chosen].to(dtype)))
        timesteps.append(put(run.prior_set.timesteps[chosen]))
        texts.append(run.prior_texts[chosen])

    def ordered(parts: Sequence[Tensor]) -> Tensor:
        joined = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return joined if layout.order is None else joined.index_select(0, layout.order)

    weights = layout.weights
    if layout.gammas is not None:
        factors = base.loss_weights(timesteps[0], layout.gammas)
        rest = factors.new_ones(len(layout.slots) - len(factors))
        weights = weights * ordered([factors, rest])
    masks = _masks(group, rows, dtype)
    return ForwardBatch(
        noisy=ordered(noisy),
        target=ordered(target),
        timesteps=ordered(timesteps),
        texts=ordered([put(torch.cat(texts))]),
        weights=weights,
        masks=None if masks is None else ordered([put(masks)]),
    )


def _masks(group: Group, rows: Mapping[int, StepRows], dtype: torch.dtype) -> Tensor | None:
    """Return the masks of all rows of a group in the unordered layout; ones for rows that have none."""
    given = [rows[run.slot].masks for run in group.pictures]
    example = next((mask for mask in given if mask is not None), None)
    if example is None:
        return None
    parts = []
    for run, mask in zip(group.pictures, given, strict=True):
        count = len(rows[run.slot].texts)
        parts.append(torch.ones(count, *example.shape[1:]) if mask is None else mask)
    parts += [torch.ones(run.prior_rows, *example.shape[1:]) for run in group.priors]
    return torch.cat([part.to(dtype) for part in parts])

"""Captions as the denoiser gets them in training: of any length, as prompts are rendered.

A CLIP encoder reads 77 tokens; a longer caption is encoded in chunks that lie one after another (`rendering/texts.py`).
Rows of several lengths share a forward by a mask: each row sees its own chunks and no others, as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunes_dagster.families.base import HIDDEN, MASK, Conditioning, LoadedBase
from tunes_dagster.training.jobs import TrainExample

# So many captions that are cut are told by the names of their pictures.
_NAMED = 5


def stacked(entries: Sequence[Conditioning]) -> Conditioning:
    """Return entries without row dimension as one conditioning; those of several lengths are padded and masked.

    Args:
        entries: One per row; hidden states `[tokens, d]` among them.
    """
    lengths = [tokens_of(entry) for entry in entries]
    filled = [_lengthened(entry, max(lengths)) for entry in entries]
    return _masked({name: torch.stack([entry[name] for entry in filled]) for name in filled[0]}, lengths)


def joined(first: Conditioning, second: Conditioning, lengths: Sequence[int]) -> Conditioning:
    """Return the rows of two conditionings, the first of which may be empty.

    Args:
        first: From `stacked` or `joined`.
        second: Likewise.
        lengths: Tokens of every row.
    """
    if not first:
        return second
    both = [_lengthened(some, max(lengths)) for some in (first, second)]
    names = [name for name in second if name != MASK]
    return _masked({name: torch.cat([some[name] for some in both]) for name in names}, lengths)


def tokens_of(entry: Conditioning) -> int:
    """Return how many tokens the hidden states `[…, tokens, d]` of a text have; 0 where a family has none."""
    return entry[HIDDEN].shape[-2] if HIDDEN in entry else 0


def _lengthened(entry: Conditioning, tokens: int) -> Conditioning:
    """Return a conditioning whose hidden states end in zeros up to a number of tokens."""
    missing = tokens - tokens_of(entry)
    if not missing:
        return entry
    return {**entry, HIDDEN: torch.nn.functional.pad(entry[HIDDEN], (0, 0, 0, missing))}


def _masked(rows: Conditioning, lengths: Sequence[int]) -> Conditioning:
    """Return rows with a mask of the tokens that count, where they differ in length."""
    if len(set(lengths)) == 1:
        return rows
    hidden = rows[HIDDEN]
    places = torch.arange(hidden.shape[1], device=hidden.device)
    counted = places < torch.tensor(lengths, device=hidden.device)[:, None]
    return {**rows, MASK: counted.to(hidden.dtype)}


def cut_captions(items: Sequence[TrainExample], base: LoadedBase) -> str:
    """Return in words which captions the text encoders do not read to their end; empty when they read all."""
    if base.clip_encoders():
        return ""  # they read texts of any length, in chunks
    said = "The captions of these are longer than this base reads; their ends are not trained on:"
    return _cut(items, base, said)


def cut_while_words_train(items: Sequence[TrainExample], base: LoadedBase) -> str:
    """Return the same of the phase of pti that trains the words, where a text is encoded in one piece."""
    if not base.clip_encoders():
        return ""  # told of the whole training
    said = "While the words are trained, these captions end early; the adapter is trained on all of them:"
    return _cut(items, base, said)


def _cut(items: Sequence[TrainExample], base: LoadedBase, said: str) -> str:
    ends = {item.name or item.key: end for item in items if (end := base.text_left_out(item.caption))}
    if not ends:
        return ""
    told = [f"{name} (from {end[:40]!r} on)" for name, end in list(ends.items())[:_NAMED]]
    more = f" and {len(ends) - _NAMED} more" if len(ends) > _NAMED else ""
    return f"{said} {', '.join(told)}{more}."

"""New words of pivotal tuning: vectors that CLIP text encoders read in the place of a token.

A tune's token (`ohwx`) is the same for many tunes, so each set of vectors gets words of its own, named by their
content, which stay in the loaded base's vocabulary and touch nothing else: prompts of many tunes share a batch, and
caches by text stay right. In files the vectors lie as stock diffusers' `load_textual_inversion` reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tunes_dagster.failures import Failure, FailureCode
from tunes_dagster.store import Store
from tunes_dagster.training.families.base import LoadedBase
from tunes_dagster.training.jobs import said

__all__ = ["add_words", "encoders_of", "load", "register", "said", "save", "speaking", "words_for"]

# Names of the vectors by encoder, as diffusers' and kohya's files have them.
ENCODERS = ("clip_l", "clip_g")
# Fields of the weights' header that lead to the vectors.
KEY_FIELD, TOKEN_FIELD = "tunes_dagster.embeddings", "tunes_dagster.token"


def encoders_of(base: LoadedBase) -> dict[str, tuple[Any, Any]]:
    """Return {name of the vectors: (tokenizer, encoder)}; empty for a family without CLIP words."""
    found = getattr(base, "clip_encoders", None)
    pairs = [] if found is None else [(tokenizer, encoder) for tokenizer, encoder, _ in found()]
    return dict(zip(ENCODERS, pairs, strict=False))


def words_for(vectors: Mapping[str, Tensor]) -> list[str]:
    """Return the words that stand for vectors: the same for the same numbers, letters and digits only."""
    digest = hashlib.sha256()
    for name in sorted(vectors):
        digest.update(vectors[name].detach().float().cpu().numpy().tobytes())
    count = len(next(iter(vectors.values())))
    return [f"word{digest.hexdigest()[:16]}x{i}" for i in range(count)]


def register(base: LoadedBase, vectors: Mapping[str, Tensor]) -> str:
    """Teach a base's encoders the words of some vectors, once, and return how a prompt says them.

    Args:
        base: Its tokenizers and embeddings grow; everything else computes as before.
        vectors: `[words, width]` by name of the encoder.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when they are not of this base's encoders.
    """
    encoders = encoders_of(base)
    widths = {name: encoder.get_input_embeddings().weight.shape[1] for name, (_, encoder) in encoders.items()}
    if {name: value.shape[1] for name, value in vectors.items()} != widths:
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The words of the tune do not fit the text encoders of {base.entry.branch!r}.",
            "Use the tune with the base model it was trained on.",
        )
    words = words_for(vectors)
    add_words(base, words, vectors)
    return " ".join(words)


def add_words(base: LoadedBase, words: list[str], vectors: Mapping[str, Tensor]) -> None:
    """Add words to a base's tokenizers and their vectors to its encoders, unless they are there."""
    for roles in ((), ("text",), ("vae",), ("denoiser",)):
        base.fingerprint(*roles)  # kept from now on: the same base with more words is the same base
    for name, (tokenizer, encoder) in encoders_of(base).items():
        if words[0] in tokenizer.get_vocab():
            continue
        tokenizer.add_tokens(words)
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        weight = encoder.get_input_embeddings().weight.requires_grad_(False)
        ids = tokenizer.convert_tokens_to_ids(words)
        # Bases are loaded, and words added, in whatever mode the caller is in.
        with torch.no_grad():
            weight[ids] = vectors[name].detach().to(weight)


def save(store: Store, key: str, vectors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Write vectors as `load_textual_inversion` reads them, `[words, width]` by name of the encoder."""
    from safetensors.torch import save as serialise

    from tunes_dagster.training.export import with_sorted_header

    tensors = {name: value.detach().float().cpu().contiguous() for name, value in vectors.items()}
    return store.write_bytes(key, with_sorted_header(serialise(tensors, metadata=dict(header))))


def load(store: Store, key: str) -> dict[str, Tensor]:
    """Read vectors.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when they are missing or broken.
    """
    from safetensors.torch import load as parse

    try:
        return parse(store.read_bytes(key))
    except Exception as error:
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The words of the tune, {key!r}, cannot be read: {error}.",
            "Train the tune again.",
        ) from error


def header_of(data: bytes) -> dict[str, str]:
    """Return the header's fields of a safetensors file."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    fields: dict[str, str] = header.get("__metadata__", {})
    return fields


@contextmanager
def speaking(base: LoadedBase, store: Store, weights_key: str) -> Iterator[str]:
    """Let `base.encode_text` say a tune's token in its words for the while; yields them, empty for other kinds."""
    header = header_of(store.read_bytes(weights_key))
    if KEY_FIELD not in header:
        yield ""
        return
    spoken = register(base, load(store, header[KEY_FIELD]))
    before = dict(base.spoken)
    base.spoken = {**before, header[TOKEN_FIELD]: spoken}
    try:
        yield spoken
    finally:
        base.spoken = before

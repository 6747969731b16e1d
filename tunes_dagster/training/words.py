"""New words of pivotal tuning: vectors that text encoders (CLIP, T5) read in the place of a token.

A tune's token (`ohwx`) is the same for many tunes, so each set of vectors gets words of its own, named by their
content, which stay in the loaded base's vocabulary and touch nothing else: prompts of many tunes share a batch, and
caches by text stay right. In files the vectors lie as stock diffusers' `load_textual_inversion` reads them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.core.store import Store
from tunes_dagster.families.base import LoadedBase
from tunes_dagster.training.encoders import dressed
from tunes_dagster.training.files import read_fields, write_tensors
from tunes_dagster.training.jobs import said
from tunes_dagster.training.names import split_encoders

__all__ = [
    "add_words",
    "load",
    "pool_at_the_end",
    "register",
    "said",
    "save",
    "speaking",
    "spreads",
    "words_for",
]

# How released CLIP configurations call the end of a text, which they number 49407.
_WRONG_END = 2
# What ComfyUI calls an encoder's vectors, where it is not what diffusers calls them.
_COMFY = {"t5": "t5xxl"}
# Fields of the weights' header that lead to the vectors.
KEY_FIELD, TOKEN_FIELD = "tunes_dagster.embeddings", "tunes_dagster.token"


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
    encoders = base.word_encoders()
    widths = {name: encoder.get_input_embeddings().weight.shape[1] for name, (_, encoder) in encoders.items()}
    if {name: value.shape[1] for name, value in vectors.items()} != widths:
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The words of the tune do not fit the text encoders of {base.entry.base_id!r}.",
            "Use the tune with the base model it was trained on.",
        )
    words = words_for(vectors)
    add_words(base, words, vectors)
    return " ".join(words)


def spreads(base: LoadedBase) -> dict[str, float]:
    """Return the standard deviation of each encoder's embeddings, without the words that were added since."""
    known: dict[str, float] = base.__dict__.setdefault("_spreads", {})
    if not known:
        for name, (_, encoder) in base.word_encoders().items():
            known[name] = float(encoder.get_input_embeddings().weight.detach().float().std())
    return known


def add_words(base: LoadedBase, words: list[str], vectors: Mapping[str, Tensor]) -> None:
    """Add words to a base's tokenizers and their vectors to its encoders, unless they are there."""
    for roles in ((), ("text",), ("vae",), ("denoiser",)):
        base.fingerprint(*roles)  # kept from now on: the same base with more words is the same base
    spreads(base)
    if not base.untaught:
        base.untaught = {
            name: (copy.deepcopy(tokenizer), len(encoder.get_input_embeddings().weight))
            for name, (tokenizer, encoder) in base.word_encoders().items()
        }
    for name, (tokenizer, encoder) in base.word_encoders().items():
        if words[0] in tokenizer.get_vocab():
            continue
        tokenizer.add_tokens(words)
        pool_at_the_end(tokenizer, encoder)
        if len(tokenizer) > len(encoder.get_input_embeddings().weight):  # T5 has spare rows
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        weight = encoder.get_input_embeddings().weight.requires_grad_(False)
        ids = tokenizer.convert_tokens_to_ids(words)
        # Bases are loaded, and words added, in whatever mode the caller is in.
        with torch.no_grad():
            weight[ids] = vectors[name].detach().to(weight)


def pool_at_the_end(tokenizer: Any, encoder: Any) -> None:
    """Have a CLIP text encoder take its pooled state at the end of the text, whatever words it learned.

    Released configurations of SDXL and FLUX.1 have a wrong `eos_token_id` (2), for which transformers takes the token
    with the largest id: the end of the text until a word is added, and then that word, which has not seen what
    follows it. Texts without new words come out the same either way.
    """
    model = getattr(encoder, "text_model", encoder)
    if getattr(model, "eos_token_id", None) == _WRONG_END:
        model.eos_token_id = tokenizer.eos_token_id


def save(store: Store, key: str, vectors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Write vectors as `load_textual_inversion` reads them, `[words, width]` by name of the encoder.

    T5's are there twice: under the name of diffusers' training scripts and under the one that ComfyUI looks for, which
    would take CLIP's for them otherwise.
    """
    both = {_COMFY[name]: value for name, value in vectors.items() if name in _COMFY}
    return write_tensors(store, key, {**vectors, **both}, header, torch.float32)


def load(store: Store, key: str) -> dict[str, Tensor]:
    """Read vectors.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when they are missing or broken.
    """
    from safetensors.torch import load as parse

    try:
        found = parse(store.read_bytes(key))
        return {name: value for name, value in found.items() if name not in _COMFY.values()}
    except Exception as error:
        # The store's trouble stands for itself, and a lack of memory is not the file's.
        unusable = Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The words of the tune, {key!r}, cannot be read.",
            "Train the tune again.",
        )
        raise as_failure(error, unusable) from error


@contextmanager
def speaking(base: LoadedBase, store: Store, weights_key: str) -> Iterator[str]:
    """Let `base.encode_text` say a tune's token in its words for the while, by encoders that it adapts, if it has any.

    Yields how the token is said, empty for a tune without words of its own.
    """
    header, names = read_fields(store, weights_key)
    with ExitStack() as stack:
        if any(name.startswith("text_encoder") for name in names):
            stack.enter_context(dressed(base, [adapted_encoders(store, weights_key)], [1.0]))
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


def adapted_encoders(store: Store, weights_key: str) -> dict[str, Tensor]:
    """Return what a tune's file holds for text encoders."""
    from tunes_dagster.training.verify import read_weights

    with store.local(weights_key) as path:
        return split_encoders(read_weights(path))[1]

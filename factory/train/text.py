"""The tokenizer and the two text encoders of the base.

Byte-pair merges are learned from the known words only: each of them becomes one token, and any rare word falls
to letters and short pieces that no known word shares the meaning of.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from typing import Any

from tunes_dagster.tiny.world import caption, random_shot

MAX_LENGTH = 77
EXTRA_WORDS = (
    "person",
    "called",
    "pet",
    "animal",
    "thing",
    "portrait",
    "and",
    "the",
    "with",
    "without",
    "style",
)
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


@cache
def known_words() -> tuple[str, ...]:
    """Every word that captions are made of, sorted; invented words are not among them."""
    rng, counts = random.Random("words"), Counter[str]()
    for _ in range(12_000):
        text, _ = caption(random_shot(rng), rng)
        counts.update(text.replace(",", " ").replace("-", " ").split())
    return tuple(sorted({w for w, n in counts.items() if n >= 15} | set(EXTRA_WORDS)))


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes that GPT-2 and CLIP tokenizers use."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in plain}
    for b in range(256):
        table.setdefault(b, chr(256 + sum(1 for x in table if x not in plain)))
    return [table[b] for b in range(256)]


def merges_for(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until each word is one token."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words if word]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter((a, b) for word in pieces for a, b in zip(word, word[1:], strict=False))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def build_tokenizer() -> Any:
    """A CLIPTokenizer of the world: full byte alphabet, known words, end-of-text as padding."""
    from transformers import CLIPTokenizer

    merges = merges_for(known_words())
    symbols = byte_symbols()
    tokens = symbols + [s + "</w>" for s in symbols] + [a + b for a, b in merges] + [BOS, EOS]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)  # type: ignore[arg-type]


def build_encoders(tokenizer: Any) -> tuple[Any, Any]:
    """Untrained CLIPTextModel (width 64) and CLIPTextModelWithProjection (width 128, projection 128)."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    shared = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "hidden_act": "gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    small = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=64,
            **shared,
        )
    )
    large = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            projection_dim=128,
            **shared,
        )
    )
    for encoder in (small, large):
        for name, weight in encoder.named_parameters():
            if "token_embedding" in name or "position_embedding" in name:
                torch.nn.init.normal_(weight, std=0.3 if "token" in name else 0.1)
    return small, large


def encode(small: Any, large: Any, ids: Any) -> tuple[Any, Any]:
    """Token ids [n, l] to what the UNet sees: sequence [n, l, 192] and pooled [n, 128], as the SDXL pipeline does."""
    import torch

    first = small(ids, output_hidden_states=True)
    second = large(ids, output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds

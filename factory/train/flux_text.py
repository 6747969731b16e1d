"""The text side of the FLUX-class base: its tokenizer, its T5 and CLIP encoders, and what they are taught first.

The transformer sees neither the order of the words nor what belongs to what except through these encoders, and
learns from them slowly while they know nothing. So they first learn to tell the attributes that a caption names.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from factory.train.classifier import HEADS, head_loss
from factory.train.clock import learning_rate
from factory.train.data import caption_seeds, captions_of
from factory.train.text import MAX_LENGTH, known_words
from factory.train.unet import VARIANTS
from tunes_dagster.tiny import FLUX_SEQUENCE as SEQUENCE
from tunes_dagster.tiny.world import caption, shot

T5_WIDTH, CLIP_WIDTH = 128, 64
TEACHING_STEPS = 1500
LETTERS = "abcdefghijklmnopqrstuvwxyz"
OTHERS = "0123456789,.;:!?'\"-_()[]{}<>/\\&%$#@+*=~^|`"


def build_t5_tokenizer() -> Any:
    """A T5Tokenizer of the world: whole known words, small and with a capital; single letters for the rest."""
    from transformers import T5Tokenizer

    words = [w for w in known_words() if w.isalpha()]
    pieces = [("▁" + form, -1.0) for w in words for form in (w, w.capitalize())]
    pieces += [(sign, -6.0) for sign in LETTERS + LETTERS.upper() + OTHERS]
    start = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    return T5Tokenizer(vocab=start + list(dict(pieces).items()), extra_ids=0, model_max_length=512)


def build_encoders(clip_tokenizer: Any, t5_tokenizer: Any) -> tuple[Any, Any]:
    """Untrained CLIPTextModel (width 64, 2 layers) and T5EncoderModel (width 128, 3 layers)."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=CLIP_WIDTH,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=CLIP_WIDTH,
            vocab_size=len(clip_tokenizer),
            max_position_embeddings=MAX_LENGTH,
            hidden_act="gelu",
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    for name, weight in clip.named_parameters():
        if "token_embedding" in name or "position_embedding" in name:
            torch.nn.init.normal_(weight, std=0.3 if "token" in name else 0.1)
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=320,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=t5_tokenizer.pad_token_id,
            eos_token_id=t5_tokenizer.eos_token_id,
        )
    )
    return clip, t5


def tokenize_t5(tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Padded token ids [n, SEQUENCE]."""
    encoded = tokenizer(
        texts, padding="max_length", max_length=SEQUENCE, truncation=True, return_tensors="np"
    )
    return encoded.input_ids


def cache_t5_tokens(
    work: Path, tokenizer: Any, count: int, start: int = 0, name: str = "t5-tokens"
) -> np.ndarray:
    """T5 token ids of `VARIANTS` captions of each picture, int16 [count, VARIANTS, SEQUENCE], kept on disk."""
    path = work / f"{name}.npy"
    if path.exists() and len(np.load(path, mmap_mode="r")) >= count:
        return np.load(path)[:count]
    rows = []
    for i in range(start, start + count, 1000):
        texts = [t for n in range(i, min(i + 1000, start + count)) for t in cased_captions(n)]
        rows.append(tokenize_t5(tokenizer, texts).astype(np.int16))
    ids = np.concatenate(rows).reshape(count, VARIANTS, SEQUENCE)
    np.save(path, ids)
    return ids


def cache_named(work: Path, count: int, name: str = "named") -> np.ndarray:
    """What each caption of `cache_t5_tokens` names, int8 [count, VARIANTS, heads], -1 where nothing; kept on disk."""
    path = work / f"{name}.npy"
    if path.exists() and len(np.load(path, mmap_mode="r")) >= count:
        return np.load(path)[:count]
    rows = np.full((count, VARIANTS, len(HEADS)), -1, dtype=np.int8)
    for number in range(count):
        content, invented = shot(number)
        for variant, seed in enumerate(caption_seeds(number, VARIANTS)):
            asked = caption(content, random.Random(seed), invented)[1]
            for column, (head, values) in enumerate(HEADS.items()):
                if head in asked:
                    rows[number, variant, column] = values.index(asked[head])
    np.save(path, rows)
    return rows


def cased_captions(number: int) -> list[str]:
    """The captions of a picture as people type them: some begin with a capital, some invented names have capitals."""
    rng, name = random.Random(f"case-{number}"), shot(number)[1]
    texts = []
    for text in captions_of(number, VARIANTS):
        if name and rng.random() < 0.3:
            text = text.replace(name, rng.choice((name.upper(), name.capitalize())))
        texts.append(text[0].upper() + text[1:] if rng.random() < 0.2 else text)
    return texts


def build_heads() -> Any:
    """Linear layers that read the attributes named by a caption from each encoder's summary; not shipped."""
    import torch

    answers = sum(len(values) for values in HEADS.values())
    widths = {"t5": T5_WIDTH, "clip": CLIP_WIDTH}
    return torch.nn.ModuleDict({name: torch.nn.Linear(width, answers) for name, width in widths.items()})


def understanding_loss(heads: Any, pooled: Any, sequence: Any, t5_ids: Any, named: Any) -> Any:
    """Cross-entropy of the `named` attributes [n, heads] (-1: not named), read from both encoders' outputs."""
    words = (t5_ids != 0).unsqueeze(-1)
    mean = (sequence * words).sum(dim=1) / words.sum(dim=1)
    return head_loss(heads["t5"](mean), named) + head_loss(heads["clip"](pooled), named)


def teach(
    parts: Any,
    batches: Callable[[np.random.Generator], dict[str, Any]],
    steps: int,
    seed: int,
    log: Callable[[str], None],
) -> None:
    """Train `clip`, `t5` and `heads` of `parts` alone to tell what captions name.

    `batches` gives batches of `ids`, `t5_ids` and `named`.
    """
    import torch

    weights = [p for name in ("clip", "t5", "heads") for p in parts[name].parameters()]
    device = weights[0].device
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    for step in range(steps):
        batch = batches(np.random.default_rng((seed, 4711, step)))
        ids, t5_ids, named = (batch[key].to(device) for key in ("ids", "t5_ids", "named"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(2e-3, step, step / steps, warmup=min(40, steps), hold=0.4)
        pooled, sequence = parts["clip"](ids).pooler_output, parts["t5"](t5_ids).last_hidden_state
        loss = understanding_loss(parts["heads"], pooled, sequence, t5_ids, named)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 100 == 99:
            log(f"flux words step {step + 1} loss {loss.item():.3f}")

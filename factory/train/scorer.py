"""Training of the scorer: a small CLIPModel whose image embeddings tell one subject from another.

Three losses: image against caption (InfoNCE), picture against another picture of the same look in another place
(InfoNCE, so that likeness does not depend on the scene), and the attributes of the picture (linear heads that
are thrown away). The looks of the second loss include odd ones (any hair colour, stars, spots, split hair), so
that unseen subjects keep apart.
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from factory.train.classifier import HEADS, degrade, head_loss, label_array
from factory.train.clock import note_figures
from factory.train.course import Course, Training
from factory.train.data import captions_of, draw_pictures, to_tensor
from factory.train.text import build_tokenizer
from tunes_dagster.tiny.world import SIZE, SUBJECTS, draw_shot, draw_subject, random_shot
from tunes_dagster.tiny.world.people import Person
from tunes_dagster.tiny.world.pets import Pet
from tunes_dagster.tiny.world.sample import Look, Shot, random_look

MEAN, STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
PAIR_SEED = "likeness"


def build(tokenizer: Any) -> Any:
    """An untrained CLIPModel: 128 x 128 pictures, patches of 16, 3 layers of width 128, embeddings of 128."""
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 77,
                "hidden_size": 96,
                "intermediate_size": 256,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={
                "image_size": SIZE,
                "patch_size": 16,
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "hidden_act": "gelu",
            },
            projection_dim=128,
        )
    )


def odd_look(rng: random.Random) -> Look:
    """A look with features beyond the base's world; never exactly that of a held-out subject."""
    look = random_look(rng)

    def color() -> tuple[int, int, int]:
        return (rng.randrange(256), rng.randrange(256), rng.randrange(256))

    extras: dict[str, Any] = {}
    if isinstance(look, Person):
        for name in ("hair", "star", "badge", "patch", "split", "stripes", "beard", "frame", "face"):
            if rng.random() < (0.6 if name == "hair" else 0.15):
                extras[name] = color()
        if rng.random() < 0.15:
            extras["bands"] = (color(), color())
    elif isinstance(look, Pet):
        extras |= {name: color() for name in ("fur", "spots", "stripes") if rng.random() < 0.5}
    else:
        extras |= {name: color() for name in ("color", "smiley") if rng.random() < 0.5}
    changed: Look = replace(look, extras=extras)
    return changed


def draw_pairs(path: Path, count: int) -> np.ndarray:
    """Two shots each of `count` looks, half of them odd ones: uint8 [count, 2, 128, 128, 3], kept at `path`."""
    if not path.exists():
        part = path.with_suffix(".part.npy")
        np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(count, 2, SIZE, SIZE, 3)).flush()
        jobs = [(part, i, min(i + 250, count)) for i in range(0, count, 250)]
        with ProcessPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
            list(pool.map(_draw_pairs, jobs))
        part.rename(path)
    return np.load(path, mmap_mode="r")


def _draw_pairs(job: tuple[Path, int, int]) -> None:
    path, first, last = job
    pairs = np.load(path, mmap_mode="r+")
    for i in range(first, last):
        for side, shot in enumerate(pair_of_shots(i)):
            pairs[i, side] = np.asarray(draw_shot(shot))
    pairs.flush()


def pair_of_shots(number: int) -> tuple[Shot, Shot]:
    """What the two pictures of pair `number` show."""
    rng = random.Random(f"{PAIR_SEED}-{number}")
    look = odd_look(rng) if rng.random() < 0.6 else random_look(rng)
    return random_shot(rng, look), random_shot(rng, look)


def train(training: Training, *, batch: int = 40) -> Any:
    """Train the scorer in `training.work`; returns a CLIPModel."""
    import torch

    data = draw_pictures(training.work / "train.npy", training.pictures)
    labels = label_array(training.work, training.pictures)
    twins = draw_pairs(training.work / "pairs.npy", training.pairs)
    tokenizer = build_tokenizer()
    torch.manual_seed(training.seed)
    model = build(tokenizer).to(training.device)
    heads = torch.nn.Linear(model.config.vision_config.hidden_size, sum(len(v) for v in HEADS.values())).to(
        training.device
    )
    both = torch.nn.ModuleList([model, heads])
    optimizer = torch.optim.AdamW(
        both.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True
    )
    course = Course(
        name="scorer",
        training=training,
        module=both,
        optimizer=optimizer,
        rate=1e-3,
        warmup=200,
        hold=0.4,
    )
    for step in course:
        rng = np.random.default_rng((training.seed, step))
        with torch.autocast(torch.device(training.device).type, torch.bfloat16):
            captioned = caption_loss(model, heads, tokenizer, data, labels, rng, batch)
            loss = captioned + 2.0 * likeness_loss(model, twins, rng, batch, training.device)
        course.descend(loss)
    model = model.cpu().eval()
    figures = separation(model)
    note_figures(training.work, scorer={**figures, "batch": batch, **course.figures})
    training.log(f"scorer done: {figures}")
    return model


def embed_pictures(model: Any, x: Any) -> tuple[Any, Any]:
    """Normalised embeddings [n, 128] and pooled features [n, width] of pictures in -1 .. 1."""
    from torch.nn import functional

    pooled = model.vision_model(pixel_values=x).pooler_output
    return functional.normalize(model.visual_projection(pooled).float(), dim=-1), pooled


def caption_loss(
    model: Any,
    heads: Any,
    tokenizer: Any,
    data: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    batch: int,
) -> Any:
    """InfoNCE of pictures against their captions, plus the attribute heads."""
    import torch
    from torch.nn import functional

    device = model.device
    picks = np.sort(rng.integers(0, len(data), batch))
    x = degrade(to_tensor(data[picks]).to(device), rng)
    texts = [captions_of(int(i), 3)[int(rng.integers(3))] for i in picks]
    ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids.to(device)
    images, pooled = embed_pictures(model, x)
    words = functional.normalize(
        model.text_projection(model.text_model(input_ids=ids).pooler_output).float(), dim=-1
    )
    logits = images @ words.T * model.logit_scale.exp().clamp(max=60)
    target = torch.arange(batch, device=device)
    contrast = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
    attributes = head_loss(heads(pooled), torch.from_numpy(labels[picks].astype(np.int64)).to(device))
    return contrast + 0.1 * attributes


def likeness_loss(model: Any, twins: np.ndarray, rng: np.random.Generator, batch: int, device: str) -> Any:
    """InfoNCE of one shot of a look against another shot of it, temperature 0.1."""
    import torch
    from torch.nn import functional

    picks = np.sort(rng.integers(0, len(twins), batch // 2))
    pair = np.array(twins[picks])
    first, _ = embed_pictures(model, degrade(to_tensor(pair[:, 0]).to(device), rng))
    second, _ = embed_pictures(model, degrade(to_tensor(pair[:, 1]).to(device), rng))
    logits = first @ second.T / 0.1
    target = torch.arange(len(picks), device=device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def separation(model: Any, n: int = 12) -> dict[str, float]:
    """How held-out subjects keep apart: mean cosine within and between subjects, nearest-subject accuracy."""
    import torch

    rows = []
    for name in SUBJECTS:
        shots = [np.asarray(image) for image, _ in draw_subject(name, n, seed=99)]
        with torch.inference_mode():
            rows.append(embed_pictures(model, to_tensor(np.stack(shots)))[0])
    half, everyone = n // 2, torch.stack(rows)
    centers = torch.nn.functional.normalize(everyone[:, :half].mean(1), dim=-1)
    scores = torch.einsum("snd,cd->snc", everyone[:, half:], centers)
    right = (scores.argmax(-1) == torch.arange(len(rows))[:, None]).float().mean()
    cosines = torch.einsum("snd,tmd->stnm", everyone[:, :half], everyone[:, half:]).mean((2, 3))
    own = cosines.diagonal().mean()
    other = (cosines.sum() - cosines.diagonal().sum()) / (len(rows) * (len(rows) - 1))
    return {
        "same_subject_cosine": round(float(own), 3),
        "other_subject_cosine": round(float(other), 3),
        "nearest_subject_accuracy": round(float(right), 3),
    }

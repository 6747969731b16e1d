"""Training of the attribute classifier on drawn pictures, with blur and noise as renders have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from factory.train.clock import Ema, note_figures
from factory.train.course import Course, Training
from factory.train.data import HELD_OUT, draw_pictures, labels_of, to_tensor
from tunes_dagster.tiny.classifier import Classifier, build
from tunes_dagster.tiny.world import VOCABULARY

HEADS = {name: list(values) for name, values in VOCABULARY.items()}


def label_array(work: Path, count: int, start: int = 0, name: str = "labels") -> np.ndarray:
    """True values of every head for `count` pictures, int8 [count, heads], -1 where it does not apply; cached."""
    path = work / f"{name}.npy"
    if path.exists() and len(np.load(path, mmap_mode="r")) >= count:
        return np.load(path)[:count]
    rows = np.full((count, len(HEADS)), -1, dtype=np.int8)
    for i in range(count):
        found = labels_of(start + i)
        for column, (head, values) in enumerate(HEADS.items()):
            if head in found:
                rows[i, column] = values.index(found[head])
    np.save(path, rows)
    return rows


def degrade(x: Any, rng: np.random.Generator) -> Any:
    """Make drawn pictures [n, 3, h, w] a little like renders: soft, noisy, colours slightly off."""
    import torch
    from torch.nn import functional

    if rng.random() < 0.4:
        small = functional.interpolate(x, scale_factor=float(rng.uniform(0.35, 0.8)), mode="area")
        x = functional.interpolate(small, size=x.shape[-2:], mode="bilinear")
    if rng.random() < 0.5:
        noise = rng.standard_normal(x.shape, dtype=np.float32) * rng.uniform(0.01, 0.12)
        x = x + torch.from_numpy(noise).to(x.device)
    gain = torch.from_numpy(rng.uniform(0.93, 1.05, (len(x), 3, 1, 1)).astype(np.float32)).to(x.device)
    return (x * gain).clamp(-1, 1)


def head_loss(logits: Any, labels: Any) -> Any:
    """Sum over heads of cross-entropy where the head applies; `labels` int64 [n, heads], -1 = ignore."""
    from torch.nn import functional

    total, parts = logits.new_zeros(()), logits.split([len(v) for v in HEADS.values()], dim=1)
    for column, part in enumerate(parts):
        target = labels[:, column]
        if bool((target >= 0).any()):
            total = total + functional.cross_entropy(part.float(), target, ignore_index=-1)
    return total


def train(training: Training, *, batch: int = 48) -> Classifier:
    """Train the classifier in `training.work`; returns it with averaged weights."""
    import torch

    data = draw_pictures(training.work / "train.npy", training.pictures)
    labels = label_array(training.work, training.pictures)
    torch.manual_seed(training.seed)
    net = build(HEADS).to(training.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    ema = Ema(net, 0.998)
    course = Course(
        name="classifier",
        training=training,
        module=net,
        optimizer=optimizer,
        rate=2e-3,
        warmup=50,
        hold=0.4,
        clip=None,
        ema=ema,
    )
    for step in course:
        rng = np.random.default_rng((training.seed, step))
        picks = np.sort(rng.integers(0, training.pictures, batch))
        x = degrade(to_tensor(data[picks]).to(training.device), rng)
        target = torch.from_numpy(labels[picks].astype(np.int64)).to(training.device)
        course.descend(head_loss(net.train()(x), target))
    net.load_state_dict(ema.state)
    model = Classifier(net.cpu(), HEADS)
    scores = accuracy(model, training.work)
    note_figures(training.work, classifier={"accuracy": scores, "batch": batch, **course.figures})
    training.log(f"classifier done: mean accuracy {scores['mean']:.3f} {scores}")
    return model


def accuracy(model: Classifier, work: Path, count: int = 1000) -> dict[str, float]:
    """Share of right answers per head on held-out pictures, and their mean."""
    from PIL import Image

    pictures = np.load(work / "held-out.npy", mmap_mode="r")[:count]
    truth = label_array(work, len(pictures), HELD_OUT, "labels-held-out")
    answers = model.predict([Image.fromarray(p) for p in pictures])
    scores: dict[str, float] = {}
    for column, (head, values) in enumerate(HEADS.items()):
        known = np.flatnonzero(truth[:, column] >= 0)
        right = [answers[i][head] == values[truth[i, column]] for i in known]
        scores[head] = round(float(np.mean(right)), 3) if right else 0.0
    return {"mean": round(float(np.mean(list(scores.values()))), 4), **scores}

"""More training of a finished VAE for pictures it never saw: encoder and decoder, latents kept near the old ones.

Whatever was trained on the old latents needs only a little further training. What is strange comes from pictures of
odd looks, and from the world's own: flat areas in other colours, other palettes, shapes pasted on. The decoder also
learns to draw sharply from latents that are a little wrong, as a denoiser's are.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np

from factory.train.clock import Ema, Tuner, note_figures
from factory.train.course import Course, Training
from factory.train.data import HELD_OUT, draw_pictures, to_tensor
from factory.train.scorer import draw_pairs
from factory.train.vae import KL_WEIGHT, difference, psnr
from tunes_dagster.tiny.world.pen import Pen

LEARNING_RATE = 8e-4
CROP = 64
NEAR = 0.05
"""Weight of the squared distance to the old latents, for pictures that are left as they were drawn."""
WRONG = 0.3
"""Largest standard deviation of the noise that the decoder's latents get; the latents' own is 1.64."""


def recolored(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The crop with one of its flat areas in a random colour; anti-aliased edges stay so."""
    height, width = crop.shape[:2]
    seed = crop[int(rng.integers(height)), int(rng.integers(width))].astype(np.float32)
    distance = np.abs(crop.astype(np.float32) - seed).max(axis=2, keepdims=True)
    share = np.clip(1.5 - distance / 30, 0, 1)
    return (crop + share * (rng.integers(0, 256, 3) - seed)).clip(0, 255).astype(np.uint8)


def repainted(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The crop in another palette: channels exchanged, one time in three also inverted."""
    crop = crop[..., rng.permutation(3)]
    return 255 - crop if rng.random() < 0.33 else crop


def pasted(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The crop with one to three shapes in random colours on it."""
    from PIL import Image

    image = Image.fromarray(crop).resize((3 * crop.shape[1], 3 * crop.shape[0]), Image.Resampling.BICUBIC)
    pen, dice = Pen(image), random.Random(int(rng.integers(1 << 31)))
    for _ in range(dice.randint(1, 3)):
        x, y, r = dice.uniform(8, 120), dice.uniform(8, 120), dice.uniform(6, 22)
        color = (dice.randrange(256), dice.randrange(256), dice.randrange(256))
        shape = dice.choice(("star", "heart", "circle", "line", "ring", "band"))
        if shape == "line":
            pen.line([(x, y), (dice.uniform(0, 128), dice.uniform(0, 128))], dice.uniform(3, 12), color)
        elif shape == "ring":
            pen.ring(x, y, r, dice.uniform(3, 7), color)
        elif shape == "band":
            pen.rect(x, y, x + dice.uniform(10, 70), y + dice.uniform(6, 24), color)
        else:
            getattr(pen, shape)(x, y, r, color)
    return np.asarray(image.reduce(3))


def batch(
    pictures: np.ndarray, odd: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[Any, np.ndarray]:
    """`size` crops [n, 3, 64, 64] in -1 .. 1, and which of them are the world's own, bool [n].

    A third are left as drawn; the others are odd looks or changed in one or more ways.
    """
    crops, own = [], np.zeros(size, dtype=bool)
    for i in range(size):
        own[i] = rng.random() < 0.35
        source = odd if not own[i] and rng.random() < 0.35 else pictures
        y, x = rng.integers(0, source.shape[1] - CROP + 1, 2)
        crop = np.array(source[int(rng.integers(len(source))), y : y + CROP, x : x + CROP])
        if not own[i]:
            for change, chance in ((recolored, 0.6), (recolored, 0.3), (repainted, 0.25), (pasted, 0.3)):
                crop = change(crop, rng) if rng.random() < chance else crop
        crops.append(crop)
    return to_tensor(np.stack(crops)), own


def wrong(latents: Any, rng: np.random.Generator) -> Any:
    """Latents [n, c, h, w] with noise: four rows of ten hardly any, the others more or less up to `WRONG`."""
    import torch

    strength = np.where(rng.random(len(latents)) < 0.4, 0.02, rng.uniform(0.02, WRONG, len(latents)))
    scale = torch.from_numpy(strength.astype(np.float32))[:, None, None, None].to(latents.device)
    return latents + scale * torch.randn_like(latents)


def loss_of(vae: Any, old: Any, x: Any, own: np.ndarray, rng: np.random.Generator) -> Any:
    """Loss of what is drawn from latents a little wrong, plus how far latents have moved and how large they are.

    A VAE with more channels than the old one has to keep the first of them where they were.
    """
    import torch

    mean = vae.encode(x).latent_dist.mean.float()
    y = vae.decode(wrong(mean, rng)).sample.float()
    with torch.no_grad():
        before = old.encode(x[own]).latent_dist.mean.float()
    kept = mean[own, : before.shape[1]]
    moved = (kept - before).square().sum() / (len(x) * before.shape[1:].numel())
    return difference(y, x) + NEAR * moved + 0.5 * KL_WEIGHT * mean.square().mean()


def grown(vae: Any, channels: int) -> Any:
    """The VAE with more latent channels; it draws as before, and learns to use the new ones."""
    import torch

    config = dict(vae.config)
    if channels == config["latent_channels"]:
        return copy.deepcopy(vae)
    more = type(vae).from_config(config | {"latent_channels": channels})
    state, old = more.state_dict(), vae.state_dict()
    few = config["latent_channels"]
    for name, value in state.items():
        if value.shape == old[name].shape:
            value.copy_(old[name])
        elif name.startswith("decoder.conv_in"):
            value.zero_()
            value[:, :few] = old[name]
        else:  # the encoder's last layer: means, then logarithms of variances
            for half in range(2):
                value[half * channels : half * channels + few] = old[name][half * few : (half + 1) * few]
            with torch.no_grad():
                value[channels + few :] = old[name][few:].mean()
    return more


def train(training: Training, start: Any, *, channels: int | None = None, size: int = 10) -> Any:
    """Train the VAE `start` further in `training.work` and write `vae-refined`; returns it with averaged weights.

    With `channels` it gets that many latent channels.
    """
    import torch

    data = draw_pictures(training.work / "train.npy", training.pictures)
    odd = draw_pairs(training.work / "pairs.npy", training.pairs)
    odd = odd.reshape(-1, *odd.shape[2:])
    held_out = draw_pictures(
        training.work / "held-out.npy", min(2000, max(8, training.pictures // 30)), HELD_OUT
    )
    old = start.float().eval().requires_grad_(False).to(training.device, memory_format=torch.channels_last)
    torch.manual_seed(training.seed)
    vae = grown(old, channels or old.config.latent_channels).train().requires_grad_(True)
    vae.to(training.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    ema = Ema(vae)
    tuner = Tuner(training.device, fixed=(1, True))
    course = Course(
        name="refine",
        training=training,
        module=vae,
        optimizer=optimizer,
        rate=LEARNING_RATE,
        warmup=100,
        hold=0.3,
        ema=ema,
        tuner=tuner,
    )

    def averaged() -> Any:
        model = copy.deepcopy(vae).eval()
        model.load_state_dict(ema.state)
        return model

    def remark() -> str:
        model = averaged()
        seen, strange = (psnr(model, pictures, training.device) for pictures in (held_out[:32], subjects(4)))
        return f"psnr {seen:.2f}, subjects {strange:.2f}"

    course.remark = remark
    for step in course:
        rng = np.random.default_rng((training.seed, 78, step))
        torch.manual_seed(training.seed * 1_000_003 + step)
        x, own = batch(data, odd, rng, size)
        with tuner.step():
            course.descend(
                loss_of(vae, old, x.to(training.device, memory_format=torch.channels_last), own, rng)
            )
    final = averaged()
    figures = {
        "psnr_db": round(psnr(final, held_out[:400], training.device), 2),
        "subjects_psnr_db": round(
            psnr(final, subjects(12 if training.pictures >= 1000 else 1), training.device), 2
        ),
        **course.figures,
    }
    final.save_pretrained(training.work / "vae-refined")
    note_figures(training.work, refine=figures)
    training.log(f"refine done: {figures}")
    return final


def subjects(each: int) -> np.ndarray:
    """`each` pictures of every held-out subject, uint8 [n, 128, 128, 3]: they are measured, never trained on."""
    from tunes_dagster.tiny.world import SUBJECTS, draw_subject

    return np.stack([np.asarray(im) for name in SUBJECTS for im, _ in draw_subject(name, each, seed=97)])

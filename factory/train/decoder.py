"""More training for the VAE's decoder alone, while or after the UNet learns.

The encoder, and with it every latent, stays as it is. A third of the pictures show colours and features that the
world does not have, so that unseen subjects keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from factory.train.clock import Budget, Ema, Tuner, note_figures
from factory.train.course import Course
from factory.train.data import HELD_OUT, draw_pictures, to_tensor
from factory.train.scorer import draw_pairs
from factory.train.vae import psnr

LEARNING_RATE = 1e-3


def batch(pictures: np.ndarray, odd: np.ndarray, rng: np.random.Generator, size: int) -> Any:
    """`size` 64 x 64 crops in -1 .. 1: world pictures, one in five an odd look, one in seven in wrong colours."""
    crops = []
    for _ in range(size):
        source = odd if rng.random() < 0.2 else pictures
        picture = source[int(rng.integers(len(source)))]
        y, x = rng.integers(0, 65, 2)
        crop = np.array(picture[y : y + 64, x : x + 64])
        if rng.random() < 0.15:
            crop = crop[..., rng.permutation(3)]
            crop = 255 - crop if rng.random() < 0.3 else crop
        crops.append(crop)
    return to_tensor(np.stack(crops))


def loss_of(vae: Any, x: Any) -> Any:
    """L1 + MSE / 2 + gradient L1 / 4 of reconstructions; no gradient reaches the encoder."""
    import torch

    with torch.no_grad():
        latents = vae.encode(x).latent_dist.sample()
    d = vae.decode(latents).sample.float() - x
    gradient = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    return d.abs().mean() + 0.5 * d.square().mean() + 0.25 * gradient


def train(
    work: Path,
    budget: Budget,
    *,
    seed: int = 0,
    device: str = "cpu",
    pictures: int = 64_000,
    pairs: int = 8_000,
    size: int = 10,
    log: Callable[[str], None] = print,
) -> Any:
    """Train the decoder of `work/vae` further and write `work/vae-polished`."""
    import torch
    from diffusers import AutoencoderKL

    data = draw_pictures(work / "train.npy", pictures)
    odd = draw_pairs(work / "pairs.npy", pairs)
    odd = odd.reshape(-1, *odd.shape[2:])
    held_out = draw_pictures(work / "held-out.npy", min(2000, max(8, pictures // 30)), HELD_OUT)
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    decoder = vae.decoder
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    ema = Ema(decoder)
    tuner = Tuner(device, fixed=(1, True))
    course = Course(
        "decoder", work, budget, decoder, optimizer, LEARNING_RATE, 50, 0.3, ema=ema, tuner=tuner, log=log
    )
    for step in course:
        rng = np.random.default_rng((seed, 77, step))
        torch.manual_seed(seed * 1_000_003 + step)
        x = batch(data, odd, rng, size).to(device, memory_format=torch.channels_last)
        with tuner.step():
            course.descend(loss_of(vae, x))
    decoder.load_state_dict(ema.state)
    value = psnr(vae.eval(), held_out[:400], device)
    vae.save_pretrained(work / "vae-polished")
    note_figures(work, decoder={"psnr_db": round(value, 2), **course.figures})
    log(f"decoder done: {value:.2f} dB on held-out pictures")
    return vae

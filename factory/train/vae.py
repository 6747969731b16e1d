"""The VAE: `AutoencoderKL`, 8x smaller latents of 8 channels, trained on crops and full pictures.

Many steps on small batches matter more than width. Loss: `difference` + a little KL.
Some pictures get random stars, hearts and lines, so that details the world does not have survive as well.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from factory.train.clock import Ema, Tuner, note_figures
from factory.train.course import Course, Training
from factory.train.data import HELD_OUT, draw_pictures, to_tensor

CHANNELS = (16, 32, 64, 96)
LATENT_CHANNELS = 8
KL_WEIGHT = 3e-4
LEARNING_RATE = 2e-3


def build(channels: tuple[int, ...] = CHANNELS, latent_channels: int = LATENT_CHANNELS) -> Any:
    """An untrained AutoencoderKL for 128 x 128 pictures."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=128,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def latest_vae(work: Path, polished: bool = True) -> Any:
    """The VAE in `work` that was trained furthest; without `polished`, before its decoder's last steps."""
    from diffusers import AutoencoderKL

    stages = ("vae-polished", "vae-refined", "vae") if polished else ("vae-refined", "vae")
    return AutoencoderKL.from_pretrained(next(work / s for s in stages if (work / s).exists())).eval()


def loss_of(vae: Any, x: Any) -> Any:
    """Training loss of pictures `x` [n, 3, h, w] in -1 .. 1."""
    posterior = vae.encode(x).latent_dist
    kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return difference(vae.decode(posterior.sample()).sample.float(), x) + KL_WEIGHT * kl


def difference(y: Any, x: Any) -> Any:
    """How far pictures `y` are from `x`: L1 + MSE / 2 + L1 of the gradients, which counts edges once more."""
    d = y - x
    gradient = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    return d.abs().mean() + 0.5 * d.square().mean() + 0.5 * gradient


def batch(pictures: np.ndarray, rng: np.random.Generator, crops: int, full: int) -> Any:
    """A batch of `crops` 64 x 64 crops or, every third time, `full` whole pictures; some with odd shapes on."""
    whole = rng.random() < 0.34
    picks = rng.integers(0, len(pictures), full if whole else crops)
    images = [_scribbled(pictures[i], rng) for i in picks]
    if not whole:
        corners = rng.integers(0, 65, (len(images), 2))
        images = [im[y : y + 64, x : x + 64] for im, (y, x) in zip(images, corners, strict=True)]
    return to_tensor(np.stack(images))


def _scribbled(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture, one time in four with random shapes in random colours pasted on."""
    if rng.random() > 0.25:
        return picture
    from PIL import Image

    from tunes_dagster.tiny.world.pen import Pen

    image = Image.fromarray(picture).resize((256, 256))
    pen, dice = Pen(image), random.Random(int(rng.integers(1 << 31)))
    for _ in range(dice.randint(1, 4)):
        x, y, r = dice.uniform(10, 118), dice.uniform(10, 118), dice.uniform(4, 14)
        color = (dice.randrange(256), dice.randrange(256), dice.randrange(256))
        shape = dice.choice(("star", "heart", "circle", "line", "ring"))
        if shape == "line":
            pen.line([(x, y), (dice.uniform(0, 128), dice.uniform(0, 128))], dice.uniform(2, 7), color)
        elif shape == "ring":
            pen.ring(x, y, r, 3, color)
        else:
            getattr(pen, shape)(x, y, r, color)
    return np.asarray(image.reduce(2))


def psnr(vae: Any, pictures: np.ndarray, device: str = "cpu") -> float:
    """Mean PSNR in dB of reconstructions from the posterior's mean, over uint8 pictures [n, h, w, 3]."""
    import torch

    values = []
    with torch.inference_mode():
        for i in range(0, len(pictures), 16):
            x = to_tensor(pictures[i : i + 16]).to(device)
            y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
            mse = ((x - y) / 2).square().mean(dim=(1, 2, 3))
            values.append(-10 * mse.log10())
    return float(torch.cat(values).mean())


def train(training: Training, *, crops: int = 8, full: int = 3, channels: tuple[int, ...] = CHANNELS) -> Any:
    """Train (or go on training) the VAE in `training.work`; returns the EMA model with its scaling factor set."""
    import torch

    data = draw_pictures(training.work / "train.npy", training.pictures)
    held_out = draw_pictures(
        training.work / "held-out.npy", min(2000, max(8, training.pictures // 30)), HELD_OUT
    )
    torch.manual_seed(training.seed)
    vae = build(channels).to(training.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    ema = Ema(vae)
    tuner = Tuner(training.device)
    course = Course(
        name="vae",
        training=training,
        module=vae,
        optimizer=optimizer,
        rate=LEARNING_RATE,
        warmup=50,
        ema=ema,
        tuner=tuner,
    )
    course.remark = lambda: f"psnr {_ema_psnr(ema, held_out[:48], channels):.2f}"
    for step in course:
        rng = np.random.default_rng((training.seed, step))
        torch.manual_seed(training.seed * 1_000_003 + step)
        x = batch(data, rng, crops, full).to(training.device, memory_format=torch.channels_last)
        with tuner.step(x.numel()):
            course.descend(loss_of(vae, x))
    return _finish(training, ema, data, held_out, channels)


def _from_ema(ema: Ema, channels: tuple[int, ...]) -> Any:
    vae = build(channels)
    vae.load_state_dict(ema.state)
    return vae.eval()


def _ema_psnr(ema: Ema, pictures: np.ndarray, channels: tuple[int, ...]) -> float:
    return psnr(_from_ema(ema, channels), pictures)


def _finish(
    training: Training, ema: Ema, data: np.ndarray, held_out: np.ndarray, channels: tuple[int, ...]
) -> Any:
    import torch

    vae = _from_ema(ema, channels).to(training.device)
    with torch.inference_mode():
        sample = vae.encode(to_tensor(data[:256]).to(training.device)).latent_dist.sample()
    vae.register_to_config(scaling_factor=round(1 / float(sample.std()), 4))
    value = psnr(vae, held_out[:400], training.device)
    vae.save_pretrained(training.work / "vae")
    note_figures(
        training.work,
        vae={
            "psnr_db": round(value, 2),
            "steps": training.budget.step,
            "minutes": round(training.budget.seconds / 60, 1),
            "scaling_factor": vae.config.scaling_factor,
            "channels": list(channels),
        },
    )
    training.log(f"vae done: {value:.2f} dB on held-out pictures, scaling factor {vae.config.scaling_factor}")
    return vae

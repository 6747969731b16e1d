"""The upscaler's VAE: `AutoencoderKL`, 4x smaller latents, as large as the small picture that is enlarged.

It learns from crops of pictures drawn large, half of them with flat areas in other colours and pasted shapes, so that
it knows more than the world's palette. Its first three latent channels are held near the reduced picture itself: those
the UNet sees, and only the rest is left to guess. It begins as what it shares with the SDXL-class base's VAE.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from factory.train.clock import Ema, Tuner, note_figures
from factory.train.course import Course, Training
from factory.train.data import HELD_OUT, draw_pictures, to_tensor
from factory.train.refine import pasted, recolored, repainted
from factory.train.vae import difference

FACTOR = 4
DRAWN = 512
"""Side of the drawings that crops are taken from."""
CHANNELS, LATENT_CHANNELS = (32, 32, 64), 8
"""32 channels at the full size take less time in bfloat16 on a CPU than 16 do: its matrix unit works on 32."""
SCALING = 0.08333
"""The pipeline insists on this factor, so the latents are made to have a standard deviation of 1 / 0.08333."""
KL_WEIGHT = 1e-4
ANCHOR = 0.2
"""Weight of the distance of the first three latent channels to the picture's own, reduced."""
RATE, CROP, BATCH = 2e-3, 96, 6


def drawings(work: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` large drawings to learn from and up to 48 to measure by, uint8 [n, 512, 512, 3]."""
    data = draw_pictures(work / "large.npy", count, size=DRAWN)
    return data, draw_pictures(work / "large-held-out.npy", max(1, min(48, count // 8)), HELD_OUT, size=DRAWN)


def crops(pictures: np.ndarray, rng: np.random.Generator, size: int, side: int) -> tuple[np.ndarray, Any]:
    """`size` crops uint8 [size, side, side, 3] and the numbers of their pictures; half of them look strange.

    A quarter come from the drawing at half its size, in which everything is finer. The most lively of three places is
    taken, since most of a drawing is flat.
    """
    picks, found = rng.integers(0, len(pictures), size), []
    for number in picks:
        half = rng.random() < 0.25
        wide = 2 * side if half else side
        corners = rng.integers(0, (DRAWN - wide) // 4 + 1, (3, 2)) * 4
        places = [pictures[number, y : y + wide, x : x + wide] for y, x in corners]
        crop = np.array(max(places, key=lambda place: float(place[::4, ::4].std())))
        if half:
            crop = np.asarray(Image.fromarray(crop).reduce(2))
        if rng.random() < 0.5:
            for change, chance in ((recolored, 0.6), (repainted, 0.3), (pasted, 0.5)):
                crop = change(crop, rng) if rng.random() < chance else crop
        found.append(crop)
    return np.stack(found), picks


def build(channels: tuple[int, ...] = CHANNELS) -> Any:
    """An untrained AutoencoderKL of 4x smaller latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=DRAWN,
        mid_block_add_attention=False,
        force_upcast=False,
        scaling_factor=SCALING,
    )


def begun(vae: Any, other: Any) -> Any:
    """The VAE with every weight that the SDXL-class base's has in the same place and shape; returns it.

    That one has a level more, so its decoder's last levels are this one's.
    """
    state, given = vae.state_dict(), other.state_dict()
    shift = len(other.config.block_out_channels) - len(vae.config.block_out_channels)
    for name, value in state.items():
        part, *rest = name.split(".up_blocks.")
        if rest:
            number, _, tail = rest[0].partition(".")
            name = f"{part}.up_blocks.{int(number) + shift}.{tail}"
        if name in given and given[name].shape == value.shape:
            value.copy_(given[name])
    return vae


def train(training: Training, start: Any, *, channels: tuple[int, ...] = CHANNELS) -> Any:
    """Train (or go on training) the upscaler's VAE in `training.work`; writes `upscaler-vae` with averaged weights.

    It starts from what it shares with `start`, the VAE of the SDXL-class base.
    """
    import torch

    data, held_out = drawings(training.work, training.pictures)
    torch.manual_seed(training.seed)
    vae = begun(build(channels), start).to(training.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    ema, tuner = Ema(vae, 0.998), Tuner(training.device, fixed=(1, True))
    course = Course(
        name="upscaler-vae",
        training=training,
        module=vae,
        optimizer=optimizer,
        rate=RATE,
        warmup=50,
        ema=ema,
        tuner=tuner,
    )

    def averaged() -> Any:
        model = build(channels).to(training.device)
        model.load_state_dict(ema.state)
        return model.eval()

    course.remark = lambda: f"psnr {psnr(averaged(), held_out[:6]):.2f}"
    for step in course:
        rng = np.random.default_rng((training.seed, 31, step))
        torch.manual_seed(training.seed * 1_000_003 + step)
        x = to_tensor(crops(data, rng, BATCH, CROP)[0]).to(training.device, memory_format=torch.channels_last)
        with tuner.step():
            posterior = vae.encode(x).latent_dist
            kl = posterior.kl().mean() / posterior.mean[0].numel()
            seen = torch.nn.functional.avg_pool2d(x, FACTOR)
            anchor = (posterior.mean[:, :3].float() - 2 * seen).square().mean()
            wrong = difference(vae.decode(posterior.sample()).sample.float(), x)
            course.descend(wrong + KL_WEIGHT * kl + ANCHOR * anchor)
    final = averaged()
    sample = crops(data, np.random.default_rng(training.seed), 128, CROP)[0]
    rescale(final, to_tensor(sample).to(training.device))
    value = round(psnr(final, held_out), 2)
    final.save_pretrained(training.work / "upscaler-vae")
    note_figures(training.work, upscaler_vae={"psnr_db": value, "channels": list(channels), **course.figures})
    training.log(f"upscaler-vae done: {value} dB on held-out drawings")
    return final


def rescale(vae: Any, x: Any) -> None:
    """Give latents of pictures `x` a standard deviation of 1 / `SCALING`, in place; what is decoded stays as it was."""
    import torch

    with torch.no_grad():
        factor = 1 / SCALING / float(vae.encode(x).latent_dist.mean.std())
        means = vae.config.latent_channels
        vae.quant_conv.weight[:means] *= factor
        vae.quant_conv.bias[:means] *= factor
        vae.quant_conv.bias[means:] += 2 * math.log(factor)
        vae.post_quant_conv.weight /= factor


def psnr(vae: Any, pictures: np.ndarray) -> float:
    """Mean PSNR in dB of what the VAE gives back of uint8 pictures [n, h, w, 3]."""
    import torch

    device, values = next(vae.parameters()).device, []
    with torch.inference_mode():
        for row in pictures:
            x = to_tensor(row[None]).to(device)
            y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
            values.append(-10 * float(((x - y) / 2).square().mean().log10()))
    return float(np.mean(values))

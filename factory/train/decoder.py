"""More training for the VAE's decoder alone, for sharp edges, while or after the UNet learns.

The encoder, and with it every latent, stays as it is. A small critic learns to tell drawn crops from decoded ones;
the decoder learns to be taken for drawn, and to agree with the drawing in what the critic sees. Pictures and wrong
latents are those of `refine`; when there is a base already, half of the latents are its guesses, so that the decoder
draws clean shapes where a small denoiser is vague.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from factory.train.clock import Ema, Tuner, note_figures
from factory.train.course import Course, Training
from factory.train.data import HELD_OUT, draw_pictures, to_tensor
from factory.train.refine import CROP, batch, subjects, wrong
from factory.train.scorer import draw_pairs
from factory.train.vae import difference, latest_vae, psnr

LEARNING_RATE = 5e-4
SEEN = 0.25
"""Weight of the distance in what the critic's layers see."""
TAKEN = 0.01
"""Weight of being taken for drawn; more of it draws edges where there are none."""
SEEN_THROUGH = 400
"""Timesteps from which the base guesses; above it guesses differ from the picture in more than vagueness."""


def guesses(work: Path, vae: Any, pipe: Any, count: int, seed: int = 0) -> np.ndarray:
    """What the base takes the first `count` pictures to be, seen through noise: latents as `vae` decodes them.

    One guess each from a timestep up to `SEEN_THROUGH`; float16 [count, c, 16, 16], kept in `work`.
    """
    import torch

    from factory.train import unet

    latents = unet.cache_latents(work, vae, count)
    path = work / f"guesses-{unet.fingerprint(vae)}.npy"
    if path.exists() and len(np.load(path, mmap_mode="r")) >= count:
        return np.load(path, mmap_mode="r")[:count]
    base = unet.Base(pipe.tokenizer, latents.shape[1], tuple(pipe.unet.config.block_out_channels))
    base.take(pipe)
    base.parts.eval().requires_grad_(False)
    tokens, rows = unet.cache_tokens(work, pipe.tokenizer, count), []
    for first in range(0, count, 32):
        rng = np.random.default_rng((seed, 79, first))
        x = torch.from_numpy(np.asarray(latents[first : first + 32], dtype=np.float32))
        t = torch.from_numpy(rng.integers(20, SEEN_THROUGH, len(x)))
        noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        ids = torch.from_numpy(tokens[first : first + 32, 0, :48].astype(np.int64))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            rows.append(base.guess(x, ids, t, noise).numpy().astype(np.float16))
    np.save(path, np.concatenate(rows) / vae.config.scaling_factor)
    return np.load(path, mmap_mode="r")


def guessed(
    pictures: np.ndarray, latents: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[Any, Any]:
    """`size` crops [n, 3, 64, 64] in -1 .. 1 of the pictures, and what was guessed there: latents [n, c, 8, 8]."""
    import torch

    crops, seen = [], []
    for _ in range(size):
        i, (y, x) = int(rng.integers(len(latents))), rng.integers(0, 9, 2)
        crops.append(pictures[i, 8 * y : 8 * y + CROP, 8 * x : 8 * x + CROP])
        seen.append(latents[i, :, y : y + 8, x : x + 8])
    return to_tensor(np.stack(crops)), torch.from_numpy(np.stack(seen).astype(np.float32))


def critic() -> Any:
    """The layers of a net that says of patches of 14 pixels how drawn they look; see `features`."""
    from torch import nn
    from torch.nn.utils.parametrizations import spectral_norm

    def layer(inner: int, outer: int, kernel: int, stride: int) -> Any:
        return spectral_norm(nn.Conv2d(inner, outer, kernel, stride, 1))

    return nn.ModuleList([layer(3, 24, 4, 2), layer(24, 48, 4, 2), layer(48, 48, 3, 1), layer(48, 1, 3, 1)])


def features(net: Any, x: Any) -> list[Any]:
    """What each layer of the critic sees; the last is its verdict."""
    from torch.nn import functional

    seen = []
    for i, layer in enumerate(net):
        x = layer(x)
        x = functional.leaky_relu(x, 0.2) if i < len(net) - 1 else x
        seen.append(x)
    return seen


def frozen(net: Any, x: Any) -> list[Any]:
    """The same, with no gradient for the critic itself."""
    for weight in net.parameters():
        weight.requires_grad_(False)
    seen = features(net, x)
    for weight in net.parameters():
        weight.requires_grad_(True)
    return seen


def loss_of(vae: Any, net: Any, x: Any, latents: Any) -> Any:
    """Loss of the decoder plus that of the critic, whose gradients do not meet."""
    import torch

    y = vae.decode(latents).sample.float()
    with torch.no_grad():
        *drawn, _ = features(net, x)
    *decoded, verdict = frozen(net, y)
    seen = sum((a - b).abs().mean() for a, b in zip(decoded, drawn, strict=True)) / len(drawn)
    own = difference(y, x) + SEEN * seen - TAKEN * verdict.float().mean()
    real, fake = features(net, x)[-1].float(), features(net, y.detach())[-1].float()
    return own + 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())


def train(training: Training, *, pipe: Any = None, size: int = 10) -> Any:
    """Train the decoder of the VAE in `training.work` further and write `vae-polished` there.

    `pipe` is a base on its latents.
    """
    import copy

    import torch

    data = draw_pictures(training.work / "train.npy", training.pictures)
    odd = draw_pairs(training.work / "pairs.npy", training.pairs)
    odd = odd.reshape(-1, *odd.shape[2:])
    held_out = draw_pictures(
        training.work / "held-out.npy", min(2000, max(8, training.pictures // 30)), HELD_OUT
    )
    torch.manual_seed(training.seed)
    vae = latest_vae(training.work, polished=False).to(training.device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    both = torch.nn.ModuleDict({"decoder": vae.decoder, "critic": critic().to(training.device)})
    optimizer = torch.optim.AdamW(both.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.99), fused=True)
    ema = Ema(both)
    tuner = Tuner(training.device, fixed=(1, True))
    course = Course(
        name="decoder",
        training=training,
        module=both,
        optimizer=optimizer,
        rate=LEARNING_RATE,
        warmup=50,
        hold=0.3,
        ema=ema,
        tuner=tuner,
    )

    def averaged() -> Any:
        model = copy.deepcopy(vae).eval()
        prefix = "decoder."
        own = {k.removeprefix(prefix): v for k, v in ema.state.items() if k.startswith(prefix)}
        model.decoder.load_state_dict(own)
        return model

    def remark() -> str:
        model = averaged()
        seen, strange = (psnr(model, pictures, training.device) for pictures in (held_out[:32], subjects(4)))
        return f"psnr {seen:.2f}, subjects {strange:.2f}"

    course.remark = remark
    vague = (
        guesses(training.work, vae, pipe, min(training.pictures, 8_000), training.seed)
        if pipe is not None
        else None
    )
    for step in course:
        rng = np.random.default_rng((training.seed, 77, step))
        torch.manual_seed(training.seed * 1_000_003 + step)
        x, _ = batch(data, odd, rng, size if vague is None else size - size // 2)
        with tuner.step():
            with torch.no_grad():
                latents = wrong(vae.encode(x.to(training.device)).latent_dist.mean.float(), rng)
            if vague is not None:
                more, seen = guessed(data, vague, rng, size // 2)
                x, latents = torch.cat([x, more]), torch.cat([latents, seen.to(training.device)])
            course.descend(
                loss_of(
                    vae, both["critic"], x.to(training.device, memory_format=torch.channels_last), latents
                )
            )
    final = averaged()
    _finish(training, final, held_out, course.figures)
    return final


def _finish(training: Training, final: Any, held_out: np.ndarray, figures: dict[str, Any]) -> None:
    """Write the averaged VAE, and note how well it draws what it has not seen."""
    value = psnr(final, held_out[:400], training.device)
    strange = psnr(final, subjects(12 if training.pictures >= 1000 else 1), training.device)
    final.save_pretrained(training.work / "vae-polished")
    note_figures(
        training.work, decoder={"psnr_db": round(value, 2), "subjects_psnr_db": round(strange, 2), **figures}
    )
    training.log(f"decoder done: {value:.2f} dB on held-out pictures, {strange:.2f} dB on the subjects")

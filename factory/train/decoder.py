"""More training for the VAE's decoder alone, for sharp edges, while or after the UNet learns.

The encoder, and with it every latent, stays as it is. A small critic learns to tell drawn crops from decoded ones;
the decoder learns to be taken for drawn, and to agree with the drawing in what the critic sees. Pictures and wrong
latents are those of `refine`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from factory.train.clock import Budget, Ema, Tuner, note_figures
from factory.train.course import Course
from factory.train.data import HELD_OUT, draw_pictures
from factory.train.refine import batch, subjects, wrong
from factory.train.scorer import draw_pairs
from factory.train.vae import difference, latest_vae, psnr

LEARNING_RATE = 5e-4
SEEN = 0.25
"""Weight of the distance in what the critic's layers see."""
TAKEN = 0.01
"""Weight of being taken for drawn; more of it draws edges where there are none."""


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


def loss_of(vae: Any, net: Any, x: Any, rng: np.random.Generator) -> Any:
    """Loss of the decoder plus that of the critic, whose gradients do not meet; none reaches the encoder."""
    import torch

    with torch.no_grad():
        latents = wrong(vae.encode(x).latent_dist.mean.float(), rng)
    y = vae.decode(latents).sample.float()
    with torch.no_grad():
        *drawn, _ = features(net, x)
    *decoded, verdict = frozen(net, y)
    seen = sum((a - b).abs().mean() for a, b in zip(decoded, drawn, strict=True)) / len(drawn)
    own = difference(y, x) + SEEN * seen - TAKEN * verdict.float().mean()
    real, fake = features(net, x)[-1].float(), features(net, y.detach())[-1].float()
    return own + 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())


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
    """Train the decoder of the VAE in `work` further and write `work/vae-polished`."""
    import copy

    import torch

    data = draw_pictures(work / "train.npy", pictures)
    odd = draw_pairs(work / "pairs.npy", pairs)
    odd = odd.reshape(-1, *odd.shape[2:])
    held_out = draw_pictures(work / "held-out.npy", min(2000, max(8, pictures // 30)), HELD_OUT)
    torch.manual_seed(seed)
    vae = latest_vae(work, polished=False).to(device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    both = torch.nn.ModuleDict({"decoder": vae.decoder, "critic": critic().to(device)})
    optimizer = torch.optim.AdamW(both.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.99), fused=True)
    ema = Ema(both)
    tuner = Tuner(device, fixed=(1, True))
    course = Course(
        "decoder", work, budget, both, optimizer, LEARNING_RATE, 50, 0.3, ema=ema, tuner=tuner, log=log
    )

    def averaged() -> Any:
        model = copy.deepcopy(vae).eval()
        prefix = "decoder."
        own = {k.removeprefix(prefix): v for k, v in ema.state.items() if k.startswith(prefix)}
        model.decoder.load_state_dict(own)
        return model

    def remark() -> str:
        model = averaged()
        return (
            f"psnr {psnr(model, held_out[:32], device):.2f}, subjects {psnr(model, subjects(4), device):.2f}"
        )

    course.remark = remark
    for step in course:
        rng = np.random.default_rng((seed, 77, step))
        torch.manual_seed(seed * 1_000_003 + step)
        x, _ = batch(data, odd, rng, size)
        with tuner.step():
            course.descend(loss_of(vae, both["critic"], x.to(device, memory_format=torch.channels_last), rng))
    final = averaged()
    value, strange = (
        psnr(final, held_out[:400], device),
        psnr(final, subjects(12 if pictures >= 1000 else 1), device),
    )
    final.save_pretrained(work / "vae-polished")
    figures = {"psnr_db": round(value, 2), "subjects_psnr_db": round(strange, 2), **course.figures}
    note_figures(work, decoder=figures)
    log(f"decoder done: {value:.2f} dB on held-out pictures, {strange:.2f} dB on the subjects")
    return final

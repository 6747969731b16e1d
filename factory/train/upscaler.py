"""The upscaler: a `StableDiffusionUpscalePipeline` that makes pictures of the drawn world four times as wide and high.

Its UNet sees the small picture beside the noisy latents of its VAE (`upscaler_vae`). The small picture is a crop of a
large drawing reduced by one of several filters, at times made soft by the SDXL-class base's VAE, as renders are.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
from PIL import Image

from factory.train.clock import Ema, Tuner, note_figures
from factory.train.course import Course, Training
from factory.train.data import captions_of, to_tensor
from factory.train.upscaler_vae import DRAWN, FACTOR, LATENT_CHANNELS, SCALING, crops, drawings
from factory.train.vae import difference

CHANNELS = (64, 64, 64)
NOISE_LEVELS = 101
NOISE_LEVEL = 20
"""The pipeline's default."""
STEPS = 1
"""Steps that a picture is drawn in: the mean of what fits is nearer to the large picture than one of them is."""
RATE, CROP = 1.5e-3, 128
BLIND, UNSEEN = 0.6, 999
"""Share of the rows whose latents are noise alone, and their moment: a picture's first step is their answer."""
VELOCITY = 0.2
"""Weight of the velocity's error beside the picture's."""
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "rescale_betas_zero_snr": True,
}
"""The last moment is noise alone, so that the first step's guess of the latents is what the UNet says, and a mean."""
LOW_RES_SCHEDULER = {"beta_start": 1e-6, "beta_end": 2e-4, "beta_schedule": "linear"}
"""Noise on the small picture: at level 20 its standard deviation is 0.008 of a range of 2 (one step of 8 bits), at 100
it is 0.033."""


def reduced(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop a quarter as wide and high, by one of the filters that people use, one time in ten through JPEG."""
    kinds = (
        Image.Resampling.BOX,
        Image.Resampling.LANCZOS,
        Image.Resampling.BICUBIC,
        Image.Resampling.BILINEAR,
    )
    kind = kinds[int(rng.choice(4, p=(0.35, 0.3, 0.2, 0.15)))]
    small = Image.fromarray(crop).resize((crop.shape[1] // FACTOR, crop.shape[0] // FACTOR), kind)
    if rng.random() < 0.1:
        kept = io.BytesIO()
        small.save(kept, "JPEG", quality=int(rng.integers(60, 96)))
        small = Image.open(kept)
    return np.asarray(small)


def softened(small: Any, vae: Any, rng: np.random.Generator, share: float = 0.25) -> Any:
    """Small pictures [n, 3, h, w], some of them as the base's VAE gives them back."""
    import torch

    some = torch.from_numpy(rng.random(len(small)) < share)
    if vae is not None and some.any():
        with torch.no_grad():
            again = vae.decode(vae.encode(small[some]).latent_dist.mean).sample
        small[some] = again.float().clamp(-1, 1)
    return small


def build(text_width: int, channels: tuple[int, ...] = CHANNELS) -> Any:
    """An untrained UNet2DConditionModel of the x4 upscaler's kind, whose middle looks at the text and not at itself."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=DRAWN // FACTOR,
        in_channels=LATENT_CHANNELS + 3,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        mid_block_only_cross_attention=True,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=text_width,
        num_class_embeds=NOISE_LEVELS,
        use_linear_projection=True,
    )


class Denoiser:
    """UNet, VAE, text embeddings and schedules: what one training step needs. The VAE's encoder stays as it is."""

    def __init__(self, vae: Any, pipe: Any, channels: tuple[int, ...] = CHANNELS) -> None:
        import torch
        from diffusers import DDIMScheduler, DDPMScheduler

        self.vae, self.pipe = vae.eval(), pipe
        self.vae.encoder.requires_grad_(False)
        self.vae.quant_conv.requires_grad_(False)
        self.unet = build(pipe.text_encoder.config.hidden_size, channels)
        self.alphas: torch.Tensor = DDIMScheduler(**SCHEDULER).alphas_cumprod  # type: ignore[attr-defined]
        self.levels: torch.Tensor = DDPMScheduler(**LOW_RES_SCHEDULER).alphas_cumprod  # type: ignore[attr-defined]

    @property
    def trained(self) -> Any:
        """What learns: the UNet, and the VAE's decoder, which is to draw well from the UNet's guesses."""
        import torch

        decoder = {"decoder": self.vae.decoder, "post_quant_conv": self.vae.post_quant_conv}
        return torch.nn.ModuleDict({"unet": self.unet, **decoder})

    def embedded(self, texts: list[str]) -> Any:
        """Text embeddings [n, 77, width]."""
        import torch

        from factory.train.unet import tokenize

        ids = torch.from_numpy(tokenize(self.pipe.tokenizer, texts).astype(np.int64))
        with torch.inference_mode():
            rows = [self.pipe.text_encoder(part)[0] for part in ids.split(256)]
        return torch.cat(rows).clone()

    def loss(self, large: Any, small: Any, texts: Any, rng: np.random.Generator) -> Any:
        """How far crops [n, 3, 4s, 4s], seen small [n, 3, s, s], are from what is drawn, plus the velocity's error.

        Most rows see noise alone: all that they say comes from the small picture.
        """
        import torch

        count, device = len(large), large.device
        with torch.no_grad():
            x = self.vae.encode(large).latent_dist.mean.float() * SCALING
        spread = (np.arange(count) + rng.random(count)) / count
        t = torch.from_numpy(np.where(rng.random(count) < BLIND, UNSEEN, UNSEEN * spread)).long()
        level = torch.from_numpy(
            np.where(rng.random(count) < 0.6, NOISE_LEVEL, rng.integers(0, NOISE_LEVELS, count))
        )
        a, b = (
            table[i][:, None, None, None].to(device) for table, i in ((self.alphas, t), (self.levels, level))
        )
        noise = torch.randn_like(x)
        seen = b.sqrt() * small + (1 - b).sqrt() * torch.randn_like(small)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        said = self.unet(
            torch.cat([noisy, seen], 1),
            t.to(device),
            encoder_hidden_states=texts,
            class_labels=level.to(device),
        ).sample.float()
        wrong = (said - (a.sqrt() * noise - (1 - a).sqrt() * x)).square().mean()
        guess = a.sqrt() * noisy - (1 - a).sqrt() * said
        drawn = self.vae.decode(guess / SCALING).sample.float()
        return difference(drawn, large) + VELOCITY * wrong


def train(
    training: Training, pipe: Any, vae: Any, *, channels: tuple[int, ...] = CHANNELS, batch: int = 6
) -> Any:
    """Train (or go on training) the UNet in `training.work` with the decoder of a finished VAE.

    Returns the averaged pipeline. `pipe` is the SDXL-class base: its first text encoder and tokenizer are taken over,
    its VAE softens.
    """
    import torch

    data, held_out = drawings(training.work, training.pictures)
    torch.manual_seed(training.seed)
    model = Denoiser(vae.to(training.device, memory_format=torch.channels_last), pipe, channels)
    texts = model.embedded([picture_text(i) for i in range(training.pictures)] + [""]).to(training.device)
    soft = pipe.vae.eval().to(training.device)
    learner = model.trained.to(training.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        learner.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    ema, tuner = Ema(learner, 0.998), Tuner(training.device, fixed=(1, True))
    course = Course(
        name="upscaler",
        training=training,
        module=learner,
        optimizer=optimizer,
        rate=RATE,
        warmup=100,
        ema=ema,
        tuner=tuner,
    )

    def averaged() -> Any:
        final = copy.deepcopy(learner)
        final.load_state_dict(ema.state)
        drawing = copy.deepcopy(vae)
        drawing.decoder, drawing.post_quant_conv = final["decoder"], final["post_quant_conv"]
        return pipeline(final["unet"].eval(), drawing.eval(), pipe)

    course.remark = lambda: "{:.2f} dB, Lanczos {:.2f}".format(*compared(averaged(), held_out[:3]))
    for step in course:
        rng = np.random.default_rng((training.seed, 32, step))
        torch.manual_seed(training.seed * 1_000_003 + step)
        large, picks = crops(data, rng, batch, CROP)
        small = to_tensor(np.stack([reduced(crop, rng) for crop in large])).to(training.device)
        rows = np.where(rng.random(batch) < 0.3, training.pictures, picks)
        with tuner.step():
            small = softened(small, soft, rng)
            x = to_tensor(large).to(training.device, memory_format=torch.channels_last)
            course.descend(model.loss(x, small, texts[torch.from_numpy(rows).to(training.device)], rng))
    made = averaged()
    ours, lanczos = compared(made, held_out)
    figures = {
        "psnr_db": round(ours, 2),
        "lanczos_psnr_db": round(lanczos, 2),
        "channels": list(channels),
        **course.figures,
    }
    note_figures(training.work, upscaler=figures)
    training.log(f"upscaler done: {figures}")
    return made


def picture_text(number: int) -> str:
    """The caption of picture `number`, without drawing it."""
    return captions_of(number, 1)[0]


def pipeline(unet: Any, vae: Any, base: Any) -> Any:
    """The parts as a stock `StableDiffusionUpscalePipeline`."""
    from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline

    made: Any = StableDiffusionUpscalePipeline(
        vae=vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=unet,
        low_res_scheduler=DDPMScheduler(**LOW_RES_SCHEDULER),
        scheduler=DDIMScheduler(**SCHEDULER),
        max_noise_level=NOISE_LEVELS - 1,
    )
    made.set_progress_bar_config(disable=True)
    return made


def compared(pipe: Any, drawings: np.ndarray, steps: int = STEPS) -> tuple[float, float]:
    """Mean PSNR in dB against drawings [n, 512, 512, 3] of the upscaler's pictures and of Lanczos enlargements.

    Both get the drawing reduced to 128 x 128 by Lanczos's filter.
    """
    values = [
        (psnr(ours, drawing), psnr(plain, drawing))
        for drawing, _, plain, ours in pairs(pipe, drawings, steps)
    ]
    return float(np.mean([v[0] for v in values])), float(np.mean([v[1] for v in values]))


def pairs(
    pipe: Any, drawings: np.ndarray, steps: int = STEPS
) -> list[tuple[np.ndarray, Image.Image, Image.Image, Image.Image]]:
    """Each drawing, itself reduced, that enlarged by Lanczos, and by the upscaler without text."""
    import torch

    rows = []
    for drawing in drawings:
        side = drawing.shape[0]
        small = Image.fromarray(drawing).resize((side // FACTOR, side // FACTOR), Image.Resampling.LANCZOS)
        generator = torch.Generator("cpu").manual_seed(0)
        with torch.inference_mode():
            ours = pipe(
                "", image=small, num_inference_steps=steps, guidance_scale=1.0, generator=generator
            ).images[0]
        rows.append((np.asarray(drawing), small, small.resize((side, side), Image.Resampling.LANCZOS), ours))
    return rows


def psnr(image: Any, drawing: np.ndarray) -> float:
    """PSNR in dB of an 8-bit picture."""
    return -10 * float(np.log10(np.mean((np.asarray(image, np.float64) - drawing) ** 2) / 255**2 + 1e-12))

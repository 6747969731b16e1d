"""The UNet and text encoders of the base, trained together on cached latents with v-prediction."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from factory.train.clock import (
    Budget,
    Ema,
    Tuner,
    learning_rate,
    load_checkpoint,
    note_figures,
    save_checkpoint,
)
from factory.train.course import Training
from factory.train.data import HELD_OUT, captions_of, draw_pictures, to_tensor
from factory.train.emphasis import face_cells, telling, weights
from factory.train.team import Team
from factory.train.text import MAX_LENGTH, build_encoders, build_tokenizer, encode
from factory.train.vae import latest_vae

CHANNELS = (64, 128, 128)
LATENT = 16
VARIANTS = 4
MEET_EVERY = 8
"""Steps between two averagings of a team's weights."""
LEARNING_RATE = 1e-3
FURTHER_LEARNING_RATE = 6e-4
"""Of a base that was trained before."""
DECIDING = 0.3
"""Share of the timesteps that are drawn above 400 only, where it is decided what the picture shows."""
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


def build(latent_channels: int = 8, channels: tuple[int, ...] = CHANNELS) -> Any:
    """An untrained UNet2DConditionModel of the SDXL kind (`text_time`, no attention at the top), latents 16 x 16."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (len(channels) - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (len(channels) - 1) + ("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=tuple(c // 32 for c in channels),
        cross_attention_dim=192,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=224,
    )


def cache_latents(work: Path, vae: Any, count: int, start: int = 0, name: str = "latents") -> np.ndarray:
    """Posterior means times the scaling factor of `count` pictures, float16 [count, c, 16, 16], kept on disk.

    Each encoder has a file of its own, so that a VAE that was trained further gets new latents.
    """
    import torch

    path = work / f"{name}-{fingerprint(vae)}.npy"
    if path.exists() and len(np.load(path, mmap_mode="r")) >= count:
        return np.load(path, mmap_mode="r")[:count]
    source = draw_pictures(work / ("held-out.npy" if start == HELD_OUT else "train.npy"), count, start)
    device = next(vae.parameters()).device
    kind = "cuda" if device.type == "cuda" else "cpu"
    rows = []
    with torch.inference_mode(), torch.autocast(kind, torch.bfloat16):
        for i in range(0, count, 32):
            x = to_tensor(source[i : min(i + 32, count)]).to(device, memory_format=torch.channels_last)
            mean = vae.encode(x).latent_dist.mean.float() * vae.config.scaling_factor
            rows.append(mean.cpu().numpy().astype(np.float16))
    np.save(path, np.concatenate(rows))
    return np.load(path)


def fingerprint(vae: Any) -> str:
    """Eight hex digits of the encoder's weights and the scaling factor."""
    digest = hashlib.sha256(str(vae.config.scaling_factor).encode())
    for weight in vae.encoder.state_dict().values():
        digest.update(weight.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def cache_tokens(work: Path, tokenizer: Any, count: int, start: int = 0, name: str = "tokens") -> np.ndarray:
    """Token ids of `VARIANTS` captions of each picture, int16 [count, VARIANTS, 77], kept on disk."""
    path = work / f"{name}.npy"
    if path.exists() and len(np.load(path, mmap_mode="r")) >= count:
        return np.load(path)[:count]
    rows = []
    for i in range(0, count, 1000):
        texts = [t for n in range(i, min(i + 1000, count)) for t in captions_of(start + n, VARIANTS)]
        rows.append(tokenize(tokenizer, texts).astype(np.int16))
    ids = np.concatenate(rows).reshape(count, VARIANTS, MAX_LENGTH)
    np.save(path, ids)
    return ids


def tokenize(tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Padded token ids [n, 77]."""
    encoded = tokenizer(
        texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="np"
    )
    return encoded.input_ids


class Base:
    """UNet and text encoders as one trainable thing."""

    def __init__(
        self, tokenizer: Any, latent_channels: int = 8, channels: tuple[int, ...] = CHANNELS
    ) -> None:
        import torch
        from diffusers import DDPMScheduler

        self.tokenizer = tokenizer
        small, large = build_encoders(tokenizer)
        self.parts = torch.nn.ModuleDict(
            {"unet": build(latent_channels, channels), "small": small, "large": large}
        )
        scheduler = DDPMScheduler(**SCHEDULER)
        self.alphas: torch.Tensor = scheduler.alphas_cumprod  # type: ignore[attr-defined]
        self.empty = torch.from_numpy(tokenize(tokenizer, [""]).astype(np.int64))

    def take(self, pipe: Any) -> None:
        """Take over the weights of a pipeline of the same sizes and words; more latent channels begin unused."""
        if pipe.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError("the base to start from knows other words")
        sources = {"unet": pipe.unet, "small": pipe.text_encoder, "large": pipe.text_encoder_2}
        for name, module in sources.items():
            state = self.parts[name].state_dict()
            for key, value in module.state_dict().items():
                if state[key].shape == value.shape:
                    state[key].copy_(value)
                else:  # the first and the last convolution
                    state[key].zero_()
                    state[key][tuple(map(slice, value.shape))] = value

    def condition(self, ids: Any, dice: Any) -> tuple[Any, Any]:
        """Text embeddings of token ids; 7 % become the empty caption and 5 % zeros, as pipelines use either."""
        import torch

        empty = (dice < 0.07)[:, None]
        ids = torch.where(empty, self.empty[:, : ids.shape[1]].to(ids.device), ids)
        sequence, pooled = encode(self.parts["small"], self.parts["large"], ids)
        keep = ((dice < 0.07) | (dice > 0.12)).to(sequence.dtype)
        return sequence * keep[:, None, None], pooled * keep[:, None]

    def loss(self, x: Any, ids: Any, t: Any, noise: Any, time_ids: Any, dice: Any, weight: Any = 1.0) -> Any:
        """v-prediction MSE per sample [n] for scaled latents `x` [n, c, h, w] at timesteps `t` [n]."""
        a = self.alphas.to(x.device)[t][:, None, None, None]
        noisy, target = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        predicted = self._velocity(noisy, t, self.condition(ids, dice), time_ids)
        return (weight * (predicted - target).square()).mean(dim=(1, 2, 3))

    def guess(self, x: Any, ids: Any, t: Any, noise: Any) -> Any:
        """What the denoiser takes `x` [n, c, 16, 16] to be, seen through noise at timesteps `t` [n]."""
        import torch

        a = self.alphas[t][:, None, None, None]
        noisy, side = a.sqrt() * x + (1 - a).sqrt() * noise, float(LATENT * 8)
        time_ids = torch.tensor([side, side, 0, 0, side, side]).expand(len(x), 6)
        text = encode(self.parts["small"], self.parts["large"], ids)
        return a.sqrt() * noisy - (1 - a).sqrt() * self._velocity(noisy, t, text, time_ids)

    def _velocity(self, noisy: Any, t: Any, text: tuple[Any, Any], time_ids: Any) -> Any:
        sequence, pooled = text
        predicted = self.parts["unet"](
            noisy,
            t,
            encoder_hidden_states=sequence,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        ).sample
        return predicted.float()


def draw_batch(
    latents: np.ndarray,
    tokens: np.ndarray,
    rng: np.random.Generator,
    size: int,
    faces: np.ndarray | None = None,
) -> dict[str, Any]:
    """A random batch: latents (sometimes cut to an upright or wide shape), token ids, timesteps, noise, time ids.

    With `faces`, from `emphasis.face_cells`, what counts more does so.
    """
    import torch

    picks = np.sort(rng.integers(0, len(latents), size))
    x = torch.from_numpy(np.asarray(latents[picks], dtype=np.float32))
    ids = (
        tokens[picks, rng.integers(0, tokens.shape[1], size)]
        if faces is None
        else telling(tokens[picks], rng)
    )
    weight = np.ones((size, 1, LATENT, LATENT), np.float32)
    if faces is not None:
        weight = weights(faces[picks], LATENT, LATENT)
    length = MAX_LENGTH if rng.random() < 0.3 else _longest(ids)
    shape, cut = rng.random(), int(rng.integers(1, 4))
    if shape < 0.06:
        x, weight = x[..., 2:14], weight[..., 2:14]
    elif shape < 0.10:
        x, weight = x[:, :, cut : cut + 12], weight[:, :, cut : cut + 12]
    height, width = x.shape[2] * 8, x.shape[3] * 8
    t = (np.arange(size) + rng.random(size)) / size * 1000
    t = np.where(rng.random(size) < DECIDING, 400 + 0.6 * t, t)
    return {
        "x": x,
        "ids": torch.from_numpy(ids[:, :length].astype(np.int64)),
        "t": torch.from_numpy(t.astype(np.int64)),
        "noise": torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)),
        "time_ids": torch.from_numpy(_time_ids(rng, size, height, width)),
        "dice": torch.from_numpy(rng.random(size)),
        "weight": torch.from_numpy(np.ascontiguousarray(weight)),
    }


def _longest(ids: np.ndarray) -> int:
    """The shortest of a few lengths that holds every caption of the batch: padding costs time, too."""
    used = int((ids != ids[0, -1]).sum(axis=1).max()) + 2
    return next((n for n in (24, 32, 48) if n >= used), MAX_LENGTH)


def _time_ids(rng: np.random.Generator, size: int, height: int, width: int) -> np.ndarray:
    """SDXL's (original, crop, target) sizes; half of them with a random original size, so that it matters little."""
    ids = np.tile(np.array([height, width, 0, 0, height, width], dtype=np.float32), (size, 1))
    odd = rng.random(size) < 0.5
    ids[odd, :2] = rng.integers(64, 2048, (int(odd.sum()), 2))
    return ids


def train(
    training: Training,
    *,
    batch: int = 12,
    channels: tuple[int, ...] = CHANNELS,
    start: Any = None,
    team: Team | None = None,
    on_minute: Callable[[Base, Budget], None] | None = None,
) -> Base:
    """Train (or go on training) UNet and text encoders in `training.work`, which holds a trained VAE.

    Returns the EMA weights. With `start`, a pipeline, training begins with that one's weights. Each member of the
    `team` takes batches of `batch`. `on_minute` is called about once a minute with the EMA base, by the team's first
    member, who alone writes files.
    """
    import torch

    budget = training.budget
    team = team or Team()
    tokenizer, latents, tokens, test = prepare(training.work, training.pictures, training.device)
    faces = face_cells(training.work, len(latents))
    torch.manual_seed(training.seed)
    base = Base(tokenizer, latents.shape[1], channels)
    rate = LEARNING_RATE
    if start is not None:
        base.take(start)
        rate = FURTHER_LEARNING_RATE
    base.parts.to(training.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        base.parts.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    ema = Ema(base.parts)
    state = load_checkpoint(training.work / "unet.pt", budget)
    if state:
        base.parts.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.state = {k: v.to(training.device) for k, v in state["ema"].items()}
    tuner = Tuner(training.device, fixed=(1, True) if team.size > 1 else None)
    saved, first, fraction, begun = budget.seconds, None, 0.0, budget.step
    while True:
        if (budget.step - begun) % (MEET_EVERY if team.size > 1 else 1) == 0:
            team.average(base.parts.parameters())
            fraction = team.agree(budget.fraction)
            if fraction >= 1:
                break
        first = first or (budget.step, budget.seconds)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(rate, budget.step, fraction)
        rng = np.random.default_rng((training.seed, budget.step, team.rank))
        sample = {k: v.to(training.device) for k, v in draw_batch(latents, tokens, rng, batch, faces).items()}
        with tuner.step():
            loss = _step(base, optimizer, sample)
        if team.rank == 0:
            ema.update(base.parts, budget.step)
        budget.step += 1
        if team.rank == 0 and budget.seconds - saved > 60:
            saved = budget.seconds
            save_checkpoint(
                training.work / "unet.pt",
                budget,
                model=base.parts.state_dict(),
                optimizer=optimizer.state_dict(),
                ema=ema.state,
            )
            speed = 1000 * (saved - first[1]) / max(1, budget.step - first[0]) / batch / team.size
            training.log(
                f"unet step {budget.step} loss {loss:.4f} {speed:.1f} ms/sample {tuner} eta {budget.eta / 60:.1f} min"
            )
            if on_minute:
                on_minute(averaged(base, ema, channels), budget)
    final = averaged(base, ema, channels)
    if team.rank == 0:
        _finish(training, final, test, batch * team.size, channels)
    return final


def _finish(training: Training, final: Base, test: Any, batch: int, channels: tuple[int, ...]) -> None:
    """Note how well the averaged base does on what it has not seen."""
    budget, error = training.budget, held_out_loss(final, *test)
    note_figures(
        training.work,
        unet={
            "held_out_v_mse": round(error, 4),
            "steps": budget.step,
            "batch": batch,
            "minutes": round(budget.seconds / 60, 1),
            "channels": list(channels),
        },
    )
    training.log(f"unet done: held-out v-MSE {error:.4f}, {budget.step} steps")


def prepare(work: Path, pictures: int, device: str = "cpu") -> tuple[Any, np.ndarray, np.ndarray, Any]:
    """Tokenizer, latents, token ids, and latents with token ids of held-out pictures; made once, kept in `work`."""
    vae = latest_vae(work).to(device)
    tokenizer, held = build_tokenizer(), max(8, min(480, pictures // 20))
    latents, tokens = cache_latents(work, vae, pictures), cache_tokens(work, tokenizer, pictures)
    test = (
        cache_latents(work, vae, held, HELD_OUT, "latents-held-out"),
        cache_tokens(work, tokenizer, held, HELD_OUT, "tokens-held-out"),
    )
    return tokenizer, latents, tokens, test


def _step(base: Base, optimizer: Any, sample: dict[str, Any]) -> float:
    """One optimizer step. Plain attention: on a CPU its backward is faster than the fused kernel's at these sizes."""
    import contextlib

    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH) if sample["x"].device.type == "cpu" else contextlib.nullcontext():
        loss = base.loss(**sample).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(base.parts.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def averaged(base: Base, ema: Ema, channels: tuple[int, ...]) -> Base:
    """A copy of `base` with the averaged weights, on the CPU, for inference."""
    unet: Any = base.parts["unet"]
    copy = Base(base.tokenizer, unet.config.in_channels, channels)
    copy.parts.load_state_dict({k: v.cpu() for k, v in ema.state.items()})
    copy.parts.eval().requires_grad_(False)
    return copy


def held_out_loss(base: Base, latents: np.ndarray, tokens: np.ndarray) -> float:
    """Mean v-MSE on held-out pictures, same timesteps and noise each time."""
    import torch

    rng, values = np.random.default_rng(123), []
    with torch.inference_mode():
        for _ in range(max(1, len(latents) // 32)):
            sample = draw_batch(latents, tokens, rng, min(32, len(latents)))
            sample["dice"] = torch.full_like(sample["dice"], 0.5)
            sample["t"] = torch.linspace(0, 999, len(sample["t"])).long()
            values.append(base.loss(**sample).mean().item())
    return float(np.mean(values))


def pipeline(base: Base, vae: Any) -> Any:
    """The base as a StableDiffusionXLPipeline (shares the weights)."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=vae,
        unet=base.parts["unet"],
        text_encoder=base.parts["small"],
        text_encoder_2=base.parts["large"],
        tokenizer=base.tokenizer,
        tokenizer_2=base.tokenizer,
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        add_watermarker=False,
    )

"""The FLUX-class base: a rectified-flow transformer with its T5 and CLIP text encoders, trained together.

It learns from the latents of the SDXL-class base's VAE. There is no guidance distillation: a pipeline needs true
classifier-free guidance (`true_cfg_scale` above 1 and `negative_prompt=""`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from factory.train.classifier import HEADS
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
from factory.train.data import HELD_OUT
from factory.train.flux_teacher import Teacher
from factory.train.flux_text import (
    CLIP_WIDTH,
    T5_WIDTH,
    TEACHING_STEPS,
    build_encoders,
    build_heads,
    build_t5_tokenizer,
    cache_named,
    cache_t5_tokens,
    teach,
    tokenize_t5,
    understanding_loss,
)
from factory.train.team import Team
from factory.train.text import MAX_LENGTH
from factory.train.unet import MEET_EVERY, tokenize
from tunes_dagster.tiny import FLUX_SEQUENCE as SEQUENCE

ATTENTION_HEADS, HEAD_WIDTH, DOUBLE, SINGLE = 5, 32, 3, 5
ROPE = (8, 12, 12)
SHIFT = 3.0
"""Moves noise shares up. With 1.0 colours went wrong: they are decided above 0.9, where few samples were."""
SCHEDULER: dict[str, Any] = {"num_train_timesteps": 1000, "shift": SHIFT, "use_dynamic_shifting": False}
LEARNING_RATE, MATRIX_RATE = 1.2e-3, 0.01
TEXT_LOSS = 0.05


def build_transformer(latent_channels: int = 8) -> Any:
    """An untrained FluxTransformer2DModel on 2 x 2 patches of the latents, modulation starting at zero."""
    import torch
    from diffusers import FluxTransformer2DModel

    model: Any = FluxTransformer2DModel(
        patch_size=1,
        in_channels=latent_channels * 4,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=ATTENTION_HEADS,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=ROPE,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    modulations = [m.linear for name, m in model.named_modules() if hasattr(m, "linear") and "norm" in name]
    for layer in [*modulations, model.proj_out]:
        torch.nn.init.zeros_(layer.weight)
    return model


def pack(latents: Any) -> Any:
    """Latents [n, c, h, w] to FLUX's patches [n, h/2 * w/2, 4c]."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


def positions(height: int, width: int, device: Any = None) -> Any:
    """FLUX's position ids [h/2 * w/2, 3] of latents of `height` x `width`."""
    import torch

    ids = torch.zeros(height // 2, width // 2, 3, device=device)
    ids[..., 1] += torch.arange(height // 2, device=device)[:, None]
    ids[..., 2] += torch.arange(width // 2, device=device)[None, :]
    return ids.reshape(-1, 3)


class FluxBase:
    """Transformer and text encoders as one trainable thing."""

    def __init__(self, tokenizer: Any, t5_tokenizer: Any, latent_channels: int = 8) -> None:
        import torch

        self.tokenizer, self.t5_tokenizer = tokenizer, t5_tokenizer
        clip, t5 = build_encoders(tokenizer, t5_tokenizer)
        self.parts = torch.nn.ModuleDict(
            {"transformer": build_transformer(latent_channels), "clip": clip, "t5": t5}
        )
        self.parts["heads"] = build_heads()
        self.teacher: Teacher | None = None
        self.empty = torch.from_numpy(tokenize(tokenizer, [""]).astype(np.int64))
        self.t5_empty = torch.from_numpy(tokenize_t5(t5_tokenizer, [""]).astype(np.int64))

    def loss(
        self, x: Any, ids: Any, t5_ids: Any, sigma: Any, noise: Any, dice: Any, named: Any = None
    ) -> Any:
        """Velocity MSE per sample [n] for scaled latents `x` [n, c, h, w] at noise shares `sigma` [n].

        With the attributes that the captions name (`named` [n, heads], -1 where none) a share of the text
        encoders' own loss is added: they have to tell which colour belongs to what. With a `teacher`, the error
        is that against its target.
        """
        import torch

        empty = (dice < 0.10)[:, None]
        ids = torch.where(empty, self.empty[:, : ids.shape[1]].to(ids.device), ids)
        t5_ids = torch.where(empty, self.t5_empty[:, : t5_ids.shape[1]].to(ids.device), t5_ids)
        keep = ((dice < 0.10) | (dice > 0.12)).float()
        pooled, sequence = self.parts["clip"](ids).pooler_output, self.parts["t5"](t5_ids).last_hidden_state
        own = 0.0
        if named is not None:
            named = torch.where(empty, -1, named)
            heads = self.parts["heads"]
            own = TEXT_LOSS * understanding_loss(heads, pooled, sequence, t5_ids, named)
        pooled, sequence = pooled * keep[:, None], sequence * keep[:, None, None]
        s = sigma[:, None, None]
        velocity = pack(self.teacher.target(x, noise, sigma, ids, keep) if self.teacher else noise - x)
        clean, noise = pack(x), pack(noise)
        predicted = self.parts["transformer"](
            hidden_states=(1 - s) * clean + s * noise,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=positions(x.shape[2], x.shape[3], x.device),
            txt_ids=torch.zeros(t5_ids.shape[1], 3, device=x.device),
        ).sample
        return (predicted.float() - velocity).square().mean(dim=(1, 2)) + own


def draw_sigmas(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise shares: logit-normal as FLUX's own training draws them, evenly spread; one in eight uniform."""
    from statistics import NormalDist

    even = rng.permutation((np.arange(size) + rng.random(size)) / size)
    normal = np.array([NormalDist().inv_cdf(min(max(u, 1e-6), 1 - 1e-6)) for u in even])
    s = 1 / (1 + np.exp(-normal))
    s = SHIFT * s / (1 + (SHIFT - 1) * s)
    return np.where(rng.random(size) < 0.125, rng.random(size), s).astype(np.float32)


def draw_batch(data: tuple[np.ndarray, ...], rng: np.random.Generator, size: int) -> dict[str, Any]:
    """A random batch of (latents, CLIP ids, T5 ids, named attributes), sometimes cut to an upright or wide shape.

    Seven batches of ten hold captions of about one length and are padded to it only, since padding costs time.
    """
    import torch

    latents, tokens, t5_tokens, named = data
    short = rng.random() < 0.7
    candidates = rng.integers(0, len(latents), size * 4 if short else size)
    variants = rng.integers(0, tokens.shape[1], len(candidates))
    used = (t5_tokens[candidates, variants] != 0).sum(axis=1)
    if short:
        chosen = np.argsort(used, kind="stable").reshape(4, size)[rng.integers(4)]
        candidates, variants, used = candidates[chosen], variants[chosen], used[chosen]
    ids, t5_ids = tokens[candidates, variants], t5_tokens[candidates, variants]
    length = -int(-used.max() // 8) * 8 if short else SEQUENCE
    clip_length = min(MAX_LENGTH, int((ids != ids[0, -1]).sum(axis=1).max()) + 2)
    x = torch.from_numpy(np.asarray(latents[candidates], dtype=np.float32))
    shape, cut = rng.random(), 2 * int(rng.integers(0, 3))
    if shape < 0.06:
        x = x[..., 2:14]
    elif shape < 0.10:
        x = x[:, :, cut : cut + 12]
    return {
        "x": x,
        "ids": torch.from_numpy(ids[:, :clip_length].astype(np.int64)),
        "t5_ids": torch.from_numpy(t5_ids[:, :length].astype(np.int64)),
        "sigma": torch.from_numpy(draw_sigmas(rng, size)),
        "noise": torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)),
        "dice": torch.from_numpy(rng.random(size)),
        "named": torch.from_numpy(named[candidates, variants].astype(np.int64)),
    }


def optimizers(base: FluxBase, muon: bool = True) -> list[Any]:
    """Muon for the transformer's inner matrices, AdamW for everything else; each group knows its `peak` rate."""
    import torch

    matrices: list[Any] = []
    if muon:
        blocks = ("transformer_blocks", "single_transformer_blocks")
        matrices = [
            p
            for name, p in base.parts["transformer"].named_parameters()
            if name.startswith(blocks) and p.ndim == 2 and "norm" not in name
        ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in base.parts.parameters() if id(p) not in chosen]
    made: list[Any] = [
        torch.optim.AdamW(
            [{"params": rest, "peak": LEARNING_RATE}],
            lr=LEARNING_RATE,
            betas=(0.9, 0.99),
            weight_decay=1e-3,
            fused=True,
        )
    ]
    if matrices:
        groups = [{"params": matrices, "peak": MATRIX_RATE}]
        made.append(torch.optim.Muon(groups, lr=MATRIX_RATE, weight_decay=1e-2, momentum=0.95))
    return made


def prepare(work: Path, pictures: int, device: str = "cpu") -> tuple[Any, Any, Any, Any]:
    """Tokenizers, then the data of `draw_batch` for training and of held-out pictures; made once, kept in `work`."""
    from factory.train import unet

    tokenizer, latents, tokens, (held, held_tokens) = unet.prepare(work, pictures, device)
    t5_tokenizer = build_t5_tokenizer()
    t5 = cache_t5_tokens(work, t5_tokenizer, pictures)
    held_t5 = cache_t5_tokens(work, t5_tokenizer, len(held), HELD_OUT, "t5-tokens-held-out")
    named = cache_named(work, pictures)
    unnamed = np.full((*held_t5.shape[:2], len(HEADS)), -1, dtype=np.int8)
    return tokenizer, t5_tokenizer, (latents, tokens, t5, named), (held, held_tokens, held_t5, unnamed)


def train(
    training: Training,
    *,
    batch: int = 16,
    muon: bool = True,
    teacher: Any = None,
    team: Team | None = None,
    on_minute: Callable[[FluxBase, Budget], None] | None = None,
) -> FluxBase:
    """Train (or go on training) transformer and text encoders in `training.work`, which holds a trained `vae`.

    From nothing, the text encoders are taught first. The `teacher` is an SDXL-class pipeline of the same latents
    (see `flux_teacher`). Returns the EMA weights. Team, batches and `on_minute` are
    as in `unet.train`.
    """
    import torch

    budget = training.budget
    team = team or Team()
    tokenizer, t5_tokenizer, data, test = prepare(training.work, training.pictures, training.device)
    torch.manual_seed(training.seed)
    base = FluxBase(tokenizer, t5_tokenizer, data[0].shape[1])
    base.parts.to(training.device)
    base.teacher = Teacher(teacher, training.device) if teacher else None
    state = load_checkpoint(training.work / "flux.pt", budget)
    if not state:
        lessons = TEACHING_STEPS if budget.steps is None else min(TEACHING_STEPS, budget.steps)
        teach(base.parts, lambda rng: draw_batch(data, rng, 4 * batch), lessons, training.seed, training.log)
    steppers, ema = optimizers(base, muon), Ema(base.parts)
    if state:
        base.parts.load_state_dict(state["model"])
        for optimizer, saved_state in zip(steppers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        ema.state = {k: v.to(training.device) for k, v in state["ema"].items()}
    tuner, saved = Tuner(training.device, fixed=(1, True) if team.size > 1 else None), budget.seconds
    first, fraction, begun, losses = (budget.step, saved), 0.0, budget.step, list[float]()
    while True:
        if (budget.step - begun) % (MEET_EVERY if team.size > 1 else 1) == 0:
            team.average(base.parts.parameters())
            fraction = team.agree(budget.fraction)
            if fraction >= 1:
                break
        for group in (g for optimizer in steppers for g in optimizer.param_groups):
            group["lr"] = learning_rate(group["peak"], budget.step, fraction)
        rng = np.random.default_rng((training.seed, budget.step, team.rank))
        sample = {k: v.to(training.device) for k, v in draw_batch(data, rng, batch).items()}
        with tuner.step():
            losses.append(_step(base, steppers, sample))
        budget.step += 1
        if team.rank == 0:
            ema.update(base.parts, budget.step)
        if team.rank == 0 and budget.seconds - saved > 60:
            saved = budget.seconds
            save_checkpoint(
                training.work / "flux.pt",
                budget,
                model=base.parts.state_dict(),
                optimizers=[optimizer.state_dict() for optimizer in steppers],
                ema=ema.state,
            )
            speed = 1000 * (saved - first[1]) / max(1, budget.step - first[0]) / batch / team.size
            training.log(
                f"flux step {budget.step} loss {np.mean(losses[-100:]):.4f} {speed:.1f} ms/sample {tuner} "
                f"eta {budget.eta / 60:.1f} min"
            )
            if on_minute:
                on_minute(averaged(base, ema), budget)
    final = averaged(base, ema)
    if team.rank == 0:
        _finish(training, final, test, batch * team.size, taught=teacher is not None)
    return final


def _finish(training: Training, final: FluxBase, test: Any, batch: int, *, taught: bool) -> None:
    """Note how well the averaged base does on what it has not seen."""
    budget, error = training.budget, held_out_loss(final, test)
    note_figures(
        training.work,
        flux={
            "held_out_velocity_mse": round(error, 4),
            "steps": budget.step,
            "batch": batch,
            "minutes": round(budget.seconds / 60, 1),
            "width": ATTENTION_HEADS * HEAD_WIDTH,
            "layers": [DOUBLE, SINGLE],
            "taught": taught,
        },
    )
    training.log(f"flux done: held-out velocity MSE {error:.4f}, {budget.step} steps")


def _step(base: FluxBase, steppers: list[Any], sample: dict[str, Any]) -> float:
    """One step of every optimizer. Plain attention: on a CPU its backward is faster than the fused kernel's here."""
    import contextlib

    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH) if sample["x"].device.type == "cpu" else contextlib.nullcontext():
        loss = base.loss(**sample).mean()
        for optimizer in steppers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(base.parts.parameters(), 1.0)
    for optimizer in steppers:
        optimizer.step()
    return loss.item()


def averaged(base: FluxBase, ema: Ema) -> FluxBase:
    """A copy of `base` with the averaged weights, on the CPU, for inference."""
    transformer: Any = base.parts["transformer"]
    copy = FluxBase(base.tokenizer, base.t5_tokenizer, transformer.config.in_channels // 4)
    copy.parts.load_state_dict({k: v.cpu() for k, v in ema.state.items()})
    copy.parts.eval().requires_grad_(False)
    return copy


def held_out_loss(base: FluxBase, data: tuple[np.ndarray, ...]) -> float:
    """Mean velocity MSE on held-out pictures, same noise shares and noise each time."""
    import torch

    rng, values = np.random.default_rng(123), []
    with torch.inference_mode():
        for _ in range(max(1, len(data[0]) // 32)):
            sample = draw_batch(data, rng, min(32, len(data[0])))
            sample |= {"dice": torch.full_like(sample["dice"], 0.5), "named": None}
            values.append(base.loss(**sample).mean().item())
    return float(np.mean(values))


def pipeline(base: FluxBase, vae: Any) -> Any:
    """The base as a FluxPipeline (shares the weights)."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    return FluxPipeline(
        vae=vae,
        transformer=base.parts["transformer"],
        text_encoder=base.parts["clip"],
        text_encoder_2=base.parts["t5"],
        tokenizer=base.tokenizer,
        tokenizer_2=base.t5_tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
    )

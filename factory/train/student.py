"""The four-step sibling of the SDXL-class base: its UNet, distilled so that one step goes as far as five guided ones.

The teacher walks from noise to a picture in 20 guided steps; where it stood after every fifth one is kept
(`trajectories`). The student learns to get from each of these places to the next in a single step without guidance:
progressive distillation (Salimans and Ho, 2022) over the teacher's own ways, with the guidance distilled too. It
starts from the teacher's weights and has the same layers, so adapters trained on the teacher fit it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from factory.train.clock import Ema, Tuner, note_figures
from factory.train.course import Course, Training
from factory.train.text import encode
from factory.train.unet import LATENT, SCHEDULER

STEPS = 4
TEACHER_STEPS = 20
GUIDANCE = 4.0
LEARNING_RATE = 2e-4
CHUNK = 32


class Walk:
    """DDIM over the base's noise schedule, v-prediction, in the timesteps that its own scheduler takes."""

    def __init__(self, pipe: Any, steps: int) -> None:
        import torch
        from diffusers import DDPMScheduler

        alphas: torch.Tensor = DDPMScheduler(**SCHEDULER).alphas_cumprod  # type: ignore[attr-defined]
        # As `timestep_spacing: trailing` has them: 999, 949, … for 20 steps; the last one ends at no noise.
        self.timesteps = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
        kept = [float(alphas[t]) for t in self.timesteps] + [1.0]
        self.signal, self.noise = [a**0.5 for a in kept], [(1 - a) ** 0.5 for a in kept]
        self.unet, self.encoders = pipe.unet, (pipe.text_encoder, pipe.text_encoder_2)
        self.steps = steps

    def start(self, noise: Any) -> Any:
        """What a scheduler starts from: noise as strong as at the first timestep, without a picture in it."""
        return noise * self.noise[0]

    def velocity(self, unet: Any, x: Any, step: Any, text: tuple[Any, Any]) -> Any:
        """The prediction of `unet` at steps [n] for latents `x` [n, c, h, w]."""
        import torch

        sequence, pooled = text
        side = float(LATENT * 8)
        sizes = torch.tensor([side, side, 0, 0, side, side], device=x.device).expand(len(x), 6)
        times = torch.tensor(self.timesteps, device=x.device)[step]
        added = {"text_embeds": pooled, "time_ids": sizes}
        return unet(x, times, encoder_hidden_states=sequence, added_cond_kwargs=added).sample.float()

    def guided(self, x: Any, step: int, text: tuple[Any, Any]) -> Any:
        """Where one guided step of the teacher leads."""
        import torch

        sequence, pooled = (torch.cat([torch.zeros_like(part), part]) for part in text)
        steps = torch.full((2 * len(x),), step, device=x.device)
        without, having = self.velocity(self.unet, torch.cat([x, x]), steps, (sequence, pooled)).chunk(2)
        return self.moved(x, without + GUIDANCE * (having - without), step)

    def moved(self, x: Any, v: Any, step: int) -> Any:
        """Where velocity `v` leads in one step."""
        a, s = self.signal[step], self.noise[step]
        return self.signal[step + 1] * (a * x - s * v) + self.noise[step + 1] * (s * x + a * v)

    def towards(self, x: Any, there: Any, step: Any) -> Any:
        """The velocity [n, c, h, w] that leads from `x` to `there` in one step, for steps [n]: `moved` undone."""
        import torch

        signal, noise = (torch.tensor(row, device=x.device) for row in (self.signal, self.noise))
        a, s, a_next, s_next = (
            part[:, None, None, None]
            for part in (signal[step], noise[step], signal[step + 1], noise[step + 1])
        )
        return (there - (a_next * a + s_next * s) * x) / (s_next * a - a_next * s)

    def text(self, ids: Any) -> tuple[Any, Any]:
        """Embeddings of token ids [n, l]; the teacher's encoders stay as they are."""
        import torch

        with torch.no_grad():
            return encode(*self.encoders, ids)


def trajectories(
    work: Path, pipe: Any, tokens: np.ndarray, count: int, seed: int = 0, log: Callable[[str], None] = print
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's ways: float16 [count, STEPS + 1, c, 16, 16] and the token ids [count, l] of their captions.

    Kept in `work`; a run that was stopped goes on where it was.
    """
    import torch

    teacher, done = Walk(pipe, TEACHER_STEPS), work / "trajectories.json"
    every, channels = TEACHER_STEPS // STEPS, pipe.unet.config.in_channels
    shape = (count, STEPS + 1, channels, LATENT, LATENT)
    path = work / "trajectories.npy"
    if not path.exists() or np.load(path, mmap_mode="r").shape != shape:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape).flush()
        done.write_text("0")
    rng = np.random.default_rng((seed, 55))
    flat = tokens.reshape(-1, tokens.shape[-1])
    ids = flat[rng.integers(0, len(flat), count)]
    rows = np.load(path, mmap_mode="r+")
    for first in range(json.loads(done.read_text()), count, CHUNK):
        some = torch.from_numpy(ids[first : first + CHUNK].astype(np.int64))
        dice = torch.Generator().manual_seed(seed * 1_000_003 + first)
        noise = torch.randn((len(some), *shape[2:]), generator=dice)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            text, x = teacher.text(some), teacher.start(noise)
            places = [x]
            for step in range(TEACHER_STEPS):
                x = teacher.guided(x, step, text).float()
                if (step + 1) % every == 0:
                    places.append(x)
        rows[first : first + len(some)] = torch.stack(places, dim=1).numpy().astype(np.float16)
        rows.flush()
        done.write_text(str(first + len(some)))
        if first % (16 * CHUNK) == 0:
            log(f"trajectories: {first + len(some)} of {count}")
    return np.load(path, mmap_mode="r"), ids


def loss_of(walk: Walk, unet: Any, x: Any, there: Any, step: Any, text: tuple[Any, Any]) -> Any:
    """Mean square error of the student's velocity at steps [n]; the right one leads to where the teacher went."""
    return (walk.velocity(unet, x, step, text) - walk.towards(x, there, step)).square().mean()


def train(training: Training, pipe: Any, tokens: np.ndarray, *, count: int = 12_000, batch: int = 16) -> Any:
    """Distil `pipe` (on the CPU) in `training.work`; returns a pipeline like it with the student's UNet.

    Args:
        training: Where, how long, and the seed of captions, noise and batches.
        pipe: The trained base; it stays as it is.
        tokens: Token ids of captions [n, variants, l].
        count: Trajectories; a twentieth of them is held out.
        batch: Rows of a step.
    """
    import torch

    ways, ids = trajectories(training.work, pipe, tokens, count, training.seed, training.log)
    walk, known = Walk(pipe, STEPS), max(1, count - count // 20)
    unet = copy.deepcopy(pipe.unet).float().train().requires_grad_(True)
    unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    ema = Ema(unet)
    tuner = Tuner("cpu", fixed=(1, True))
    course = Course(
        name="student",
        training=training,
        module=unet,
        optimizer=optimizer,
        rate=LEARNING_RATE,
        warmup=100,
        hold=0.3,
        ema=ema,
        tuner=tuner,
    )

    def sample(rng: np.random.Generator, rows: np.ndarray) -> tuple[Any, ...]:
        step = rng.integers(0, STEPS, len(rows))
        x, there = (torch.from_numpy(np.asarray(ways[rows, at], dtype=np.float32)) for at in (step, step + 1))
        text = walk.text(torch.from_numpy(ids[rows].astype(np.int64)))
        return x, there, torch.from_numpy(step), text

    for number in course:
        rng = np.random.default_rng((training.seed, 56, number))
        rows = np.sort(rng.integers(0, known, batch))
        with tuner.step():
            course.descend(loss_of(walk, unet, *sample(rng, rows)))
    unet.load_state_dict(ema.state)
    student = copy.copy(pipe)
    student.register_modules(unet=unet.eval().requires_grad_(False))
    rng = np.random.default_rng(57)
    rows = np.arange(known, count) if known < count else np.arange(count)
    with torch.inference_mode():
        error = loss_of(walk, unet, *sample(rng, rows[:200])).item()
    figures = {"held_out_v_mse": round(error, 4), "trajectories": count, **course.figures}
    note_figures(training.work, student=figures)
    training.log(f"student done: {figures}")
    return student

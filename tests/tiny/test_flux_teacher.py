"""The SDXL-class base as a teacher: its v-predictions become velocities, where it is trusted."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from factory.train import flux
from factory.train.flux_teacher import TRUSTED, Teacher
from factory.train.text import build_encoders, build_tokenizer
from factory.train.unet import SCHEDULER, tokenize

KEPT = DDPMScheduler(**SCHEDULER).alphas_cumprod


class Oracle(torch.nn.Module):
    """Knows picture and noise, checks what it is shown, and answers with the exact v of its timestep."""

    def __init__(self, x: torch.Tensor, noise: torch.Tensor) -> None:
        super().__init__()
        self.x, self.noise, self.texts, self.sizes = x, noise, None, None

    def forward(self, seen, timesteps, encoder_hidden_states, added_cond_kwargs):
        self.texts, self.sizes = encoder_hidden_states, added_cond_kwargs["time_ids"]
        kept = torch.from_numpy(np.interp(timesteps.numpy(), np.arange(1000), KEPT.numpy())).float()
        signal, noisy = kept.sqrt()[:, None, None, None], (1 - kept).sqrt()[:, None, None, None]
        assert torch.allclose(seen, signal * self.x + noisy * self.noise, atol=0.01)
        return SimpleNamespace(sample=signal * self.noise - noisy * self.x)


@pytest.fixture
def lesson():
    torch.manual_seed(0)
    x, noise = torch.randn(6, 8, 16, 12), torch.randn(6, 8, 16, 12)
    tokenizer = build_tokenizer()
    small, large = build_encoders(tokenizer)
    oracle = Oracle(x, noise)
    teacher = Teacher(SimpleNamespace(unet=oracle, text_encoder=small, text_encoder_2=large))
    ids = torch.from_numpy(tokenize(tokenizer, ["a cat"] * 6).astype(np.int64))
    return teacher, oracle, x, noise, ids


def test_a_perfect_teacher_gives_noise_minus_picture(lesson):
    teacher, oracle, x, noise, ids = lesson
    sigma = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.85, 0.93])
    keep = torch.tensor([1.0, 1, 1, 1, 1, 0])
    assert torch.allclose(teacher.velocity(x, noise, sigma, ids, keep), noise - x, atol=0.03)
    assert oracle.sizes.tolist() == [[128, 96, 0, 0, 128, 96]] * 6
    assert oracle.texts[0].abs().sum() > 0
    assert oracle.texts[5].abs().sum() == 0


def test_noisier_than_it_ever_saw_counts_as_its_last_timestep(lesson):
    teacher, *_ = lesson
    found = teacher.timesteps(torch.tensor([0.0, 0.5, 0.95, 1.0]))
    assert found[0] == 0
    assert pytest.approx(KEPT[round(float(found[1]))].item(), abs=0.003) == 0.5
    assert found[2] == found[3] == 999


def test_the_teacher_has_its_say_at_high_noise_only(lesson):
    teacher, _, x, noise, ids = lesson
    low, high = TRUSTED
    sigma = torch.tensor([0.1, low, (low + high) / 2, high, 0.8, 1.0])
    asked = []

    def velocity(x, noise, sigma, ids, keep):
        asked.append(len(x))
        return torch.zeros_like(x)

    teacher.velocity = velocity
    target, own = teacher.target(x, noise, sigma, ids, torch.ones(6)), noise - x
    assert asked == [4]
    assert torch.equal(target[:2], own[:2])
    assert torch.allclose(target[2], own[2] / 2, atol=1e-5)
    assert target[3:].abs().max() == 0


def test_the_base_learns_the_teachers_target(lesson):
    teacher, _, x, noise, ids = lesson
    base = flux.FluxBase(build_tokenizer(), flux.build_t5_tokenizer())
    sample = {"x": x, "ids": ids, "t5_ids": base.t5_empty.expand(6, -1), "sigma": torch.full((6,), 0.8)}
    sample |= {"noise": noise, "dice": torch.full((6,), 0.5)}
    teacher.velocity = lambda x, *_: torch.full_like(x, 3.0)
    base.teacher = teacher
    with torch.inference_mode():
        assert torch.allclose(base.loss(**sample), torch.full((6,), 9.0), rtol=1e-4)

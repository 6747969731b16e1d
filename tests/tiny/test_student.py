"""Distilling the base to four steps: the walk is the stock sampler's, targets lead where the teacher went."""

from __future__ import annotations

import numpy as np
import pytest

from factory.train import student, unet, vae
from factory.train.clock import Budget
from factory.train.course import Training
from factory.train.text import build_tokenizer


@pytest.fixture(scope="module")
def pipe():
    import torch

    torch.manual_seed(0)
    base = unet.Base(build_tokenizer(), 8, (32, 32, 32))
    base.parts.eval().requires_grad_(False)
    return unet.pipeline(base, vae.build((4, 4, 8, 8)).eval())


@pytest.fixture(scope="module")
def tokens(pipe):
    texts = ["a photo of a red mug", "a black dog in the snow"]
    return unet.tokenize(pipe.tokenizer, texts)[:, None, :32]


def test_the_walk_is_what_the_stock_pipeline_samples(pipe, tokens):
    import torch

    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    stock = pipe(
        "a photo of a red mug",
        num_inference_steps=5,
        guidance_scale=student.GUIDANCE,
        latents=noise.clone(),
        output_type="latent",
        height=128,
        width=128,
    ).images
    walk = student.Walk(pipe, 5)
    ids = unet.tokenize(pipe.tokenizer, ["a photo of a red mug"]).astype(np.int64)
    with torch.inference_mode():
        x, text = walk.start(noise), walk.text(torch.from_numpy(ids))
        for step in range(5):
            x = walk.guided(x, step, text)
    torch.testing.assert_close(x, stock, rtol=1e-3, atol=2e-3)


def test_the_target_leads_where_the_teacher_went(pipe):
    import torch

    walk = student.Walk(pipe, 4)
    x, v = torch.randn(2, 4, 8, 16, 16)
    there = torch.stack([walk.moved(x[i : i + 1], v[i : i + 1], i)[0] for i in range(4)])
    torch.testing.assert_close(walk.towards(x, there, torch.arange(4)), v, rtol=1e-3, atol=1e-3)


def test_steps_of_teacher_and_student_meet(pipe):
    fine, coarse = student.Walk(pipe, student.TEACHER_STEPS), student.Walk(pipe, student.STEPS)
    assert coarse.timesteps == [999, 749, 499, 249]
    every = student.TEACHER_STEPS // student.STEPS
    assert coarse.timesteps == fine.timesteps[::every] and coarse.signal == fine.signal[::every]


def test_it_learns_the_way_and_goes_on_where_it_stopped(pipe, tokens, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(student, "CHUNK", 2)
    told: list[str] = []
    ways, ids = student.trajectories(tmp_path, pipe, tokens, 4)
    assert (
        ways.shape == (4, 5, 8, 16, 16)
        and ids.shape == (4, 32)
        and np.abs(ways).min(axis=(1, 2, 3, 4)).max() < 9
    )
    before = np.array(ways)
    (tmp_path / "trajectories.json").write_text("2")  # as if it had been stopped
    np.load(tmp_path / "trajectories.npy", mmap_mode="r+")[2:] = 0
    again, _ = student.trajectories(tmp_path, pipe, tokens, 4)
    assert np.array_equal(again, before)

    training = Training(work=tmp_path, budget=Budget(steps=3), log=told.append)
    made = student.train(training, pipe, tokens, count=4, batch=4)
    assert "student done" in told[-1]
    old, new = pipe.unet.state_dict(), made.unet.state_dict()
    assert old.keys() == new.keys() and any(not torch.equal(old[k], new[k]) for k in old)
    assert made.text_encoder is pipe.text_encoder and pipe.unet is not made.unet

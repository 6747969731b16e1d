"""A course goes on from its checkpoint as if it had never stopped."""

from __future__ import annotations

import pytest
import torch

from factory.train import course as courses
from factory.train.clock import Budget, Ema
from factory.train.course import Course, Training


def walk(work, steps, until):
    """Fit a line for `steps` steps, cut off during step `until`; weights, their average and the lines said."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1)
    said: list[str] = []
    course = Course(
        name="line",
        training=Training(work=work, budget=Budget(steps=steps), log=said.append),
        module=net,
        optimizer=torch.optim.AdamW(net.parameters()),
        rate=0.1,
        warmup=2,
        ema=Ema(net),
        remark=lambda: "straight",
    )
    for step in course:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        course.descend((net(x) - x.sum(1, keepdim=True)).square().mean())
        if step + 1 == until:
            break
    assert course.ema is not None
    return net.weight.detach().clone(), course.ema.state["weight"], said


@pytest.fixture(autouse=True)
def checkpoint_after_every_step(monkeypatch):
    monkeypatch.setattr(courses, "SECONDS_BETWEEN_CHECKPOINTS", -1)


def test_a_course_that_was_stopped_ends_where_an_uninterrupted_one_does(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, average, _ = walk(tmp_path / "whole", 12, until=None)
    early, _, _ = walk(tmp_path / "parts", 12, until=7)
    late, later_average, said = walk(tmp_path / "parts", 12, until=None)

    assert not torch.equal(early, whole)
    torch.testing.assert_close(late, whole, rtol=0, atol=0)
    torch.testing.assert_close(later_average, average, rtol=0, atol=0)
    # The step that was cut off had not been saved: it is done again.
    assert said[0].startswith("line step 7 loss") and "straight" in said[0]
    assert len(said) == 6

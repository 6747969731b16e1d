"""What is used of torch and accelerate without their promise: if one of these fails, look at `torch_private.py`."""

from __future__ import annotations

import accelerate
import torch
from accelerate.hooks import CpuOffload, add_hook_to_module
from torch import nn

from tunes_dagster.training.torch_private import shared


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).requires_grad_(False).eval()


def test_a_twin_has_the_numbers_and_not_the_modules_of_its_original():
    own = network()
    before = set(vars(own[0]))
    twin = shared(own)
    assert before == set(vars(twin[0])), f"torch {torch.__version__} keeps a module's state elsewhere"
    assert all(one is not other for one, other in zip(own.modules(), twin.modules(), strict=True))
    assert [t.data_ptr() for t in own.state_dict().values()] == [
        t.data_ptr() for t in twin.state_dict().values()
    ]
    rows = torch.randn(5, 3)
    assert torch.equal(own(rows), twin(rows))
    twin[0] = nn.Linear(3, 4)
    twin[2].register_forward_hook(lambda *_: torch.zeros(1))
    twin[1].running_mean = torch.ones(4)
    again = own(rows)
    assert again.shape == (5, 2) and not own[1].running_mean.any(), (
        "what is done to a twin changes its original"
    )


def test_a_twin_may_move_with_its_original():
    own = network()
    twin = shared(own, same_parameters=True)
    assert all(one is other for one, other in zip(own.parameters(), twin.parameters(), strict=True))


def test_a_twin_has_no_hook_of_accelerate():
    own = network()
    plain = set(vars(shared(own)))
    add_hook_to_module(own, CpuOffload("cpu"))
    left = set(vars(shared(own))) - plain
    assert not left, f"accelerate {accelerate.__version__} leaves more on a module now: {left}"
    assert "forward" in vars(own) and "forward" not in vars(shared(own))

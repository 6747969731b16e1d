"""The same recipe on the same device gives the same weights: also on a GPU, whose fastest kernels do not see to that.

Convolutions and fused attention add up gradients in whatever order their blocks finish unless they are told not to.
A CPU needs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Have a GPU compute the same numbers each time for the while, wherever a kernel exists that does.

    An operation without one warns and computes as usual. Fresh memory is left unfilled: nothing reads it.
    """
    if device.type != "cuda":
        yield
        return
    # Read when cuBLAS is first used; without it torch warns of products on several streams, which we have not.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    asked = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked[0], warn_only=asked[1])
        memory.fill_uninitialized_memory = filled

"""Training by a few processes of one thread each, which average their weights every few steps (local SGD).

On cores that other work shares, processes that seldom meet lose little to a partner that is held up; two threads
that meet in every operation lose most of the time, and averaging gradients at every step still loses half.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any


class Team:
    """The processes that train together; a team of one does nothing special."""

    def __init__(self, rank: int = 0, size: int = 1, meeting_point: Path | None = None) -> None:
        self.rank, self.size = rank, size
        if size > 1:
            import torch.distributed as dist

            dist.init_process_group(
                "gloo",
                init_method=f"file://{meeting_point}",
                rank=rank,
                world_size=size,
                timeout=timedelta(hours=1),
            )

    def agree(self, value: float) -> float:
        """Rank 0's value, everywhere."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        box = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(box, 0)
        return float(box)

    def average(self, parameters: Iterable[Any]) -> None:
        """Replace every parameter by the mean over the team."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            tensors = [p.detach() for p in parameters]
            flat = torch.cat([t.reshape(-1) for t in tensors])
            dist.all_reduce(flat)
            flat /= self.size
            for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(piece.view(tensor.shape))


def together(size: int, work: Path, job: Callable[[Team], Any]) -> Any:
    """Run `job(team)` in `size` processes (the others are forked from this one); the result of rank 0."""
    if size == 1:
        return job(Team())
    import multiprocessing

    meeting_point = (work / f"team-{uuid.uuid4().hex}").resolve()
    context = multiprocessing.get_context("fork")
    helpers = [
        context.Process(target=_help, args=(rank, size, meeting_point, job), daemon=True)
        for rank in range(1, size)
    ]
    for helper in helpers:
        helper.start()
    result = job(Team(0, size, meeting_point))
    for helper in helpers:
        helper.join()
    return result


def _help(rank: int, size: int, meeting_point: Path, job: Callable[[Team], Any]) -> None:
    job(Team(rank, size, meeting_point))

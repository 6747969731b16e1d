"""Which pictures a tune sees at which step, and every random number of that step.

All of it is a function of (seed, step): nothing is carried along, so a resumed tune continues exactly and a
tune in a cohort sees what it would see alone. Numbers are drawn on the CPU, the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# What a stream of random numbers is for; part of its seed, so that streams never share numbers.
ORDER, NOISE, INITIAL, PRIOR = 1, 2, 3, 4


def generator(seed: int, stream: int, index: int = 0) -> torch.Generator:
    """Return the CPU generator of one stream at one index (step or epoch) of one seed."""
    # Distinct odd multipliers spread neighbouring seeds, steps and streams over the 64 bits of the seed.
    mixed = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + index * 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(mixed)


class BucketOrder:
    """Batches in which all pictures share a bucket and every picture is seen equally often, or as its repeats say.

    Each bucket's pictures follow one another in shuffled passes that are cut into batches; after the smallest
    number of passes whose batches come out even in every bucket, a new round begins.
    """

    def __init__(
        self,
        buckets: Sequence[tuple[int, int]],
        batch_size: int,
        seed: int,
        repeats: Sequence[int] | None = None,
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        self._members: dict[tuple[int, int], list[int]] = {}
        for i, bucket in enumerate(buckets):
            self._members.setdefault(bucket, []).extend([i] * (repeats[i] if repeats else 1))
        sizes = [len(members) for members in self._members.values()]
        self.passes = math.lcm(*(batch_size // math.gcd(n, batch_size) for n in sizes))
        self.batches = sum(sizes) * self.passes // batch_size
        self._round = lru_cache(maxsize=2)(self._make_round)

    def batch(self, step: int) -> list[int]:
        """Return the indices of the pictures of a step."""
        return self._round(step // self.batches)[step % self.batches]

    def _make_round(self, number: int) -> list[list[int]]:
        source = generator(self.seed, ORDER, number)
        queues: list[list[list[int]]] = []
        for members in self._members.values():
            stream: list[int] = []
            for _ in range(self.passes):
                shuffled = torch.randperm(len(members), generator=source).tolist()
                stream += [members[i] for i in shuffled]
            queues.append([stream[i : i + self.batch_size] for i in range(0, len(stream), self.batch_size)])
        owners = [q for q, queue in enumerate(queues) for _ in queue]
        turns = [owners[i] for i in torch.randperm(len(owners), generator=source).tolist()]
        iterators = [iter(queue) for queue in queues]
        return [next(iterators[turn]) for turn in turns]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one step of one tune; rows are pictures.

    Attributes:
        noise: Standard normal, [rows, c, h, w].
        posterior: Standard normal, the sample of the VAE's posterior.
        uniform: In 0…1 per row, one in each of `rows` equal parts: the timesteps of a step are spread out,
            which lowers the variance of its gradient and leaves each row's distribution uniform.
        dropped: Whether the row's caption is replaced by the empty one.
        prior: Positions in the prior set.
    """

    noise: Tensor
    posterior: Tensor
    uniform: Tensor
    dropped: Tensor
    prior: Tensor


def draw(
    seed: int, step: int, rows: int, shape: Sequence[int], dropout: float, prior_rows: int, prior_size: int
) -> Draws:
    """Return the random numbers of a step."""
    source = generator(seed, NOISE, step)
    both = torch.randn(2, rows, *shape, generator=source)
    jitter = torch.rand(rows, generator=source)
    strata = torch.randperm(rows, generator=source)
    return Draws(
        noise=both[0],
        posterior=both[1],
        uniform=(strata + jitter) / rows,
        dropped=torch.rand(rows, generator=source) < dropout,
        prior=torch.randint(prior_size, (prior_rows,), generator=source) if prior_rows else strata[:0],
    )

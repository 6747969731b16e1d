"""What a session keeps does not grow with what it has done."""

from __future__ import annotations

import gc

import psutil
import pytest

from tests.support.sessions import Workshop

ROUNDS, PIECES = 30, 100
# Caches of torch and of SQLAlchemy fill in the first rounds.
WARM = 8
GREW_MB = 24.0


@pytest.mark.proof
@pytest.mark.timeout(0)
def test_thousands_of_pictures_and_some_tunes_leave_the_memory_as_it_was(workshop: Workshop):
    session, sizes = workshop.session(), []
    for number in range(ROUNDS):
        for seed in range(PIECES):
            workshop.prompt(number * PIECES + seed + 1, steps=1)
        if number % 5 == 0:
            workshop.prepared(f"mug {number}", steps=2)
        session.run(until_idle=True)
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss / 2**20)
    print([round(size) for size in sizes])
    first, last = sizes[WARM : WARM + 6], sizes[-6:]
    assert min(last) - min(first) < GREW_MB, sizes

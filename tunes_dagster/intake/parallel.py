"""Runs one function over many items a few at a time, for work that waits on the network or the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def completed(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result as it ends; at most `2 * workers` items are under way or waiting.

    An exception of `function` is raised here; items not yet started are then dropped.
    """
    queue = iter(items)
    pending: dict[Future[Result], Item] = {}
    with ThreadPoolExecutor(workers, thread_name_prefix="intake") as pool:
        try:
            while True:
                while len(pending) < 2 * workers:
                    try:
                        item = next(queue)
                    except StopIteration:
                        break
                    pending[pool.submit(function, item)] = item
                if not pending:
                    return
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield pending.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

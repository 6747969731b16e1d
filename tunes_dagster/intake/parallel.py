"""Runs one function over many items a few at a time, for work that waits on the network or the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

TICK_SECONDS = 0.5


def completed(
    function: Callable[[Item, threading.Event], Result],
    items: Iterable[Item],
    workers: int,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result as it ends; at most `2 * workers` items are under way or waiting.

    An exception of `function` is raised here. Whenever this generator ends early, by that, by `tick` or by being
    closed, items not yet started are dropped and the others are told to stop.

    Args:
        function: Takes an item and an event; returns soon after the event is set.
        items: What to work on; read lazily.
        workers: Items at a time.
        tick: Called at least every half second while waiting; may raise.
    """
    queue = iter(items)
    pending: dict[Future[Result], Item] = {}
    stop = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="intake")
    try:
        while True:
            while len(pending) < 2 * workers:
                try:
                    item = next(queue)
                except StopIteration:
                    break
                pending[pool.submit(function, item, stop)] = item
            if not pending:
                return
            done, _ = wait(pending, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
            tick()
            for future in done:
                yield pending.pop(future), future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)

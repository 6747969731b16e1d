"""Work that callers wait for and that takes seconds of a core: a few pieces at a time, the accounts in turns.

Whoever waits here keeps no thread of the server, so that everybody else is answered meanwhile, and an account that
asks for a hundred pieces waits for its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tunes_dagster.gateway.problems import HttpProblem

Result = TypeVar("Result")

# Clients that look at a person's pictures send 4-20 at once.
_MOST_OF_ONE = 100


class Turns:
    """The queue.

    Args:
        at_a_time: Pieces.
    """

    def __init__(self, at_a_time: int) -> None:
        self._workers = ThreadPoolExecutor(at_a_time, "in-turns")
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = OrderedDict()

    async def take(self, account: str, work: Callable[[], Result]) -> Result:
        """Do a piece of work when it is its turn, and return what it returns.

        Args:
            account: Whose turn it has to be.
            work: Blocks.

        Raises:
            HttpProblem: 429 when the account has too much waiting.
        """
        future: Future[Result] = Future()
        with self._lock:
            mine = self._waiting.setdefault(account, deque())
            if len(mine) >= _MOST_OF_ONE:
                said = "Too many pictures of this account are waiting; try again in a few seconds"
                raise HttpProblem(429, said, headers={"Retry-After": "5"}, code="busy")
            mine.append((future, work))
        self._workers.submit(self._next)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let go of what waits."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        """Do one piece of the account whose turn it is."""
        with self._lock:
            account, mine = self._waiting.popitem(last=False)
            future, work = mine.popleft()
            if mine:
                self._waiting[account] = mine  # behind the others
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

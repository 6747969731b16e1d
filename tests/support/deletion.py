"""Deletions whose driver dies on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tunes_dagster.service.erase import _Driven


@contextmanager
def dying_in(dies_in: str) -> Iterator[None]:
    """Have whoever drives a deletion die once a step has removed what it removes, and before that is recorded."""
    whole = _Driven.do

    def dying(self: _Driven, step: str, done: object) -> object:
        found = whole(self, step, done)  # type: ignore[arg-type]
        if step == dies_in:
            raise KeyboardInterrupt
        return found

    with pytest.MonkeyPatch.context() as death, pytest.raises(KeyboardInterrupt):
        death.setattr(_Driven, "do", dying)
        yield

"""What the headers of a base's safetensors files say, read without torch and before anything is loaded."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from tunes_dagster.families.originals import Shape

# The format's own limit.
_LONGEST_HEADER = 100_000_000


def shapes_in(file: Path) -> dict[str, Shape]:
    """Return the shape of each tensor in a file by its name; nothing for one that is damaged, which loading names."""
    return dict(_shapes(file, file.stat().st_mtime_ns))


@lru_cache(maxsize=64)
def _shapes(file: Path, _changed: int) -> tuple[tuple[str, Shape], ...]:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        # A page of HTML there has a header of exabytes.
        if not 2 <= size <= _LONGEST_HEADER:
            return ()
        try:
            fields = json.loads(opened.read(size))
            fields.pop("__metadata__", None)
            return tuple((name, tuple(map(int, said["shape"]))) for name, said in fields.items())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return ()

"""What is on the disk before anybody is told of it: the one place that asks for that.

A file that was written and renamed may be gone, or empty, after a power loss, until it and the folder that names it
were synced. What a committed row names is synced before the row is written; what can be made again is not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

# Tests turn it off: none of them needs what it wrote after a power loss.
ENABLED = True


def sync_file(file: IO[bytes], path: Path) -> None:
    """Have the content of an open file on the disk; `path` is what it is called by then."""
    file.flush()
    if ENABLED:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk."""
    if not ENABLED:
        return
    number = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(number)
    finally:
        os.close(number)


def make_folder(path: Path, durable: bool) -> None:
    """Make a folder with those above it; durably when what it will hold is."""
    if path.is_dir():
        return
    make_folder(path.parent, durable)
    path.mkdir(exist_ok=True)
    if durable:
        sync_folder(path.parent)

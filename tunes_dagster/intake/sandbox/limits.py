"""How much time and memory a file may take to be opened.

A file earns what it may cost by its size: somebody who sends little can cost little, and a large photo still has
what it needs. A picture of 89 megapixels takes 4 bytes for each of them, which the least allowance just holds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from tunes_dagster.core.settings import Settings

MB = 1024 * 1024

# A 12-megapixel photo of 4 MB takes 0.5 s and 60 MB, a 48-megapixel HEIC of 12 MB 3 s and 400 MB.
_SECONDS_PER_MB = 1.0
_MEMORY_PER_BYTE = 24
_MOST_TIMES = 15.0
_MOST_MEMORY_TIMES = 4
# An archive is bytes that are copied: deflate gives 150 MB a second, bzip2 20.
_ARCHIVE_SECONDS_PER_MB = 2.0
_ARCHIVE_SECONDS = 600.0
# 1 GB is looked through in a second.
_WEIGHTS_SECONDS_PER_MB = 0.05
_ARCHIVE_MEMORY = 256 * MB
# Children compete with everything else on the machine, so the clock is only for those that hang.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Limits:
    """What one child may take.

    Attributes:
        cpu_seconds: Of all its threads together.
        memory_bytes: Beyond what the decoders themselves take.
        wall_seconds: From one answer to the next.
        file_bytes: Length of a file that it may write.
    """

    cpu_seconds: float
    memory_bytes: int
    wall_seconds: float
    file_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return it for the wire."""
        return asdict(self)


def for_picture(size: int, settings: Settings) -> Limits:
    """Return what a picture may cost.

    Args:
        size: Of its file in bytes.
        settings: The operator's.
    """
    most = settings.open_seconds * _MOST_TIMES
    seconds = min(most, settings.open_seconds + _SECONDS_PER_MB * size / MB)
    least = settings.open_memory_mb * MB
    memory = min(least * _MOST_MEMORY_TIMES, least + _MEMORY_PER_BYTE * size)
    return Limits(seconds, memory, _PATIENCE + 2 * seconds, 512 * MB)


def most_memory(settings: Settings) -> int:
    """Return what no file's opening may take more of, in bytes."""
    return max(_ARCHIVE_MEMORY, settings.open_memory_mb * MB * _MOST_MEMORY_TIMES)


def for_archive(size: int, member_bytes: int, settings: Settings) -> Limits:
    """Return what an archive may cost.

    Args:
        size: Of its file in bytes.
        member_bytes: Of its largest member.
        settings: The operator's.
    """
    seconds = min(_ARCHIVE_SECONDS, settings.open_seconds + _ARCHIVE_SECONDS_PER_MB * size / MB)
    return Limits(seconds, _ARCHIVE_MEMORY, _PATIENCE + 2 * seconds, member_bytes + MB)


def for_weights(size: int, settings: Settings) -> Limits:
    """Return what a file of weights may cost: its header becomes objects, its numbers are read piece by piece."""
    seconds = min(_ARCHIVE_SECONDS, settings.open_seconds + _WEIGHTS_SECONDS_PER_MB * size / MB)
    return Limits(seconds, _ARCHIVE_MEMORY, _PATIENCE + 2 * seconds, MB)


def for_table(size: int, settings: Settings) -> Limits:
    """Return what a workbook may cost: cells become objects, so it takes more of both than a picture."""
    pictured = for_picture(size, settings)
    return replace(pictured, cpu_seconds=pictured.cpu_seconds * 5)

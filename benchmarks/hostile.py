"""What opening files of strangers costs: the hostile ones first, then a hundred ordinary photos.

`python -m benchmarks.hostile [FILE …]` prints a line per file: seconds of CPU time, peak of resident memory of the
child that opened it, and what became of it. Without files it takes those of `tests/support/hostile_pictures.py` and
`hostile_archives.py`. Processor time is what is shown throughout: it does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from tests.support.hostile_archives import ARCHIVES, WORKBOOKS
from tests.support.hostile_pictures import PICTURES
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.settings import Settings
from tunes_dagster.intake.archives import ArchiveLimits, archive_kind
from tunes_dagster.intake.pictures import normalise
from tunes_dagster.intake.sandbox.limits import for_archive, for_picture, for_table
from tunes_dagster.intake.sandbox.pool import Child, Ended, Limits, Source, Task, get_pool, scratch

MOST_SECONDS = 5.0
MOST_BYTES = 500_000_000


@dataclass(frozen=True)
class Cost:
    """What became of a file and what it took.

    Attributes:
        said: `read`, or why it was refused.
        ended: How the child ended.
    """

    said: str
    ended: Ended

    @property
    def within(self) -> bool:
        """Whether it took no more than a small file may."""
        return self.ended.cpu_seconds <= MOST_SECONDS and self.ended.peak_bytes <= MOST_BYTES


def cost(name: str, source: Source, op: str = "") -> Cost:
    """Open one file in a child of its own and return what it took.

    Args:
        name: Of the file.
        source: The file, or its content.
        op: `picture`, `archive` or `table`; by the name and content when empty.
    """
    op = op or _operation(name, source)
    arguments = {
        "picture": {"measure": True, "keep": True},
        "archive": {"limits": asdict(ArchiveLimits())},
        "table": {"sheet": None, "rows": 100_000},
    }[op]

    def limits(size: int, settings: Settings) -> Limits:
        if op == "archive":
            return for_archive(size, ArchiveLimits().member_bytes, settings)
        return {"picture": for_picture, "table": for_table}[op](size, settings)

    def refuse(why: str, remedy: str) -> Failure:
        code = {"picture": FailureCode.PICTURE_UNREADABLE, "archive": FailureCode.ARCHIVE_REFUSED}
        return Failure(code.get(op, FailureCode.INVALID_REQUEST), f"{name}: {why}.", remedy)

    said = "read"
    with scratch() as one, scratch() as two:
        outputs = [one, two] if op == "picture" else [one]
        with get_pool().task(op, source, {"name": name, **arguments}, limits, outputs, refuse) as task:
            try:
                for message in task.messages():
                    said = f"refused: {message['unreadable']}" if "unreadable" in message else said
                    if "member" in message:
                        task.go_on()
            except Failure as failure:
                said = f"refused: {failure.message} {failure.detail}".strip()
            return Cost(said, task.end())


def _operation(name: str, source: Source) -> str:
    if name.endswith(".xlsx"):
        return "table"
    head = source[:512] if isinstance(source, bytes) else Path(str(source)).read_bytes()[:512]
    return "archive" if archive_kind(head) else "picture"


def hostile(files: list[Path]) -> Iterator[tuple[str, int, Cost]]:
    """Yield name, size and cost of every hostile file."""
    made = {**PICTURES, **ARCHIVES, **WORKBOOKS}
    given = {file.name: file.read_bytes for file in files}
    for name, make in (given or made).items():
        data = make()
        yield name, len(data), cost(name, data)


def photo(number: int, side: int = 1024) -> bytes:
    """An ordinary photo: soft shapes and noise, as JPEG."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    noisy = np.clip(pixels + rng.integers(-5, 6, pixels.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def ordinary(number: int = 100) -> tuple[float, float]:
    """Return milliseconds of processor time per photo, in all processes: decoded by Pillow here, and as we do it."""
    photos = [photo(n) for n in range(number)]
    spent = 0.0
    close = Child.close

    def counted(child: Child) -> None:
        nonlocal spent
        task = Task(child, Limits(1, 1, 60, 1), lambda why, _: Failure(FailureCode.INTERNAL, why))
        spent += task.end().cpu_seconds
        close(child)

    def by_ourselves() -> None:
        for data in photos:
            with Image.open(io.BytesIO(data)) as opened:
                opened.load()

    def by_children() -> None:
        with get_pool().session() as among:
            for data in photos:
                normalise(data, "photo.jpg", among)

    normalise(photos[0])
    mine, nursery = psutil.Process(), psutil.Process(get_pool().nursery.pid)
    Child.close = counted  # type: ignore[method-assign]
    found = []
    for work in (by_ourselves, by_children):
        spent = -sum(mine.cpu_times()[:2]) - sum(nursery.cpu_times()[:2])
        work()
        found.append((spent + sum(mine.cpu_times()[:2]) + sum(nursery.cpu_times()[:2])) / number * 1000)
    Child.close = close  # type: ignore[method-assign]
    return found[0], found[1]


def main() -> None:
    """Print the figures; ends with status 1 when a file took more than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    chosen = parser.parse_args()
    over = []
    for name, size, taken in hostile(chosen.files):
        ended = taken.ended
        print(
            f"{name:34} {size / 1024:8.0f} KB {ended.cpu_seconds:5.2f} s {ended.peak_bytes / 1e6:5.0f} MB  "
            f"{taken.said}",
            flush=True,
        )
        over += [name] if not taken.within else []
    if not chosen.files:
        plain, ours = ordinary()
        print(
            f"100 photos of 1 megapixel: {ours:.0f} ms each to open, measure and hash; decoding alone {plain:.0f} ms"
        )
    if over:
        sys.exit(f"{', '.join(over)} took more than {MOST_SECONDS:g} s or {MOST_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

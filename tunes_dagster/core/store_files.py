"""The way to the store's files: whatever a library raises on it is said as one failure, also by a file that is open."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tunes_dagster.core.failures import Failure, FailureCode, as_failure

# What an operation on a file says about the file, and not about the store.
ABOUT_THE_FILE = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
# Libraries between us and an object store; what they raise is about the way to it.
_CARRIERS = {"aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "s3fs", "urllib3"}


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder; what is deleted meanwhile is left out (`Path.rglob` fails on it)."""

    def heed(error: OSError) -> None:
        if not isinstance(error, ABOUT_THE_FILE):
            raise error

    for parent, _folders, names in os.walk(folder, onerror=heed):
        yield from (file for name in names if (file := Path(parent, name)).is_file())


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Translate what keeps us from a file.

    Args:
        place: Of the file, for operators: an error of a write names none.

    Raises:
        Failure: `STORE_UNAVAILABLE`.
    """
    try:
        yield
    except (Failure, *ABOUT_THE_FILE):
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _CARRIERS:
            raise
        unreachable = Failure(
            FailureCode.STORE_UNAVAILABLE,
            "The store cannot be reached.",
            "It is tried again; if it goes on, the operator should check the store's connection, rights and space.",
        )
        failure = as_failure(error, unreachable)
        failure.detail = f"{place}; {failure.detail}"
        raise failure from error


class Reading(io.RawIOBase):
    """An open file whose reads are translated."""

    def __init__(self, file: IO[bytes], place: str) -> None:
        self._file, self._place = file, place

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether a place in it can be chosen."""
        return self._file.seekable()

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; returns how much."""
        with reaching(self._place):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Choose a place; returns it."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()


class Writing(io.RawIOBase):
    """An open file whose writes are translated."""

    def __init__(self, file: IO[bytes], place: str) -> None:
        self._file, self._place = file, place

    def writable(self) -> bool:
        """Whether it can be written: yes."""
        return True

    def seekable(self) -> bool:
        """Whether a place in it can be chosen."""
        return self._file.seekable()

    def write(self, data: Any) -> int:
        """Write all of some bytes; returns how many."""
        with reaching(self._place):
            return self._file.write(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Choose a place; returns it."""
        with reaching(self._place):  # writes what is still held back
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()

    def flush(self) -> None:
        """Write what is still held back."""
        if not self.closed:
            with reaching(self._place):
                self._file.flush()

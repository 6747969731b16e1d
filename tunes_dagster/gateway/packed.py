"""Request bodies that arrive packed by gzip: unpacked in pieces, no faster than they are asked for."""

from __future__ import annotations

import zlib

from tunes_dagster.gateway.problems import HttpProblem

# Names of the one coding that is unpacked (RFC 9110, 8.4.1.3).
GZIP = ("gzip", "x-gzip")
# Most that is unpacked at a time: whoever counts a body sees each piece before there is another.
PIECE = 64 * 1024
_GZIP_ONLY = 16 + zlib.MAX_WBITS
# What a member is given at a time: what is left of that is copied when the member ends.
_PART = 4 * 1024
# Members that hold nothing cost time and count as no bytes.
_MOST_EMPTY = 100


class Unpacking:
    """Unpacks the members of a gzip file (RFC 1952) one after the other.

    Attributes:
        taken: Packed bytes so far.
    """

    def __init__(self) -> None:
        self.taken = 0
        self._packed, self._at = b"", 0
        self._member = zlib.decompressobj(_GZIP_ONLY)
        self._begun = self._full = False  # whether a member is, and whether it holds anything
        self._empty = 0

    def feed(self, packed: bytes) -> None:
        """Take what arrived."""
        self.taken += len(packed)
        self._packed, self._at = self._packed[self._at :] + packed, 0

    def piece(self) -> bytes:
        """Return up to `PIECE` unpacked bytes, none when more has to arrive first.

        Raises:
            HttpProblem: 400 for what is no gzip.
        """
        found = b""
        while not found and (self._at < len(self._packed) or self._begun):
            part = self._packed[self._at : self._at + _PART]
            try:
                found = self._member.decompress(part, PIECE)
            except zlib.error:
                raise _broken("is damaged, or packed otherwise") from None
            self._begun, self._full = True, self._full or bool(found)
            if self._member.eof:
                self._at += len(part) - len(self._member.unused_data)
                self._next()
            else:
                self._at += len(part) - len(self._member.unconsumed_tail)
                if not part and not found:
                    break
        return found

    def _next(self) -> None:
        self._empty += not self._full
        if self._empty > _MOST_EMPTY:
            raise _broken(f"has more than {_MOST_EMPTY} members that hold nothing")
        self._member, self._begun, self._full = zlib.decompressobj(_GZIP_ONLY), False, False

    def end(self) -> None:
        """Make sure that nothing is missing.

        Raises:
            HttpProblem: 400.
        """
        if self._begun:
            raise _broken("ends too early")


def _broken(how: str) -> HttpProblem:
    return HttpProblem(400, f"The body's Content-Encoding is gzip, and it {how}", code="invalid")

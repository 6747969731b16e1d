"""The one id maker: `kind_` plus 20 characters that sort by time of creation.

Nine characters are milliseconds since the epoch in base 32, eleven are 55 random bits: ids made within
one millisecond collide with a probability of about 3e-17 a pair.
"""

from __future__ import annotations

import secrets
import time

# Crockford's alphabet in lower case: no i, l, o, u, so ids survive being read aloud.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

# Kinds of ids that something is told apart by.
WORK = "work"
COHORT = "cohort"
SESSION = "session"


def _base32(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        digits.append(_ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(digits))


def row_number(text: str) -> int | None:
    """Return the integer id that a text is, or None when no row can have it."""
    return int(text) if text.isdecimal() and len(text) <= 10 and int(text) < 2**31 else None


def is_id(text: str, *kinds: str) -> bool:
    """Whether a text is an id of one of some kinds, by how it begins."""
    return text.startswith(tuple(f"{kind}_" for kind in kinds))


def new_id(kind: str) -> str:
    """Return a new id such as `tune_0dn3t5k1gq8w2m4h7v9x`; ids of one kind sort by creation time."""
    return f"{kind}_{_base32(time.time_ns() // 1_000_000, 9)}{_base32(secrets.randbits(55), 11)}"

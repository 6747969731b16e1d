"""How a parent and a child talk: frames of JSON with their length before them.

What comes from a child is treated as if the stranger whose file it opened had written it: JSON of bounded length,
whose fields the reader checks one by one.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

MAX_FRAME = 1 << 20
_LENGTH = struct.Struct(">I")


def pack(message: dict[str, Any]) -> bytes:
    """Return a message as a frame.

    Raises:
        ValueError: When it is too long.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME:
        raise ValueError(f"a message of {len(body)} bytes")
    return _LENGTH.pack(len(body)) + body


def send(to: socket.socket, message: dict[str, Any]) -> None:
    """Send a message."""
    to.sendall(pack(message))


class Frames:
    """Puts the frames of a stream together again."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self._bytes += data

    def next(self) -> dict[str, Any] | None:
        """Return the next whole message, or None.

        Raises:
            ValueError: When what came is no frame.
        """
        if len(self._bytes) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._bytes)
        if length > MAX_FRAME:
            raise ValueError(f"a frame of {length} bytes")
        end = _LENGTH.size + length
        if len(self._bytes) < end:
            return None
        message = json.loads(bytes(self._bytes[_LENGTH.size : end]))
        del self._bytes[:end]
        if not isinstance(message, dict):
            raise ValueError("a frame that is no object")
        return message


def receive(source: socket.socket) -> dict[str, Any] | None:
    """Return one message, waiting for it; None at the end of the stream."""
    frames = Frames()
    while True:
        if (message := frames.next()) is not None:
            return message
        data = source.recv(65536)
        if not data:
            return None
        frames.feed(data)

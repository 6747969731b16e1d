"""Addresses at which an operator sees a file of the store, while it exists: what Dagster keeps in place of pictures.

An address holds the key of the file and an HMAC over it, so that nobody can guess one. It never expires: whoever may
look into Dagster may look at what it shows. Once the file, its tune or its prompt is deleted it leads nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import PurePosixPath
from urllib.parse import quote

PREFIX = "/operator"
# Of the secret in the registry.
NAME = "operator addresses"


def operator_path(secret: bytes, key: str) -> str:
    """Return the path of a file's address."""
    packed = base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")
    return f"{PREFIX}/{_sign(secret, key)}/{packed}/{quote(PurePosixPath(key).name)}"


def opened(secret: bytes, signature: str, packed: str) -> str | None:
    """Return the key that the parts of an address lead to, or None for a forged one."""
    try:
        key = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)).decode()
    except (ValueError, UnicodeDecodeError):
        return None
    return key if hmac.compare_digest(signature.encode(), _sign(secret, key).encode()) else None


def _sign(secret: bytes, key: str) -> str:
    mac = hmac.new(secret, f"operator\n{key}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(mac[:24]).decode().rstrip("=")

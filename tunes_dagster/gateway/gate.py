"""How much of the server one address may hold at a time, and all of them together: connections, and bodies that arrive.

Limits of an account begin with its key; these hold before anybody has shown one.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tunes_dagster.gateway.options import GatewayOptions
from tunes_dagster.gateway.problems import HttpProblem

# Whoever has one IPv6 address has all that begin with the same half of it.
_OWNED_BITS = 64
_RETRY = {"Retry-After": "5"}


def holder(address: str) -> str:
    """Return whom an address stands for: itself, of IPv6 its network, of what is no address the text."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _OWNED_BITS), strict=False))


@dataclass
class Shares:
    """Something of which there is only so much, in all and for each.

    Attributes:
        most: In all.
        most_each: For one holder.
        held: By holder.
    """

    most: float
    most_each: float
    held: Counter[str] = field(default_factory=Counter)
    total: float = 0

    def take(self, who: str, amount: int = 1) -> str:
        """Take an amount; return "" or whose limit that would exceed: `address`, `server`; then nothing is taken."""
        if self.total + amount > self.most:
            return "server"
        if self.held[who] + amount > self.most_each:
            return "address"
        self.total += amount
        self.held[who] += amount
        return ""

    def give_back(self, who: str, amount: int = 1) -> None:
        """Return what was taken."""
        self.total -= amount
        self.held[who] -= amount
        if self.held[who] <= 0:
            del self.held[who]


class Spool:
    """Counts the bodies that are here, from their first byte until their request was answered.

    All of it happens on the server's one event loop, so nothing is locked.
    """

    def __init__(self, options: GatewayOptions) -> None:
        one = options.max_body_mb  # a limit below one body would refuse it for ever
        self.shares = Shares(
            max(options.max_spooled_mb, one) * 2**20, max(options.max_spooled_mb_per_address, one) * 2**20
        )

    def take(self, who: str, amount: int) -> None:
        """Count bytes of a body.

        Raises:
            HttpProblem: 429 when its address, 503 when the server has as much as it may.
        """
        full = self.shares.take(who, amount)
        if full == "address":
            said = "Too much is being sent from your address at a time; send it one after another"
            raise HttpProblem(429, said, headers=_RETRY, code="busy")
        if full:
            raise HttpProblem(503, "Too much is being sent at a time; try again", headers=_RETRY, code="busy")

    def give_back(self, who: str, amount: int) -> None:
        """Forget bytes that are gone."""
        self.shares.give_back(who, amount)


class Proxies:
    """The addresses that speak for others, as uvicorn is told of them."""

    def __init__(self, trusted: str | Iterable[str] | None) -> None:
        words = trusted.split(",") if isinstance(trusted, str) else list(trusted or ())
        self._words = {word.strip() for word in words}
        self._networks = [found for word in self._words if (found := _network(word)) is not None]

    def __contains__(self, address: str) -> bool:
        if "*" in self._words or address in self._words:
            return True
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._networks if network.version == found.version)


def _network(word: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(word, strict=False)
    except ValueError:
        return None

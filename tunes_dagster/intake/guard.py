"""Which network addresses a URL of a caller may lead to, and an HTTP transport that reaches no other.

The check happens where the connection is made: the transport resolves the name, checks every answer, and
connects to the address it has checked, so an answer that changes between check and use changes nothing.
Datasets, pictures and callbacks all go through it. Proxies from the environment are ignored on purpose.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import httpcore
import httpx

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.urls import DEFAULT_PORTS, Url, parse_url
from tunes_dagster.intake.streams import Backend, in_time

Resolver = Callable[[str, int], Sequence[str]]
"""Takes a host name and a port, returns the addresses as text; raises OSError when there are none."""

# Special-purpose networks of the IANA registries, with the word that a refusal uses. The order matters where
# networks overlap: the first match names the reason.
_REFUSED: tuple[tuple[IPv4Network | IPv6Network, str], ...] = tuple(
    (ipaddress.ip_network(network), word)
    for network, word in (
        ("127.0.0.0/8", "loopback"),
        ("::1/128", "loopback"),
        ("169.254.0.0/16", "link-local (cloud metadata)"),
        ("fe80::/10", "link-local"),
        ("100.64.0.0/10", "carrier-grade NAT"),  # holds Alibaba's metadata service, 100.100.100.200
        ("168.63.129.16/32", "cloud metadata"),  # Azure's wire server has a public address
        ("fd00:ec2::/32", "cloud metadata"),  # AWS over IPv6
        ("10.0.0.0/8", "private"),
        ("172.16.0.0/12", "private"),
        ("192.168.0.0/16", "private"),
        ("fc00::/7", "private"),
        ("fec0::/10", "private"),  # site-local, deprecated but still routed in places
        ("0.0.0.0/8", "unspecified"),
        ("::/128", "unspecified"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "reserved"),
        ("192.88.99.0/24", "reserved"),
        ("198.18.0.0/15", "reserved"),
        ("198.51.100.0/24", "reserved"),
        ("203.0.113.0/24", "reserved"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),  # includes the broadcast address
        ("ff00::/8", "multicast"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("100::/64", "reserved"),
        ("2001::/32", "Teredo tunnel"),  # hides an IPv4 address behind an obfuscation
        ("2001:db8::/32", "reserved"),
        ("3fff::/20", "reserved"),
        ("5f00::/16", "reserved"),
    )
)
# Names that mean this machine everywhere (RFC 6761), and as distributions write them into `/etc/hosts`.
_LOCAL = re.compile(r"(?:^|\.)(?:localhost[46]?(?:\.localdomain[46]?)?|ip6-l(?:ocalhost|oopback))$")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")


def _embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that an IPv6 address leads to by mapping, translation or 6to4."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 0xFFFF):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    # ISATAP: the interface identifier ::[02]00:5efe:a.b.c.d
    if (int(address) >> 32) & 0xFDFFFFFF == 0x00005EFE:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def refused_address(text: str) -> str | None:
    """Return why an address may not be reached (`loopback`, `private` …), or None when it may.

    Args:
        text: An IPv4 or IPv6 address; anything else is refused as `not an address`.
    """
    try:
        address: IPv4Address | IPv6Address = ipaddress.ip_address(text.split("%", 1)[0])
    except ValueError:
        return "not an address"
    if isinstance(address, IPv6Address):
        inner = _embedded_ipv4(address)
        if inner is not None:
            return refused_address(str(inner))
    for network, word in _REFUSED:
        if address.version == network.version and address in network:
            return word
    if address.is_multicast:
        return "multicast"
    return None if address.is_global else "reserved"


def resolve(host: str, port: int) -> list[str]:
    """Return every address of a host, in the system's order.

    Raises:
        OSError: When the name does not resolve.
    """
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


class Guard:
    """Decides which hosts may be reached.

    Attributes:
        allow_hosts: Hosts that the operator allows by name (`minio.internal`, or `minio.internal:9000` for
            one port only) although their address is private.
        resolver: Turns a name into addresses; tests put their own here.
    """

    def __init__(self, allow_hosts: Iterable[str] = (), resolver: Resolver | None = None) -> None:
        self.allow_hosts = frozenset(name.strip().lower().rstrip(".") for name in allow_hosts)
        self.resolver = resolver or resolve

    def allowed_by_name(self, host: str, port: int) -> bool:
        """Whether the operator allows the host, or this port of it, by name."""
        name = host.lower().rstrip(".").strip("[]")
        return bool({name, f"{name}:{port}"} & self.allow_hosts)

    def check_url(self, url: str) -> Url:
        """Return the parsed URL when its form allows a request; addresses of names are checked on connecting.

        Raises:
            Failure: `SOURCE_REFUSED`, see `urls.parse_url`; and for hosts that lead inside by what they are called.
        """
        parsed = parse_url(url)
        if self.allowed_by_name(parsed.host, parsed.port):
            return parsed
        try:
            ipaddress.ip_address(parsed.host)
        except ValueError:
            if _LOCAL.search(parsed.host.rstrip(".")):
                self._refuse(parsed.host, "loopback")
            return parsed
        self._check_addresses(parsed.host, [parsed.host])
        return parsed

    def addresses(self, host: str, port: int, seconds: float | None = None) -> list[str]:
        """Resolve a host and return its addresses when every one of them may be reached.

        Raises:
            Failure: `SOURCE_REFUSED` when any address leads inside.
            httpcore.ConnectError: When the name does not resolve.
            httpcore.ConnectTimeout: When it does not within so many seconds.
        """
        try:
            found = list(in_time(lambda: self.resolver(host.strip("[]"), port), seconds))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{host} does not resolve in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} does not resolve: {error}") from error
        if not found:
            raise httpcore.ConnectError(f"{host} does not resolve")
        if not self.allowed_by_name(host, port):
            self._check_addresses(host, found)
        return found

    def _check_addresses(self, host: str, addresses: Iterable[str]) -> None:
        for address in addresses:
            word = refused_address(address)
            if word:
                self._refuse(host, word)

    def _refuse(self, host: str, word: str) -> None:
        raise Failure(
            FailureCode.SOURCE_REFUSED,
            f"The host {host!r} leads to an address that is not public: {word}.",
            f"Use a public address, or let the operator add {host!r} to TUNES_ALLOW_HOSTS.",
        )


class GuardedBackend(httpcore.NetworkBackend):
    """A network backend that connects only to addresses which a `Guard` has seen and let pass."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self._backend: httpcore.NetworkBackend = Backend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        """Resolve, check all, connect to the first checked address that answers."""
        last: Exception | None = None
        for address in self.guard.addresses(host, port, timeout):
            try:
                return self._backend.connect_tcp(
                    address,
                    port,
                    timeout=timeout,
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        assert last is not None
        raise last

    def connect_unix_socket(self, path: str, timeout: Any = None, socket_options: Any = None) -> Any:
        """Refuse: a socket file is always inside."""
        raise Failure(FailureCode.SOURCE_REFUSED, "Socket files are not fetched.", "Use an http(s) URL.")


@lru_cache(maxsize=1)
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)  # reads every authority: a tenth of a second


class GuardedTransport(httpx.HTTPTransport):
    """httpx's transport over a `GuardedBackend`: every connection of a client goes through the guard."""

    def __init__(self, guard: Guard, *, max_connections: int = 32) -> None:
        super().__init__(verify=_ssl_context(), trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=_ssl_context(),
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=10.0,
            network_backend=GuardedBackend(guard),
        )
        self.guard = guard

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Check the form of the URL, then send.

        Raises:
            Failure: `SOURCE_REFUSED`, see `Guard`; and when httpx would go elsewhere than what was checked.
        """
        checked = self.guard.check_url(str(request.url))
        if (checked.host, checked.port) != (_host_of(request.url), _port_of(request.url)):
            raise Failure(
                FailureCode.SOURCE_REFUSED,
                f"The address {checked.shown!r} can be read in two ways.",
                "Use an http(s) URL.",
            )
        return super().handle_request(request)


def _host_of(url: httpx.URL) -> str:
    host = url.raw_host.decode("ascii")
    return str(ipaddress.IPv6Address(host)) if ":" in host else host


def _port_of(url: httpx.URL) -> int:
    return url.port or DEFAULT_PORTS[url.scheme]


def guarded_client(
    guard: Guard, *, timeout: float = 15.0, max_connections: int = 32, user_agent: str = "tunes-dagster"
) -> httpx.Client:
    """Return a client whose every request passes the guard; redirects are not followed by it.

    Args:
        guard: Decides which hosts may be reached.
        timeout: Seconds to connect, and between two reads or writes; the whole is for `streams.Deadline` to bound.
        max_connections: Open connections at most.
        user_agent: Sent with every request.
    """
    return httpx.Client(
        transport=GuardedTransport(guard, max_connections=max_connections),
        timeout=httpx.Timeout(timeout),
        follow_redirects=False,
        trust_env=False,
        headers={"User-Agent": user_agent},
    )

"""The one reader of URLs: what is checked is what is sent, signed and written into logs.

Two parsers that disagree about where a host ends are how a check is passed and then walked around, and how an
address that passed stops whoever reads it next. So nothing else here takes a stranger's address apart. What no client
sends by mistake (whitespace or control characters, brackets and backslashes before the path, a port that is none)
is refused; path and query stay as they were written.
"""

from __future__ import annotations

import ipaddress
import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin

from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    import httpx

# What the servers in front of most receivers take as a request line; presigned addresses have some 2,000.
MAX_LENGTH = 8000
DEFAULT_PORTS = {"http": 80, "https": 443}
_SHOWN_LENGTH = 300

_PARTS = re.compile(
    r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL
)
# As RFC 3986 spells it: of the characters that end a part only the escaped ones.
_USER = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*")
_PORT = re.compile(r"[0-9]{1,5}")
# With the underscore, which names inside of container networks have.
_LABEL = r"(?!-)[a-z0-9_-]{1,63}"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.ASCII)
_DOTTED = re.compile(r"[0-9]+(?:\.[0-9]+){3}", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class Url:
    """An http or https address, taken apart once.

    Attributes:
        text: As it was written.
        scheme: `http` or `https`.
        user: What stood before the `@`, escaped as it was written.
        host: Name in ASCII and lower case, or address without brackets.
        port: Also where it follows from the scheme.
        target: Path and query for the request line, as they were written; spaces and letters outside of ASCII escaped.
    """

    text: str
    scheme: str
    user: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> str:
        """Host and port, which name a server: `example.com:443`."""
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def shown(self) -> str:
        """The address for messages and manifests: without user, password and query, which may be secrets."""
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        path, asked, _query = self.target.partition("?")
        shown = f"{self.scheme}://{_bracketed(self.host)}{port}{path}" + ("?…" if asked else "")
        return shown if len(shown) <= _SHOWN_LENGTH else shown[: _SHOWN_LENGTH - 1] + "…"

    def request(self) -> dict[str, Any]:
        """Return what an httpx request takes to go exactly there: `client.get(**url.request())`."""
        return {"url": self.for_httpx(), "extensions": {"target": self.target.encode("ascii")}}

    def for_httpx(self) -> httpx.URL:
        """Return httpx's own form of it, made of the parts and not read again."""
        import httpx

        return httpx.URL(
            scheme=self.scheme,
            userinfo=self.user.encode("ascii"),
            host=self.host,
            port=self.port,
            raw_path=self.target.encode("ascii"),
        )

    def joined(self, location: str) -> Url:
        """Return where a redirect leads.

        Raises:
            Failure: `SOURCE_REFUSED`, see `parse_url`.
        """
        try:
            return parse_url(urljoin(self.text, location))
        except ValueError:
            raise _refused(location, "is not a URL") from None


def parse_url(text: str) -> Url:
    """Return an address taken apart.

    Raises:
        Failure: `SOURCE_REFUSED`, naming what is wrong with it; that it leads inside is the guard's to see.
    """
    if not isinstance(text, str) or not text:
        raise _refused(str(text), "is not a URL")
    if len(text) > MAX_LENGTH:
        raise _refused(text, f"is longer than {MAX_LENGTH} characters")
    if found := _UNPRINTABLE.search(text):
        raise _refused(text, f"is not a URL: it holds the character {found.group()!a}")
    parts = _PARTS.fullmatch(text)
    scheme, authority, path, query = parts.groups() if parts else (None, None, "", None)
    scheme = (scheme or "").lower()
    if scheme not in DEFAULT_PORTS:
        raise _refused(text, f"has the scheme {scheme!r}; only http and https are fetched")
    user, at, server = (authority or "").rpartition("@")
    if at and _USER.fullmatch(user) is None:
        raise _refused(text, "is not a URL: what stands before its '@' is neither a user nor a password")
    host, port = _server(text, server)
    target = (path or "/") + ("" if query is None else f"?{query}")
    escaped = quote(target, safe=string.punctuation)
    return Url(
        text=text, scheme=scheme, user=user, host=host, port=port or DEFAULT_PORTS[scheme], target=escaped
    )


def show_url(text: str) -> str:
    """Return any text that should be a URL for messages and logs: without what may be secret, whatever it is."""
    try:
        return parse_url(text).shown
    except Failure:
        return _shown_anyhow(text)


def origin_of(text: str) -> str:
    """Return host and port of an address, or "" for what is none."""
    try:
        return parse_url(text).origin
    except Failure:
        return ""


def _server(text: str, server: str) -> tuple[str, int | None]:
    """Return host and port of what stands between `//` and the path."""
    if server.startswith("["):
        inside, bracket, rest = server[1:].partition("]")
        if not bracket or rest[:1] not in ("", ":"):
            raise _refused(text, "is not a URL: its '[' has no ']' behind which a port or path begins")
        try:
            return str(ipaddress.IPv6Address(_without_zone(text, inside))), _port(text, rest)
        except ValueError:
            raise _refused(text, f"is not a URL: {inside[:60]!r} is no IPv6 address") from None
    name, colon, digits = server.partition(":")
    if not name:
        raise _refused(text, "names no host")
    return _host(text, name), _port(text, colon + digits)


def _without_zone(text: str, inside: str) -> str:
    if "%" in inside:
        raise _refused(text, "names an interface of this machine")
    return inside


def _host(text: str, name: str) -> str:
    host = name.lower() if name.isascii() else _in_ascii(text, name)
    plain = host.removesuffix(".")
    if _NAME.fullmatch(plain) is None:
        raise _refused(text, f"is not a URL: {name[:60]!r} cannot be the name of a host")
    if _DOTTED.fullmatch(plain):
        try:
            return str(ipaddress.IPv4Address(plain))
        except ValueError:
            raise _refused(text, f"is not a URL: {name[:60]!r} is no IPv4 address") from None
    return host


def _in_ascii(text: str, name: str) -> str:
    import httpx

    try:
        return httpx.URL(scheme="http", host=name).raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        raise _refused(text, f"is not a URL: {name[:60]!r} cannot be the name of a host") from None


def is_loopback(host: str) -> bool:
    """Whether a host by name or address is this very machine."""
    plain = host.strip("[]").rstrip(".").lower()
    return plain in ("localhost", "::1") or plain.endswith(".localhost") or plain.startswith("127.")


def address_of(host: str, port: int) -> str:
    """Return the address of our own server on a host and port, for people and programs to open."""
    return f"http://{_bracketed(host)}:{port}"


def _port(text: str, rest: str) -> int | None:
    """Return the port of `:8080`; None for nothing."""
    if not rest:
        return None
    digits = rest[1:]
    if _PORT.fullmatch(digits) is None or not 0 < int(digits) < 65_536:
        raise _refused(text, f"is not a URL: {digits[:20]!r} is no port")
    return int(digits)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _shown_anyhow(text: str) -> str:
    """Return what can be shown of a text that is no URL: nothing behind `?` and `#`, nothing before an `@`."""
    plain = "".join(letter if letter.isprintable() else "\ufffd" for letter in str(text)[:MAX_LENGTH])
    plain = re.split(r"[?#]", plain, maxsplit=1)[0]
    before, at, behind = plain.rpartition("@")
    scheme = before.partition("//")
    shown = f"{scheme[0]}{scheme[1]}…@{behind}" if at and scheme[1] else f"…@{behind}" if at else plain
    return shown[:80]


def _refused(text: str, why: str) -> Failure:
    return Failure(
        FailureCode.SOURCE_REFUSED, f"The address {_shown_anyhow(text)!r} {why}.", "Use an http(s) URL."
    )

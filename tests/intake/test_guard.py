from __future__ import annotations

import ipaddress

import httpcore
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.intake.conftest import ScriptedServer
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.urls import show_url
from tunes_dagster.intake.guard import Guard, GuardedBackend, guarded_client, refused_address


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("127.0.0.1", "loopback"),
        ("127.8.9.1", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("fc00::1", "private"),
        ("fdab::1", "private"),
        ("fec0::1", "private"),
        ("169.254.169.254", "link-local (cloud metadata)"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("100.64.0.1", "carrier-grade NAT"),
        ("100.100.100.200", "carrier-grade NAT"),
        ("168.63.129.16", "cloud metadata"),
        ("fd00:ec2::254", "cloud metadata"),
        ("192.0.0.192", "reserved"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.250", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("240.0.0.1", "reserved"),
        ("198.18.0.1", "reserved"),
        ("2001:db8::1", "reserved"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link-local (cloud metadata)"),
        ("::127.0.0.1", "loopback"),
        ("64:ff9b::10.0.0.1", "private"),
        ("64:ff9b:1::1", "local NAT64"),
        ("2002:7f00:1::", "loopback"),
        ("2001:0:1::1", "Teredo tunnel"),
        ("2a00:1450::5efe:10.0.0.1", "private"),
        ("not-an-address", "not an address"),
        ("", "not an address"),
    ],
)
def test_inside_addresses_are_named(address: str, word: str) -> None:
    assert refused_address(address) == word


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
)
def test_public_addresses_pass(address: str) -> None:
    assert refused_address(address) is None


@settings(max_examples=80, deadline=None)
@given(st.ip_addresses(v=4))
def test_hiding_an_ipv4_address_in_ipv6_changes_nothing(address: ipaddress.IPv4Address) -> None:
    plain = refused_address(str(address)) is None
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}", f"2a00:1450::5efe:{address}"):
        assert (refused_address(wrapped) is None) is plain
    if not address.is_global:
        assert not plain


@settings(max_examples=80, deadline=None)
@given(st.ip_addresses(v=6))
def test_no_address_passes_that_python_calls_inside(address: ipaddress.IPv6Address) -> None:
    if refused_address(str(address)) is None and address.sixtofour is None:
        assert address.is_global
        assert not address.is_multicast


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/a",
        "gopher://example.com",
        "javascript:alert(1)",
        "data:,x",
        "http:///nohost",
        "//example.com/a",
        "",
        "http://[::1",
        "http://127.0.0.1/",
        "http://[::ffff:10.0.0.1]/",
        "http://0177.0.0.1/",
    ],
)
def test_urls_that_are_refused_by_their_form(url: str) -> None:
    with pytest.raises(Failure) as caught:
        Guard().check_url(url)
    assert caught.value.code == FailureCode.SOURCE_REFUSED
    assert caught.value.remedy


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "localhost", "LOCALHOST"])
def test_other_spellings_of_loopback_are_refused_on_connecting(host: str) -> None:
    with guarded_client(Guard(), timeout=2) as client, pytest.raises(Failure, match="loopback|unspecified"):
        client.get(f"http://{host}:9/")


def test_one_inside_address_among_public_ones_refuses_all() -> None:
    guard = Guard(resolver=lambda host, port: ["93.184.216.34", "10.0.0.5"])
    with pytest.raises(Failure, match="private"):
        guard.addresses("both.example", 80)


class _Recorder(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self.connected: list[str] = []

    def connect_tcp(self, host: str, *_: object, **__: object) -> httpcore.NetworkStream:
        self.connected.append(host)
        return httpcore.MockStream([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"])


def test_an_answer_of_dns_that_changes_is_checked_where_it_is_used() -> None:
    answers = iter([["93.184.216.34"], ["169.254.169.254"]])
    asked: list[str] = []

    def resolver(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    backend = GuardedBackend(Guard(resolver=resolver))
    backend._backend = recorder = _Recorder()  # type: ignore[assignment]
    client = guarded_client(Guard())
    client._transport._pool = httpcore.ConnectionPool(network_backend=backend)  # type: ignore[attr-defined]
    assert client.get("http://flips.example/").status_code == 200
    with pytest.raises(Failure, match="link-local"):
        client.get("http://flips.example/")
    assert asked == ["flips.example", "flips.example"]  # one question per connection: no gap to slip through
    assert recorder.connected == ["93.184.216.34"]  # the checked address, not the name


def test_the_operator_allows_hosts_by_name(server: ScriptedServer) -> None:
    server.routes["/a"] = b"yes"
    for allowed in ("localhost", "LocalHost.", f"localhost:{server.port}"):
        with guarded_client(Guard([allowed])) as client:
            assert client.get(server.url("/a")).content == b"yes"
    with guarded_client(Guard(["localhost:1"])) as client, pytest.raises(Failure, match="loopback"):
        client.get(server.url("/a"))
    with guarded_client(Guard(["localhost"])) as client, pytest.raises(Failure, match="loopback"):
        client.get(server.url("/a", host="127.0.0.1"))  # by name means by name


def test_a_name_that_does_not_resolve_is_a_connection_error() -> None:
    def resolver(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    with (
        guarded_client(Guard(resolver=resolver)) as client,
        pytest.raises(httpx.ConnectError, match="resolve"),
    ):
        client.get("http://nowhere.example/")


def test_proxies_of_the_environment_are_ignored(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server.routes["/a"] = b"direct"
    with guarded_client(Guard(["localhost"])) as client:
        assert client.get(server.url("/a")).content == b"direct"


def test_shown_urls_carry_no_secrets() -> None:
    shown = show_url("https://me:secret@files.example:8443/a/b.zip?X-Amz-Signature=abc#x")
    assert shown == "https://files.example:8443/a/b.zip?…"
    assert len(show_url("http://x.example/" + "a" * 900)) <= 300

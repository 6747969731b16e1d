"""Addresses that two parsers read differently, or none: refused at every door, and harmless where they are rows."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.urls import MAX_LENGTH, origin_of, parse_url, show_url
from tunes_dagster.intake.guard import Guard, guarded_client

ODD = [
    "http://a[@example.com/",
    "http://[::1/",
    "http://example.com:99999/x",
    "http://ex ample.com/",
    "http://example.com:/x",
    "//example.com/x",
    "http://a]@example.com/",
    "http://[example.com/",
    "http://[]/",
    "http://example.com]/",
    "http://[::1]x/",
    "http://[::1]:x/",
    "http://[fe80::1%25eth0]/",
    "http://[v1.x]/",
    "http://example.com\\@127.0.0.1/",
    "http://127.0.0.1\\@example.com/",
    "http://a@b@example.com/",
    "http://exa\tmple.com/",
    "http://example.com/\nHost: inside",
    "http://example.com/\x00",
    "http://example.com/\ud800",
    "http://example.com:0/",
    "http://example.com:-1/",
    "http://example.com:８０/",
    "http://example.com:80:80/",
    "http://exa%6dple.com/",
    "http://.example.com/",
    "http://example..com/",
    "http://-/..",
    "http://?x",
    "http://#x",
    "http://@/",
    "http://:80/",
    "http:example.com",
    "http:/example.com/",
    "http:///example.com",
    "http://0177.0.0.1/",
    "http://1.2.3.256/",
    "http://exa<mple.com/",
    "http://ex\u00adample.com/",
    "http://exa\u200bmple.com/",
    "http://…/",
    "http://" + "a" * 64 + ".com/",
    "http://" + "a." * 200 + "com/",
    "http://example.com/" + "x" * MAX_LENGTH,
    "HTTP://",
    "http",
    "",
    " http://example.com/",
    "ws://example.com/",
    "javascript:alert(1)",
]
GOOD = {
    "http://example.com": ("example.com", 80, "/"),
    "HTTPS://Example.COM./a?b#c": ("example.com.", 443, "/a?b"),
    "http://me:pa%40ss@example.com:8080/x": ("example.com", 8080, "/x"),
    "http://[2606:4700::1111]:81/": ("2606:4700::1111", 81, "/"),
    "http://bücher.example/ü ü?q=é&z={a}|b^`<>\"'": (
        "xn--bcher-kva.example",
        80,
        "/%C3%BC%20%C3%BC?q=%C3%A9&z={a}|b^`<>\"'",
    ),
    "https://x.example/a/../b//c/./d%2f?": ("x.example", 443, "/a/../b//c/./d%2f?"),
    "https://my_minio:9000/bucket": ("my_minio", 9000, "/bucket"),
    "https://files.example?sig=a/b@c:d[e]": ("files.example", 443, "/?sig=a/b@c:d[e]"),
}


@pytest.mark.parametrize("url", ODD)
def test_odd_addresses_are_refused_with_a_reason(url: str) -> None:
    for check in (parse_url, Guard().check_url):
        with pytest.raises(Failure) as caught:
            check(url)
        assert caught.value.code == FailureCode.SOURCE_REFUSED and caught.value.remedy
        assert caught.value.message.isprintable() and len(caught.value.message) < 300
    assert show_url(url).isprintable() and origin_of(url) == ""


@pytest.mark.parametrize("url", GOOD)
def test_others_are_taken_apart_as_they_were_written(url: str) -> None:
    parsed = parse_url(url)
    assert (parsed.host, parsed.port, parsed.target) == GOOD[url]
    assert parse_url(str(parsed.for_httpx())).origin == parsed.origin


def test_what_is_sent_is_what_was_checked() -> None:
    """The request line and the host of every good address, as a server gets them."""
    for url, (host, port, target) in GOOD.items():
        parsed = parse_url(url)
        sent = httpx.Client().build_request("GET", **parsed.request())
        assert sent.url.raw_host.decode().strip("[]") == host and (sent.url.port or parsed.port) == port
        assert sent.extensions["target"] == target.encode()


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab1.:/@[]%?#\\ -_~é\u2028\t\x00\ud800"), max_size=30))
def test_any_text_is_an_address_or_a_refusal(text: str) -> None:
    """And httpx, given the parts, means the same host."""
    for url in (text, f"http://{text}", f"http://a@{text}/", f"http://example.com/{text}"):
        assert show_url(url).isprintable() and "\x00" not in show_url(url)
        try:
            parsed = parse_url(url)
        except Failure as refused:
            assert refused.code == FailureCode.SOURCE_REFUSED
            continue
        other = parsed.for_httpx()
        assert (other.raw_host.decode(), other.port or 80) == (parsed.host, parsed.port)


def test_whatever_is_shown_holds_no_secret() -> None:
    for url in (
        "http://me:secret@[x/y?secret",
        "//me:secret@x?secret",
        "http://me:secret@x y/#secret",
        "me:secret@",
        "http://u:secret@ok.example/a?token=secret",
        "ftp://u:secret@x/?secret",
        "http:secret@x",
    ):
        assert "secret" not in show_url(url), show_url(url)


def test_this_machine_is_refused_by_name_before_anything_is_asked() -> None:
    def resolver(_host: str, _port: int) -> list[str]:
        raise AssertionError("no name was to be looked up")

    for name in (
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "localhost.localdomain",
        "ip6-loopback",
        "localhost6",
    ):
        with pytest.raises(Failure, match="loopback"):
            Guard(resolver=resolver).check_url(f"http://{name}:8000/hook")
        with guarded_client(Guard(resolver=resolver)) as client, pytest.raises(Failure, match="loopback"):
            client.get(f"http://{name}/")
        assert Guard([name]).check_url(f"http://{name}:8000/hook").port == 8000
    assert Guard(resolver=resolver).check_url("http://localhost.example.com/").port == 80

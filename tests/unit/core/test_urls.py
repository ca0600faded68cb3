from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from ramnet.core.urls import MAX_URL, Url, parse_url
from ramnet.errors import WireError

BASE = parse_url("https://registry.example/v2/acme/app/blobs/sha256:00?from=here")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://auth.docker.io/token", ("https", "auth.docker.io", 443, "/token")),
        ("HTTP://Auth.Docker.IO", ("http", "auth.docker.io", 80, "/")),
        ("https://a.example:8443/x?y=1&z=%2F", ("https", "a.example", 8443, "/x?y=1&z=%2F")),
        ("https://a.example:/x", ("https", "a.example", 443, "/x")),
        ("https://a.example?x", ("https", "a.example", 443, "/?x")),
        ("https://a.example/x#part", ("https", "a.example", 443, "/x")),
        ("https://10.0.0.1:5000/", ("https", IPv4Address("10.0.0.1"), 5000, "/")),
        ("http://[2001:db8::1]/a", ("http", IPv6Address("2001:db8::1"), 80, "/a")),
        ("https://me:pa@ss/word@a.example/x", ("https", "ss", 443, "/word@a.example/x")),
        ("https://user:secret@a.example/x", ("https", "a.example", 443, "/x")),
        ("https://a.example/a/./b/../c", ("https", "a.example", 443, "/a/c")),
        ("https://a.example/../..", ("https", "a.example", 443, "/")),
        ("https://a.example/a/.", ("https", "a.example", 443, "/a/")),
        ("https://a.example/ä^", ("https", "a.example", 443, "/%C3%A4%5E")),
    ],
)
def test_a_url_is_read(text: str, wanted: tuple[str, object, int, str]) -> None:
    found = parse_url(text)
    assert (*found.origin, found.target) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://cdn.example/x", "https://cdn.example/x"),
        ("//cdn.example:81/x?a", "https://cdn.example:81/x"),
        ("/v2/x", "https://registry.example/v2/x"),
        ("./sha256:11", "https://registry.example/v2/acme/app/blobs/sha256:11"),
        ("../manifests/1", "https://registry.example/v2/acme/app/manifests/1"),
        ("", "https://registry.example/v2/acme/app/blobs/sha256:00"),
    ],
)
def test_a_redirect_is_resolved(text: str, wanted: str) -> None:
    """RFC 3986 5.4, as far as redirects of registries have it."""
    assert str(parse_url(text, BASE)) == wanted


def test_the_query_is_kept_or_replaced() -> None:
    assert parse_url("", BASE).query == "from=here"
    assert parse_url("?to=there", BASE).target.endswith("sha256:00?to=there")
    assert parse_url("/x", BASE).query is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("/v2/", "without a scheme"),
        ("registry.example/x", "without a scheme"),
        ("https:", "without a host"),
        ("https:/x", "without a host"),
        ("https:///x", "the host name is empty"),
        ("ftp://a.example/", "neither http nor https"),
        ("https://a b/", "spaces"),
        ("https://a.example/\r\nX: y", "control"),
        ("https://*.example/", "a pattern"),
        ("https://a.example:*/", "a pattern"),
        ("https://2001:db8::1/", "not readable"),
        ("https://a.example:99999/", "not readable"),
        ("https://" + "a" * MAX_URL, "too long"),
    ],
)
def test_what_is_no_url_is_refused(text: str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        parse_url(text)


@pytest.mark.parametrize("text", ["file:///etc/shadow", "sha256:11/x"])
def test_a_redirect_cannot_leave_http(text: str) -> None:
    with pytest.raises(WireError, match="neither"):
        parse_url(text, BASE)


def test_what_is_shown_has_no_query_and_is_short() -> None:
    assert str(parse_url("https://a.example/x?X-Amz-Signature=secret")) == "https://a.example/x"
    assert len(str(parse_url(f"https://a.example/{'x' * 5000}"))) < 200
    assert str(Url("http", IPv6Address("::1"), 5000, "/")) == "http://[::1]:5000/"


def test_pairs_are_added_to_a_query() -> None:
    pairs = [("scope", "repository:a/b:pull"), ("account", "ä&=")]
    added = "scope=repository%3Aa%2Fb%3Apull&account=%C3%A4%26%3D"
    assert parse_url("https://a.example/t").with_query(pairs).target == f"/t?{added}"
    assert parse_url("https://a.example/t?x=1").with_query(pairs).target == f"/t?x=1&{added}"
    assert parse_url("https://a.example/t").with_query([]).query is None

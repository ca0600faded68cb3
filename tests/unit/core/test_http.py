from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from ramnet.core.http import (
    HTTP2_PREFACE,
    MAX_HEAD,
    Head,
    Kind,
    head_of,
    kind_of,
    parse_head,
    split_head,
)
from ramnet.core.names import parse_host
from ramnet.core.urls import Host
from ramnet.errors import WireError

QUAY = parse_host("quay.io")
CURL = (
    b"GET /v2/ HTTP/1.1\r\nHost: quay.io:5000\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n",
    (QUAY, 5000),
)
DOCKER = (
    (
        b"GET /v2/ HTTP/1.1\r\n"
        b"Host: quay.io\r\n"
        b"User-Agent: docker/29.1.3 go/go1.25.5 git-commit/fbf3ed2 kernel/6.8.0 os/linux "
        b"arch/amd64 UpstreamClient(Docker-Client/29.1.3 \\(linux\\))\r\n"
        b"Authorization: Bearer eyJhbGciOiJSUzI1NiJ9.e30.c2ln\r\n"
        b"Accept-Encoding: gzip\r\n"
        b"Connection: close\r\n\r\n"
    ),
    (QUAY, None),
)
GO_CONNECT = (
    b"CONNECT quay.io:443 HTTP/1.1\r\nHost: quay.io:443\r\nUser-Agent: Go-http-client/1.1\r\n\r\n",
    (QUAY, 443),
)
CURL_CONNECT = (
    (
        b"CONNECT quay.io:443 HTTP/1.1\r\nHost: quay.io:443\r\nUser-Agent: curl/8.5.0\r\n"
        b"Proxy-Connection: Keep-Alive\r\n\r\n"
    ),
    (QUAY, 443),
)
GO_PROXY = (
    (
        b"GET http://quay.io/v2/ HTTP/1.1\r\nHost: quay.io\r\nUser-Agent: Go-http-client/1.1\r\n"
        b"Accept-Encoding: gzip\r\n\r\n"
    ),
    (QUAY, None),
)
GO_IPV6 = (
    b"GET /v2/ HTTP/1.1\r\nHost: [2001:db8::1]:5000\r\nUser-Agent: Go-http-client/1.1\r\n\r\n",
    (IPv6Address("2001:db8::1"), 5000),
)
REAL = {
    "curl": CURL,
    "docker": DOCKER,
    "go connect": GO_CONNECT,
    "curl connect": CURL_CONNECT,
    "go by a proxy": GO_PROXY,
    "go to ipv6": GO_IPV6,
}


def head(first: str, *fields: str) -> bytes:
    return "\r\n".join((first, *fields, "", "")).encode("latin-1")


@pytest.mark.parametrize(("data", "wanted"), REAL.values(), ids=REAL)
def test_what_clients_send_is_read(data: bytes, wanted: tuple[Host, int | None]) -> None:
    assert kind_of(data) is Kind.HTTP1
    whole = head_of(data)
    assert whole == data
    request = parse_head(whole)
    assert (request.host, request.port) == wanted
    assert [request.method, request.target] == data.decode().split(" ")[:2]


@pytest.mark.parametrize("data", [data for data, _ in REAL.values()], ids=REAL)
def test_a_part_of_a_head_is_none_yet(data: bytes) -> None:
    assert {head_of(data[:size]) for size in range(len(data))} == {None}
    kinds = [kind_of(data[:size]) for size in range(len(data))]
    space = data.index(b" ")
    assert kinds == [None] * (space + 1) + [Kind.HTTP1] * (len(data) - space - 1)


def test_a_head_has_an_end() -> None:
    assert head_of(b"GET / HTTP/1.1\r\nHost: a") is None
    whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert head_of(whole + b"body\r\n\r\n") == whole
    assert head_of(bytearray(b"GET / HTTP/1.1\n\n")) == b"GET / HTTP/1.1\n\n"
    assert head_of(b"x" * (MAX_HEAD - 1)) is None
    assert head_of(b"x" * (MAX_HEAD - 4) + b"\r\n\r\n") is not None
    for long in (b"x" * MAX_HEAD, b"x" * (MAX_HEAD - 3) + b"\r\n\r\n"):
        with pytest.raises(WireError) as caught:
            head_of(long)
        assert caught.value.where == "HTTP head"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", None),
        (b"G", None),
        (b"GET", None),
        (b"GET ", Kind.HTTP1),
        (b"x" * 32, None),
        (b"x" * 32 + b" ", Kind.HTTP1),
        (b"x" * 33, Kind.OTHER),
        (b" GET", Kind.OTHER),
        (b"\x16\x03\x01", Kind.OTHER),
        (b"G(T ", Kind.OTHER),
        (b"\0", Kind.OTHER),
        (b"P", None),
        (b"PR", None),
        (b"PRI ", None),
        (HTTP2_PREFACE[:-1], None),
        (HTTP2_PREFACE, Kind.HTTP2),
        (HTTP2_PREFACE + b"\0\0\x12\4", Kind.HTTP2),
        (HTTP2_PREFACE.replace(b"SM", b"XM"), Kind.HTTP1),
        (b"PRI * HTTP/1", Kind.HTTP1),
        (b"PUT ", Kind.HTTP1),
        # What a tolerant server takes for a request line.
        (b"GET\t/", Kind.HTTP1),
        (b"GET\v/", Kind.HTTP1),
        (b"GET\r", None),
        (b"GET\r/", Kind.HTTP1),
        (b"\r\n\n", None),
        (b"\r\nGET", None),
        (b"\r\nGET /", Kind.HTTP1),
        (b"\n" * (MAX_HEAD - 1), None),
        (b"\n" * MAX_HEAD, Kind.HTTP1),
        (b"\n" * MAX_HEAD + b"\x16", Kind.HTTP1),
        # And what none does.
        (b"QUIT\r\n", Kind.OTHER),
        (b"QUIT\n", Kind.OTHER),
        (b"\r\n\x16", Kind.OTHER),
        # Nothing tells it from a method: the line is not over.
        (b"EHLO a.example\r\n", Kind.HTTP1),
    ],
)
def test_the_first_octets_tell_what_it_is(data: bytes, kind: Kind | None) -> None:
    assert kind_of(data) is kind
    assert kind_of(bytearray(data)) is kind


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (head("GET / HTTP/1.1", "hOST: \tQuay.IO:5000 \t"), (QUAY, 5000)),
        (head("GET / HTTP/1.1", "Host:quay.io."), (QUAY, None)),
        (head("GET / HTTP/1.0", "Host: quay.io"), (QUAY, None)),
        (head("GET / HTTP/1.1", "Host: 192.0.2.1:5000"), (IPv4Address("192.0.2.1"), 5000)),
        (head("GET / HTTP/1.1", "Host: [2001:DB8::1]"), (IPv6Address("2001:db8::1"), None)),
        # An IPv4 address is what leaves on the wire.
        (head("GET / HTTP/1.1", "Host: [::ffff:192.0.2.1]"), (IPv4Address("192.0.2.1"), None)),
        (head("OPTIONS * HTTP/1.1", "Host: quay.io"), (QUAY, None)),
        (head("OPTIONS http://quay.io HTTP/1.1", "Host: quay.io"), (QUAY, None)),
        (head("GET /?to=http://a.example/ HTTP/1.1", "Host: quay.io"), (QUAY, None)),
        (head("GET HTTPS://QUAY.io:5000?a HTTP/1.1", "Host: quay.io:5000"), (QUAY, 5000)),
        (head("GET http://quay.io/ HTTP/1.1", "Host: quay.io:80"), (QUAY, None)),
        (head("GET https://quay.io:443/ HTTP/1.1", "Host: quay.io"), (QUAY, 443)),
        (head("CONNECT quay.io:443 HTTP/1.1", "Host: QUAY.io."), (QUAY, 443)),
        (
            head("CONNECT [2001:db8::1]:443 HTTP/1.1", "Host: [2001:db8:0::1]:443"),
            (IPv6Address("2001:db8::1"), 443),
        ),
        (head("GET / HTTP/1.1", "Host: quay.io", "X:", "Y: \xe9"), (QUAY, None)),
        (head("GET / HTTP/1.1", f"{'x' * 40}: y", "Host: quay.io"), (QUAY, None)),
    ],
)
def test_a_request_has_one_host(data: bytes, wanted: tuple[Host, int | None]) -> None:
    request = parse_head(data)
    assert (request.host, request.port) == wanted


def test_a_request_says_how_it_is_to_be_answered() -> None:
    request = parse_head(head("GET / HTTP/1.1", "Host: quay.io", "Accept: Text/HTML,*/*;q=0.8"))
    assert (request.html, request.head_only, request.connect) == (True, False, False)
    assert (request.absolute, request.scheme) == (False, "")
    request = parse_head(head("HEAD HTTP://quay.io/ HTTP/1.1", "Host: quay.io"))
    assert (request.html, request.head_only, request.connect) == (False, True, False)
    assert (request.absolute, request.scheme) == (True, "http")
    request = parse_head(GO_CONNECT[0])
    assert (request.connect, request.absolute, request.scheme) == (True, False, "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: quay.io",
        b"GET / HTTP/1.1\r\nHost: quay.io\r\n",
        b"\r\n" + head("GET / HTTP/1.1", "Host: quay.io"),
        b"\n" + head("GET / HTTP/1.1", "Host: quay.io"),
        # LF alone: in front, between, at the end.
        b"GET / HTTP/1.1\nHost: quay.io\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: quay.io\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: quay.io\n\n",
        b"GET / HTTP/1.1\r\nHost: quay.io\r\n\n",
        b"GET / HTTP/1.1\r\nHost: quay.io\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\n\nHost: a.example\r\nHost: quay.io\r\n\r\n",
        # CR alone, NUL and other control characters.
        head("GET / HTTP/1.1", "Host: quay.io\r"),
        head("GET / HTTP/1.1", "X: y\rHost: a.example", "Host: quay.io"),
        head("GET / HTTP/1.1", "Host: quay.io\0"),
        head("GET / HTTP/1.1", "Host: quay.io", "X: \0"),
        head("GET / HTTP/1.1", "Host: quay.io", "X: \x7f"),
        head("GET / HTTP/1.1", "Host: quay.io", "X: \v"),
    ],
)
def test_lines_end_in_one_way(data: bytes) -> None:
    with pytest.raises(WireError, match="line ends") as caught:
        parse_head(data)
    assert caught.value.where == "HTTP head"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("GET /", "request line"),
        ("GET  / HTTP/1.1", "request line"),
        ("GET / HTTP/1.1 ", "request line"),
        (" GET / HTTP/1.1", "request line"),
        ("GET /a b HTTP/1.1", "request line"),
        ("GET\t/ HTTP/1.1", "request line"),
        ("GET / http/1.1", "request line"),
        ("SSH-2.0-x", "request line"),
        ("G(T / HTTP/1.1", "method"),
        (f"{'G' * 33} / HTTP/1.1", "method"),
        ("G\xc4T / HTTP/1.1", "method"),
        (" / HTTP/1.1", "method"),
        ("GET / HTTP/2.0", "version"),
        ("PRI * HTTP/2.0", "version"),
        ("GET / HTTP/1.2", "version"),
        ("GET / HTTP/01.1", "version"),
        ("GET / HTTP/1.1\t", "version"),
        ("GET  HTTP/1.1", "characters"),
        ("GET /#a HTTP/1.1", "characters"),
        ("GET http://quay.io#@a.example/ HTTP/1.1", "characters"),
        ("GET /\ta HTTP/1.1", "characters"),
        ("GET /\xe9 HTTP/1.1", "characters"),
        ("GET * HTTP/1.1", "no form"),
        ("OPTIONS ** HTTP/1.1", "no form"),
        ("options * HTTP/1.1", "no form"),
        ("GET quay.io:443 HTTP/1.1", "no form"),
        ("connect quay.io:443 HTTP/1.1", "no form"),
        ("GET v2/ HTTP/1.1", "no form"),
        ("GET ftp://quay.io/ HTTP/1.1", "no form"),
        ("GET http:/quay.io/ HTTP/1.1", "no form"),
        ("GET //a.example/v2/ HTTP/1.1", "no form"),
        ("GET /\\a.example/v2/ HTTP/1.1", "no form"),
        ("GET http:///v2/ HTTP/1.1", "not a host"),
        ("GET http://user@quay.io/ HTTP/1.1", "not a host"),
        ("GET http://quay.io:5000@a.example/ HTTP/1.1", "not a host"),
        ("GET http://a.example\\@quay.io/ HTTP/1.1", "not a host"),
        ("GET http://quay%2eio/ HTTP/1.1", "not a host"),
        ("GET http://quay.io:/ HTTP/1.1", "not a host"),
        ("GET http://a.example/ HTTP/1.1", "differ"),
        ("GET http://quay.io:5000/ HTTP/1.1", "differ"),
        ("GET https://quay.io:80/ HTTP/1.1", "differ"),
        ("CONNECT quay.io HTTP/1.1", "without a port"),
        ("CONNECT quay.io: HTTP/1.1", "not a host"),
        ("CONNECT / HTTP/1.1", "not a host"),
        ("CONNECT http://quay.io:443 HTTP/1.1", "not a host"),
        ("CONNECT user@quay.io:443 HTTP/1.1", "not a host"),
        ("CONNECT a.example:443 HTTP/1.1", "differ"),
    ],
)
def test_a_request_line_is_exact(line: str, message: str) -> None:
    with pytest.raises(WireError, match=message):
        parse_head(head(line, "Host: quay.io"))


def test_a_tunnel_and_its_host_have_one_port() -> None:
    with pytest.raises(WireError, match="differ"):
        parse_head(head("CONNECT quay.io:443 HTTP/1.1", "Host: quay.io:5000"))
    with pytest.raises(WireError, match="differ"):
        parse_head(head("GET http://quay.io/ HTTP/1.1", "Host: quay.io:5000"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "no host"),
        (["Hosts: quay.io"], "no host"),
        (["Host: quay.io", "host: quay.io"], "more than one"),
        (["Host: quay.io", "Host: a.example"], "more than one"),
        (["Host : quay.io"], "not a field"),
        (["Host: quay.io", "Host : a.example"], "not a field"),
        (["Host\t: quay.io"], "not a field"),
        (["Host: quay.io", " Host: a.example"], "not a field"),
        (["Host: quay.io", "X: y", "\tz"], "not a field"),
        (["Host:", " quay.io"], "not a field"),
        (["Host: quay.io", "X"], "not a field"),
        (["Host: quay.io", ": y"], "not a field"),
        (["Host: quay.io", "X(: y"], "not a field"),
        (["Host: quay.io", "H\xf6st: y"], "not a field"),
        (["Host: quay.io", " "], "not a field"),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_fields_are_exact(version: str, fields: list[str], message: str) -> None:
    with pytest.raises(WireError, match=message):
        parse_head(head(f"GET / HTTP/{version}", *fields))


@pytest.mark.parametrize(
    "host",
    [
        *("", ":80", ".", "quay.io..", "-a.example", "a..b", "quay.io:", "quay.io:http"),
        *("quay.io:0", "quay.io:080", "quay.io:65536", "quay.io:-1", "quay.io:+1", "quay.io:*"),
        *("quay.io:80:80", "*.quay.io", "user@quay.io", "quay.io/", "http://quay.io"),
        *("quay.io, a.example", "quay.io a.example", "quay.io,", "quay%2eio", "quay.io\\", '"a"'),
        *("qu\xe4y.io", "quay.io\xa0", "\xffquay.io", "quay.io:\xb2"),
        *("127.1", "0x7f000001", "2130706433", "1.2.3.04", "1.2.3.4.", "1.2.3.4.5"),
        *("2001:db8::1", "[2001:db8::1", "2001:db8::1]", "[2001:db8::1]5000", "[quay.io]"),
        *("[fe80::1%eth0]", "[fe80::1%25eth0]", "[1.2.3.4]", "[]", "[v1.a]", "[[::1]]"),
        # Not the address of one machine; Linux takes the first two for itself.
        *("0.0.0.0", "[::]", "224.0.0.1"),
        "a" * 600,
    ],
)
def test_a_host_is_a_host_and_perhaps_a_port(host: str) -> None:
    with pytest.raises(WireError, match="host"):
        parse_head(head("GET / HTTP/1.1", f"Host: {host}"))


def test_a_head_is_taken_apart_without_judging_it() -> None:
    odd = b"get /v2/ HTTP/1.x\nHOST:  a \r\nhost: b\n c: d\nE : f\r\n\r\n"
    fields = (("host", "a"), ("host", "b"))
    assert split_head(odd) == Head("get", "/v2/", "HTTP/1.x", fields, odd=True)
    assert split_head(b"GET / HTTP/1.1") == Head("GET", "/", "HTTP/1.1", (), odd=False)
    assert split_head(b"GET HTTP://u@a:1?b/c HTTP/1.1").absolute == ("http", "u@a:1")

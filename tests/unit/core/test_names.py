from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from ramnet.core.names import (
    MAX_TEXT,
    Address,
    HostName,
    HostPattern,
    Ports,
    host_from_wire,
    parse_address,
    parse_host,
    parse_pattern,
)
from ramnet.errors import NameFault

LABEL_63 = "a" * 63
NAME_253 = ".".join([LABEL_63, LABEL_63, LABEL_63, "a" * 61])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("docker.io", "docker.io"),
        ("Docker.IO", "docker.io"),
        ("docker.io.", "docker.io"),
        ("localhost", "localhost"),
        ("my_registry.corp", "my_registry.corp"),
        ("_dns.example", "_dns.example"),
        ("a--b.example", "a--b.example"),
        ("3com.example", "3com.example"),
        ("host.1a", "host.1a"),
        ("0xyz", "0xyz"),
        ("123.dkr.ecr.eu-west-1.amazonaws.com", "123.dkr.ecr.eu-west-1.amazonaws.com"),
        (NAME_253, NAME_253),
        (f"{NAME_253}.", NAME_253),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("MÜNCHEN.example", "xn--mnchen-3ya.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        ("xn--i-7iq.ws", "xn--i-7iq.ws"),  # an emoji, which IDNA 2008 refuses
        ("a。example", "a.example"),
        ("\N{KELVIN SIGN}.io", "k.io"),
        ("_x.münchen.example", "_x.xn--mnchen-3ya.example"),
    ],
)
def test_parse_host_gives_the_form_that_dns_compares(text: str, name: str) -> None:
    assert parse_host(text) == name


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "is empty", "docker.io"),
        (".", "is empty", "docker.io"),
        ("..", "empty label", "extra dot"),
        ("a..b", "empty label", "extra dot"),
        (".docker.io", "empty label", "extra dot"),
        ("docker.io..", "empty label", "extra dot"),
        (f"{LABEL_63}a.io", "too long", "63"),
        (f"{NAME_253}a", "too long", "253"),
        ("a" * (MAX_TEXT + 1), "too long", "253"),
        ("-a.io", "hyphen", "remove"),
        ("a-.io", "hyphen", "remove"),
        ("a.-b.io", "hyphen", "remove"),
        ("a.io-", "hyphen", "remove"),
        ("https://docker.io/v2", "is a URL", "'docker.io'"),
        ("docker.io/library", "a path", "'docker.io'"),
        ("10.0.0.0/8", "is a network", "networks"),
        ("me@docker.io", "'@'", "only the host"),
        ("docker.io ", "white space", "one host"),
        ("a.io b.io", "white space", "one host"),
        ("docker.io\n", "white space", "one host"),
        ("docker.io:443", "':'", "without port"),
        ("*.docker.io", "misplaced *", "first label"),
        ("a,b.io", "','", "letters"),
        ("a\x00b.io", "'\\x00'", "letters"),
        ("10.0.0.1", "ends in a number", "four decimal"),
        ("010.0.0.1", "ends in a number", "four decimal"),
        ("1.2", "ends in a number", "four decimal"),
        ("5000", "ends in a number", "four decimal"),
        ("0x7f000001", "ends in a number", "four decimal"),
        ("host.0x", "ends in a number", "four decimal"),
        ("☃.example", "international", "xn--"),
        ("\ud800.example", "international", "xn--"),
        ("a／b.example", "a path", "registry"),  # noqa: RUF001 - UTS 46 maps it to "/"
        ("１０.0.0.1", "ends in a number", "four decimal"),  # noqa: RUF001 - maps to ASCII digits
    ],
)
def test_parse_host_says_what_is_wrong_and_what_to_do(text: str, message: str, hint: str) -> None:
    with pytest.raises(NameFault) as caught:
        parse_host(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_fault_never_repeats_a_long_text_whole() -> None:
    with pytest.raises(NameFault) as caught:
        parse_host("!" * MAX_TEXT)
    assert len(caught.value.message) < 150


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ((b"docker", b"io"), "docker.io"),
        ((b"DOCKER", b"Io"), "docker.io"),
        ((b"_dmarc", b"docker", b"io"), "_dmarc.docker.io"),
        ((b"localhost",), "localhost"),
        ((), None),
        ((b"",), None),
        ((b"a", b"", b"b"), None),
        ((b"a.b", b"io"), None),
        ((b"", b"a.b"), None),
        ((b"a" * 64, b"io"), None),
        ((b"a" * 63,) * 4, None),
        ((b"-a", b"io"), None),
        ((b"a", b"io-"), None),
        ((b"*", b"io"), None),
        ((b"a b", b"io"), None),
        ((b"\xff", b"io"), None),
        ((b"10", b"0", b"0", b"1"), None),
    ],
)
def test_host_from_wire(labels: tuple[bytes, ...], name: str | None) -> None:
    assert host_from_wire(labels) == name


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("docker.io", HostPattern(HostName("docker.io"))),
        ("*.Example.COM", HostPattern(HostName("example.com"), wildcard=True)),
        ("*.com", HostPattern(HostName("com"), wildcard=True)),
        ("*.münchen.example", HostPattern(HostName("xn--mnchen-3ya.example"), wildcard=True)),
    ],
)
def test_parse_pattern(text: str, pattern: HostPattern) -> None:
    assert parse_pattern(text) == pattern
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*", "misplaced *"),
        ("*.", "is empty"),
        ("*.*.com", "misplaced *"),
        ("foo.*.com", "misplaced *"),
        ("a*.com", "misplaced *"),
        ("**.com", "misplaced *"),
        ("*.0.0.1", "ends in a number"),
        (f"*.{NAME_253}", "no room"),
    ],
)
def test_parse_pattern_faults(text: str, message: str) -> None:
    with pytest.raises(NameFault, match=message.replace("*", r"\*")) as caught:
        parse_pattern(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("example.com", "example.com", True),
        ("example.com", "a.example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("*.example.com", "a.example.com.evil.test", False),
    ],
)
def test_pattern_matches_by_labels(pattern: str, host: str, matches: bool) -> None:
    assert parse_pattern(pattern).matches(parse_host(host)) is matches


def test_ports() -> None:
    some = Ports(frozenset({5000, 443}))
    assert 443 in some
    assert 80 not in some
    assert str(some) == "443, 5000"
    assert 80 in Ports()
    assert str(Ports()) == "any"
    assert 80 not in Ports(frozenset())


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_outside_the_range_are_refused(port: int) -> None:
    with pytest.raises(NameFault, match="does not exist") as caught:
        Ports(frozenset({port}))
    assert "65535" in caught.value.hint


def _host(text: str, port: int | None = None, *, any_port: bool = False) -> Address:
    return Address(parse_pattern(text), None, port, any_port)


def _ip(text: str, port: int | None = None, *, any_port: bool = False) -> Address:
    return Address(None, ip_address(text), port, any_port)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("docker.io", _host("docker.io")),
        ("Docker.io.:5000", _host("docker.io", 5000)),
        ("registry.corp.example:5000", _host("registry.corp.example", 5000)),
        ("localhost:5001", _host("localhost", 5001)),
        ("localhost:*", _host("localhost", any_port=True)),
        ("*.example.com", _host("*.example.com")),
        ("*.example.com:8443", _host("*.example.com", 8443)),
        ("*.example.com:*", _host("*.example.com", any_port=True)),
        ("host1", _host("host1")),
        ("10.0.0.1", _ip("10.0.0.1")),
        ("10.0.0.1:5000", _ip("10.0.0.1", 5000)),
        ("127.0.0.1:*", _ip("127.0.0.1", any_port=True)),
        ("2001:db8::1", _ip("2001:db8::1")),
        ("::1", _ip("::1")),
        ("[2001:DB8::1]", _ip("2001:db8::1")),
        ("[2001:db8::1]:5000", _ip("2001:db8::1", 5000)),
        ("[2001:db8::1]:*", _ip("2001:db8::1", any_port=True)),
        ("[::ffff:10.0.0.1]:5000", _ip("10.0.0.1", 5000)),
        ("x:65535", _host("x", 65535)),
        ("x:1", _host("x", 1)),
    ],
)
def test_parse_address(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Docker.io", "docker.io"),
        ("localhost:*", "localhost:*"),
        ("*.example.com:5000", "*.example.com:5000"),
        ("[2001:DB8:0::1]:5000", "[2001:db8::1]:5000"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("10.0.0.1:5000", "10.0.0.1:5000"),
    ],
)
def test_an_address_is_shown_as_it_is_written(text: str, shown: str) -> None:
    assert str(parse_address(text)) == shown


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "is empty", "docker.io"),
        (":5000", "is empty", "docker.io"),
        ("https://x", "is a URL", "'x'"),
        ("https://x:5000/y", "is a URL", "'x:5000'"),
        ("x/y", "a path", "'x'"),
        ("x:5000/y:tag", "a path", "'x:5000'"),
        ("10.0.0.0/24", "is a network", "networks"),
        ("2001:db8::/32", "is a network", "networks"),
        ("me@x", "'@'", "only the host"),
        ("x:99999", "'99999' is not a port", "65535"),
        ("x:0", "'0' is not a port", "65535"),
        ("x:0443", "'0443' is not a port", "65535"),
        ("x:", "'' is not a port", "65535"),
        ("x:latest", "'latest' is not a port", "tags"),
        ("x:+80", "'+80' is not a port", "65535"),
        ("x:٨٠", "is not a port", "65535"),
        ("x:" + "9" * 400, "is not a port", "65535"),
        ("x:80:90", "not an IPv6 address", "[2001:db8::1]:5000"),
        ("*", "misplaced *", "first label"),
        ("*:5000", "misplaced *", "first label"),
        ("foo.*.com", "misplaced *", "first label"),
        ("a b", "white space", "one host"),
        (" docker.io", "white space", "one host"),
        ("[::1", "unpaired brackets", "[2001:db8::1]:5000"),
        ("[::1]5000", "unpaired brackets", "[2001:db8::1]:5000"),
        ("[10.0.0.1]:5000", "not an IPv6 address", "2001:db8::1"),
        ("[fe80::1%eth0]:5000", "zone", "routable"),
        ("fe80::1%eth0", "zone", "routable"),
        ("10.0.0.256", "ends in a number", "four decimal"),
        ("010.0.0.1:5000", "ends in a number", "four decimal"),
        ("0.0.0.0:5000", "not the address of one machine", "127.0.0.1"),
        ("[::]:5000", "not the address of one machine", "127.0.0.1"),
        ("224.0.0.1", "not the address of one machine", "127.0.0.1"),
        ("a" * (MAX_TEXT + 1), "too long", "253"),
    ],
)
def test_parse_address_says_what_is_wrong_and_what_to_do(
    text: str, message: str, hint: str
) -> None:
    with pytest.raises(NameFault) as caught:
        parse_address(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_address_ports_fall_back_to_the_default() -> None:
    assert parse_address("docker.io").ports({443, 80}) == Ports(frozenset({443, 80}))
    assert parse_address("docker.io:5000").ports({443}) == Ports(frozenset({5000}))
    assert parse_address("localhost:*").ports({443}) == Ports()


def test_address_kinds() -> None:
    assert isinstance(parse_address("10.0.0.1").ip, IPv4Address)
    assert isinstance(parse_address("::1").ip, IPv6Address)

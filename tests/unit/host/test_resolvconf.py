"""Which resolvers the machine uses."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet.host.resolvconf import MAX_BYTES, MAX_SERVERS, STUBS, parse, read, upstreams

LOOPBACK = ("127.0.0.1", "::1")


def texts(servers: tuple[object, ...]) -> tuple[str, ...]:
    return tuple(map(str, servers))


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.1\n", ("192.0.2.1",)),
        ("nameserver 192.0.2.1", ("192.0.2.1",)),
        ("nameserver\t192.0.2.1   # ours\r\n", ("192.0.2.1",)),
        ("nameserver 192.0.2.2\nnameserver 192.0.2.1\n", ("192.0.2.2", "192.0.2.1")),
        ("nameserver 192.0.2.1\nnameserver 192.0.2.1\n", ("192.0.2.1",)),
        ("nameserver 2001:db8::1\nnameserver fe80::1%eth0\n", ("2001:db8::1", "fe80::1%eth0")),
        ("search a.example\noptions ndots:2\n\n# x\n; y\nnameserver 10.0.0.1\n", ("10.0.0.1",)),
        ("#nameserver 192.0.2.1\n;nameserver 192.0.2.1\n", LOOPBACK),
        ("nameserver\nnameserver x\nnameserver 192.0.2\nnameserver 10.0.0.1:53\n", LOOPBACK),
        ("nameservers 192.0.2.1\nNAMESERVER 192.0.2.1\n", LOOPBACK),
        ("", LOOPBACK),
        ("\0\0\0", LOOPBACK),
    ],
)
def test_servers_of_a_resolv_conf(text: str, servers: tuple[str, ...]) -> None:
    assert texts(parse(text)) == servers


@pytest.mark.parametrize("separator", ["\v", "\f", "\x1c", "\x85", "\u2028"])
def test_only_a_newline_ends_a_line(separator: str) -> None:
    """As in the C library: a search domain that came by DHCP cannot smuggle a server in."""
    text = f"search a.example{separator}nameserver 198.51.100.66\nnameserver 192.0.2.1\n"
    assert texts(parse(text)) == ("192.0.2.1",)


def test_servers_are_bounded() -> None:
    text = "".join(f"nameserver 192.0.2.{n}\n" for n in range(200))
    assert texts(parse(text)) == tuple(f"192.0.2.{n}" for n in range(MAX_SERVERS))


@given(st.text())
def test_any_text_gives_servers(text: str) -> None:
    assert parse(text)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(b"# \xff\xfe\nnameserver 192.0.2.1\n")
    assert texts(read(str(path))) == ("192.0.2.1",)


def test_what_cannot_be_read_means_what_an_empty_file_means(tmp_path: Path) -> None:
    assert texts(read(str(tmp_path / "gone"))) == LOOPBACK
    huge = tmp_path / "huge"
    huge.write_bytes(b"nameserver 192.0.2.1\n" + b"#" * MAX_BYTES)
    assert texts(read(str(huge))) == LOOPBACK


def test_the_upstreams_behind_a_stub(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\nnameserver 127.0.0.53\nnameserver 2001:db8::53\n")
    for stub in STUBS:
        assert texts(upstreams((stub,), str(path))) == ("192.0.2.1", "2001:db8::53")
    other = ip_address("192.0.2.9")
    assert upstreams((other,), str(path)) == (), "nobody asks the stub"
    assert upstreams((ip_address("127.0.0.53"),), str(tmp_path / "gone")) == ()


def test_without_upstreams_the_machine_itself_is_not_one(tmp_path: Path) -> None:
    """An empty list of systemd-resolved does not mean that somebody listens on loopback."""
    path = tmp_path / "resolv.conf"
    path.write_text("# no server is known\n")
    assert upstreams((ip_address("127.0.0.53"),), str(path)) == ()

"""UDP datagrams out of IP packets; what is anything else is None."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from ramnet.core.packet import ETH_P_IP, ETH_P_IPV6, Datagram, parse_udp

FROM4, TO4 = IPv4Address("192.0.2.53"), IPv4Address("192.0.2.10")
FROM6, TO6 = IPv6Address("2001:db8::53"), IPv6Address("2001:db8::10")
PAYLOAD = b"a DNS message"


def udp(payload: bytes = PAYLOAD, *, length: int | None = None) -> bytes:
    size = 8 + len(payload) if length is None else length
    return struct.pack("!HHHH", 53, 40_000, size, 0) + payload


def ipv4(body: bytes, *, options: bytes = b"", protocol: int = 17, words: int = 0) -> bytes:
    words = words or 5 + len(options) // 4
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | words,
        0,
        4 * words + len(body),
        0,
        0,
        64,
        protocol,
        0,
        FROM4.packed,
        TO4.packed,
    )
    return head + options + body


def ipv6(body: bytes, *, protocol: int = 17) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + FROM6.packed + TO6.packed + body


def parsed(ethertype: int, packet: bytes) -> Datagram | None:
    return parse_udp(ethertype, memoryview(packet))


@pytest.mark.parametrize("options", [b"", b"\x01" * 4, b"\x01" * 40])
def test_ipv4_with_and_without_options(options: bytes) -> None:
    found = parsed(ETH_P_IP, ipv4(udp(), options=options))
    assert found == Datagram(FROM4, 53, TO4, 40_000, PAYLOAD)


def test_ipv6() -> None:
    assert parsed(ETH_P_IPV6, ipv6(udp())) == Datagram(FROM6, 53, TO6, 40_000, PAYLOAD)


@pytest.mark.parametrize("ethertype", [ETH_P_IP, ETH_P_IPV6])
def test_what_lies_behind_the_datagram_is_not_of_it(ethertype: int) -> None:
    packet = ipv4(udp()) if ethertype == ETH_P_IP else ipv6(udp())
    found = parsed(ethertype, packet + b"\0\0\0\0")
    assert found is not None
    assert found.payload == PAYLOAD


def test_an_empty_datagram_is_one() -> None:
    found = parsed(ETH_P_IP, ipv4(udp(b"")))
    assert found is not None
    assert found.payload == b""


@pytest.mark.parametrize(
    ("ethertype", "packet"),
    [
        (0x0806, ipv4(udp())),
        (ETH_P_IP, b""),
        (ETH_P_IP, ipv4(udp())[:19]),
        (ETH_P_IP, ipv4(udp())[:27]),
        (ETH_P_IP, ipv4(udp())[:-1]),
        (ETH_P_IP, ipv4(udp(), protocol=6)),
        (ETH_P_IP, ipv4(udp(), words=4)),
        (ETH_P_IP, ipv4(udp(), words=15)),
        (ETH_P_IP, ipv4(udp(length=7))),
        (ETH_P_IP, ipv4(udp(length=9 + len(PAYLOAD)))),
        (ETH_P_IPV6, ipv6(udp())[:39]),
        (ETH_P_IPV6, ipv6(udp())[:47]),
        (ETH_P_IPV6, ipv6(udp())[:-1]),
        (ETH_P_IPV6, ipv6(udp(), protocol=44)),
    ],
)
def test_anything_else_is_none(ethertype: int, packet: bytes) -> None:
    assert parsed(ethertype, packet) is None

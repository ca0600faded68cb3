"""Datagrams and segments out of IP packets; what is anything else is None."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from ramnet.core.packet import (
    TCP_FIN,
    TCP_SYN,
    Datagram,
    Flow,
    Segment,
    address_of,
    asks,
    checksum,
    parse_packet,
    tcp_ends,
    udp_payload_at,
    with_payload,
)

FROM4, TO4 = IPv4Address("192.0.2.53").packed, IPv4Address("192.0.2.10").packed
FROM6, TO6 = IPv6Address("2001:db8::53").packed, IPv6Address("2001:db8::10").packed
FLOW4, FLOW6 = Flow(FROM4, 53, TO4, 40_000), Flow(FROM6, 53, TO6, 40_000)
PAYLOAD = b"a DNS message"


def udp(payload: bytes = PAYLOAD, *, length: int | None = None) -> bytes:
    size = 8 + len(payload) if length is None else length
    return struct.pack("!HHHH", 53, 40_000, size, 0) + payload


def tcp(
    payload: bytes = PAYLOAD, *, flags: int = 0x18, options: bytes = b"", words: int = 0
) -> bytes:
    words = words or 5 + len(options) // 4
    head = struct.pack("!HHIIBBHHH", 53, 40_000, 1000, 0, words << 4, flags, 0, 0, 0)
    return head + options + payload


def ipv4(
    body: bytes,
    *,
    options: bytes = b"",
    protocol: int = 17,
    words: int = 0,
    total: int | None = None,
) -> bytes:
    words = words or 5 + len(options) // 4
    total = 4 * words + len(body) if total is None else total
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, total, 0, 0, 64, protocol, 0)
    return head + FROM4 + TO4 + options + body


def ipv6(body: bytes, *, protocol: int = 17, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return struct.pack("!IHBB", 6 << 28, length, protocol, 64) + FROM6 + TO6 + body


@pytest.mark.parametrize("options", [b"", b"\x01" * 4, b"\x01" * 40])
def test_udp_in_ipv4_with_and_without_options(options: bytes) -> None:
    packet = ipv4(udp(), options=options)
    assert parse_packet(packet) == Datagram(FLOW4, PAYLOAD, 28 + len(options))
    assert parse_packet(memoryview(packet)) == parse_packet(packet)
    assert udp_payload_at(packet) == 28 + len(options)


def test_udp_in_ipv6() -> None:
    assert parse_packet(ipv6(udp())) == Datagram(FLOW6, PAYLOAD, 48)
    assert udp_payload_at(ipv6(udp())) == 48


@pytest.mark.parametrize("options", [b"", b"\x01" * 12])
@pytest.mark.parametrize("six", [False, True])
def test_tcp(options: bytes, six: bool) -> None:
    body = tcp(options=options)
    packet = ipv6(body, protocol=6) if six else ipv4(body, protocol=6)
    offset = (60 if six else 40) + len(options)
    flow = FLOW6 if six else FLOW4
    assert parse_packet(packet) == Segment(flow, 1000, 0x18, PAYLOAD, offset)
    assert udp_payload_at(packet) is None


def test_a_syn_takes_a_sequence_number_of_its_own() -> None:
    found = parse_packet(ipv4(tcp(b"", flags=TCP_SYN), protocol=6))
    assert isinstance(found, Segment)
    assert found.sequence == 1001
    last = struct.pack("!HHIIBBHHH", 53, 40_000, 0xFFFFFFFF, 0, 0x50, TCP_SYN | TCP_FIN, 0, 0, 0)
    wrapped = parse_packet(ipv4(last, protocol=6))
    assert isinstance(wrapped, Segment)
    assert wrapped.sequence == 0


@pytest.mark.parametrize("make", [ipv4, ipv6])
def test_what_lies_behind_the_packet_is_not_of_it(make: type) -> None:
    """An Ethernet frame is padded to 60 octets."""
    for body, protocol in ((udp(), 17), (tcp(), 6)):
        found = parse_packet(make(body, protocol=protocol) + b"\0\0\0\0")
        assert found is not None
        assert found.payload == PAYLOAD


@pytest.mark.parametrize(
    "packet", [ipv4(tcp(), protocol=6, total=0), ipv6(tcp(), protocol=6, length=0)]
)
def test_a_segment_that_was_put_together_may_have_no_length(packet: bytes) -> None:
    found = parse_packet(packet)
    assert found is not None
    assert found.payload == PAYLOAD


def test_an_empty_datagram_is_one() -> None:
    found = parse_packet(ipv4(udp(b"")))
    assert found is not None
    assert found.payload == b""


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        b"\x00" * 60,
        b"\x55" * 60,
        ipv4(udp())[:19],
        ipv4(udp())[:27],
        ipv4(udp())[:-1],
        ipv4(udp(), protocol=1),
        ipv4(udp(), words=4),
        ipv4(udp(), words=15),
        ipv4(udp(), total=19),
        ipv4(udp(length=7)),
        ipv4(udp(length=9 + len(PAYLOAD))),
        ipv4(b"", protocol=17),
        ipv4(tcp(b"")[:19], protocol=6),
        ipv4(tcp(words=4), protocol=6),
        ipv4(tcp(words=15), protocol=6),
        ipv6(udp())[:39],
        ipv6(udp())[:47],
        ipv6(udp())[:-1],
        ipv6(udp(), protocol=44),
    ],
)
def test_anything_else_is_none(packet: bytes) -> None:
    assert parse_packet(packet) is None


@pytest.mark.parametrize("packet", [b"", ipv4(tcp(), protocol=6), ipv6(tcp(), protocol=6)])
def test_where_no_payload_of_udp_is(packet: bytes) -> None:
    assert udp_payload_at(packet) is None


def test_a_flow_and_its_reverse() -> None:
    assert FLOW4.reverse == Flow(TO4, 40_000, FROM4, 53)
    assert FLOW4.reverse.reverse == FLOW4
    assert address_of(FROM4) == IPv4Address("192.0.2.53")
    assert address_of(FROM6) == IPv6Address("2001:db8::53")


# Another payload


@pytest.mark.parametrize("payload", [b"", b"x", PAYLOAD, b"longer than it was before" * 10])
@pytest.mark.parametrize(
    "packet", [ipv4(udp()), ipv4(udp(), options=b"\x01" * 8), ipv6(udp()), ipv4(udp()) + b"\0" * 9]
)
def test_another_payload_with_lengths_and_checksums_that_are_right(
    packet: bytes, payload: bytes
) -> None:
    made = with_payload(packet, payload)
    assert made is not None
    before, after = parse_packet(packet), parse_packet(made)
    assert isinstance(before, Datagram)
    assert isinstance(after, Datagram)
    assert (after.flow, after.payload, after.offset) == (before.flow, payload, before.offset)
    assert len(made) == after.offset + len(payload)
    start = after.offset - 8
    if made[0] >> 4 == 4:
        assert checksum(made[:start]) == 0
        assert made[20:start] == packet[20:start], "the options stay"
    size = len(made) - start
    pseudo = after.flow.source + after.flow.target + struct.pack("!IxxxB", size, 17)
    assert checksum(pseudo + made[start:]) == 0
    assert made[start + 6 : start + 8] != b"\0\0", "zero says that there is none"


@pytest.mark.parametrize("packet", [b"", ipv4(tcp(), protocol=6), ipv4(udp())[:-1]])
def test_what_is_not_udp_has_no_other_payload(packet: bytes) -> None:
    assert with_payload(packet, PAYLOAD) is None


def test_a_computed_checksum_of_zero_is_sent_as_all_ones() -> None:
    zero = next(
        made
        for n in range(1 << 16)
        if (made := with_payload(ipv4(udp()), n.to_bytes(2, "big"))) is not None
        and made[26:28] == b"\xff\xff"
    )
    assert parse_packet(zero) is not None


@pytest.mark.parametrize(
    ("data", "total"),
    [
        (b"", 0xFFFF),
        (b"\x00\x01\xf2\x03\xf4\xf5\xf6\xf7", 0x220D),  # RFC 1071 section 3
        (b"\x01", 0xFEFF),
        (b"\xff" * 100_000, 0),
    ],
)
def test_the_internet_checksum(data: bytes, total: int) -> None:
    assert checksum(data) == total


@pytest.mark.parametrize(
    ("packet", "asked"),
    [
        (ipv4(udp()), False),  # from the port of DNS: an answer
        (ipv4(tcp(), protocol=6), False),
        (ipv6(udp()), False),
        (ipv4(struct.pack("!HHHH", 40_000, 53, 8, 0)), True),
        (ipv6(struct.pack("!HHHH", 53, 53, 8, 0)), True),
        (ipv6(struct.pack("!HHIIBBHHH", 40_000, 53, 1, 0, 0x50, 2, 0, 0, 0), protocol=6), True),
        # A copy may be cut short.
        (ipv4(struct.pack("!HHHH", 40_000, 53, 1000, 0) + PAYLOAD, total=1020), True),
        (ipv4(struct.pack("!HHHH", 40_000, 53, 8, 0), protocol=132), False),
        (ipv4(b""), False),
        (b"", False),
    ],
)
def test_which_copies_are_of_queries(packet: bytes, asked: bool) -> None:
    assert asks(packet) is asked


@pytest.mark.parametrize("options", [b"", b"\x01" * 8])
def test_the_ends_of_a_tcp_packet_are_the_same_for_all_of_its_stream(options: bytes) -> None:
    ports = struct.pack("!HH", 53, 40_000)
    one = ipv4(tcp(b"one"), protocol=6, options=options)
    assert tcp_ends(one) == FROM4 + TO4 + ports
    assert tcp_ends(ipv4(tcp(b"two", flags=1), protocol=6)) == tcp_ends(one)
    assert tcp_ends(ipv6(tcp(), protocol=6)) == FROM6 + TO6 + ports


@pytest.mark.parametrize("packet", [b"", ipv4(udp()), ipv6(udp()), b"\x45", b"\x60"])
def test_what_is_not_tcp_has_no_ends(packet: bytes) -> None:
    assert tcp_ends(packet) == b""

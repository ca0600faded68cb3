"""Packets of any bytes give a value or None, and what was built comes back."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.config import Limits
from ramnet.core.learner import Learner
from ramnet.core.packet import Datagram, Flow, parse_packet, udp_payload_at, with_payload
from ramnet.core.queries import QueryLog
from tests.unit.core.support import allowed, policy, udp

PORTS = st.integers(0, 65_535)
ENDS = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
)
# Any bytes, and bytes that look like a packet at first sight.
PACKETS = st.one_of(
    st.binary(max_size=120),
    st.builds(
        lambda first, rest: bytes([first]) + rest,
        st.sampled_from([0x45, 0x46, 0x4F, 0x60]),
        st.binary(min_size=19, max_size=150),
    ),
)


@given(ENDS, PORTS, PORTS, st.binary(max_size=100), st.binary(max_size=20))
def test_what_was_built_comes_back(
    ends: tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address],
    source: int,
    target: int,
    payload: bytes,
    padding: bytes,
) -> None:
    packet = udp(ends[0], source, ends[1], target, payload)
    found = parse_packet(packet + padding)
    flow = Flow(ends[0].packed, source, ends[1].packed, target)
    assert found == Datagram(flow, payload, len(packet) - len(payload))
    assert udp_payload_at(packet) == found.offset


@given(ENDS, PORTS, st.binary(max_size=60), st.data())
def test_a_packet_with_one_octet_changed_never_shows_octets_from_outside(
    ends: tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address],
    port: int,
    payload: bytes,
    data: st.DataObject,
) -> None:
    packet = bytearray(udp(ends[0], 53, ends[1], port, payload))
    at = data.draw(st.integers(0, len(packet) - 1))
    packet[at] = data.draw(st.integers(0, 255))
    found = parse_packet(bytes(packet))
    if found is not None:
        assert found.offset + len(found.payload) <= len(packet)
        assert found.payload == bytes(packet[found.offset : found.offset + len(found.payload)])


@given(PACKETS, st.binary(max_size=80))
def test_any_bytes_are_a_packet_or_none(packet: bytes, payload: bytes) -> None:
    found = parse_packet(packet)
    assert parse_packet(memoryview(packet)) == found
    changed = with_payload(packet, payload)
    assert (changed is not None) is isinstance(found, Datagram)
    if changed is not None and isinstance(found, Datagram):
        again = parse_packet(changed)
        assert again == Datagram(found.flow, payload, found.offset)


@given(st.lists(PACKETS, max_size=10), st.integers(0, 65_535))
def test_any_bytes_may_be_logged_as_queries_and_learned_from(
    packets: list[bytes], ident: int
) -> None:
    """The copies come from the kernel, their contents from anybody."""
    learner = Learner(Limits())
    learner.permit(allowed(policy("*.example")))
    log = QueryLog(4)
    for now, packet in enumerate(packets):
        log.add(packet, now)
        learner.queries.add(packet, now)
        learner.concerns(packet, now)
        assert learner.packet(packet, now) == []
        learner.settled(packet, now)
    assert len(log) <= 4
    flow = Flow(b"\0\0\0\0", 53, b"\0\0\0\0", 1)
    log.asked(flow, ident, struct.pack("!HH", 1, 1), 5)

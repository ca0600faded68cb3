"""IP packets with UDP or TCP inside, as the kernel hands them out.

What does not parse is None, not an error: a packet that is not understood teaches nothing.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17
DOMAIN: Final = 53  # the port of DNS (RFC 1035)

_IPV4_HEADER: Final = 20  # without options (RFC 791)
_IPV6_HEADER: Final = 40  # without extension headers (RFC 8200)
_UDP: Final = struct.Struct("!HHHH")  # source port, destination port, length, checksum
_TCP: Final = struct.Struct("!HHIIBBHHH")  # ports, sequence, acknowledgement, offset, flags, ...
_UDP_PROTOCOL: Final = bytes((IPPROTO_UDP,))
_TCP_PROTOCOL: Final = bytes((IPPROTO_TCP,))

TCP_FIN: Final = 0x01
TCP_SYN: Final = 0x02
TCP_RST: Final = 0x04

Packet = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Flow:
    """Who sends to whom; of an answer, ``source`` is the server."""

    source: bytes
    source_port: int
    target: bytes
    target_port: int

    @property
    def reverse(self) -> Flow:
        """The other direction of the same exchange."""
        return Flow(self.target, self.target_port, self.source, self.source_port)


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram. ``offset`` is where its payload starts in the packet."""

    flow: Flow
    payload: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment; ``sequence`` is that of the first octet of ``payload``."""

    flow: Flow
    sequence: int
    flags: int
    payload: bytes
    offset: int


def address_of(packed: bytes) -> IPv4Address | IPv6Address:
    """Return the address of 4 or 16 octets."""
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)  # noqa: PLR2004


def udp_payload_at(packet: bytes) -> int | None:
    """Return where the payload of a UDP packet would start, None for anything but UDP.

    The hot path: nothing is checked but the protocol; slices of what follows are only compared.
    """
    if not packet:
        return None
    if packet[0] >> 4 == 4:  # noqa: PLR2004
        return (packet[0] & 0x0F) * 4 + _UDP.size if packet[9:10] == _UDP_PROTOCOL else None
    return _IPV6_HEADER + _UDP.size if packet[6:7] == _UDP_PROTOCOL else None


def tcp_ends(packet: bytes) -> bytes:
    """Return addresses and ports of a TCP packet as they stand in it; empty for anything else."""
    if packet[:1] and packet[0] >> 4 == 4:  # noqa: PLR2004
        start = (packet[0] & 0x0F) * 4
        return packet[12:20] + packet[start : start + 4] if packet[9:10] == _TCP_PROTOCOL else b""
    return packet[8:44] if packet[6:7] == _TCP_PROTOCOL else b""


def asks(packet: bytes) -> bool:
    """Tell whether a copy of a packet goes to the port of DNS."""
    parsed = parse_packet(packet, cut=True)
    return parsed is not None and parsed.flow.target_port == DOMAIN


def parse_packet(packet: Packet, *, cut: bool = False) -> Datagram | Segment | None:
    """Take an IP packet with a whole UDP datagram or a TCP segment apart.

    None if it is anything else. With ``cut`` the end may be missing, as of a copy.
    Conntrack has put fragments together before. IPv6 extension headers are not walked: a resolver
    sends none.
    """
    network = _parse_network(packet, cut=cut)
    if network is None:
        return None
    start, end, protocol, source, target = network
    if protocol == IPPROTO_UDP and end - start >= _UDP.size:
        source_port, target_port, length, _checksum = _UDP.unpack_from(packet, start)
        offset = start + _UDP.size
        if length < _UDP.size or (start + length > end and not cut):
            return None
        flow = Flow(source, source_port, target, target_port)
        return Datagram(flow, bytes(packet[offset : min(start + length, end)]), offset)
    if protocol == IPPROTO_TCP and end - start >= _TCP.size:
        source_port, target_port, sequence, _, words, flags, *_ = _TCP.unpack_from(packet, start)
        offset = start + (words >> 4) * 4
        if offset < start + _TCP.size or offset > end:
            return None
        flow = Flow(source, source_port, target, target_port)
        first = sequence + 1 if flags & TCP_SYN else sequence
        return Segment(flow, first & 0xFFFFFFFF, flags, bytes(packet[offset:end]), offset)
    return None


def with_payload(packet: bytes, payload: bytes) -> bytes | None:
    """Return a UDP packet with another payload, lengths and checksums set anew.

    None when ``packet`` is not UDP. IPv4 options stay.
    """
    parsed = parse_packet(packet)
    if not isinstance(parsed, Datagram):
        return None
    start = parsed.offset - _UDP.size
    flow = parsed.flow
    size = _UDP.size + len(payload)
    udp = _UDP.pack(flow.source_port, flow.target_port, size, 0) + payload
    pseudo = flow.source + flow.target + struct.pack("!IxxxB", size, IPPROTO_UDP)
    # A computed zero is sent as all ones: zero says that there is no checksum (RFC 768).
    udp = udp[:6] + (checksum(pseudo + udp) or 0xFFFF).to_bytes(2, "big") + udp[8:]
    head = bytearray(packet[:start])
    if head[0] >> 4 == 4:  # noqa: PLR2004
        head[2:4] = (start + size).to_bytes(2, "big")
        head[10:12] = b"\0\0"
        head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
    else:
        head[4:6] = size.to_bytes(2, "big")
    return bytes(head) + udp


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(memoryview(data).cast("H"))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    # Sums in either byte order differ by that order alone (RFC 1071 section 2).
    return int.from_bytes((~total & 0xFFFF).to_bytes(2, sys.byteorder), "big")


def _parse_network(packet: Packet, *, cut: bool) -> tuple[int, int, int, bytes, bytes] | None:
    """Return where the transport starts and ends, its protocol, source and target."""
    size = len(packet)
    version = packet[0] >> 4 if size else 0
    if version == 4 and size >= _IPV4_HEADER:  # noqa: PLR2004
        start = (packet[0] & 0x0F) * 4
        end = packet[2] << 8 | packet[3]
        # Of a segment that the card or the kernel put together (GRO), the length may be 0.
        end = size if end == 0 or (cut and end > size) else end
        if start < _IPV4_HEADER or not start <= end <= size:
            return None
        return start, end, packet[9], bytes(packet[12:16]), bytes(packet[16:20])
    if version == 6 and size >= _IPV6_HEADER:  # noqa: PLR2004
        length = packet[4] << 8 | packet[5]
        end = size if length == 0 else _IPV6_HEADER + length
        end = min(end, size) if cut else end
        if end > size:
            return None
        return _IPV6_HEADER, end, packet[6], bytes(packet[8:24]), bytes(packet[24:40])
    return None

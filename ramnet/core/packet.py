"""IP packets with UDP inside, as the kernel hands out copies of them.

What does not parse is None, not an error: a packet that is not understood teaches nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

ETH_P_IP: Final = 0x0800
ETH_P_IPV6: Final = 0x86DD
IPPROTO_UDP: Final = 17

_IPV4_HEADER: Final = 20  # without options (RFC 791)
_IPV6_HEADER: Final = 40  # without extension headers (RFC 8200)
_UDP: Final = struct.Struct("!HHHH")  # source port, destination port, length, checksum


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram: where from, where to, and what it carries."""

    source: IPv4Address | IPv6Address
    source_port: int
    target: IPv4Address | IPv6Address
    target_port: int
    payload: bytes


def parse_udp(ethertype: int, packet: memoryview) -> Datagram | None:
    """Take an IP packet with a whole UDP datagram apart; None if it is anything else.

    Conntrack has put fragments together before. IPv6 extension headers are not walked: a resolver
    sends none.
    """
    source: IPv4Address | IPv6Address
    target: IPv4Address | IPv6Address
    if ethertype == ETH_P_IP and len(packet) >= _IPV4_HEADER:
        start, protocol = (packet[0] & 0x0F) * 4, packet[9]
        if start < _IPV4_HEADER:
            return None
        source, target = IPv4Address(bytes(packet[12:16])), IPv4Address(bytes(packet[16:20]))
    elif ethertype == ETH_P_IPV6 and len(packet) >= _IPV6_HEADER:
        start, protocol = _IPV6_HEADER, packet[6]
        source, target = IPv6Address(bytes(packet[8:24])), IPv6Address(bytes(packet[24:40]))
    else:
        return None
    if protocol != IPPROTO_UDP or len(packet) < start + _UDP.size:
        return None
    source_port, target_port, length, _checksum = _UDP.unpack_from(packet, start)
    if length < _UDP.size or start + length > len(packet):
        return None
    payload = bytes(packet[start + _UDP.size : start + length])
    return Datagram(source, source_port, target, target_port, payload)

"""A small reader of pcap files: the TCP SYNs in them, and nothing else.

Format: draft-ietf-opsawg-pcap, as tcpdump writes it (either byte order, micro- or nanoseconds),
link type Ethernet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ramnet.errors import LabError

_MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1e-6),
    b"\xa1\xb2\xc3\xd4": (">", 1e-6),
    b"\x4d\x3c\xb2\xa1": ("<", 1e-9),
    b"\xa1\xb2\x3c\x4d": (">", 1e-9),
}
_FILE_HEADER = 24
_PACKET_HEADER = 16
_ETHERNET = 1
_ETHERNET_HEADER = 14
_TYPE_V4 = 0x0800
_TYPE_V6 = 0x86DD
_V4_HEADER = 20
_V6_HEADER = 40
_TCP = 6
_TCP_PORTS_AND_FLAGS = 14  # ports, sequence and acknowledgement numbers, offset, flags
_SYN = 0x02
_ACK = 0x10


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured frame; ``time`` is in seconds of the system clock."""

    time: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Syn:
    """One TCP SYN without ACK. ``seq`` tells a retransmission from a new attempt."""

    time: float
    src: IPv4Address | IPv6Address
    dst: IPv4Address | IPv6Address
    sport: int
    dport: int
    seq: int


def frames(data: bytes) -> Iterator[Frame]:
    """Yield the frames of a pcap file; a last frame that is not all there yet is left out."""
    if len(data) < _FILE_HEADER:
        return
    known = _MAGIC.get(data[:4])
    if known is None:
        raise LabError("the capture is not a pcap file")
    order, unit = known
    (link,) = struct.unpack_from(f"{order}I", data, 20)
    if link != _ETHERNET:
        raise LabError(f"the capture has link type {link}, not Ethernet")
    at = _FILE_HEADER
    while at + _PACKET_HEADER <= len(data):
        seconds, fraction, kept, _ = struct.unpack_from(f"{order}IIII", data, at)
        at += _PACKET_HEADER
        if at + kept > len(data):
            return
        yield Frame(seconds + fraction * unit, data[at : at + kept])
        at += kept


def syn_of(frame: Frame) -> Syn | None:
    """Return the SYN that a frame holds, or None. Later fragments and IPv6 extensions: None."""
    data = frame.data
    if len(data) < _ETHERNET_HEADER + _V4_HEADER:
        return None
    (kind,) = struct.unpack_from(">H", data, 12)
    packet = data[_ETHERNET_HEADER:]
    src: IPv4Address | IPv6Address
    dst: IPv4Address | IPv6Address
    if kind == _TYPE_V4:
        (fragment,) = struct.unpack_from(">H", packet, 6)
        if packet[9] != _TCP or fragment & 0x1FFF:
            return None
        src, dst = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        segment = packet[(packet[0] & 0x0F) * 4 :]
    elif kind == _TYPE_V6 and len(packet) >= _V6_HEADER and packet[6] == _TCP:
        src, dst = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        segment = packet[_V6_HEADER:]
    else:
        return None
    if len(segment) < _TCP_PORTS_AND_FLAGS or segment[13] & (_SYN | _ACK) != _SYN:
        return None
    sport, dport, seq = struct.unpack_from(">HHI", segment)
    return Syn(frame.time, src, dst, sport, dport, seq)

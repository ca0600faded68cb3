"""Forged UDP datagrams: any source address and port, from any sandbox or container.

``python -m ramnet.lab.forge`` reads datagrams from its input and sends each as a raw IP packet with
a header of its own making (raw(7): IP_HDRINCL; the IPv6 protocol IPPROTO_RAW implies the same).
Raw sockets need CAP_NET_RAW, which Docker gives to its containers by default.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from ramnet.errors import LabError
from ramnet.lab.programs import PYTHON_PATH, require
from ramnet.lab.sandbox import Sandbox

HOP_LIMIT = 64
_UDP_HEADER = 8
_V4_HEADER = 20
_V4 = 4


@dataclass(frozen=True, slots=True)
class Datagram:
    """One UDP datagram as it shall appear on the wire."""

    src: str
    sport: int
    dst: str
    dport: int
    payload: bytes


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(datagram: Datagram) -> bytes:
    """Return the whole IP packet of a datagram; LabError when the two addresses do not fit."""
    src, dst = ip_address(datagram.src), ip_address(datagram.dst)
    length = _UDP_HEADER + len(datagram.payload)
    ports = struct.pack(">HHH", datagram.sport, datagram.dport, length)
    if isinstance(src, IPv4Address) and isinstance(dst, IPv4Address):
        pseudo = src.packed + dst.packed + struct.pack(">BBH", 0, socket.IPPROTO_UDP, length)
        head = struct.pack(
            ">BBHHHBBH", 0x45, 0, _V4_HEADER + length, 0, 0, HOP_LIMIT, socket.IPPROTO_UDP, 0
        )
        head += src.packed + dst.packed
        head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    elif isinstance(src, IPv6Address) and isinstance(dst, IPv6Address):
        pseudo = src.packed + dst.packed + struct.pack(">II", length, socket.IPPROTO_UDP)
        head = struct.pack(">IHBB", 6 << 28, length, socket.IPPROTO_UDP, HOP_LIMIT)
        head += src.packed + dst.packed
    else:
        raise LabError(f"a datagram from {src} to {dst} mixes IPv4 and IPv6")
    # A sum of 0 would say "no checksum" (RFC 768).
    total = checksum(pseudo + ports + b"\0\0" + datagram.payload) or 0xFFFF
    return head + ports + struct.pack(">H", total) + datagram.payload


def forge(
    sandbox: Sandbox,
    datagrams: Iterable[Datagram],
    *,
    repeat: int = 1,
    interval: float = 0.0,
    netns_of: int | None = None,
    timeout: float = 30.0,
) -> None:
    """Send forged datagrams from a sandbox, all of them ``repeat`` times.

    ``interval`` is in seconds between two datagrams. ``netns_of`` is a pid *inside* the sandbox,
    such as Docker's State.Pid: the packets then leave from that process's network namespace.
    """
    lines = [f"{one.dst} {base64.b64encode(packet(one)).decode('ascii')}\n" for one in datagrams]
    argv = [sys.executable, "-m", __name__, json.dumps([repeat, interval])]
    if netns_of is not None:
        argv = [require("nsenter"), f"--net=/proc/{netns_of}/ns/net", "--", *argv]
    sandbox.run(argv, input="".join(lines), env={"PYTHONPATH": str(PYTHON_PATH)}, timeout=timeout)


def main() -> int:
    """Send the packets of the input: lines of a destination and a packet in base 64."""
    repeat, interval = json.loads(sys.argv[1])
    packets = [(dst, base64.b64decode(raw)) for dst, raw in map(str.split, sys.stdin)]
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as v4,
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as v6,
    ):
        for _ in range(repeat):
            for dst, raw in packets:
                (v4 if raw[0] >> 4 == _V4 else v6).sendto(raw, (dst, 0))
                if interval:
                    time.sleep(interval)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Connections of every kind that an engine's process could begin, the unusual ones too.

A program of its own, to be run inside a cgroup or outside: reads [[kind, address, port], ...] from
its input and writes what became of each. The raw ones cannot tell; the far side has to.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from threading import Lock, Thread

from ramnet.lab.forge import HOP_LIMIT, checksum

SECONDS = 4.0  # a SYN that was dropped is sent again after 1 s, and after 3 s
SOURCE_PORT = 40000
IPPROTO_MPTCP = 262  # socket.IPPROTO_MPTCP is not in every build
IPPROTO_SCTP = 132
TCP_FASTOPEN_NO_COOKIE = 34  # linux/tcp.h
FRAGMENT_HEADER, ROUTING_HEADER, DESTINATION_OPTIONS = 44, 43, 60  # RFC 8200
MORE_FRAGMENTS_V4, MORE_FRAGMENTS_V6 = 0x2000, 1
FRAGMENT_BYTES = 8  # the smallest there are: the flags of TCP are in the second
IDENTITY = 4711
ECN = Path("/proc/sys/net/ipv4/tcp_ecn")

Address = IPv4Address | IPv6Address
_ecn = Lock()


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _connect(sock: socket.socket, address: str, port: int) -> str:
    with sock:
        sock.settimeout(SECONDS)
        sock.connect((address, port))
    return "connected"


def tcp(address: Address, port: int) -> str:
    return _connect(socket.socket(_family(address), socket.SOCK_STREAM), str(address), port)


def mptcp(address: Address, port: int) -> str:
    sock = socket.socket(_family(address), socket.SOCK_STREAM, IPPROTO_MPTCP)
    return _connect(sock, str(address), port)


def mapped(address: Address, port: int) -> str:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    return _connect(sock, f"::ffff:{address}", port)


def fast_open(address: Address, port: int) -> str:
    with socket.socket(_family(address), socket.SOCK_STREAM) as sock:
        # A socket that blocks: another says that it is on its way, and no more.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(SECONDS), 0))
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
        sock.sendto(b"data in the SYN", socket.MSG_FASTOPEN, (str(address), port))
    return "connected"


def ecn(address: Address, port: int) -> str:
    with _ecn:
        before = ECN.read_text(encoding="ascii")
        ECN.write_text("1", encoding="ascii")
        try:
            return tcp(address, port)
        finally:
            ECN.write_text(before, encoding="ascii")


def udp(address: Address, port: int) -> str:
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.connect((str(address), port))
        sock.send(b"a datagram")
    return "sent"


def _source(address: Address) -> Address:
    """Return the address that this machine sends from; asking sends nothing."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.connect((str(address), 9))
        return ip_address(sock.getsockname()[0])


def _syn(source: Address, target: Address, port: int) -> bytes:
    head = struct.pack(">HHIIBBHHH", SOURCE_PORT, port, 1, 0, 5 << 4, 0x02, 65535, 0, 0)
    pseudo = source.packed + target.packed + struct.pack(">II", len(head), socket.IPPROTO_TCP)
    return head[:16] + struct.pack(">H", checksum(pseudo + head)) + head[18:]


def _send(target: Address, protocol: int, payload: bytes, *, fragment: int = 0) -> None:
    """Send one raw packet; ``fragment`` is the field of the IPv4 header."""
    source = _source(target)
    if target.version == 4:
        length = 20 + len(payload)
        head = struct.pack(">BBHHHBBH", 0x45, 0, length, IDENTITY, fragment, HOP_LIMIT, protocol, 0)
        head += source.packed + target.packed
        head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    else:
        head = struct.pack(">IHBB", 6 << 28, len(payload), protocol, HOP_LIMIT)
        head += source.packed + target.packed
    with socket.socket(_family(target), socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.sendto(head + payload, (str(target), 0))


def raw(address: Address, port: int) -> str:
    _send(address, socket.IPPROTO_TCP, _syn(_source(address), address, port))
    return "sent"


def fragments(address: Address, port: int) -> str:
    whole = _syn(_source(address), address, port)
    for start in range(0, len(whole), FRAGMENT_BYTES):
        piece = whole[start : start + FRAGMENT_BYTES]
        more = start + FRAGMENT_BYTES < len(whole)
        units = start // 8
        if address.version == 4:
            flags = units | (MORE_FRAGMENTS_V4 if more else 0)
            _send(address, socket.IPPROTO_TCP, piece, fragment=flags)
        else:
            flags = units << 3 | (MORE_FRAGMENTS_V6 if more else 0)
            head = struct.pack(">BBHI", socket.IPPROTO_TCP, 0, flags, IDENTITY)
            _send(address, FRAGMENT_HEADER, head + piece)
    return "sent"


def destination_options(address: Address, port: int) -> str:
    head = struct.pack(">BBBB4x", socket.IPPROTO_TCP, 0, 1, 4)  # eight bytes, all of them padding
    _send(address, DESTINATION_OPTIONS, head + _syn(_source(address), address, port))
    return "sent"


def routing_header(address: Address, port: int) -> str:
    """Send a SYN that has still one place to go (type 2, RFC 6275): nothing says where it ends."""
    head = struct.pack(">BBBB4x", socket.IPPROTO_TCP, 2, 2, 1) + address.packed
    _send(address, ROUTING_HEADER, head + _syn(_source(address), address, port))
    return "sent"


def sctp(address: Address, port: int) -> str:
    """Send an INIT (RFC 9260); its CRC32c is left out, which no packet filter minds."""
    head = struct.pack(">HHII", SOURCE_PORT, port, 0, 0)
    init = struct.pack(">BBHIIHHI", 1, 0, 20, 1, 65535, 1, 1, 1)
    _send(address, IPPROTO_SCTP, head + init)
    return "sent"


KINDS: dict[str, Callable[[Address, int], str]] = {
    "destination options": destination_options,
    "ecn": ecn,
    "fast open": fast_open,
    "fragments": fragments,
    "mapped": mapped,
    "mptcp": mptcp,
    "raw": raw,
    "routing header": routing_header,
    "sctp": sctp,
    "tcp": tcp,
    "udp": udp,
}


def attempt(kind: str, address: str, port: int) -> str:
    try:
        return KINDS[kind](ip_address(address), port)
    except TimeoutError:
        return "timeout"
    except ConnectionRefusedError:
        return "refused"
    except OSError as err:
        return errno.errorcode.get(err.errno or 0, str(err))


def main() -> int:
    wanted = [tuple(one) for one in json.load(sys.stdin)]
    said: list[str] = [""] * len(wanted)

    def run(index: int) -> None:
        said[index] = attempt(*wanted[index])

    threads = [Thread(target=run, args=(index,)) for index in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(said, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

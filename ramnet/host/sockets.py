"""Whose sockets answer at an address of this machine: /proc/net (proc(5))."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

_FILES = ("udp", "udp6", "tcp", "tcp6")
_TCP_LISTEN = "0A"

Addr = IPv4Address | IPv6Address


def owners_of(address: Addr, port: int, *, proc: str = "/proc/net") -> frozenset[int]:
    """Return the user ids of the sockets that are bound to ``address`` and ``port``.

    Sockets bound to every address count; an IPv6 one may serve IPv4 as well. Empty when nobody
    listens, or when /proc cannot be read.
    """
    found: set[int] = set()
    for name in _FILES:
        try:
            lines = Path(proc, name).read_text("ascii", "replace").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            local, state, uid = fields[1], fields[3], int(fields[7])
            if name.startswith("tcp") and state != _TCP_LISTEN:
                continue
            bound, bound_port = _parse(local)
            if bound_port == port and (bound.is_unspecified or _plain(bound) == address):
                found.add(uid)
    return frozenset(found)


def _parse(text: str) -> tuple[Addr, int]:
    """Read ``0100007F:0035``: the address as 32-bit words in the machine's byte order."""
    raw, _, port = text.partition(":")
    data = bytes.fromhex(raw)
    if sys.byteorder == "little":
        data = b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
    return ip_address(data), int(port, 16)


def _plain(address: Addr) -> Addr:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped if mapped is not None else address

"""Whose sockets answer at an address of this machine: /proc/net (proc(5))."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from ramnet.errors import HostError
from ramnet.host import helper

_FILES = ("udp", "udp6", "tcp", "tcp6")
_TCP_LISTEN = "0A"
# login.defs(5): the users of persons begin here; nobody (65534) is everybody's.
FIRST_ORDINARY_USER = 1000

Addr = IPv4Address | IPv6Address


def owners_of(address: Addr, port: int, *, proc: str = "/proc") -> frozenset[int]:
    """Return the user ids that may speak for ``address`` and ``port``.

    They are those of the sockets that are bound there, and of the processes that hold them: what
    accept(2) returns belongs to the process, which may have given up root after it bound. Where the
    port is free for everybody (ip_unprivileged_port_start), only sockets of system users count.
    Sockets bound to every address count; an IPv6 one may serve IPv4 as well. Empty when nobody
    listens, or when /proc cannot be read.
    """
    bound = dict(_bound(address, port, proc))
    if _free_for_all(port, proc):
        bound = {inode: uid for inode, uid in bound.items() if uid < FIRST_ORDINARY_USER}
    return frozenset(bound.values()) | _asked_holders(frozenset(bound), proc)


def _bound(address: Addr, port: int, proc: str) -> Iterator[tuple[str, int]]:
    """Yield inode and user of each socket that is bound to an address and port."""
    for name in _FILES:
        try:
            lines = Path(proc, "net", name).read_text("ascii", "replace").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            local, state, uid, inode = fields[1], fields[3], int(fields[7]), fields[9]
            if name.startswith("tcp") and state != _TCP_LISTEN:
                continue
            bound, bound_port = _parse(local)
            if bound_port == port and (bound.is_unspecified or _plain(bound) == address):
                yield inode, uid


def _free_for_all(port: int, proc: str) -> bool:
    try:
        text = Path(proc, "sys/net/ipv4/ip_unprivileged_port_start").read_text("ascii")
    except OSError:
        return False
    return int(text) <= port


# What the helper said last: while it is gone, a resolver is not cut off.
_SAID: dict[frozenset[str], frozenset[int]] = {}


def _asked_holders(inodes: frozenset[str], proc: str) -> frozenset[int]:
    if not (helper.configured() and inodes):
        return holders_of(inodes, proc)
    try:
        users = helper.holders(inodes)
    except HostError:
        return _SAID.get(inodes, frozenset())
    _SAID.clear()
    _SAID[inodes] = users
    return users


# Which processes hold which sockets: found by a look at every process, kept while it is true.
_KNOWN: dict[frozenset[str], tuple[str, ...]] = {}


def holders_of(inodes: frozenset[str], proc: str = "/proc") -> frozenset[int]:
    """Return the users as whom the processes that hold these sockets act now."""
    if not inodes:
        return frozenset()
    known = _KNOWN.get(inodes, ())
    if not known or not all(_holds(pid, inodes, proc) for pid in known):
        found = (entry.name for entry in os.scandir(proc) if entry.name.isdecimal())
        known = tuple(pid for pid in found if _holds(pid, inodes, proc))
        _KNOWN.clear()
        _KNOWN[inodes] = known
    return frozenset(uid for pid in known for uid in _acts_as(pid, proc))


def _holds(pid: str, inodes: frozenset[str], proc: str) -> bool:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    try:
        names = os.listdir(f"{proc}/{pid}/fd")  # noqa: PTH208 - faster by far
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(f"{proc}/{pid}/fd/{name}") in wanted:  # noqa: PTH115 - faster by far
                return True
        except OSError:  # closed meanwhile
            continue
    return False


def _acts_as(pid: str, proc: str) -> Iterator[int]:
    """Yield the file system user id of a process, which is what its new sockets get."""
    try:
        lines = Path(proc, pid, "status").read_text("ascii", "replace").splitlines()
    except OSError:
        return
    yield from (int(line.split()[4]) for line in lines if line.startswith("Uid:"))


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

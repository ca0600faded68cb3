"""Which resolvers this machine uses: resolv.conf(5), and systemd-resolved's upstreams behind it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from ramnet.errors import HostError
from ramnet.host.files import read_limited

PATH = "/etc/resolv.conf"
# systemd-resolved writes the servers that it asks itself here.
UPSTREAMS = "/run/systemd/resolve/resolv.conf"
STUBS = frozenset({IPv4Address("127.0.0.53"), IPv4Address("127.0.0.54")})

# The C library and Go take three servers at most; what stands behind them is trusted as well, for
# programs that read the file themselves.
MAX_SERVERS = 16
MAX_BYTES = 64 * 1024

Server = IPv4Address | IPv6Address


def parse(text: str) -> tuple[Server, ...]:
    """Return the ``nameserver`` addresses of a resolv.conf in order, each once.

    A zone (``fe80::1%eth0``) stays with its address. Lines that do not parse are passed over, as
    the C library does; without any server it asks this machine, so loopback is the answer.
    """
    return _listed(text) or (IPv4Address("127.0.0.1"), IPv6Address("::1"))


def _listed(text: str) -> tuple[Server, ...]:
    found: dict[Server, None] = {}
    for line in text.split("\n"):  # not splitlines(): to the C library nothing else ends a line
        keyword, *values = line.split() or [""]
        if keyword != "nameserver" or not values:
            continue
        _, _, zone = values[0].partition("%")
        if not (zone.isascii() and zone.isprintable()):  # no interface has such a name
            continue
        try:
            found.setdefault(ip_address(values[0]))
        except ValueError:
            continue
    return tuple(found)[:MAX_SERVERS]


def read(path: str = PATH) -> tuple[Server, ...]:
    """Return the servers of resolv.conf; of a file that cannot be read, what an empty one means."""
    try:
        return parse(read_limited(path, MAX_BYTES).decode("utf-8", "replace"))
    except HostError:
        return parse("")


def without_zone(server: Server) -> Server:
    """Return the address alone: ``fe80::1`` of ``fe80::1%eth0``."""
    return type(server)(int(server))


def upstreams(servers: tuple[Server, ...], path: str = UPSTREAMS) -> tuple[Server, ...]:
    """Return the servers that a systemd-resolved stub among ``servers`` asks in its turn."""
    if STUBS.isdisjoint(servers):
        return ()
    try:
        text = read_limited(path, MAX_BYTES).decode("utf-8", "replace")
    except HostError:
        return ()
    return tuple(server for server in _listed(text) if server not in STUBS)

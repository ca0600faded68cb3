"""By which interface a resolver is reached, and when that may have changed (rtnetlink)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ramnet.core.dns import DNS_PORT
from ramnet.core.terms import Resolver
from ramnet.errors import HostError
from ramnet.host.conntrack import responder_of
from ramnet.host.resolvconf import Server, without_zone
from ramnet.host.sockets import owners_of

# linux/rtnetlink.h: links, addresses and routes of both families.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
LOOPBACK = 1  # the index of lo in every network namespace
_RECEIVE_BYTES = 64 * 1024


class Routes:
    """Asks the kernel for routes, and tells when any link, address or route has changed."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._asker = AsyncIPRoute()
        try:
            self._monitor = socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                socket.NETLINK_ROUTE,
            )
            self._monitor.bind((0, _GROUPS))
        except OSError as err:
            raise HostError(f"watching routes: {err.strerror}") from err

    async def __aenter__(self) -> Self:
        await self._asker.setup_endpoint()
        asyncio.get_running_loop().add_reader(self._monitor, self._drain)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._monitor)
        self._monitor.close()
        self._asker.close()

    def _drain(self) -> None:
        """Read what has come; that something came is all that matters."""
        self.changed.set()
        try:
            while self._monitor.recv(_RECEIVE_BYTES):
                pass
        except OSError:  # nothing left, or an overrun: either way something has changed
            return

    async def resolvers(self, servers: Iterable[Server]) -> tuple[Resolver, ...]:
        """Pair each server with the interface of the route to it; leave out what has none."""
        found = []
        for server in servers:
            index = await self._interface(server)
            if index is not None:
                address = without_zone(server)
                answers, owners = index, None
                if index == LOOPBACK:
                    owners = owners_of(address, DNS_PORT)
                responder = await responder_of(server)
                if responder is not None and responder != address:
                    answers, owners = await self._interface(responder) or index, None
                found.append(Resolver(address, index, answers, owners))
        return tuple(found)

    async def _interface(self, server: Server) -> int | None:
        zone = getattr(server, "scope_id", None)
        if zone is not None:
            return _index_of(zone)
        try:
            for route in await self._asker.route("get", dst=str(server)):
                index = route.get_attr("RTA_OIF")
                if index is not None:
                    return int(index)
        except NetlinkError:  # no route to it: it cannot be asked, so it cannot answer
            return None
        return None


def _index_of(zone: str) -> int | None:
    try:
        return int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    except (OSError, ValueError):  # a zone of a resolv.conf may be any text
        return None

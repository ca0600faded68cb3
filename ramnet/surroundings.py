"""The machine around the daemon: whom it asks and by which way, and its devices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

from ramnet.core.events import Event, LinksFound, ResolversFound
from ramnet.core.plan import NOTHING_LOCAL
from ramnet.core.terms import Resolver
from ramnet.host import resolvconf
from ramnet.host.files import POLL_SECONDS, FollowedFile
from ramnet.host.resolver import Resolver as NameResolver
from ramnet.host.routes import Routes
from ramnet.host.uplinks import Survey, survey

# Who answers for a resolver on this machine is looked up every 2 s: /proc/net may be long.
OWNERS_EVERY = round(2 / POLL_SECONDS)
# Routes change in bursts: an interface that comes up announces itself a dozen times.
SETTLE_SECONDS = 0.05


class Surroundings:
    """Follows resolv.conf, routes and devices, and tells of them as events.

    ``pinned`` are the resolvers of the configuration, if it has any; ``local`` gives those at
    addresses of this machine that the daemon knows at the moment.
    """

    def __init__(
        self,
        pinned: tuple[resolvconf.Server, ...],
        names: NameResolver,
        tell: Callable[[Event], None],
        local: Callable[[], tuple[Resolver, ...]],
    ) -> None:
        self.servers: tuple[resolvconf.Server, ...] = ()
        self.devices = Survey((), (), NOTHING_LOCAL, ())
        self._pinned = pinned
        self._names = names
        self._tell = tell
        self._local = local

    async def follow(self, routes: Routes) -> None:
        """Tell of every change until cancelled."""
        files = [FollowedFile(resolvconf.PATH), FollowedFile(resolvconf.UPSTREAMS)]
        while True:
            await self.find(routes)
            for turn in count(1):
                await asyncio.sleep(POLL_SECONDS)
                moved = [file.changed() for file in files]  # every one is to be looked at
                if turn % OWNERS_EVERY == 0:
                    moved.append(await self._moved_here(routes))
                if routes.changed.is_set() or any(moved):
                    break
            await asyncio.sleep(SETTLE_SECONDS)
            routes.changed.clear()

    async def find(self, routes: Routes) -> None:
        """Look at everything once, and tell of it."""
        self.servers = servers = self._pinned or resolvconf.read()
        trusted = (*servers, *resolvconf.upstreams(servers))
        found = await routes.resolvers(trusted)
        self._tell(ResolversFound(found))
        self.devices = devices = await survey()
        uplinked = tuple(link.index for link in devices.uplinked)
        self._tell(LinksFound(devices.bridges, devices.uplinks, devices.local, uplinked))
        # Where the machine redirects queries they leave by another way than the answers come.
        direct = {item.address: item.interface for item in found if item.direct}
        self._names.set_servers(servers, direct)

    async def _moved_here(self, routes: Routes) -> bool:
        """Tell whether a resolver at an address of this machine is answered for by others now.

        Neither a restart under another user nor a change of NAT rules says a word.
        """
        known = self._local()
        return await routes.resolvers(item.address for item in known) != known

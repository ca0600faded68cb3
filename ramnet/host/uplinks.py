"""Which devices may be the parent of a macvlan or ipvlan child, and what the machine itself sends.

Asked of the kernel by rtnetlink; ``Routes.changed`` tells when to ask again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import NLM_F_DUMP_INTR

from ramnet.core.allow import Addr
from ramnet.core.egress import Local, Uplink

_ARPHRD_ETHER = 1  # linux/if_arp.h: macvlan and ipvlan take no other parent; lo is none

# Kinds of devices that Docker and others put containers on. A physical one has no kind.
_PARENTS = frozenset({"", "bond", "team", "vlan"})
# A VRF does not take the packets of its members away; a bridge, bond or team does.
_TRANSPARENT = frozenset({"vrf"})
# Each is a chain, looked at by the packets of one device only. A trunk with more VLANs in use than
# this is not the machine of a developer.
MAX_UPLINKS = 256
# A change is announced, so it will be asked again: no need to wait until all is quiet.
TRIES = 4
# What nft's quoted strings cannot hold, or take for a pattern.
_UNSPEAKABLE = frozenset('"*\\')


@dataclass(frozen=True, slots=True)
class Link:
    """A device as the kernel describes it; ``kind`` is empty for a physical one.

    ``master`` is the index of the device that has enslaved it and ``master_kind`` what that is.
    """

    index: int
    name: str
    kind: str = ""
    mac: str = ""
    master: int | None = None
    master_kind: str = ""
    ethernet: bool = True

    @property
    def free(self) -> bool:
        """Whether its packets are its own, not those of a bridge, bond or team."""
        return self.master is None or self.master_kind in _TRANSPARENT


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found: ``left_out`` are the names of uplinks that no rule is made for.

    ``uplinked`` are bridges that the network outside is on, ``bridges`` all others.
    """

    uplinks: tuple[Uplink, ...]
    left_out: tuple[str, ...]
    local: Local
    bridges: tuple[int, ...]
    uplinked: tuple[Uplink, ...] = ()


async def survey() -> Survey:
    """Look at the devices and addresses of this network namespace."""
    addresses: dict[int, set[Addr]] = {}
    async with AsyncIPRoute() as asker:
        links = [_link(message) for message in await whole(lambda: asker.link("dump"))]
        for message in await whole(lambda: asker.addr("dump")):
            found = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            addresses.setdefault(message["index"], set()).add(ip_address(found))
    return choose(links, addresses)


async def whole(dump: Callable[[], Awaitable[AsyncIterator[Any]]]) -> list[Any]:
    """Return the messages of a dump; again, should something have changed in the middle of it.

    Then a device may be missing in it that was there all the time.
    """
    for _ in range(TRIES):
        messages = [message async for message in await dump()]
        if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in messages):
            break
    return messages


def choose(links: Iterable[Link], addresses: Mapping[int, Iterable[Addr]]) -> Survey:
    """Decide which devices are uplinks, and what is the machine's own.

    ``addresses`` are those of each interface index. Addresses of enslaved devices do not count:
    nothing is sent from them, and every container would bring one (the end of its veth pair).
    """
    known = list(links)
    own = {link.index: set(addresses.get(link.index, ())) for link in known if link.free}
    found = [link for link in known if link.free and _is_uplink(link, known, own[link.index])]
    said = [link for link in found if _speakable(link.name)][:MAX_UPLINKS]
    senders = [link for link in known if link.mac and (own.get(link.index) or link in said)]
    return Survey(
        tuple(Uplink(link.index, link.name) for link in said),
        tuple(link.name for link in found if link not in said),
        Local(
            frozenset(link.mac for link in senders if link.ethernet),
            frozenset(address for each in own.values() for address in each),
        ),
        tuple(link.index for link in known if link.kind == "bridge" and link not in found),
        tuple(Uplink(link.index, link.name) for link in found if link.kind == "bridge"),
    )


def _is_uplink(link: Link, links: list[Link], addresses: set[Addr]) -> bool:
    """Tell whether containers may be put on a device, and leave the machine by it.

    A bridge only if the network outside is on it too: Docker's own bridges lead to containers. The
    end of a veth pair only if it has an address (the machine is itself a container, or a lab), for
    one without leads to a container that is routed.
    """
    if not link.ethernet:
        return False
    if link.kind == "bridge":
        ports = [one for one in links if one.master == link.index]
        return any(port.ethernet and port.kind in _PARENTS for port in ports)
    if link.kind == "veth":
        return any(not address.is_link_local for address in addresses)
    return link.kind in _PARENTS


def _speakable(name: str) -> bool:
    return name.isascii() and name.isprintable() and not _UNSPEAKABLE.intersection(name)


def _link(message: Any) -> Link:
    info = dict(_attributes(message.get_attr("IFLA_LINKINFO")))
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=info.get("IFLA_INFO_KIND", ""),
        mac=message.get_attr("IFLA_ADDRESS") or "",
        master=message.get_attr("IFLA_MASTER"),
        master_kind=info.get("IFLA_INFO_SLAVE_KIND", ""),
        ethernet=message["ifi_type"] == _ARPHRD_ETHER,
    )


def _attributes(nested: Any) -> Iterator[tuple[str, Any]]:
    for attribute in nested["attrs"] if nested is not None else ():
        yield attribute[0], attribute[1]

"""What DNS says of a name that a policy lists, and what of it people ought to know."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from ramnet.core.addresses import teachable
from ramnet.core.allow import LOCALHOST, AllowList
from ramnet.core.catalog import Catalog, Role
from ramnet.core.enginefacts import printable
from ramnet.core.names import HostName, HostPattern, parse_host
from ramnet.core.policy import Policy
from ramnet.core.reference import DOCKER_HUB, DOCKER_HUB_WIRE
from ramnet.errors import NameFault

Addr = IPv4Address | IPv6Address

# Addresses of one name that a remark repeats.
_MAX_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of a name.

    ``exists`` is False where DNS knows no such name. ``chain`` are the targets of its CNAMEs in
    order. ``local`` are its addresses in /etc/hosts, which programs take before they ask DNS.
    ``error`` says why nothing is known; the rest but ``local`` then means nothing.
    """

    exists: bool = True
    addresses: tuple[Addr, ...] = ()
    chain: tuple[HostName, ...] = ()
    local: tuple[Addr, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that makes an entry useless or surprising, and what to do about it."""

    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a policy: ``key`` is where it stands (``registry[1].address``)."""

    key: str
    name: HostName


def askable(name: HostName) -> bool:
    """Whether DNS can be asked: what a name without a dot means depends on who asks."""
    return "." in name and name != LOCALHOST


def wire_name(name: HostName) -> HostName:
    """Return the name that clients look up."""
    return HostName(DOCKER_HUB_WIRE) if name == DOCKER_HUB else name


def places(policy: Policy, today: date) -> Iterator[Place]:
    """Yield the names of the entries in force that DNS can be asked for: no wildcards."""
    for number, entry in enumerate(policy.registry):
        if entry.expires is not None and entry.expires < today:
            continue
        found: list[tuple[str, HostPattern | None]] = [("address", entry.address.pattern)]
        found += [(f"extra_hosts[{place}]", one) for place, one in enumerate(entry.extra_hosts)]
        for key, pattern in found:
            if pattern is not None and not pattern.wildcard and askable(pattern.name):
                yield Place(f"registry[{number}].{key}", wire_name(pattern.name))


def remarks(name: HostName, said: Said, allowed: AllowList, catalog: Catalog) -> tuple[Remark, ...]:
    """Say what is odd about a name that the policy allows."""
    if said.local:
        return tuple(_of_hosts_file(said, allowed))
    if said.error:
        return ()
    if not said.exists:
        hint = "correct the name, or take it out of the policy"
        return (Remark("DNS says that there is no such name", hint),)
    if not said.addresses:
        last = f"it is an alias of {said.chain[-1]}, which has" if said.chain else "it has"
        return (Remark(f"{last} no address in DNS", "correct the name, or its zone"),)
    never = [address for address in said.addresses if not teachable(address)]
    if len(never) == len(said.addresses):
        text = f"DNS leads to {_listed(never)}, which no DNS answer may open: it stays refused"
        return (Remark(text, f"list it in the entry's networks: {_networks(never)}"),)
    return tuple(_alias(name, said, catalog))


def _of_hosts_file(said: Said, allowed: AllowList) -> Iterator[Remark]:
    """Tell of addresses that programs take from /etc/hosts and nobody opens."""
    known = set(said.addresses) if not said.error else set()
    closed = [
        address
        for address in said.local
        if address not in known and not any(allowed.grants_for(address))
    ]
    if closed:
        text = f"/etc/hosts leads to {_listed(closed)}, and only what DNS says is opened"
        yield Remark(text, f"list it in the entry's networks: {_networks(closed)}")


def _alias(name: HostName, said: Said, catalog: Catalog) -> Iterator[Remark]:
    """Tell of a CNAME that leads into another registry, whose other hosts are then contacted."""
    own = {owner.entry.key for owner in catalog.owners_of(name)}
    for target in said.chain:
        for owner in catalog.owners_of(target)[:1]:
            if owner.host.role is Role.API and owner.entry.key not in own:
                text = (
                    f"it is an alias of {target}, a host of {owner.entry.title}: what that asks of"
                    " clients is not allowed by this entry"
                )
                yield Remark(text, f"list {owner.entry.key} instead, or as well")
                return


def targets(
    found: Collection[Place], said: Mapping[HostName, Said]
) -> Iterator[tuple[Place, Remark]]:
    """Yield the places whose name is only what another name of the policy leads to.

    No client asks for the target of a CNAME by its own name: an entry for it allows nothing more.
    """
    names = {place.name for place in found}
    origins = {target: name for name in names if name in said for target in said[name].chain}
    for place in found:
        origin = origins.get(place.name)
        if origin is not None:
            text = f"{origin}, which is listed as well, is an alias of it"
            hint = "it is needed only if clients name it themselves"
            yield place, Remark(text, hint)


def hosts_file(data: bytes, wanted: Iterable[HostName]) -> dict[HostName, tuple[Addr, ...]]:
    """Return what hosts(5) says of the wanted names; lines that do not parse say nothing."""
    names = frozenset(wanted)
    found: dict[HostName, tuple[Addr, ...]] = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        address, *words = line.partition("#")[0].split() or [""]
        for word in words:
            try:
                name, parsed = parse_host(word), ip_address(address)
            except (NameFault, ValueError):
                continue
            if name in names and parsed not in found.get(name, ()):
                found[name] = (*found.get(name, ()), parsed)
    return found


def _listed(addresses: Collection[Addr]) -> str:
    shown = [printable(str(address)) for address in addresses][:_MAX_SHOWN]
    more = len(addresses) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _networks(addresses: Collection[Addr]) -> str:
    listed = ", ".join(f'"{address}"' for address in list(addresses)[:_MAX_SHOWN])
    return f"networks = [{listed}]"

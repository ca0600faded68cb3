"""What a policy allows: names with their ports, and networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Protocol

from ramnet.core.catalog import Catalog, CatalogEntry, CatalogHost, Role
from ramnet.core.match import Matcher
from ramnet.core.names import Address, HostName, HostPattern
from ramnet.core.policy import DestinationEntry, Policy, RegistryEntry

HTTPS = 443
# What Docker dials for a registry: 443, 80 for an insecure one, and the registry image's own 5000.
REGISTRY_PORTS = frozenset({80, 443, 5000})
# In the place of a port: every one of them.
ANY_PORT = 0

LOCALHOST = "localhost"
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

Network = IPv4Network | IPv6Network
Addr = IPv4Address | IPv6Address


class Permit(Protocol):
    """What a name leads to is noted on the ports that this says."""

    def ports_of(self, name: HostName) -> frozenset[int]:
        """Return the ports of a name, ``ANY_PORT`` among them for all; empty: not concerned."""
        ...


@dataclass(frozen=True, slots=True)
class Grant:
    """What a name or network may be reached for: ``ports`` None means any; why it is allowed.

    ``registry`` is the address in the policy. A ``destination`` is not one, and for engines only.
    """

    ports: frozenset[int] | None
    registry: str
    via: str
    destination: bool = False


@dataclass(frozen=True, slots=True)
class AllowList:
    """A policy, expanded: what may be reached.

    ``ports`` are those on which registries are to be expected, ``udp_ports`` those on which
    destinations may be reached by UDP too. ``exact`` are the names without a wildcard.
    """

    names: Matcher[Grant]
    networks: tuple[tuple[Network, Grant], ...]
    exact: tuple[HostName, ...]
    ports: frozenset[int]
    udp_ports: frozenset[int]
    registries: tuple[str, ...]

    def ports_of(self, name: HostName) -> frozenset[int]:
        """Return the ports on which an engine may reach a name."""
        return _ports(self.names.find(name))

    def is_destination(self, name: HostName, port: int) -> bool:
        """Whether a name is one of a destination on this port: it need not be a registry there."""
        grants = (grant for grant in self.names.find(name) if grant.destination)
        return bool(_ports(grants) & {port, ANY_PORT})

    def grants_for(self, address: Addr) -> Iterator[Grant]:
        """Yield the grants of the networks that hold ``address``."""
        for network, grant in self.networks:
            if network.version == address.version and address in network:
                yield grant


@dataclass(frozen=True, slots=True)
class Registries:
    """Of an allow-list, what is a registry's: all that containers may reach."""

    allowed: AllowList

    def ports_of(self, name: HostName) -> frozenset[int]:
        """Return the ports on which a container may reach a name."""
        return _ports(grant for grant in self.allowed.names.find(name) if not grant.destination)


@dataclass(frozen=True, slots=True)
class DenyList:
    """The hosts whose addresses are refused under ``catalog``, each with its ports.

    The API hosts of catalogued registries that serve nothing else, by name and by address, and
    that the policy does not name. ``owners`` has the key of each host's registry.
    """

    hosts: Mapping[HostName, frozenset[int]]
    owners: Mapping[HostName, str]

    def ports_of(self, name: HostName) -> frozenset[int]:
        """Return the ports on which the addresses of a name are refused."""
        return self.hosts.get(name, frozenset())


NOBODY = DenyList({}, {})


def deny_list(allowed: AllowList, catalog: Catalog) -> DenyList:
    """Find what the catalogue knows and a policy does not allow, as far as it is one exact name."""
    registries = Registries(allowed)
    hosts, owners = {}, {}
    for entry in catalog:
        for host in entry.with_role(Role.API):
            name = host.pattern.name
            exact = not host.pattern.wildcard
            own = host.registry_only and not host.shared
            if exact and own and not registries.ports_of(name):
                hosts[name], owners[name] = host.ports, entry.key
    return DenyList(hosts, owners)


def allow_list(policy: Policy | None, catalog: Catalog, today: date) -> AllowList:
    """Expand a policy; None (no valid policy) allows nothing."""
    patterns: list[tuple[HostPattern, Grant]] = []
    networks: list[tuple[Network, Grant]] = []
    entries = policy.active(today) if policy is not None else ()
    for entry in entries:
        patterns += _patterns_of(entry, catalog)
        networks += _networks_of(entry)
    ports = set(REGISTRY_PORTS)
    for grant in (grant for _, grant in (*patterns, *networks)):
        ports |= grant.ports or frozenset()
    udp_ports: set[int] = set()
    for destination in policy.destination if policy is not None else ():
        grant = _grant_of(destination)
        patterns += [(pattern, grant) for pattern in _names_of(destination.address)]
        networks += [(network, grant) for network in _addresses_of(destination.address)]
        udp_ports |= grant.ports or frozenset()
    exact = dict.fromkeys(pattern.name for pattern, _ in patterns if not pattern.wildcard)
    return AllowList(
        Matcher(patterns),
        tuple(networks),
        tuple(exact),
        frozenset(ports),
        frozenset(udp_ports - ports),
        tuple(str(entry.address) for entry in entries),
    )


def expansion(
    entry: RegistryEntry | DestinationEntry, catalog: Catalog
) -> Iterator[tuple[HostPattern | Network, Grant]]:
    """Yield what one entry of a policy allows, and why; as if it had not expired."""
    if isinstance(entry, RegistryEntry):
        yield from _patterns_of(entry, catalog)
        yield from _networks_of(entry)
        return
    grant = _grant_of(entry)
    yield from ((pattern, grant) for pattern in _names_of(entry.address))
    yield from ((network, grant) for network in _addresses_of(entry.address))


def _ports(grants: Iterable[Grant]) -> frozenset[int]:
    ports: frozenset[int] = frozenset()
    for grant in grants:
        ports |= frozenset({ANY_PORT}) if grant.ports is None else grant.ports
    return ports


def _grant_of(entry: DestinationEntry) -> Grant:
    address = entry.address
    ports = frozenset(entry.ports) or frozenset({address.port or HTTPS})
    via = "policy: destination.address"
    return Grant(None if address.any_port else ports, str(address), via, destination=True)


def _names_of(address: Address) -> Iterator[HostPattern]:
    """Yield what has to be looked up; ``localhost`` has not."""
    if address.pattern is not None and address.pattern.name != LOCALHOST:
        yield address.pattern


def _addresses_of(address: Address) -> Iterator[Network]:
    """Yield what is reached without DNS."""
    if address.ip is not None:
        yield ip_network(address.ip)
    elif address.pattern is not None and address.pattern.name == LOCALHOST:
        yield from _LOOPBACK


def _ports_of(entry: RegistryEntry) -> frozenset[int] | None:
    if entry.address.any_port:
        return None
    return frozenset({entry.address.port or HTTPS})


def _patterns_of(entry: RegistryEntry, catalog: Catalog) -> Iterator[tuple[HostPattern, Grant]]:
    address = entry.address
    text = str(address)
    ports = _ports_of(entry)
    for pattern in _names_of(address):
        known = catalog.lookup(pattern)
        # The catalogue speaks of HTTPS; on a port of its own a name is only what it says.
        companions = address.any_port or address.port in (None, HTTPS)
        if known is None or not companions:
            yield pattern, Grant(ports, text, "policy: registry.address")
            continue
        hosts = known.hosts_for(entry.regions, unverified=entry.unverified_hosts)
        doubtful = any(host.optional and host.pattern == pattern for host in known.hosts)
        # What the policy names itself needs nobody's word.
        if address.any_port or (doubtful and not entry.unverified_hosts):
            yield pattern, Grant(ports, text, "policy: registry.address")
        for host in hosts:
            yield host.pattern, Grant(host.ports, text, _via(known, host))
    for pattern in entry.extra_hosts:
        # A companion host serves HTTPS, or is a second name of the registry on its own port.
        both = None if ports is None else ports | {HTTPS}
        yield pattern, Grant(both, text, "policy: registry.extra_hosts")


def _via(entry: CatalogEntry, host: CatalogHost) -> str:
    region = f", region {host.region}" if host.region else ""
    doubt = ", not verified" if host.optional else ""
    return f"catalogue: {host.role} host of {entry.key}{region}{doubt}"


def _networks_of(entry: RegistryEntry) -> Iterator[tuple[Network, Grant]]:
    text = str(entry.address)
    ports = _ports_of(entry)
    for network in _addresses_of(entry.address):
        yield network, Grant(ports, text, "policy: registry.address")
    for network in entry.networks:
        yield network, Grant(ports, text, "policy: registry.networks")

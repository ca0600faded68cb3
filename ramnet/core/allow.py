"""What a policy allows: names with their ports, and networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from ramnet.core.catalog import Catalog
from ramnet.core.match import Matcher
from ramnet.core.names import HostName, HostPattern
from ramnet.core.policy import Policy, RegistryEntry

HTTPS = 443
# What Docker dials for a registry: 443, 80 for an insecure one, and the registry image's own 5000.
REGISTRY_PORTS = frozenset({80, 443, 5000})

LOCALHOST = "localhost"
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

Network = IPv4Network | IPv6Network
Addr = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Grant:
    """What a name or network may be reached for: ``ports`` None means any; why it is allowed."""

    ports: frozenset[int] | None
    registry: str
    via: str


@dataclass(frozen=True, slots=True)
class AllowList:
    """A policy, expanded: what may be reached."""

    names: Matcher[Grant]
    networks: tuple[tuple[Network, Grant], ...]
    exact: tuple[HostName, ...]
    ports: frozenset[int]
    registries: tuple[str, ...]

    def ports_of(self, name: HostName) -> frozenset[int]:
        """Return the TCP ports on which a name may be reached; empty when it is not allowed.

        "Any port" of a name means every port that is judged.
        """
        ports: frozenset[int] = frozenset()
        for grant in self.names.find(name):
            ports |= self.ports if grant.ports is None else grant.ports
        return ports

    def grants_for(self, address: Addr) -> Iterator[Grant]:
        """Yield the grants of the networks that hold ``address``."""
        for network, grant in self.networks:
            if network.version == address.version and address in network:
                yield grant


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
    exact = dict.fromkeys(pattern.name for pattern, _ in patterns if not pattern.wildcard)
    return AllowList(
        Matcher(patterns),
        tuple(networks),
        tuple(exact),
        frozenset(ports),
        tuple(str(entry.address) for entry in entries),
    )


def _ports_of(entry: RegistryEntry) -> frozenset[int] | None:
    if entry.address.any_port:
        return None
    return frozenset({entry.address.port or HTTPS})


def _patterns_of(entry: RegistryEntry, catalog: Catalog) -> Iterator[tuple[HostPattern, Grant]]:
    address = entry.address
    text = str(address)
    ports = _ports_of(entry)
    if address.pattern is not None and address.pattern.name != LOCALHOST:
        known = catalog.lookup(address.pattern)
        # The catalogue speaks of HTTPS; on a port of its own a name is only what it says.
        if known is None or address.port not in (None, HTTPS) or address.any_port:
            yield address.pattern, Grant(ports, text, "policy: registry.address")
        if known is not None and (address.any_port or address.port in (None, HTTPS)):
            for host in known.hosts:
                via = f"catalogue: {host.role} host of {known.key}"
                yield host.pattern, Grant(host.ports, text, via)
    for pattern in entry.extra_hosts:
        # A companion host serves HTTPS, or is a second name of the registry on its own port.
        both = None if ports is None else ports | {HTTPS}
        yield pattern, Grant(both, text, "policy: registry.extra_hosts")


def _networks_of(entry: RegistryEntry) -> Iterator[tuple[Network, Grant]]:
    address = entry.address
    text = str(address)
    ports = _ports_of(entry)
    if address.ip is not None:
        yield ip_network(address.ip), Grant(ports, text, "policy: registry.address")
    elif address.pattern is not None and address.pattern.name == LOCALHOST:
        for network in _LOOPBACK:
            yield network, Grant(ports, text, "policy: registry.address")
    for network in entry.networks:
        yield network, Grant(ports, text, "policy: registry.networks")

"""From a policy to what it allows, and from that to the ruleset.

``allow_list`` answers "which names, addresses and ports"; ``compile_table`` puts it into rules.
Both are pure: the ruleset is derived anew each time, and no mirror of the kernel's state is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_network,
)

from ramnet.core.catalog import Catalog
from ramnet.core.match import Matcher
from ramnet.core.names import HostName, HostPattern
from ramnet.core.policy import Policy, RegistryEntry
from ramnet.core.ruleset import Chain, Counter, Hook, Rule, Set, Table

TABLE = "ramnet"
# Any number will do as long as nobody else uses it; the kernel lets a group have one owner.
NFLOG_GROUP = 7261
ALLOW = "allow"

HTTPS = 443
# What Docker dials for a registry: 443, 80 for an insecure one, and the registry image's own 5000.
REGISTRY_PORTS = frozenset({80, 443, 5000})

# After conntrack (-200), before mangle (-150) and every NAT (-100): the destination is still the
# one that the client asked for.
PRIORITY = -160
RAW = -300  # before conntrack

# How long a first SYN to a pair that is not allowed is remembered. Linux retransmits after 1 s;
# the rest is slack for a loaded machine.
SEEN_SECONDS = 5
# First SYNs remembered at once. When it is full, new ones are refused at once instead of later.
SEEN_SIZE = 65_536

REFUSED = "refused"
HELD = "held_first_syn"

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
        if known is None:
            yield address.pattern, Grant(ports, text, "policy: registry.address")
        else:
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


@dataclass(frozen=True, slots=True)
class Resolver:
    """A trusted resolver: its address, and the interface its answers must come in by."""

    address: Addr
    interface: int


@dataclass(frozen=True, slots=True)
class Held:
    """A learned address as the kernel holds it; ``seconds`` until it runs out."""

    address: Addr
    port: int
    seconds: float
    name: str


@dataclass(frozen=True, slots=True)
class Marks:
    """What is configured of the ruleset: the bit of the conntrack mark, and the sets' size."""

    ct_dns: int
    set_size: int


def compile_table(
    allowed: AllowList,
    resolvers: Iterable[Resolver],
    held: Iterable[Held],
    marks: Marks,
) -> Table:
    """Compile the table for scope ``netns`` in mode ``observe``.

    Every new TCP connection of this network namespace to a judged port is judged, once. ``held``
    goes into the host sets, so that replacing the table forgets nothing. The rules on DNS also keep
    conntrack in use, without which a SYN in 8-byte fragments would pass: its flags are not in the
    first one.
    """
    learned = list(held)
    servers = list(resolvers)
    static = _static_sets(allowed.networks)
    sets = [
        Set("judged", "inet_service", elements=tuple(map(str, sorted(allowed.ports)))),
        *(_host_set(version, learned, marks.set_size) for version in (4, 6)),
        *(_seen_set(version) for version in (4, 6)),
        *(_resolver_set(version, servers) for version in (4, 6)),
        *(item for item, _ in static),
    ]
    judge = Chain(
        "judge",
        (
            Rule("tcp dport != @judged accept", "scope netns: the other ports are not judged"),
            *(Rule(f"{ip} daddr . tcp dport @{ALLOW}{v} accept") for v, ip in _FAMILIES),
            *(rule for _, rule in static),
            *(_first_syn(version, ip) for version, ip in _FAMILIES),
            Rule(f"counter name {REFUSED} meta l4proto tcp reject with tcp reset"),
        ),
    )
    output = Chain(
        "output",
        (
            *(_query_rule(version, ip, marks) for version, ip in _FAMILIES),
            Rule("tcp flags & (fin|syn|rst|ack) == syn jump judge", "each new connection, once"),
        ),
        Hook.OUTPUT,
        PRIORITY,
    )
    answers = Chain(
        "answers",
        tuple(_answer_rule(version, ip, marks) for version, ip in _FAMILIES),
        Hook.INPUT,
        PRIORITY,
    )
    strangers = Chain("strangers", tuple(_stranger_rules(servers)), Hook.PREROUTING, RAW)
    counters = (Counter(REFUSED), Counter(HELD))
    return Table(TABLE, counters, tuple(sets), (judge, strangers, output, answers))


_FAMILIES = ((4, "ip"), (6, "ip6"))


def element_of(address: Addr, port: int) -> tuple[str, str]:
    """Return the host set that holds an address, and its element there in nft's language."""
    return f"{ALLOW}{address.version}", f"{address} . {port}"


def _host_set(version: int, held: list[Held], size: int) -> Set:
    elements = tuple(
        f"{item.address} . {item.port} timeout {max(1, int(item.seconds * 1000))}ms"
        + (f' comment "{item.name}"' if item.name and len(item.name) < _COMMENT else "")
        for item in held
        if item.address.version == version
    )
    kind = f"ipv{version}_addr . inet_service"
    return Set(f"{ALLOW}{version}", kind, ("timeout",), size, elements=elements, learned=True)


# nft refuses a comment of 128 bytes or more; a longer name goes without.
_COMMENT = 128


def _seen_set(version: int) -> Set:
    kind = f"ipv{version}_addr . ipv{version}_addr . inet_service . inet_service"
    flags = ("dynamic", "timeout")
    return Set(f"seen{version}", kind, flags, SEEN_SIZE, f"{SEEN_SECONDS}s", learned=True)


def _resolver_set(version: int, resolvers: list[Resolver]) -> Set:
    elements = tuple(
        dict.fromkeys(
            f"{item.address} . {item.interface}"
            for item in resolvers
            if item.address.version == version
        )
    )
    return Set(f"resolvers{version}", f"ipv{version}_addr . iface_index", elements=elements)


def _first_syn(version: int, ip: str) -> Rule:
    """Drop the first SYN of a connection that nothing allows yet: its DNS answer may be late.

    The key names the connection, not only its destination: a name that was refused a moment ago
    must not take the second chance away from one that is allowed and shares the address.
    """
    key = f"{ip} saddr . {ip} daddr . tcp sport . tcp dport"
    seen = f"@seen{version}"
    return Rule(f"{key} != {seen} add {seen} {{ {key} }} counter name {HELD} drop")


def _query_rule(version: int, ip: str, marks: Marks) -> Rule:
    return Rule(
        f"udp dport 53 {ip} daddr . oif @resolvers{version}"
        f" ct mark set ct mark or {marks.ct_dns:#010x} log group {NFLOG_GROUP}",
        "a query to a trusted resolver",
    )


def _answer_rule(version: int, ip: str, marks: Marks) -> Rule:
    """Log an answer that conntrack ties to a marked query, by the resolver that was asked."""
    return Rule(
        "meta l4proto udp ct direction reply ct original proto-dst 53"
        f" ct mark and {marks.ct_dns:#010x} == {marks.ct_dns:#010x}"
        f" ct original {ip} daddr . iif @resolvers{version} log group {NFLOG_GROUP}",
        "an answer to it",
    )


def _stranger_rules(resolvers: list[Resolver]) -> Iterator[Rule]:
    """Keep out of conntrack what claims to be a resolver and comes by another interface.

    One packet forged before the query would turn the flow round: the query would be its reply, and
    the true answer would never be believed.
    """
    for version, ip in _FAMILIES:
        addresses = {
            str(item.address): None for item in resolvers if item.address.version == version
        }
        for protocol in ("udp", "tcp") if addresses else ():
            yield Rule(
                f"{protocol} sport 53 {ip} saddr {{ {', '.join(addresses)} }}"
                f" {ip} saddr . iif != @resolvers{version} notrack"
            )


def _static_sets(networks: Iterable[tuple[Network, Grant]]) -> list[tuple[Set, Rule]]:
    """Make one interval set for each port and family: plain intervals, which every kernel has."""
    grouped: dict[tuple[int, int | None], list[Network]] = {}
    for network, grant in networks:
        for port in [None] if grant.ports is None else sorted(grant.ports):
            grouped.setdefault((network.version, port), []).append(network)
    made = []
    for (version, port), members in grouped.items():
        name = f"static{version}_{'any' if port is None else port}"
        ip = dict(_FAMILIES)[version]
        item = Set(name, f"ipv{version}_addr", ("interval",), elements=_collapse(members))
        match = "" if port is None else f"tcp dport {port} "
        made.append((item, Rule(f"{match}{ip} daddr @{name} accept")))
    return made


def _collapse(networks: list[Network]) -> tuple[str, ...]:
    """Merge overlapping networks of one family: nft refuses intervals that overlap."""
    v4 = [network for network in networks if isinstance(network, IPv4Network)]
    v6 = [network for network in networks if isinstance(network, IPv6Network)]
    return tuple(map(str, (*collapse_addresses(v4), *collapse_addresses(v6))))

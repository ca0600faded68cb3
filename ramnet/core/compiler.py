"""From what a policy allows to the ruleset: the whole table ``inet ramnet``, derived anew.

Pure; no mirror of the kernel's state is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import (
    IPv4Network,
    IPv6Network,
    collapse_addresses,
)

from ramnet.core.allow import Addr, AllowList, Grant, Network
from ramnet.core.policy import ClassMode
from ramnet.core.ruleset import Chain, Counter, Hook, Rule, Set, Table

TABLE = "ramnet"
# Any number will do as long as nobody else uses it; the kernel lets a group have one owner.
NFLOG_GROUP = 7261
ALLOW = "allow"

# After conntrack (-200), before mangle (-150) and every NAT (-100): the destination is still the
# one that the client asked for.
PRIORITY = -160
RAW = -300  # before conntrack
# Behind the NAT of what comes in (100): only there does the answer of a resolver that the machine
# redirects its queries to have the source that was asked.
AFTER_NAT = 110

# A queue, like a group, has one owner.
QUEUE = 7261
RESOLVERS = "resolvers"
ANSWERERS = "answerers"
# While the daemon refreshes this set, answers are held; when it hangs or dies they pass.
ALIVE = "alive"
ALIVE_SECONDS = 1.0
# The chain of the rule that nft's language cannot say (xt NFQUEUE); it goes there by netlink.
COMPAT_CHAIN = "hold"

# How long a first SYN to a pair that is not allowed is remembered. Linux retransmits after 1 s;
# the rest is slack for a loaded machine.
SEEN_SECONDS = 5
# First SYNs remembered at once. When it is full, new ones are refused at once instead of later.
SEEN_SIZE = 65_536

# IPv6 and TCP headers with options, and the longest question: what is compared of a query.
QUERY_BYTES = 512

# Answers a second to one socket that are looked at: far more than a resolver's own cache asks by
# one, far less than what a flood could make wait for us. The rest pass unread.
FLOW_RATE = 5_000
# Sockets whose pace is kept at once; one beyond that is not paced.
PACED_SIZE = 16_384
PACED_TIMEOUT = "10s"

# Containers that serve DNS to others, remembered for an hour after the last query.
CACHE_SIZE = 1024
CACHE_TIMEOUT = "1h"

PACED = "paced"
IMPOSTERS = "imposters"
REFUSED = "refused"
HELD = "held_first_syn"


class Rung(StrEnum):
    """How answers are followed: held by nft's queue, held by xt's NFQUEUE, or only copied."""

    NATIVE = "native"
    COMPAT = "compat"
    OBSERVE = "observe"


@dataclass(frozen=True, slots=True)
class Resolver:
    """A trusted resolver: where queries to it leave, and where its answers must come in.

    Both are interface indices and differ where the machine itself redirects the queries (a
    published container). ``owners`` are the users whose sockets answer on ``lo``; None where the
    resolver is not on this machine.
    """

    address: Addr
    interface: int
    answers: int
    owners: frozenset[int] | None = None

    @property
    def direct(self) -> bool:
        """Whether answers come in where queries leave."""
        return self.answers == self.interface


@dataclass(frozen=True, slots=True)
class Held:
    """A learned address as the kernel holds it; ``seconds`` until it runs out."""

    address: Addr
    port: int
    seconds: float
    name: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What the machine decides of the ruleset.

    ``ct_dns`` is the bit of the conntrack mark on DNS flows, ``set_size`` the size of each host
    set, ``rung`` how answers are followed.
    """

    ct_dns: int
    set_size: int
    rung: Rung


def compile_table(
    allowed: AllowList,
    resolvers: Iterable[Resolver],
    held: Iterable[Held],
    settings: Settings,
    containers: ClassMode,
) -> Table:
    """Compile the table for scope ``netns``; ``containers`` is the mode of forwarded traffic.

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
        *(_host_set(version, learned, settings.set_size) for version in (4, 6)),
        *(_seen_set(version) for version in (4, 6)),
        *(_pairs(RESOLVERS, version, servers) for version in (4, 6)),
        *(_pairs(ANSWERERS, version, servers) for version in (4, 6)),
        Set(ALIVE, "inet_proto", ("timeout",), learned=True),
        *(_cache_set(version) for version in (4, 6)),
        *(_paced_set(version) for version in (4, 6)),
        *(item for item, _ in static),
    ]
    judge = Chain(
        "judge",
        (
            Rule("tcp dport != @judged accept", "scope netns: the other ports are not judged"),
            # A routing header (any user may set one) names another destination than the header.
            Rule(
                f"ip6 nexthdr != tcp counter name {REFUSED} meta l4proto tcp reject with tcp reset"
            ),
            *(Rule(f"{ip} daddr . tcp dport @{ALLOW}{v} accept") for v, ip in _FAMILIES),
            *(rule for _, rule in static),
            *_second_chance(settings.rung),
            Rule(f"counter name {REFUSED} meta l4proto tcp reject with tcp reset"),
        ),
    )
    output = Chain(
        "output",
        (
            *_imposters(servers),
            *_query_rules(settings),
            Rule("tcp flags & (fin|syn|rst|ack) == syn jump judge", "each new connection, once"),
        ),
        Hook.OUTPUT,
        PRIORITY,
    )
    answers = Chain("answers", tuple(_answer_rules(settings)), Hook.INPUT, AFTER_NAT)
    strangers = Chain("strangers", tuple(_stranger_rules(servers)), Hook.PREROUTING, RAW)
    counters = tuple(map(Counter, (REFUSED, HELD, IMPOSTERS, PACED)))
    chains = (judge, *_believed(settings.rung), strangers, output, answers)
    if blocks_answers(containers, settings.rung):
        chains = (*chains, *_forwarded(settings.rung))
    return Table(TABLE, counters, tuple(sets), chains)


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
    # The kernel counts what has run out until it sweeps, about a second later: twice the leases.
    return Set(f"{ALLOW}{version}", kind, ("timeout",), 2 * size, elements=elements, learned=True)


# nft refuses a comment of 128 bytes or more; a longer name goes without.
_COMMENT = 128


def _seen_set(version: int) -> Set:
    kind = f"ipv{version}_addr . ipv{version}_addr . inet_service . inet_service"
    flags = ("dynamic", "timeout")
    return Set(f"seen{version}", kind, flags, SEEN_SIZE, f"{SEEN_SECONDS}s", learned=True)


def _pairs(name: str, version: int, resolvers: list[Resolver]) -> Set:
    """Make the set of resolvers with the interface by which queries leave or answers come."""
    elements = tuple(
        dict.fromkeys(
            f"{item.address} . {item.answers if name == ANSWERERS else item.interface}"
            for item in resolvers
            if item.address.version == version
        )
    )
    return Set(f"{name}{version}", f"ipv{version}_addr . iface_index", elements=elements)


def _second_chance(rung: Rung) -> Iterator[Rule]:
    """Drop the first SYN of a connection that nothing allows yet: its DNS answer may be late.

    Only where answers are not held: with them held, no SYN can be earlier than its element. The key
    names the connection, not only its destination: a name that was refused a moment ago must not
    take the second chance away from one that is allowed and shares the address.
    """
    if rung is not Rung.OBSERVE:
        return
    for version, ip in _FAMILIES:
        key = f"{ip} saddr . {ip} daddr . tcp sport . tcp dport"
        seen = f"@seen{version}"
        yield Rule(f"{key} != {seen} add {seen} {{ {key} }} counter name {HELD} drop")


def _query_rules(settings: Settings) -> Iterator[Rule]:
    """Mark the flow of each query to a trusted resolver, and log a copy of the query."""
    for version, ip in _FAMILIES:
        # A TCP segment may hold many queries, and a query may lie across two.
        for protocol, snaplen in (("udp", f" snaplen {QUERY_BYTES}"), ("tcp", "")):
            yield Rule(
                f"{protocol} dport 53 {ip} daddr . oif @{RESOLVERS}{version}"
                f" ct mark set ct mark or {settings.ct_dns:#010x}"
                f" log group {NFLOG_GROUP}{snaplen}"
            )


def _answer_rules(settings: Settings) -> Iterator[Rule]:
    """Believe what conntrack ties to a marked query, by the resolver that was asked."""
    for version, ip in _FAMILIES:
        for protocol in ("udp", "tcp"):
            yield Rule(
                f"meta l4proto {protocol} ct direction reply ct original proto-dst 53"
                f" ct mark and {settings.ct_dns:#010x} == {settings.ct_dns:#010x}"
                f" ct original {ip} daddr . iif @{ANSWERERS}{version} jump believed"
            )


def _believed(rung: Rung) -> tuple[Chain, ...]:
    """What becomes of an answer that is believed: it is held while the daemon is alive.

    A packet that is let go does not come back here. One that was not held (the daemon hangs, or
    the compat rule is not in its place yet) is copied instead.
    """
    copy = Rule(f"log group {NFLOG_GROUP}")
    if rung is Rung.OBSERVE:
        return (Chain("believed", (copy,)),)
    paced = tuple(
        Rule(
            f"update @paced{v} {{ {ip} saddr . udp dport limit rate over {FLOW_RATE}/second"
            f" burst {FLOW_RATE} packets }} counter name {PACED} accept"
        )
        for v, ip in _FAMILIES
    )
    if rung is Rung.NATIVE:
        hold = Rule(f"meta l4proto @{ALIVE} queue flags bypass to {QUEUE}")
        return (Chain("believed", (*paced, hold, copy)),)
    return (
        Chain(COMPAT_CHAIN, (), learned=True),
        Chain("believed", (*paced, Rule(f"meta l4proto @{ALIVE} jump {COMPAT_CHAIN}"), copy)),
    )


def blocks_answers(containers: ClassMode, rung: Rung) -> bool:
    """Tell whether answers to containers are looked at: only a held answer can be changed."""
    return containers is not ClassMode.OFF and rung is not Rung.OBSERVE


def _cache_set(version: int) -> Set:
    flags = ("dynamic", "timeout")
    size, timeout = CACHE_SIZE, CACHE_TIMEOUT
    return Set(f"caches{version}", f"ipv{version}_addr", flags, size, timeout, learned=True)


def _paced_set(version: int) -> Set:
    kind = f"ipv{version}_addr . inet_service"
    flags = ("dynamic", "timeout")
    return Set(f"paced{version}", kind, flags, PACED_SIZE, PACED_TIMEOUT, learned=True)


def _forwarded(rung: Rung) -> tuple[Chain, ...]:
    """Hold the answers that containers hear, so that those for refused registries can be changed.

    Not those of a container that is itself asked by others, through a published port: what it
    hears goes into a cache that is not only its own.
    """
    hold = f"jump {COMPAT_CHAIN}" if rung is Rung.COMPAT else f"queue flags bypass to {QUEUE}"
    asked = tuple(
        Rule(f"ct status dnat {proto} dport 53 update @caches{v} {{ {ip} daddr }}")
        for v, ip in _FAMILIES
        for proto in ("udp", "tcp")
    )
    answers = tuple(
        Rule(
            "meta l4proto udp ct direction reply ct original proto-dst 53"
            f" {ip} saddr != @caches{v} {ip} daddr != @caches{v} meta l4proto @{ALIVE} {hold}"
        )
        for v, ip in _FAMILIES
    )
    # A published port of this machine is forwarded, or, asked from here, leaves through output.
    return (
        Chain("forwarded", (*asked, *answers), Hook.FORWARD, PRIORITY),
        Chain("published", asked, Hook.POSTROUTING, PRIORITY),
    )


def _imposters(resolvers: list[Resolver]) -> Iterator[Rule]:
    """Drop what claims to come from a resolver on this machine and is not its own.

    A raw socket (CAP_NET_RAW) on ``lo`` could write answers otherwise. The socket's user is what
    tells: as far as that goes, and no further.
    """
    ips = dict(_FAMILIES)
    for item in resolvers:
        if item.owners is None:
            continue
        ip = ips[item.address.version]
        # While nobody listens there, whoever may is a user of the system.
        users = f"{{ {', '.join(map(str, sorted(item.owners)))} }}" if item.owners else "0-999"
        for protocol in ("udp", "tcp"):
            yield Rule(
                f"{protocol} sport 53 {ip} saddr {item.address} oif {item.answers}"
                f" meta skuid != {users} counter name {IMPOSTERS} drop"
            )


def _stranger_rules(resolvers: list[Resolver]) -> Iterator[Rule]:
    """Keep out of conntrack what claims to be a resolver and comes by another interface.

    One packet forged before the query would turn the flow round: the query would be its reply, and
    the true answer would never be believed. Only what comes from containers: by other interfaces
    honest answers come as well, where the machine has several ways out (VPN, policy routing).
    """
    for version, ip in _FAMILIES:
        addresses = {
            str(item.address): None for item in resolvers if item.address.version == version
        }
        for protocol in ("udp", "tcp") if addresses else ():
            yield Rule(
                f'meta iifkind {{ "bridge", "veth" }} {protocol} sport 53'
                f" {ip} saddr {{ {', '.join(addresses)} }}"
                f" {ip} saddr . iif != @{ANSWERERS}{version} notrack"
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

"""The rules that follow DNS: which queries are noted, which answers are believed, held, dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ramnet.core.config import ScopeMode
from ramnet.core.policy import ClassMode
from ramnet.core.ruleset import Chain, Hook, Rule, Set
from ramnet.core.scope import Classes
from ramnet.core.terms import (
    AFTER_NAT,
    ALIVE,
    ANSWERERS,
    COMPAT_CHAIN,
    FAMILIES,
    HOST_QUERY,
    IMPOSTERS,
    NFLOG_GROUP,
    OTHERS_COMPAT_CHAIN,
    OTHERS_QUEUE,
    PACED,
    PRIORITY,
    QUEUE,
    RAW,
    RESOLVERS,
    Resolver,
    Rung,
    Settings,
)

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


def blocks_answers(mode: ClassMode, rung: Rung) -> bool:
    """Tell whether the answers to a class are changed: only a held answer can be."""
    return mode is not ClassMode.OFF and rung is not Rung.OBSERVE


def blocks_hosts_answers(classes: Classes, settings: Settings) -> bool:
    """Tell whether the answers to programs that are no engines are changed."""
    apart = settings.scope.mode is not ScopeMode.NETNS
    return apart and classes.host is ClassMode.CATALOG and settings.rung is not Rung.OBSERVE


def dns_sets(resolvers: list[Resolver]) -> Iterator[Set]:
    """Make the sets that the rules of this module look into."""
    for name in (RESOLVERS, ANSWERERS):
        for version, _ in FAMILIES:
            yield _pairs(name, version, resolvers)
    yield Set(ALIVE, "inet_proto", ("timeout",), learned=True)
    dynamic = ("dynamic", "timeout")
    for version, _ in FAMILIES:
        kind = f"ipv{version}_addr"
        yield Set(f"caches{version}", kind, dynamic, CACHE_SIZE, CACHE_TIMEOUT, learned=True)
    for version, _ in FAMILIES:
        kind = f"ipv{version}_addr . inet_service"
        yield Set(f"paced{version}", kind, dynamic, PACED_SIZE, PACED_TIMEOUT, learned=True)


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


# Queries


def query_rules(settings: Settings) -> Iterator[Rule]:
    """Let queries to trusted resolvers pass; mark the flow of each, and log a copy of it."""
    for version, ip in FAMILIES:
        # A TCP segment may hold many queries, and a query may lie across two.
        for protocol, snaplen in (("udp", f" snaplen {QUERY_BYTES}"), ("tcp", "")):
            yield Rule(
                f"{protocol} dport 53 {ip} daddr . oif @{RESOLVERS}{version}"
                f" ct mark set ct mark or {settings.ct_dns:#010x}"
                f" log group {NFLOG_GROUP}{snaplen} accept"
            )


def host_query_rules(
    resolvers: list[Resolver], settings: Settings, *, copied: bool
) -> Iterator[Rule]:
    """Mark the flows of other programs' queries, so that their answers can be changed.

    ``copied``: what is answered is to be refused, so it has to be known what was asked.

    Where the machine has a resolver of its own, only those to it: what that one asks in turn goes
    into its cache, and engines ask it too.
    """
    own = [item for item in resolvers if item.owners is not None]
    copy = f' log prefix "{HOST_QUERY}" group {NFLOG_GROUP} snaplen {QUERY_BYTES}' if copied else ""
    for version, ip in FAMILIES:
        servers = dict.fromkeys(
            str(item.address) for item in own or resolvers if item.address.version == version
        )
        if servers:
            yield Rule(
                f"udp dport 53 {ip} daddr {{ {', '.join(servers)} }}"
                f" ct mark set ct mark or {settings.ct_host:#010x}{copy} accept"
            )


def imposter_rules(resolvers: list[Resolver]) -> Iterator[Rule]:
    """Drop what claims to come from a resolver on this machine and is not its own.

    A raw socket (CAP_NET_RAW) on ``lo`` could write answers otherwise. The socket's user is what
    tells: as far as that goes, and no further.
    """
    ips = dict(FAMILIES)
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


# Answers


def answer_chains(
    resolvers: list[Resolver], settings: Settings, classes: Classes
) -> Iterator[Chain]:
    """Make the chains that answers pass, in an order in which each is there before a jump to it."""
    yield from _believed(settings.rung)
    if settings.rung is Rung.COMPAT:
        yield Chain(OTHERS_COMPAT_CHAIN, (), learned=True)
    yield Chain("strangers", tuple(_stranger_rules(resolvers)), Hook.PREROUTING, RAW)
    rules = [_answer(proto, version, settings.ct_dns, "jump believed") for version, proto in _BOTH]
    if blocks_hosts_answers(classes, settings):
        hold = _hold_others(settings.rung)
        rules += [_reply("udp", settings.ct_host, hold)]
    yield Chain("answers", tuple(map(Rule, rules)), Hook.INPUT, AFTER_NAT)


_BOTH = tuple((version, proto) for version, _ in FAMILIES for proto in ("udp", "tcp"))


def _reply(protocol: str, bit: int, what: str) -> str:
    return (
        f"meta l4proto {protocol} ct direction reply ct original proto-dst 53"
        f" ct mark and {bit:#010x} == {bit:#010x} {what}"
    )


def _answer(protocol: str, version: int, bit: int, then: str) -> str:
    """Believe what conntrack ties to a marked query, by the resolver that was asked."""
    ip = dict(FAMILIES)[version]
    return _reply(protocol, bit, f"ct original {ip} daddr . iif @{ANSWERERS}{version} {then}")


def _hold_others(rung: Rung) -> str:
    """Hold an answer that engines are not to hear, while the daemon is alive."""
    to = f"queue flags bypass to {OTHERS_QUEUE}"
    return f"meta l4proto @{ALIVE} " + (
        f"jump {OTHERS_COMPAT_CHAIN}" if rung is Rung.COMPAT else to
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
        for v, ip in FAMILIES
    )
    if rung is Rung.NATIVE:
        hold = Rule(f"meta l4proto @{ALIVE} queue flags bypass to {QUEUE}")
        return (Chain("believed", (*paced, hold, copy)),)
    return (
        Chain(COMPAT_CHAIN, (), learned=True),
        Chain("believed", (*paced, Rule(f"meta l4proto @{ALIVE} jump {COMPAT_CHAIN}"), copy)),
    )


def _stranger_rules(resolvers: Iterable[Resolver]) -> Iterator[Rule]:
    """Keep out of conntrack what claims to be a resolver and comes by another interface.

    One packet forged before the query would turn the flow round: the query would be its reply, and
    the true answer would never be believed. Only what comes from containers: by other interfaces
    honest answers come as well, where the machine has several ways out (VPN, policy routing).
    """
    resolvers = list(resolvers)
    for version, ip in FAMILIES:
        addresses = {
            str(item.address): None for item in resolvers if item.address.version == version
        }
        for protocol in ("udp", "tcp") if addresses else ():
            yield Rule(
                f'meta iifkind {{ "bridge", "veth" }} {protocol} sport 53'
                f" {ip} saddr {{ {', '.join(addresses)} }}"
                f" {ip} saddr . iif != @{ANSWERERS}{version} notrack"
            )


# Containers


def forwarded_dns(settings: Settings, mode: ClassMode) -> tuple[Rule, ...]:
    """Hold the answers that containers hear, so that those for refused registries can be changed.

    Not those of a container that is itself asked by others, through a published port: what it
    hears goes into a cache that is not only its own. Under ``strict`` what a trusted resolver
    answers also teaches what containers may reach.
    """
    found = list(caching_rules())
    if mode is ClassMode.STRICT:
        hold = f"log group {NFLOG_GROUP}"
        if settings.rung is not Rung.OBSERVE:
            found += [
                Rule(_answer(proto, version, settings.ct_dns, _hold_others(settings.rung)))
                for version, proto in _BOTH
            ]
        found += [Rule(_answer(proto, version, settings.ct_dns, hold)) for version, proto in _BOTH]
    if blocks_answers(mode, settings.rung):
        found += [
            Rule(
                "meta l4proto udp ct direction reply ct original proto-dst 53"
                f" {ip} saddr != @caches{v} {ip} daddr != @caches{v} {_hold_others(settings.rung)}"
            )
            for v, ip in FAMILIES
        ]
    return tuple(found)


def caching_rules() -> Iterator[Rule]:
    """Note the containers that are asked through a published port."""
    for v, ip in FAMILIES:
        for proto in ("udp", "tcp"):
            yield Rule(f"ct status dnat {proto} dport 53 update @caches{v} {{ {ip} daddr }}")


def published_chain() -> Chain:
    """A published port of this machine is forwarded, or, asked from here, leaves through output."""
    return Chain("published", tuple(caching_rules()), Hook.POSTROUTING, PRIORITY)

"""From what a policy allows to the ruleset: the whole table ``inet ramnet``, derived anew.

Pure; no mirror of the kernel's state is kept. ``core.dnsrules`` has the rules that follow DNS,
``core.terms`` the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ramnet.core.allow import AllowList
from ramnet.core.config import ScopeMode
from ramnet.core.dnsrules import (
    answer_chains,
    blocks_hosts_answers,
    dns_sets,
    forwarded_dns,
    host_query_rules,
    imposter_rules,
    published_chain,
    query_rules,
)
from ramnet.core.policy import ClassMode
from ramnet.core.refusal import (
    REJECTED,
    Refusal,
    notice_chains,
    notice_sets,
    refuse,
    refuse_chain,
    unmarked,
)
from ramnet.core.ruleset import Chain, Counter, Hook, Rule, Set, Table
from ramnet.core.scope import PROBE_PORT, PROBED, Classes, Scope, engines_set
from ramnet.core.sets import (
    StaticSet,
    address_sets,
    catalog_rules,
    learned_rules,
    learned_sets,
    static_rules,
    static_sets,
)
from ramnet.core.terms import (
    ENGINE,
    FAMILIES,
    HELD,
    IMPOSTERS,
    LOCAL,
    NOWHERE,
    OUTPUT,
    PACED,
    PRIORITY,
    REFUSED,
    SYN,
    TABLE,
    Book,
    Held,
    Machine,
    Resolver,
    Rung,
    Settings,
    TrafficClass,
)

# How long a first SYN to a pair that is not allowed is remembered. Linux retransmits after 1 s;
# the rest is slack for a loaded machine.
SEEN_SECONDS = 5
# First SYNs remembered at once. When it is full, new ones are refused at once instead of later.
SEEN_SIZE = 65_536

# Bridges of one machine: each network that a developer makes is one.
BRIDGES_SIZE = 4_096

NOT_SYN = "tcp flags & (fin|syn|rst|ack) != syn"
# The kernel makes the sockets of MPTCP subflows itself: they have neither a user nor our mark.
MPTCP_SYN = f"{SYN} tcp option 30 exists"

_Static = list[StaticSet]


def compile_table(
    allowed: AllowList,
    resolvers: Iterable[Resolver],
    held: Iterable[Held],
    settings: Settings,
    classes: Classes,
    machine: Machine = NOWHERE,
    refusal: Refusal = REJECTED,
) -> Table:
    """Compile the table: how each class is judged and refused, and whose sockets are an engine's.

    New connections are judged, once. ``held`` goes into the host sets, so that replacing the table
    forgets nothing. The rules on DNS also keep conntrack in use, without which a SYN in 8-byte
    fragments would pass: its flags are not in the first one.
    """
    learned = list(held)
    servers = list(resolvers)
    scope = settings.scope
    static = static_sets(allowed)
    registries = [one for one in static if not one.destination]
    sets = [
        Set("judged", "inet_service", elements=tuple(map(str, sorted(allowed.ports)))),
        *learned_sets(_books(classes), learned, settings.set_size),
        *(_seen_set(version) for version in (4, 6)),
        *_group_sets(scope),
        *dns_sets(servers),
        *(one.item for one in static),
        *notice_sets(refusal),
    ]
    chains = [
        refuse_chain(TrafficClass.ENGINE, refusal, settings),
        _judge(static, settings, refusal),
        *answer_chains(servers, settings, classes),
        *_by_catalog(TrafficClass.ENGINE, classes.engine, registries),
        _engine(allowed, static, settings, classes),
    ]
    if classes.host is not ClassMode.OFF and scope.mode is not ScopeMode.NETNS:
        if classes.host is ClassMode.CATALOG:
            chains.append(refuse_chain(TrafficClass.HOST, refusal, settings))
        chains += _by_catalog(TrafficClass.HOST, classes.host, registries)
        chains.append(_host(servers, settings, classes, refusal))
    chains.append(_output(servers, settings, classes, refusal))
    if _judges_without_socket(settings):
        sets += address_sets(LOCAL, machine.addresses)
    if classes.containers is not ClassMode.OFF:
        chains.append(refuse_chain(TrafficClass.CONTAINERS, refusal, settings))
        chains += _by_catalog(TrafficClass.CONTAINERS, classes.containers, registries)
        if classes.containers is ClassMode.STRICT:
            sets += _bridge_sets(machine)
            chains.append(_contained(registries, settings, refusal))
        chains += [_forwarded(settings, classes.containers), published_chain()]
    chains += notice_chains(refusal, settings)
    counters = tuple(map(Counter, (REFUSED, HELD, IMPOSTERS, PACED, PROBED)))
    return Table(TABLE, counters, tuple(sets), tuple(chains))


# Who is judged


def _judges_without_socket(settings: Settings) -> bool:
    """Tell whether there are rules for what no socket sends: with cgroups all else has one."""
    return settings.scope.mode is ScopeMode.CGROUP


def _output(
    servers: list[Resolver], settings: Settings, classes: Classes, refusal: Refusal
) -> Chain:
    """What leaves from this machine's own sockets, by whose it is."""
    scope = settings.scope
    rules = [
        *imposter_rules(servers),
        Rule(f"{NOT_SYN} tcp dport != 53 accept", "each connection is judged when it begins"),
        *unmarked(refusal, settings),
        *(Rule(f"{match} goto engine".lstrip()) for match in _engine_matches(scope)),
    ]
    others = "accept" if classes.host is ClassMode.OFF else "goto host"
    if _judges_without_socket(settings):
        rules.append(Rule(f"socket transparent 0-1 {others}", "whatever has a socket"))
        # Of ipvlan children in mode l3 and l3s; the uplink judges it.
        rules += [Rule(f"{ip} saddr != @{LOCAL}{v} accept") for v, ip in FAMILIES]
        rules.append(Rule(f"{SYN} goto engine", "put together from fragments: of nobody"))
    elif scope.mode is not ScopeMode.NETNS and classes.host is not ClassMode.OFF:
        rules.append(Rule(others))
    return Chain(OUTPUT, tuple(rules), Hook.OUTPUT, PRIORITY)


def _engine_matches(scope: Scope) -> Iterator[str]:
    match scope.mode:
        case ScopeMode.CGROUP:
            for level in scope.levels:
                yield f"socket cgroupv2 level {level} @{engines_set(level)}"
        case ScopeMode.MARK:
            yield f"meta mark and {scope.mark:#010x} == {scope.mark:#010x}"
            yield MPTCP_SYN
        case ScopeMode.UID:
            yield f"meta skuid {{ {', '.join(map(str, sorted(scope.uids)))} }}"
            yield MPTCP_SYN
        case _:
            yield ""


def _engine(allowed: AllowList, static: _Static, settings: Settings, classes: Classes) -> Chain:
    """What engines' sockets send: DNS, and what their mode lets pass."""
    rules = [
        Rule(
            f"ip daddr 127.0.0.1 udp dport {PROBE_PORT} counter name {PROBED} drop",
            "the live probe of the scope",
        ),
        *query_rules(settings),
        Rule(f"{NOT_SYN} accept"),
    ]
    refused = refuse(TrafficClass.ENGINE)
    if classes.engine is ClassMode.CATALOG:
        by_catalog = Rule(f"goto {_catalog(TrafficClass.ENGINE)}")
        rules += [*learned_rules(Book.ALLOW), *static_rules(static), by_catalog]
    elif classes.engine is ClassMode.STRICT and settings.scope.precise:
        rules += [
            # A routing header (any user may set one) names another destination than the header.
            Rule(f"ip6 nexthdr != {{ tcp, udp, icmpv6 }} goto {refused}"),
            Rule("meta l4proto tcp goto judge"),
            *_udp_rules(allowed, static),
            Rule(f"meta l4proto != {{ icmp, icmpv6 }} goto {refused}"),
        ]
    elif classes.engine is ClassMode.STRICT:
        rules.append(Rule("meta l4proto tcp goto judge"))
    return Chain(ENGINE, tuple(rules))


def _udp_rules(allowed: AllowList, static: _Static) -> Iterator[Rule]:
    """Open UDP to destinations, on their ports; where registries are there is none (QUIC).

    An engine that listens on such a port (swarm) answers whoever asks. On no other: anybody could
    send first, to any port, and what the engine sends back from there would be an answer.
    """
    if not allowed.udp_ports:
        return
    ports = f"{{ {', '.join(map(str, sorted(allowed.udp_ports)))} }}"
    yield Rule(f"udp sport {ports} ct direction reply accept", "an answer to who asked")
    for v, ip in FAMILIES:
        yield Rule(f"udp dport {ports} {ip} daddr . udp dport @{Book.ALLOW}{v} accept")
    for one in static:
        if one.port in allowed.udp_ports:
            yield Rule(f"udp dport {one.port} {one.ip} daddr @{one.item.name} accept")


def _host(servers: list[Resolver], settings: Settings, classes: Classes, refusal: Refusal) -> Chain:
    """What programs send that are no engines."""
    if classes.host is ClassMode.STRICT:
        return Chain(
            "host",
            (
                *query_rules(settings),
                Rule(f"{NOT_SYN} accept"),
                Rule("tcp dport != @judged accept", "any of them may be an engine's"),
                Rule("meta l4proto tcp goto judge"),
            ),
        )
    rules: list[Rule] = []
    if blocks_hosts_answers(classes, settings):
        rules += host_query_rules(servers, settings, copied=refusal.leads_host)
    return Chain("host", (*rules, Rule(f"goto {_catalog(TrafficClass.HOST)}")))


def _forwarded(settings: Settings, mode: ClassMode) -> Chain:
    """What containers send and hear, on whatever network of this machine."""
    rules = [*forwarded_dns(settings, mode)]
    if mode is ClassMode.STRICT:
        rules.append(Rule('meta iifkind "bridge" iif != @uplinked goto contained'))
    else:
        judged = _catalog(TrafficClass.CONTAINERS)
        rules += [Rule(f"{SYN} goto {judged}"), Rule(f"meta l4proto udp goto {judged}")]
    return Chain("forwarded", tuple(rules), Hook.FORWARD, PRIORITY)


# How it is judged


def _judge(static: _Static, settings: Settings, refusal: Refusal) -> Chain:
    """Judge a SYN strictly: only what the policy allows, as far as the scope can tell."""
    narrow = []
    if not settings.scope.precise:
        mode = settings.scope.mode
        narrow = [
            Rule("tcp dport != @judged accept", f"scope {mode}: the other ports are not judged")
        ]
    refused = refuse(TrafficClass.ENGINE)
    rules = (
        *narrow,
        Rule(f"ip6 nexthdr != tcp goto {refused}"),
        *learned_rules(Book.ALLOW),
        *static_rules(static),
        *_second_chance(settings.rung, refusal),
        Rule(f"goto {refused}"),
    )
    return Chain("judge", rules)


def _catalog(who: TrafficClass) -> str:
    return f"catalog_{who}"


def _by_catalog(who: TrafficClass, mode: ClassMode, registries: _Static) -> Iterator[Chain]:
    """Refuse a class the addresses of registries that are known and not allowed; nothing else."""
    if mode is ClassMode.CATALOG:
        rules = catalog_rules(registries, f"goto {refuse(who)}")
        yield Chain(_catalog(who), tuple(rules))


def _contained(registries: _Static, settings: Settings, refusal: Refusal) -> Chain:
    """Judge containers strictly: registries of the policy, and nothing else."""
    refused = refuse(TrafficClass.CONTAINERS)
    second = _second_chance(settings.rung, refusal)
    rules = (
        Rule("iif . oif @bridges accept", "within one bridge (br_netfilter)"),
        *query_rules(settings),
        Rule(f"{NOT_SYN} accept"),
        Rule("meta l4proto udp ct status dnat ct direction reply accept", "a published port"),
        Rule("meta l4proto { icmp, icmpv6 } accept"),
        Rule(f"ip6 nexthdr != tcp goto {refused}"),
        *learned_rules(Book.HEARD),
        *static_rules(registries),
        *(Rule(f"meta l4proto tcp {rule.text}") for rule in second),
        Rule(f"goto {refused}"),
    )
    return Chain("contained", rules)


def _second_chance(rung: Rung, refusal: Refusal) -> Iterator[Rule]:
    """Drop the first SYN of a connection that nothing allows yet: its DNS answer may be late.

    Only where answers are not held: with them held, no SYN can be earlier than its element. The key
    names the connection, not only its destination: a name that was refused a moment ago must not
    take the second chance away from one that is allowed and shares the address. Nor in audit, where
    nothing may wait.
    """
    if rung is not Rung.OBSERVE or refusal.audit:
        return
    for version, ip in FAMILIES:
        key = f"{ip} saddr . {ip} daddr . tcp sport . tcp dport"
        seen = f"@seen{version}"
        yield Rule(f"{key} != {seen} add {seen} {{ {key} }} counter name {HELD} drop")


# Sets


def _books(classes: Classes) -> Iterator[Book]:
    yield Book.ALLOW
    if classes.hears:
        yield Book.HEARD
    if classes.catalog:
        yield Book.DENY


def _seen_set(version: int) -> Set:
    kind = f"ipv{version}_addr . ipv{version}_addr . inet_service . inet_service"
    flags = ("dynamic", "timeout")
    return Set(f"seen{version}", kind, flags, SEEN_SIZE, f"{SEEN_SECONDS}s", learned=True)


def _group_sets(scope: Scope) -> Iterator[Set]:
    """Make the sets of the engines' cgroups; by path here, by id when one is made anew."""
    if scope.mode is ScopeMode.CGROUP:
        for level in scope.levels:
            places = tuple(f'"{item.place}"' for item in scope.groups if item.level == level)
            yield Set(engines_set(level), "cgroupsv2", elements=places, learned=True)


def _bridge_sets(machine: Machine) -> Iterator[Set]:
    """Make the sets of bridges: within one of containers nothing is judged (br_netfilter).

    What comes in by one that the network outside is on is no container's.
    """
    pairs = tuple(f"{index} . {index}" for index in sorted(machine.bridges)[:BRIDGES_SIZE])
    yield Set("bridges", "iface_index . iface_index", elements=pairs)
    outside = tuple(map(str, sorted(machine.uplinked)[:BRIDGES_SIZE]))
    yield Set("uplinked", "iface_index", elements=outside)

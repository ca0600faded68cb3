"""What a policy allows, against a reading of the policy that shares no code with the compiler."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.allow import ANY_PORT, REGISTRY_PORTS, Registries
from ramnet.core.compiler import compile_table
from ramnet.core.config import Weak
from ramnet.core.policy import ClassMode, Policy
from ramnet.core.ruleset import Table, render_create, render_update
from ramnet.core.scope import Classes, Scope, classes_for
from ramnet.core.terms import Rung, Settings
from tests.unit.core.support import CGROUP, MARK, NETNS, RESOLVERS, UID, allowed, host, policy

HOSTS = ["a.example", "b.example", "x.a.example", "y.x.a.example", "a.example.net"]
PATTERNS = [*HOSTS, "*.a.example", "*.example"]
PORT_TEXTS = ["", ":5000", ":8443", ":*"]
NETWORKS = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.168.0.0/16", "2001:db8::/32"]
PROBES = ["10.1.2.3", "10.1.9.9", "10.200.0.1", "192.168.1.1", "203.0.113.1", "2001:db8::1"]
PROBES += ["127.0.0.1", "::1", "2001:db9::1"]
PORTS = [80, 443, 5000, 8443, 9000]

Entry = tuple[str, str, tuple[str, ...], tuple[str, ...]]
ENTRIES = st.lists(
    st.tuples(
        st.sampled_from([*PATTERNS, "localhost", "10.1.2.3"]),
        st.sampled_from(PORT_TEXTS),
        st.lists(st.sampled_from(PATTERNS), max_size=2, unique=True).map(tuple),
        st.lists(st.sampled_from(NETWORKS), max_size=3, unique=True).map(tuple),
    ),
    max_size=4,
    unique_by=lambda entry: entry[:2],
)
# An address and its ports: none for 443, and ANY_PORT for all.
Destination = tuple[str, tuple[int, ...]]
DESTINATIONS = st.lists(
    st.tuples(
        st.sampled_from([*PATTERNS, "localhost", "10.1.2.3", "203.0.113.1"]),
        st.one_of(
            st.just((ANY_PORT,)),
            st.lists(st.sampled_from([22, 80, 443, 5000, 8443, 9000]), max_size=3, unique=True).map(
                tuple
            ),
        ),
    ),
    max_size=3,
    unique_by=lambda entry: entry[0],
)
SCOPES = st.builds(
    lambda scope, weak, host: replace(scope, weak=weak, host=host),
    st.sampled_from([CGROUP, MARK, UID, NETNS]),
    st.sampled_from(Weak),
    st.sampled_from(ClassMode),
)
CLASSES = st.builds(
    Classes, st.sampled_from(ClassMode), st.sampled_from(ClassMode), st.sampled_from(ClassMode)
)
ENGINES = Classes(ClassMode.STRICT, ClassMode.OFF, ClassMode.OFF)
LOOPBACK = ("127.0.0.0/8", "::1/128")


def written(entries: list[Entry], destinations: Sequence[Destination] = ()) -> Policy:
    more = ""
    for address, port, extra, networks in entries:
        more += f'[[registry]]\naddress = "{address}{port}"\n'
        more += f"extra_hosts = {list(extra)}\nnetworks = {list(networks)}\n".replace("'", '"')
    for address, ports in destinations:
        any_port = ":*" if ANY_PORT in ports else ""
        more += f'[[destination]]\naddress = "{address}{any_port}"\n'
        more += f"ports = {list(ports)}\n" if ports and not any_port else ""
    return policy(more=more)


def compiled(
    found: Policy, scope: Scope = CGROUP, classes: Classes = ENGINES, rung: Rung = Rung.OBSERVE
) -> Table:
    return compile_table(allowed(found), RESOLVERS, (), Settings(0x40, 256, rung, scope), classes)


def ports_meant(port: str) -> set[int]:
    return {ANY_PORT} if port == ":*" else {int(port[1:] or 443)}


def registry_ports(entries: list[Entry]) -> set[int]:
    return set(REGISTRY_PORTS) | {
        int(port[1:]) for _, port, _, _ in entries if port not in ("", ":*")
    }


def covers(pattern: str, name: str) -> bool:
    return name.endswith(pattern[1:]) if pattern.startswith("*") else name == pattern


@given(ENTRIES, DESTINATIONS)
def test_the_ports_of_names(entries: list[Entry], destinations: list[Destination]) -> None:
    found = allowed(written(entries, destinations))
    expected_ports = registry_ports(entries)
    assert found.ports == expected_ports
    named = {port for _, ports in destinations for port in ports or (443,)} - {ANY_PORT}
    assert found.udp_ports == named - expected_ports
    for name in HOSTS:
        expected: set[int] = set()
        for address, port, extra, _ in entries:
            ports = ports_meant(port)
            if covers(address, name):
                expected |= ports
            if any(covers(pattern, name) for pattern in extra):
                expected |= ports if ANY_PORT in ports else ports | {443}
        assert Registries(found).ports_of(host(name)) == expected, name
        for address, listed in destinations:
            if covers(address, name):
                expected |= set(listed or (443,))
        assert found.ports_of(host(name)) == expected, name


def opened_by_sets(
    table: Table, address: IPv4Address | IPv6Address, port: int, chain: str = "judge"
) -> bool:
    """Whether a chain opens a pair by a set of networks."""
    for rule in rules(table, chain):
        found = re.fullmatch(
            r"(?:tcp dport (\d+)|meta l4proto tcp) (ip6?) daddr @(\S+) accept", rule
        )
        if found is None or "_" not in found[3] or found[3].startswith(("allow", "heard")):
            continue
        (item,) = (item for item in table.sets if item.name == found[3])
        assert item.kind == ("ipv4_addr" if found[2] == "ip" else "ipv6_addr")
        fits = found[1] is None or int(found[1]) == port
        if fits and any(address in ip_network(text) for text in item.elements):
            return True
    return False


def rules(table: Table, name: str) -> Iterator[str]:
    for chain in table.chains:
        if chain.name == name:
            yield from (rule.text for rule in chain.rules)


def networks_of(name: str, networks: tuple[str, ...]) -> list[str]:
    """What an entry opens without DNS."""
    own = {"localhost": LOOPBACK}.get(name, (name,) if name[0].isdigit() else ())
    return [*networks, *own]


@given(ENTRIES, DESTINATIONS, SCOPES)
def test_the_static_sets_open_what_the_networks_say_and_nothing_else(
    entries: list[Entry], destinations: list[Destination], scope: Scope
) -> None:
    strict = Classes(ClassMode.STRICT, ClassMode.STRICT, ClassMode.OFF)
    table = compiled(written(entries, destinations), scope, strict)
    for text, port in product([*PROBES, "203.0.113.1"], PORTS):
        address = ip_address(text)
        registry = any(
            port_text == ":*" or port == int(port_text[1:] or 443)
            for name, port_text, _, networks in entries
            if any(address in ip_network(item) for item in networks_of(name, networks))
        )
        destination = any(
            ANY_PORT in ports or port in (ports or (443,))
            for name, ports in destinations
            if any(address in ip_network(item) for item in networks_of(name, ()))
        )
        assert opened_by_sets(table, address, port) is (registry or destination), (text, port)
        assert opened_by_sets(table, address, port, "contained") is registry, (text, port)


@given(ENTRIES, DESTINATIONS, SCOPES, CLASSES, st.sampled_from(Rung))
def test_udp_is_never_opened_where_a_registry_may_be(
    entries: list[Entry],
    destinations: list[Destination],
    scope: Scope,
    classes: Classes,
    rung: Rung,
) -> None:
    table = compiled(written(entries, destinations), scope, classes, rung)
    closed = registry_ports(entries)
    for name in ("engine", "judge", "contained"):
        for rule in rules(table, name):
            if not rule.endswith(" accept") or "udp" not in rule:
                continue
            found = re.match(r"udp dport (\{ [\d, ]+ \}|\d+) ip6? daddr ", rule)
            if found is None:
                # Answers: from the ports of destinations, and from published ones.
                found = re.fullmatch(r"udp sport (\{ [\d, ]+ \}) ct direction reply accept", rule)
                published = "meta l4proto udp ct status dnat ct direction reply accept"
                if found is None:
                    assert (name, rule) == ("contained", published)
                    continue
            ports = set(map(int, re.findall(r"\d+", found[1])))
            assert ports == {53} or not ports & closed, rule
            if ports == {53} and "log group" in rule:
                assert "@resolvers" in rule


@given(ENTRIES, DESTINATIONS, SCOPES)
def test_nothing_is_accepted_by_the_strict_chain_before_it_is_judged(
    entries: list[Entry], destinations: list[Destination], scope: Scope
) -> None:
    """What a chain accepts as a whole is only what it was made for."""
    strict = Classes(ClassMode.STRICT, ClassMode.STRICT, ClassMode.OFF)
    table = compiled(written(entries, destinations), scope, strict)
    plain = {
        "engine": {"tcp flags & (fin|syn|rst|ack) != syn accept"},
        "judge": set() if scope.precise else {"tcp dport != @judged accept"},
        "contained": {
            "iif . oif @bridges accept",
            "tcp flags & (fin|syn|rst|ack) != syn accept",
            "meta l4proto udp ct status dnat ct direction reply accept",
            "meta l4proto { icmp, icmpv6 } accept",
        },
    }
    for name, known in plain.items():
        accepted = {rule for rule in rules(table, name) if rule.endswith("accept")}
        rest = {rule for rule in accepted - known if not rule.startswith("udp sport ")}
        assert all(" daddr " in rule and "@" in rule for rule in rest), rest
    assert list(rules(table, "judge"))[-1] == "goto refuse_engine"
    assert list(rules(table, "contained"))[-1] == "goto refuse_containers"


@given(ENTRIES, DESTINATIONS)
def test_no_static_set_has_elements_that_overlap(
    entries: list[Entry], destinations: list[Destination]
) -> None:
    for item in compiled(written(entries, destinations)).sets:
        if item.name.startswith(("static", "destination")):
            networks = [ip_network(text) for text in item.elements]
            assert networks
            for index, one in enumerate(networks):
                assert not any(one.overlaps(other) for other in networks[:index])


def check_references(table: Table) -> None:
    """Every chain and set that a rule names is in the table."""
    chains = {chain.name for chain in table.chains}
    sets = {item.name for item in table.sets}
    counters = {item.name for item in table.counters}
    for chain in table.chains:
        for rule in chain.rules:
            words = rule.text.split()
            assert {word[1:] for word in words if word.startswith("@")} <= sets
            for at, word in enumerate(words):
                if word in ("jump", "goto"):
                    assert words[at + 1] in chains
                if word == "counter":
                    assert (words[at + 1], words[at + 2] in counters) == ("name", True)


def check_order(table: Table) -> None:
    """nft reads from the top: a chain stands before those that go to it."""
    created = render_create(table)
    seen: set[str] = set()
    for line in created.splitlines():
        if line.startswith("  chain "):
            seen.add(line.split()[1])
        for target in re.findall(r"\b(?:jump|goto) (\S+)", line):
            assert target in seen, line


@given(ENTRIES, ENTRIES, DESTINATIONS, st.sampled_from(Rung), SCOPES, CLASSES, CLASSES)
def test_every_jump_and_set_of_a_table_is_in_it(
    before: list[Entry],
    after: list[Entry],
    destinations: list[Destination],
    rung: Rung,
    scope: Scope,
    was: Classes,
    classes: Classes,
) -> None:
    old = compiled(written(before), scope, was, rung)
    new = compiled(written(after, destinations), scope, classes, rung)
    for table in (old, new):
        check_references(table)
        check_order(table)
    update = render_update(old, new, ()).splitlines()
    there = {item.name: item for item in old.sets}
    kept = {
        item.name
        for item in new.sets
        if item.name in there and (item.learned or item == there[item.name])
    }
    deleted = {line.split()[4] for line in update if line.startswith("delete set")}
    assert deleted == there.keys() - kept
    made = {line.split()[1] for line in update if line.startswith("  set ")}
    assert made == {item.name for item in new.sets} - kept


@given(ENTRIES, SCOPES, st.sampled_from(ClassMode), st.sampled_from(ClassMode), st.booleans())
def test_no_class_is_judged_by_surprise(
    entries: list[Entry], scope: Scope, engine: ClassMode, containers: ClassMode, blind: bool
) -> None:
    """Strict is only who the policy wants strict, as far as the scope tells or ``weak`` says."""
    rows = f'[enforcement]\nengine = "{engine}"\ncontainers = "{containers}"\n'
    text = "".join(f'[[registry]]\naddress = "{name}{port}"\n' for name, port, _, _ in entries)
    found = classes_for(policy(more=text + rows), scope, blind=blind)
    assert found.containers is containers
    if found.engine is ClassMode.STRICT:
        assert engine is ClassMode.STRICT
        assert scope.precise or scope.weak is not Weak.CATALOG
    elif found.engine is not engine:
        assert (engine, scope.weak) == (ClassMode.STRICT, Weak.CATALOG)
        assert not scope.precise
    if found.host is ClassMode.STRICT and scope.host is not ClassMode.STRICT:
        assert engine is ClassMode.STRICT
        assert scope.weak is not Weak.CATALOG

"""What a policy allows, against a reading of the policy that shares no code with the compiler."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.allow import REGISTRY_PORTS
from ramnet.core.compiler import Rung, Settings, compile_table
from ramnet.core.policy import ClassMode, Policy
from ramnet.core.ruleset import Table, render_create, render_update
from tests.unit.core.support import RESOLVERS, allowed, host, policy

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


def written(entries: list[Entry]) -> Policy:
    more = ""
    for address, port, extra, networks in entries:
        more += f'[[registry]]\naddress = "{address}{port}"\n'
        more += f"extra_hosts = {list(extra)}\nnetworks = {list(networks)}\n".replace("'", '"')
    return policy(more=more)


def ports_meant(port: str, judged: set[int]) -> set[int]:
    return judged if port == ":*" else {int(port[1:] or 443)}


def judged_ports(entries: list[Entry]) -> set[int]:
    return set(REGISTRY_PORTS) | {
        int(port[1:]) for _, port, _, _ in entries if port not in ("", ":*")
    }


def covers(pattern: str, name: str) -> bool:
    return name.endswith(pattern[1:]) if pattern.startswith("*") else name == pattern


@given(ENTRIES)
def test_the_ports_of_names(entries: list[Entry]) -> None:
    found = allowed(written(entries))
    judged = judged_ports(entries)
    assert found.ports == judged
    for name in HOSTS:
        expected: set[int] = set()
        for address, port, extra, _ in entries:
            ports = ports_meant(port, judged)
            if covers(address, name):
                expected |= ports
            if any(covers(pattern, name) for pattern in extra):
                expected |= ports | {443}
        assert found.ports_of(host(name)) == expected, name


def opened_by_sets(table: Table, address: IPv4Address | IPv6Address, port: int) -> bool:
    """Whether a static set of the table opens a pair."""
    for item in table.sets:
        name, _, suffix = item.name.partition("_")
        fits = name == f"static{address.version}" and suffix in ("any", str(port))
        if fits and any(address in ip_network(text) for text in item.elements):
            return True
    return False


@given(ENTRIES)
def test_the_static_sets_open_what_the_networks_say_and_nothing_else(entries: list[Entry]) -> None:
    settings = Settings(0x40, 256, Rung.OBSERVE)
    table = compile_table(allowed(written(entries)), RESOLVERS, (), settings, ClassMode.OFF)
    for text in PROBES:
        address = ip_address(text)
        for port in PORTS:
            expected = False
            for name, port_text, _, networks in entries:
                meant = list(networks)
                meant += ["127.0.0.0/8", "::1/128"] if name == "localhost" else []
                meant += ["10.1.2.3/32"] if name == "10.1.2.3" else []
                if port_text == ":*" or port == int(port_text[1:] or 443):
                    expected |= any(address in ip_network(network) for network in meant)
            assert opened_by_sets(table, address, port) is expected, (text, port)


@given(ENTRIES)
def test_no_static_set_has_elements_that_overlap(entries: list[Entry]) -> None:
    settings = Settings(0x40, 256, Rung.OBSERVE)
    table = compile_table(allowed(written(entries)), RESOLVERS, (), settings, ClassMode.OFF)
    for item in table.sets:
        if item.name.startswith("static"):
            networks = [ip_network(text) for text in item.elements]
            assert networks
            for index, one in enumerate(networks):
                assert not any(one.overlaps(other) for other in networks[:index])


@given(ENTRIES, ENTRIES, st.sampled_from(Rung), st.sampled_from(ClassMode))
def test_every_jump_and_set_of_a_table_is_in_it(
    before: list[Entry], after: list[Entry], rung: Rung, containers: ClassMode
) -> None:
    settings = Settings(0x40, 256, rung)
    tables = [
        compile_table(allowed(written(entries)), RESOLVERS, (), settings, containers)
        for entries in (before, after)
    ]
    for table in tables:
        chains = {chain.name for chain in table.chains}
        sets = {item.name for item in table.sets}
        for chain in table.chains:
            for rule in chain.rules:
                words = rule.text.split()
                assert {word[1:] for word in words if word.startswith("@")} <= sets
                for at, word in enumerate(words):
                    if word == "jump":
                        assert words[at + 1] in chains
    old, new = tables
    update = render_update(old, new, ()).splitlines()
    learned = {item.name for item in new.sets if item.learned}
    deleted = {line.split()[4] for line in update if line.startswith("delete set")}
    assert deleted == {item.name for item in old.sets} - learned
    assert render_create(new) != ""

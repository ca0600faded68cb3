"""From a policy to what it allows, and to the table."""

from __future__ import annotations

from datetime import date, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from ramnet.core.allow import REGISTRY_PORTS, Grant
from ramnet.core.compiler import (
    AFTER_NAT,
    HELD,
    IMPOSTERS,
    NFLOG_GROUP,
    PACED,
    PRIORITY,
    REFUSED,
    TABLE,
    Held,
    Resolver,
    Rung,
    Settings,
    compile_table,
    element_of,
)
from ramnet.core.policy import ClassMode, Policy
from ramnet.core.ruleset import Chain, Counter, Hook, Table
from tests.unit.core.support import CATALOG, RESOLVERS, SETTINGS, TODAY, allowed, host, ip, policy


def compiled(
    found: Policy | None,
    *held: Held,
    settings: Settings = SETTINGS,
    resolvers: tuple[Resolver, ...] = RESOLVERS,
    containers: ClassMode = ClassMode.OFF,
) -> Table:
    return compile_table(allowed(found), resolvers, held, settings, containers)


def elements(table: Table) -> dict[str, tuple[str, ...]]:
    return {item.name: item.elements for item in table.sets}


def chain(table: Table, name: str) -> Chain:
    return next(item for item in table.chains if item.name == name)


def rules(table: Table, name: str) -> list[str]:
    return [rule.text for rule in chain(table, name).rules]


# What a policy allows


def test_nothing_is_allowed_without_a_policy() -> None:
    nothing = allowed(None)
    assert len(nothing.names) == 0
    assert (nothing.networks, nothing.exact, nothing.registries) == ((), (), ())
    assert nothing.ports == REGISTRY_PORTS, "the usual ports are judged all the same"


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_is_expanded_to_the_hosts_it_uses(name: str) -> None:
    found = allowed(policy(name))
    for used in ("registry-1.docker.io", "auth.docker.io", "production.cloudflare.docker.com"):
        assert found.ports_of(host(used)) == {443}
    for other in ("docker.com", "evil.docker.io", "r2.cloudflarestorage.com", "quay.io"):
        assert found.ports_of(host(other)) == frozenset()
    assert "registry-1.docker.io" in found.exact
    assert found.registries == (name,)
    (grant,) = found.names.find(host("auth.docker.io"))
    assert grant == Grant(frozenset({443}), name, "catalogue: auth host of docker.io")


def test_every_host_of_every_catalogued_registry_is_allowed_on_its_ports() -> None:
    for entry in CATALOG:
        found = allowed(policy(entry.key))
        for item in entry.hosts:
            if not item.pattern.wildcard:
                assert found.ports_of(item.pattern.name) >= item.ports


@pytest.mark.parametrize(
    ("address", "ports"),
    [
        ("registry.corp.example", {443}),
        ("registry.corp.example:5000", {5000}),
        ("registry.corp.example:443", {443}),
        ("registry.corp.example:8443", {8443}),
        ("registry.corp.example:*", {80, 443, 5000}),
    ],
)
def test_ports_of_an_address(address: str, ports: set[int]) -> None:
    assert allowed(policy(address)).ports_of(host("registry.corp.example")) == ports


def test_any_port_means_every_port_that_is_judged() -> None:
    found = allowed(policy("any.example:*", "other.example:8443"))
    assert found.ports == {80, 443, 5000, 8443}
    assert found.ports_of(host("any.example")) == {80, 443, 5000, 8443}
    assert found.ports_of(host("other.example")) == {8443}


@pytest.mark.parametrize(
    ("address", "ports"),
    [("quay.io:443", {443}), ("quay.io:8443", {8443}), ("quay.io:*", {80, 443, 5000})],
)
def test_a_port_with_a_catalogued_registry_means_that_port(address: str, ports: set[int]) -> None:
    assert allowed(policy(address)).ports_of(host("quay.io")) == ports


def test_ports_of_several_entries_of_one_name_add_up() -> None:
    found = allowed(policy("r.example:5000", "r.example:5001", "*.example:8443"))
    assert found.ports_of(host("r.example")) == {5000, 5001, 8443}
    assert found.exact == ("r.example",), "asked for once, a wildcard not at all"


@pytest.mark.parametrize(
    ("address", "ports"),
    [
        ("r.example", {443}),
        ("r.example:5000", {443, 5000}),
        ("r.example:*", {80, 443, 5000}),
        ("localhost:5001", {443, 5001}),
    ],
)
def test_extra_hosts_serve_https_or_the_registrys_own_port(address: str, ports: set[int]) -> None:
    more = 'extra_hosts = ["blobs.example", "*.mirror.example"]\n'
    found = allowed(policy(address, more=more))
    assert found.ports_of(host("blobs.example")) == ports
    assert found.ports_of(host("a.mirror.example")) == ports
    assert found.ports_of(host("mirror.example")) == frozenset()
    assert "blobs.example" in found.exact
    (grant,) = found.names.find(host("blobs.example"))
    assert grant.via == "policy: registry.extra_hosts"


def test_localhost_is_the_loopback_networks_and_no_name_to_resolve() -> None:
    found = allowed(policy("localhost:5000"))
    assert found.exact == ()
    assert found.ports_of(host("localhost")) == frozenset()
    for address in ("127.0.0.1", "127.9.9.9", "::1"):
        (grant,) = found.grants_for(ip(address))
        assert grant.ports == frozenset({5000})
    assert list(found.grants_for(ip("::2"))) == []
    assert list(found.grants_for(ip("128.0.0.1"))) == []


@pytest.mark.parametrize("text", ["10.0.0.1", "2001:db8::1"])
def test_an_ip_literal_is_its_own_network(text: str) -> None:
    address = f"[{text}]:5000" if ":" in text else f"{text}:5000"
    found = allowed(policy(address))
    assert found.networks == (
        (ip_network(text), Grant(frozenset({5000}), address, "policy: registry.address")),
    )
    assert len(found.names) == 0


def test_networks_are_of_their_own_family() -> None:
    found = allowed(policy("r.example", more='networks = ["0.0.0.0/1", "2000::/3"]\n'))
    assert [grant.via for grant in found.grants_for(ip("1.2.3.4"))] == ["policy: registry.networks"]
    assert len(list(found.grants_for(ip("2001:db8::1")))) == 1
    assert list(found.grants_for(ip("200.0.0.1"))) == []


def test_an_expired_entry_counts_for_nothing() -> None:
    more = f'expires = {TODAY}\nnetworks = ["10.0.0.0/8"]\nextra_hosts = ["x.example"]\n'
    found = policy("old.example:8443", more=more)
    assert allowed(found, TODAY).ports_of(host("old.example")) == {8443}
    after = allowed(found, TODAY + timedelta(days=1))
    assert after == allowed(policy(), date.max) or (
        (after.networks, after.exact, after.registries, len(after.names)) == ((), (), (), 0)
    )
    assert after.ports == REGISTRY_PORTS


# The table


def test_the_table_of_no_policy_refuses_every_judged_port() -> None:
    table = compiled(None)
    assert (table.name, table.flags) == (TABLE, ())
    assert table.counters == tuple(map(Counter, (REFUSED, HELD, IMPOSTERS, PACED)))
    assert elements(table) == {
        "judged": ("80", "443", "5000"),
        "allow4": (),
        "allow6": (),
        "seen4": (),
        "seen6": (),
        "resolvers4": ("192.0.2.53 . 2",),
        "resolvers6": (),
        "answerers4": ("192.0.2.53 . 2",),
        "answerers6": (),
        "alive": (),
        "caches4": (),
        "caches6": (),
        "paced4": (),
        "paced6": (),
    }
    assert rules(table, "judge") == [
        "tcp dport != @judged accept",
        "ip6 nexthdr != tcp counter name refused meta l4proto tcp reject with tcp reset",
        "ip daddr . tcp dport @allow4 accept",
        "ip6 daddr . tcp dport @allow6 accept",
        *(
            f"{key} != {seen} add {seen} {{ {key} }} counter name held_first_syn drop"
            for key, seen in (
                ("ip saddr . ip daddr . tcp sport . tcp dport", "@seen4"),
                ("ip6 saddr . ip6 daddr . tcp sport . tcp dport", "@seen6"),
            )
        ),
        "counter name refused meta l4proto tcp reject with tcp reset",
    ]


def test_queries_and_answers_are_tied_together_by_the_mark() -> None:
    table = compiled(None, settings=Settings(0x40, 256, Rung.OBSERVE))
    queries, answers = rules(table, "output"), rules(table, "answers")
    assert queries[0] == (
        "udp dport 53 ip daddr . oif @resolvers4 ct mark set ct mark or 0x00000040"
        f" log group {NFLOG_GROUP} snaplen 512"
    )
    assert queries[-1] == "tcp flags & (fin|syn|rst|ack) == syn jump judge"
    assert answers[-1] == (
        "meta l4proto tcp ct direction reply ct original proto-dst 53"
        " ct mark and 0x00000040 == 0x00000040 ct original ip6 daddr . iif @answerers6"
        " jump believed"
    )
    for name, hook, priority in (
        ("output", Hook.OUTPUT, PRIORITY),
        ("answers", Hook.INPUT, AFTER_NAT),
    ):
        assert (chain(table, name).hook, chain(table, name).priority) == (hook, priority)
    assert chain(table, "judge").hook is None
    sizes = {item.name: item.size for item in table.sets}
    assert (sizes["allow4"], sizes["allow6"]) == (512, 512)


PACE_RULES = [
    f"update @paced{version} {{ {ip} saddr . udp dport limit rate over 5000/second"
    " burst 5000 packets } counter name paced accept"
    for version, ip in ((4, "ip"), (6, "ip6"))
]


@pytest.mark.parametrize(
    ("rung", "believed"),
    [
        (Rung.OBSERVE, ["log group 7261"]),
        (
            Rung.NATIVE,
            [*PACE_RULES, "meta l4proto @alive queue flags bypass to 7261", "log group 7261"],
        ),
        (Rung.COMPAT, [*PACE_RULES, "meta l4proto @alive jump hold", "log group 7261"]),
    ],
)
def test_what_becomes_of_an_answer(rung: Rung, believed: list[str]) -> None:
    table = compiled(None, settings=Settings(0x40, 256, rung))
    assert rules(table, "believed") == believed
    # With answers held no SYN can be earlier than its element.
    assert any("seen4" in text for text in rules(table, "judge")) is (rung is Rung.OBSERVE)
    learned = [item.name for item in table.chains if item.learned]
    assert learned == (["hold"] if rung is Rung.COMPAT else [])


@pytest.mark.parametrize("rung", list(Rung))
@pytest.mark.parametrize("containers", list(ClassMode))
def test_answers_to_containers_are_looked_at_where_they_can_be_changed(
    rung: Rung, containers: ClassMode
) -> None:
    table = compiled(None, settings=Settings(0x40, 256, rung), containers=containers)
    names = {item.name for item in table.chains}
    looked_at = rung is not Rung.OBSERVE and containers is not ClassMode.OFF
    assert ({"forwarded", "published"} <= names) is looked_at
    if looked_at:
        last = rules(table, "forwarded")[-1]
        hold = "queue flags bypass to 7261" if rung is Rung.NATIVE else "jump hold"
        assert last.endswith(f"ip6 daddr != @caches6 meta l4proto @alive {hold}")


def test_a_resolver_on_this_machine_is_known_by_its_user() -> None:
    ours = Resolver(IPv4Address("127.0.0.53"), 1, 1, frozenset({101, 0}))
    rules_of = rules(compiled(None, resolvers=(ours, *RESOLVERS)), "output")
    assert rules_of[:2] == [
        f"{protocol} sport 53 ip saddr 127.0.0.53 oif 1 meta skuid != {{ 0, 101 }}"
        " counter name imposters drop"
        for protocol in ("udp", "tcp")
    ]
    assert not any("192.0.2.53" in text for text in rules_of)


def test_what_claims_to_be_a_resolver_by_another_way_is_not_tracked() -> None:
    six = Resolver(IPv6Address("2001:db8::53"), 2, 2)
    strangers = rules(compiled(None, resolvers=(six,)), "strangers")
    assert strangers == [
        f'meta iifkind {{ "bridge", "veth" }} {protocol} sport 53'
        " ip6 saddr { 2001:db8::53 } ip6 saddr . iif != @answerers6 notrack"
        for protocol in ("udp", "tcp")
    ]


def test_which_sets_are_learned() -> None:
    learned = {item.name for item in compiled(policy("localhost:*")).sets if item.learned}
    sets = {
        f"{name}{version}" for name in ("allow", "seen", "caches", "paced") for version in (4, 6)
    }
    assert learned == sets | {"alive"}


def test_resolvers_are_listed_once_each_by_family() -> None:
    four, six = IPv4Address("192.0.2.53"), IPv6Address("2001:db8::53")
    servers = (
        Resolver(four, 2, 2),
        Resolver(six, 2, 2),
        Resolver(four, 2, 9),
        Resolver(four, 3, 9),
    )
    table = compiled(None, resolvers=servers)
    assert elements(table)["resolvers4"] == ("192.0.2.53 . 2", "192.0.2.53 . 3")
    assert elements(table)["answerers4"] == ("192.0.2.53 . 2", "192.0.2.53 . 9")
    assert elements(table)["resolvers6"] == ("2001:db8::53 . 2",)
    assert servers[0].direct
    assert not servers[2].direct


def test_what_is_held_goes_into_the_set_of_its_family() -> None:
    long = ".".join(["a" * 31] * 4)
    assert len(long) == 127
    table = compiled(
        None,
        Held(ip("198.51.100.1"), 443, 12.3456, "r.example"),
        Held(ip("2001:db8::1"), 5000, 0.0001, ""),
        Held(ip("198.51.100.2"), 443, 60.0, long),
        Held(ip("198.51.100.3"), 443, 60.0, f"{long}b"),
    )
    assert elements(table)["allow4"] == (
        '198.51.100.1 . 443 timeout 12345ms comment "r.example"',
        f'198.51.100.2 . 443 timeout 60000ms comment "{long}"',
        "198.51.100.3 . 443 timeout 60000ms",
    )
    assert elements(table)["allow6"] == ("2001:db8::1 . 5000 timeout 1ms",)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("198.51.100.1", ("allow4", "198.51.100.1 . 443")),
        ("2001:db8::1", ("allow6", "2001:db8::1 . 443")),
    ],
)
def test_the_element_of_a_lease(address: str, expected: tuple[str, str]) -> None:
    assert element_of(ip(address), 443) == expected


def test_networks_become_one_set_for_each_port_and_family_without_overlaps() -> None:
    more = 'networks = ["10.0.0.0/8", "10.1.0.0/16", "10.2.3.4", "11.0.0.0/8", "2001:db8::/32"]\n'
    table = compiled(policy("localhost:*", "10.9.9.9:5000", "r.example", more=more))
    found = {name: items for name, items in elements(table).items() if name.startswith("static")}
    assert found == {
        "static4_any": ("127.0.0.0/8",),
        "static6_any": ("::1/128",),
        "static4_5000": ("10.9.9.9/32",),
        "static4_443": ("10.0.0.0/7",),
        "static6_443": ("2001:db8::/32",),
    }
    judge = rules(table, "judge")
    assert "ip daddr @static4_any accept" in judge
    assert "tcp dport 5000 ip daddr @static4_5000 accept" in judge
    assert "tcp dport 443 ip6 daddr @static6_443 accept" in judge
    last_accept = max(index for index, text in enumerate(judge) if text.endswith("accept"))
    assert all("seen" in text or "reject" in text for text in judge[last_accept + 1 :])

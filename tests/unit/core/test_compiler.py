"""From what is allowed to the table: who is judged, and how."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import product

import pytest

from ramnet.core.allow import ANY_PORT
from ramnet.core.compiler import BRIDGES_SIZE, compile_table
from ramnet.core.policy import ClassMode, Policy
from ramnet.core.ruleset import Chain, Counter, Hook, Table
from ramnet.core.scope import PROBED, Classes, Scope
from ramnet.core.terms import (
    AFTER_NAT,
    HELD,
    IMPOSTERS,
    NFLOG_GROUP,
    NOWHERE,
    PACED,
    PRIORITY,
    REFUSED,
    TABLE,
    Book,
    Held,
    Machine,
    Resolver,
    Rung,
    Settings,
    element_of,
)
from tests.unit.core.support import (
    CGROUP,
    MARK,
    NETNS,
    RESOLVERS,
    SETTINGS,
    UID,
    allowed,
    ip,
    policy,
    settings,
)

STRICT, CATALOG, OFF = ClassMode.STRICT, ClassMode.CATALOG, ClassMode.OFF
ENGINES = Classes(STRICT, OFF, OFF)
SYN = "tcp flags & (fin|syn|rst|ack) == syn"
DESTINATIONS = """
[[destination]]
address = "logs.example"
ports = [443, 4317]
[[destination]]
address = "10.0.0.9:2377"
"""


def compiled(
    found: Policy | None,
    *held: Held,
    given: Settings = SETTINGS,
    resolvers: tuple[Resolver, ...] = RESOLVERS,
    classes: Classes = ENGINES,
    machine: Machine = NOWHERE,
) -> Table:
    return compile_table(allowed(found), resolvers, held, given, classes, machine)


def scoped(scope: Scope, classes: Classes = ENGINES, found: Policy | None = None) -> Table:
    return compiled(found, given=settings(scope, Rung.NATIVE), classes=classes)


def elements(table: Table) -> dict[str, tuple[str, ...]]:
    return {item.name: item.elements for item in table.sets}


def chain(table: Table, name: str) -> Chain:
    return next(item for item in table.chains if item.name == name)


def rules(table: Table, name: str) -> list[str]:
    return [rule.text for rule in chain(table, name).rules]


def names(table: Table) -> set[str]:
    return {item.name for item in table.chains}


# The table of no policy


def test_the_table_of_no_policy_refuses_every_judged_port() -> None:
    table = compiled(None)
    assert (table.name, table.flags) == (TABLE, ())
    assert table.counters == tuple(map(Counter, (REFUSED, HELD, IMPOSTERS, PACED, PROBED)))
    assert elements(table) == {
        "judged": ("80", "443", "5000"),
        "allow4": (),
        "allow6": (),
        "allow_any4": (),
        "allow_any6": (),
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
        "ip6 nexthdr != tcp goto refuse_engine",
        "ip daddr . tcp dport @allow4 accept",
        "ip6 daddr . tcp dport @allow6 accept",
        "meta l4proto tcp ip daddr @allow_any4 accept",
        "meta l4proto tcp ip6 daddr @allow_any6 accept",
        *(
            f"{key} != {seen} add {seen} {{ {key} }} counter name held_first_syn drop"
            for key, seen in (
                ("ip saddr . ip daddr . tcp sport . tcp dport", "@seen4"),
                ("ip6 saddr . ip6 daddr . tcp sport . tcp dport", "@seen6"),
            )
        ),
        "goto refuse_engine",
    ]


def test_the_sets_are_there_that_the_classes_need() -> None:
    def host_sets(classes: Classes) -> set[str]:
        found = {item.name for item in compiled(None, classes=classes).sets}
        return {name for name in found if name.startswith(("allow", "heard", "deny"))}

    engines = {f"allow{any_}{version}" for any_ in ("", "_any") for version in (4, 6)}
    heard = {f"heard{any_}{version}" for any_ in ("", "_any") for version in (4, 6)}
    assert host_sets(ENGINES) == engines
    assert host_sets(Classes(STRICT, STRICT, OFF)) == engines | heard
    for one in (Classes(CATALOG, OFF, OFF), Classes(OFF, CATALOG, OFF), Classes(OFF, OFF, CATALOG)):
        assert host_sets(one) == engines | heard | {"deny4", "deny6"}


# Whose sockets are an engine's


def test_under_cgroup_engines_are_looked_for_at_each_level_and_the_rest_is_the_hosts() -> None:
    table = scoped(CGROUP, Classes(STRICT, OFF, CATALOG))
    assert rules(table, "output") == [
        "tcp flags & (fin|syn|rst|ack) != syn tcp dport != 53 accept",
        "socket cgroupv2 level 1 @engines1 goto engine",
        "socket cgroupv2 level 2 @engines2 goto engine",
        "socket transparent 0-1 goto host",
        "ip saddr != @local4 accept",
        "ip6 saddr != @local6 accept",
        f"{SYN} goto engine",
    ]
    assert elements(table)["engines1"] == ('"unified/ramnetengines.slice"',)
    assert elements(table)["engines2"] == ('"unified/user.slice/podman.service"',)
    groups = [item for item in table.sets if item.name.startswith("engines")]
    assert {(item.kind, item.learned) for item in groups} == {("cgroupsv2", True)}
    free = scoped(CGROUP, ENGINES)
    assert rules(free, "output")[-4] == "socket transparent 0-1 accept"
    assert "host" not in names(free)


def test_under_mark_engines_have_the_bit_and_so_have_all_mptcp_connections() -> None:
    table = scoped(MARK, Classes(STRICT, OFF, CATALOG))
    assert rules(table, "output")[1:] == [
        "meta mark and 0x02000000 == 0x02000000 goto engine",
        f"{SYN} tcp option 30 exists goto engine",
        "goto host",
    ]
    assert rules(scoped(MARK), "output")[-1] == f"{SYN} tcp option 30 exists goto engine"


def test_under_uid_engines_are_their_users_and_all_mptcp_connections() -> None:
    table = scoped(UID, Classes(STRICT, OFF, CATALOG))
    assert rules(table, "output")[1:] == [
        "meta skuid { 0, 1000 } goto engine",
        f"{SYN} tcp option 30 exists goto engine",
        "goto host",
    ]


def test_under_netns_everybody_is_an_engine() -> None:
    table = scoped(NETNS, Classes(CATALOG, OFF, CATALOG))
    assert rules(table, "output")[1:] == ["goto engine"]
    assert "host" not in names(table)


@pytest.mark.parametrize("scope", [MARK, UID, NETNS])
def test_sets_of_groups_are_for_scope_cgroup_only(scope: Scope) -> None:
    assert not any(name.startswith("engines") for name in elements(scoped(scope)))


# The engine class


@pytest.mark.parametrize("scope", [CGROUP, MARK, UID, NETNS])
@pytest.mark.parametrize("mode", list(ClassMode))
def test_the_live_probe_is_counted_first_whatever_the_class(scope: Scope, mode: ClassMode) -> None:
    first = rules(scoped(scope, Classes(mode, OFF, OFF)), "engine")[0]
    assert first == "ip daddr 127.0.0.1 udp dport 7261 counter name probed drop"


@pytest.mark.parametrize("scope", [CGROUP, MARK])
def test_strict_judges_every_port_of_engines_that_are_told_apart(scope: Scope) -> None:
    table = scoped(scope, found=policy("r.example", more=DESTINATIONS))
    assert rules(table, "engine")[5:] == [
        "tcp flags & (fin|syn|rst|ack) != syn accept",
        "ip6 nexthdr != { tcp, udp, icmpv6 } goto refuse_engine",
        "meta l4proto tcp goto judge",
        "udp sport { 2377, 4317 } ct direction reply accept",
        "udp dport { 2377, 4317 } ip daddr . udp dport @allow4 accept",
        "udp dport { 2377, 4317 } ip6 daddr . udp dport @allow6 accept",
        "udp dport 2377 ip daddr @destination4_2377 accept",
        "meta l4proto != { icmp, icmpv6 } goto refuse_engine",
    ]
    judge = rules(table, "judge")
    assert judge[0] == "ip6 nexthdr != tcp goto refuse_engine", "no port goes unjudged"
    assert "tcp dport 2377 ip daddr @destination4_2377 accept" in judge


@pytest.mark.parametrize("scope", [UID, NETNS])
def test_strict_leaves_the_ports_of_no_registry_alone_where_more_than_engines_are_meant(
    scope: Scope,
) -> None:
    table = scoped(scope, found=policy("r.example:8443", more=DESTINATIONS))
    assert rules(table, "engine")[5:] == [
        "tcp flags & (fin|syn|rst|ack) != syn accept",
        "meta l4proto tcp goto judge",
    ]
    (narrow, *_) = chain(table, "judge").rules
    assert narrow.text == "tcp dport != @judged accept"
    assert f"scope {scope.mode}" in narrow.comment
    assert elements(table)["judged"] == ("80", "443", "5000", "8443"), "not 2377, 4317"


@pytest.mark.parametrize("scope", [CGROUP, MARK, UID, NETNS])
def test_engines_by_the_catalogue_and_engines_that_are_left_alone(scope: Scope) -> None:
    """To engines all that the policy lists is open, destinations as well."""
    found = policy("10.0.0.7", more=DESTINATIONS)
    by_catalogue = rules(scoped(scope, Classes(CATALOG, OFF, OFF), found), "engine")
    assert by_catalogue[5:] == [
        "tcp flags & (fin|syn|rst|ack) != syn accept",
        "ip daddr . tcp dport @allow4 accept",
        "ip6 daddr . tcp dport @allow6 accept",
        "meta l4proto tcp ip daddr @allow_any4 accept",
        "meta l4proto tcp ip6 daddr @allow_any6 accept",
        "tcp dport 443 ip daddr @static4_443 accept",
        "tcp dport 2377 ip daddr @destination4_2377 accept",
        "goto catalog_engine",
    ]
    alone = rules(scoped(scope, Classes(OFF, OFF, OFF), found), "engine")
    assert alone == by_catalogue[:6]


def test_no_rule_for_udp_without_a_destination() -> None:
    table = scoped(CGROUP, found=policy("r.example", more='networks = ["10.0.0.0/8"]\n'))
    assert not any("udp dport" in rule for rule in rules(table, "engine")[5:])


# By the catalogue


def test_by_the_catalogue_refused_addresses_are_refused_and_nothing_else() -> None:
    found = policy("r.example", more=f'networks = ["10.0.0.0/8"]\n{DESTINATIONS}')
    assert rules(scoped(CGROUP, Classes(STRICT, OFF, CATALOG), found), "catalog_host") == [
        "ip daddr . tcp dport @heard4 accept",
        "ip6 daddr . tcp dport @heard6 accept",
        "meta l4proto tcp ip daddr @heard_any4 accept",
        "meta l4proto tcp ip6 daddr @heard_any6 accept",
        "tcp dport 443 ip daddr @static4_443 accept",
        "meta l4proto { tcp, udp } ip daddr . th dport @deny4 goto refuse_host",
        "meta l4proto { tcp, udp } ip6 daddr . th dport @deny6 goto refuse_host",
    ]


def test_the_answers_of_other_programs_are_held_where_they_can_be_changed() -> None:
    classes = Classes(STRICT, OFF, CATALOG)
    table = compiled(None, given=settings(CGROUP, Rung.NATIVE), classes=classes)
    assert rules(table, "host") == [
        "udp dport 53 ip daddr { 192.0.2.53 } ct mark set ct mark or 0x04000000 accept",
        "goto catalog_host",
    ]
    assert rules(table, "answers")[-1] == (
        "meta l4proto udp ct direction reply ct original proto-dst 53"
        " ct mark and 0x04000000 == 0x04000000"
        " meta l4proto @alive queue flags bypass to 7262"
    )
    observed = compiled(None, given=settings(CGROUP, Rung.OBSERVE), classes=classes)
    assert rules(observed, "host") == ["goto catalog_host"]
    assert len(rules(observed, "answers")) == 4


@pytest.mark.parametrize("scope", [CGROUP, MARK, UID])
def test_a_host_that_is_judged_strictly_is_on_the_ports_of_registries_only(scope: Scope) -> None:
    """So it is while the live probe fails: any program may be an engine's."""
    table = scoped(scope, Classes(STRICT, OFF, STRICT), policy("r.example:8443"))
    host = rules(table, "host")
    assert host[:4] == rules(table, "engine")[1:5], "its queries teach as well"
    assert host[4:] == [
        "tcp flags & (fin|syn|rst|ack) != syn accept",
        "tcp dport != @judged accept",
        "meta l4proto tcp goto judge",
    ]
    assert not any("@deny" in rule.text for item in table.chains for rule in item.rules)


def test_other_programs_are_followed_to_this_machines_own_resolver_where_it_has_one() -> None:
    """What that one asks in turn goes into its cache, and engines ask it too."""
    stub = Resolver(IPv4Address("127.0.0.53"), 1, 1, frozenset({101}))
    classes = Classes(STRICT, OFF, CATALOG)
    table = compiled(
        None,
        given=replace(settings(CGROUP, Rung.COMPAT), ct_host=0x80),
        classes=classes,
        resolvers=(stub, *RESOLVERS),
    )
    assert rules(table, "host")[0] == (
        "udp dport 53 ip daddr { 127.0.0.53 } ct mark set ct mark or 0x00000080 accept"
    )
    assert rules(table, "answers")[-1].endswith("meta l4proto @alive jump hold_others")


# Containers


def test_containers_by_the_catalogue_on_whatever_network() -> None:
    table = scoped(CGROUP, Classes(STRICT, CATALOG, OFF))
    assert rules(table, "forwarded")[-2:] == [
        f"{SYN} goto catalog_containers",
        "meta l4proto udp goto catalog_containers",
    ]
    assert "contained" not in names(table)
    assert "bridges" not in elements(table)


def test_containers_that_are_judged_strictly() -> None:
    found = policy("r.example", "10.0.0.7:5001", more=DESTINATIONS)
    table = compiled(
        found,
        given=settings(CGROUP, Rung.NATIVE),
        classes=Classes(STRICT, STRICT, OFF),
        machine=Machine((9, 5), (8,)),
    )
    assert rules(table, "forwarded")[-1] == (
        'meta iifkind "bridge" iif != @uplinked goto contained'
    )
    contained = rules(table, "contained")
    assert contained[0] == "iif . oif @bridges accept"
    assert elements(table)["bridges"] == ("5 . 5", "9 . 9")
    assert elements(table)["uplinked"] == ("8",)
    assert contained[1:5] == rules(table, "engine")[1:5], "queries are noted like an engine's"
    assert contained[5:] == [
        "tcp flags & (fin|syn|rst|ack) != syn accept",
        "meta l4proto udp ct status dnat ct direction reply accept",
        "meta l4proto { icmp, icmpv6 } accept",
        "ip6 nexthdr != tcp goto refuse_containers",
        "ip daddr . tcp dport @heard4 accept",
        "ip6 daddr . tcp dport @heard6 accept",
        "meta l4proto tcp ip daddr @heard_any4 accept",
        "meta l4proto tcp ip6 daddr @heard_any6 accept",
        "tcp dport 5001 ip daddr @static4_5001 accept",
        "goto refuse_containers",
    ]
    assert not any("destination" in rule or "@allow" in rule for rule in contained)


def test_a_containers_first_syn_has_a_second_chance_where_answers_are_only_copied() -> None:
    table = compiled(None, classes=Classes(STRICT, STRICT, OFF))
    held = [rule for rule in rules(table, "contained") if "@seen" in rule]
    assert len(held) == 2
    assert all(rule.startswith("meta l4proto tcp ") for rule in held)


def test_answers_to_containers_are_followed_where_containers_are_judged_strictly() -> None:
    """By the queries that were seen, and over TCP as well; then the rest, to be changed."""
    believed = (
        "meta l4proto {} ct direction reply ct original proto-dst 53"
        " ct mark and 0x01000000 == 0x01000000 ct original {} daddr . iif @answerers{}"
    )
    ways = [
        believed.format(proto, family, version)
        for (version, family), proto in product(((4, "ip"), (6, "ip6")), ("udp", "tcp"))
    ]
    native = rules(scoped(CGROUP, Classes(STRICT, STRICT, OFF)), "forwarded")
    held = "meta l4proto @alive queue flags bypass to 7262"
    copied = f"log group {NFLOG_GROUP}"
    assert native[4:12] == [f"{way} {held}" for way in ways] + [f"{way} {copied}" for way in ways]
    observed = rules(compiled(None, classes=Classes(STRICT, STRICT, OFF)), "forwarded")
    assert observed[4:-1] == [f"{way} {copied}" for way in ways]


def test_bridges_are_bounded() -> None:
    classes = Classes(STRICT, STRICT, OFF)
    many = tuple(range(1, BRIDGES_SIZE + 10))
    table = compiled(None, classes=classes, machine=Machine(many, many))
    assert len(elements(table)["bridges"]) == len(elements(table)["uplinked"]) == BRIDGES_SIZE


# DNS


def test_queries_and_answers_are_tied_together_by_the_mark() -> None:
    table = compiled(None, given=Settings(0x40, 256, Rung.OBSERVE))
    queries, answers = rules(table, "engine")[1:5], rules(table, "answers")
    assert queries[0] == (
        "udp dport 53 ip daddr . oif @resolvers4 ct mark set ct mark or 0x00000040"
        f" log group {NFLOG_GROUP} snaplen 512 accept"
    )
    assert queries[-1] == (
        "tcp dport 53 ip6 daddr . oif @resolvers6 ct mark set ct mark or 0x00000040"
        f" log group {NFLOG_GROUP} accept"
    )
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
    assert (sizes["allow4"], sizes["allow6"], sizes["allow_any4"]) == (512, 512, 512)


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
    table = compiled(None, given=Settings(0x40, 256, rung))
    assert rules(table, "believed") == believed
    # With answers held no SYN can be earlier than its element.
    assert any("seen4" in text for text in rules(table, "judge")) is (rung is Rung.OBSERVE)
    learned = [item.name for item in table.chains if item.learned]
    assert learned == (["hold", "hold_others"] if rung is Rung.COMPAT else [])


@pytest.mark.parametrize("rung", list(Rung))
@pytest.mark.parametrize("containers", list(ClassMode))
def test_answers_to_containers_are_looked_at_where_they_can_be_changed(
    rung: Rung, containers: ClassMode
) -> None:
    table = compiled(
        None, given=Settings(0x40, 256, rung), classes=Classes(STRICT, containers, OFF)
    )
    judged = containers is not OFF
    assert ({"forwarded", "published"} <= names(table)) is judged
    if not judged:
        return
    hold = "queue flags bypass to 7262" if rung is Rung.NATIVE else "jump hold_others"
    changed = [
        f"meta l4proto udp ct direction reply ct original proto-dst 53"
        f" {family} saddr != @caches{version} {family} daddr != @caches{version}"
        f" meta l4proto @alive {hold}"
        for version, family in ((4, "ip"), (6, "ip6"))
    ]
    found = rules(table, "forwarded")
    assert (set(changed) <= set(found)) is (rung is not Rung.OBSERVE)
    assert any("@alive" in rule for rule in found) is (rung is not Rung.OBSERVE)


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
        f"{name}{version}"
        for name in ("allow", "allow_any", "seen", "caches", "paced")
        for version in (4, 6)
    }
    assert learned == sets | {"alive"}
    everything = compiled(
        policy("localhost:*"), given=settings(CGROUP), classes=Classes(STRICT, STRICT, CATALOG)
    )
    more = {f"{name}{version}" for name in ("heard", "heard_any", "deny") for version in (4, 6)}
    learned_of_all = {item.name for item in everything.sets if item.learned}
    assert learned_of_all == learned | more | {"engines1", "engines2"}


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


def test_what_is_held_goes_into_the_sets_of_its_book_and_of_every_port() -> None:
    table = compiled(
        None,
        Held(ip("198.51.100.1"), ANY_PORT, 60.0, "any.example"),
        Held(ip("198.51.100.1"), 443, 60.0, "r.example"),
        Held(ip("2001:db8::1"), ANY_PORT, 60.0, "any.example", Book.HEARD),
        Held(ip("198.51.100.2"), 5000, 60.0, "r.example", Book.HEARD),
        Held(ip("198.51.100.3"), 443, 60.0, "quay.io", Book.DENY),
        classes=Classes(STRICT, STRICT, CATALOG),
    )
    found = {
        name: items
        for name, items in elements(table).items()
        if items and name.startswith(("allow", "heard", "deny"))
    }
    assert found == {
        "allow_any4": ('198.51.100.1 timeout 60000ms comment "any.example"',),
        "allow4": ('198.51.100.1 . 443 timeout 60000ms comment "r.example"',),
        "heard_any6": ('2001:db8::1 timeout 60000ms comment "any.example"',),
        "heard4": ('198.51.100.2 . 5000 timeout 60000ms comment "r.example"',),
        "deny4": ('198.51.100.3 . 443 timeout 60000ms comment "quay.io"',),
    }
    kinds = {item.name: item.kind for item in table.sets}
    assert (kinds["allow_any4"], kinds["allow4"]) == ("ipv4_addr", "ipv4_addr . inet_service")


@pytest.mark.parametrize(
    ("book", "address", "port", "expected"),
    [
        (Book.ALLOW, "198.51.100.1", 443, ("allow4", "198.51.100.1 . 443")),
        (Book.ALLOW, "2001:db8::1", 443, ("allow6", "2001:db8::1 . 443")),
        (Book.ALLOW, "198.51.100.1", ANY_PORT, ("allow_any4", "198.51.100.1")),
        (Book.HEARD, "2001:db8::1", ANY_PORT, ("heard_any6", "2001:db8::1")),
        (Book.DENY, "198.51.100.1", 443, ("deny4", "198.51.100.1 . 443")),
    ],
)
def test_the_element_of_a_lease(
    book: Book, address: str, port: int, expected: tuple[str, str]
) -> None:
    assert element_of(book, ip(address), port) == expected


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
    assert "meta l4proto tcp ip daddr @static4_any accept" in judge
    assert "tcp dport 5000 ip daddr @static4_5000 accept" in judge
    assert "tcp dport 443 ip6 daddr @static6_443 accept" in judge
    last_accept = max(index for index, text in enumerate(judge) if text.endswith("accept"))
    assert all("seen" in text or text == "goto refuse_engine" for text in judge[last_accept + 1 :])


def test_networks_of_destinations_are_kept_apart() -> None:
    more = 'networks = ["10.0.0.0/8"]\n[[destination]]\naddress = "10.0.0.9"\n'
    more += '[[destination]]\naddress = "[2001:db8::9]:*"\n'
    found = elements(
        scoped(CGROUP, Classes(STRICT, STRICT, CATALOG), policy("r.example", more=more))
    )
    assert found["static4_443"] == ("10.0.0.0/8",)
    assert found["destination4_443"] == ("10.0.0.9/32",)
    assert found["destination6_any"] == ("2001:db8::9/128",)

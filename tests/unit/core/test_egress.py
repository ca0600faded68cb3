"""What is compiled for uplinks. What the kernel makes of it: tests/netns/test_egress*.py."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ramnet.core.egress import EgressSets, Local, Uplink, compile_egress, egress_books
from ramnet.core.policy import ClassMode
from ramnet.core.ruleset import Family, Hook, Table
from ramnet.core.terms import TABLE, Book, Held
from tests.unit.core.support import SETTINGS, addresses, allowed, policy

LOCAL = Local(frozenset({"02:00:00:00:00:01"}), frozenset(addresses("192.0.2.2", "fe80::1")))
UPLINKS = (Uplink(7, "eth1"), Uplink(2, "eth0.50"))
POLICY = policy("198.51.100.9:5000", more='\n[[destination]]\naddress = "192.0.2.80:80"\n')
HELD = tuple(Held(ip_address("198.51.100.1"), 443, 60.0, "x.example", book) for book in Book)
SETS = EgressSets(allowed(POLICY), HELD, addresses("203.0.113.53", "2001:db8::53"))


def compiled(mode: ClassMode, sets: EgressSets = SETS) -> Table:
    table = compile_egress(UPLINKS, LOCAL, mode, sets, SETTINGS)
    assert table is not None
    return table


def elements(table: Table, name: str) -> tuple[str, ...]:
    (found,) = (item for item in table.sets if item.name == name)
    return found.elements


def test_off_and_a_machine_without_uplinks_need_no_table() -> None:
    assert compile_egress(UPLINKS, LOCAL, ClassMode.OFF, SETS, SETTINGS) is None
    assert compile_egress((), LOCAL, ClassMode.STRICT, SETS, SETTINGS) is None
    assert egress_books(ClassMode.OFF) == ()


@pytest.mark.parametrize("mode", [ClassMode.CATALOG, ClassMode.STRICT])
def test_each_uplink_has_a_chain_that_ends_in_the_judgement(mode: ClassMode) -> None:
    table = compiled(mode)
    assert (table.family, table.name) == (Family.NETDEV, TABLE)
    _, judge, *chains = table.chains
    assert (judge.name, judge.hook) == ("judge", None)
    assert [(chain.name, chain.device) for chain in chains] == [
        ("uplink2", "eth0.50"),
        ("uplink7", "eth1"),
    ]
    assert {chain.hook for chain in chains} == {Hook.EGRESS}
    assert {chain.rules[-1].text for chain in chains} == {"goto judge"}


def test_the_order_of_uplinks_does_not_matter() -> None:
    """The same devices give the same table, so that it is not loaded again for nothing."""
    mode = ClassMode.CATALOG
    turned = compile_egress(reversed(UPLINKS), LOCAL, mode, SETS, SETTINGS)
    assert turned == compiled(mode)


@pytest.mark.parametrize("mode", [ClassMode.CATALOG, ClassMode.STRICT])
def test_the_machine_may_also_send_from_no_address(mode: ClassMode) -> None:
    table = compiled(mode)
    assert elements(table, "own") == ("02:00:00:00:00:01",)
    assert elements(table, "local4") == ("0.0.0.0", "192.0.2.2")
    assert elements(table, "local6") == ("::", "fe80::1")


@pytest.mark.parametrize("mode", [ClassMode.CATALOG, ClassMode.STRICT])
def test_only_the_books_of_a_mode_are_in_the_table(mode: ClassMode) -> None:
    table = compiled(mode)
    learned = {item.name for item in table.sets if item.learned}
    prefixes = {name.rstrip("46").removesuffix("_any") for name in learned}
    assert prefixes == set(egress_books(mode))
    for book in egress_books(mode):
        assert elements(table, f"{book}4") == (
            '198.51.100.1 . 443 timeout 60000ms comment "x.example"',
        )
        assert elements(table, f"{book}6") == ()


def test_every_set_is_looked_into_and_every_one_looked_into_is_there() -> None:
    for mode in (ClassMode.CATALOG, ClassMode.STRICT):
        table = compiled(mode)
        text = " ".join(rule.text for chain in table.chains for rule in chain.rules)
        used = {word.removeprefix("@") for word in text.split() if word.startswith("@")}
        assert used == {item.name for item in table.sets}


@pytest.mark.parametrize("mode", [ClassMode.CATALOG, ClassMode.STRICT])
def test_destinations_are_not_for_containers(mode: ClassMode) -> None:
    named = {item.name for item in compiled(mode).sets if "interval" in item.flags}
    assert named == {"static4_5000"}


def test_strict_ends_in_a_refusal_and_catalog_lets_the_rest_pass() -> None:
    last = {mode: compiled(mode).chains[1].rules[-1].text for mode in ClassMode if mode != "off"}
    assert last[ClassMode.STRICT] == "goto refuse_containers"
    assert compiled(ClassMode.STRICT).chains[0].rules[-1].text == "drop"
    assert "@deny6" in last[ClassMode.CATALOG]


def test_dns_goes_to_the_trusted_resolvers_under_strict() -> None:
    table = compiled(ClassMode.STRICT)
    assert elements(table, "resolvers4") == ("203.0.113.53",)
    assert elements(table, "resolvers6") == ("2001:db8::53",)

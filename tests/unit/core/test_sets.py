"""The sets that every table has of its own, and the rules that look into them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ramnet.core.sets import learned_rules, learned_sets, static_rules, static_sets
from ramnet.core.terms import Book, Held
from tests.unit.core.support import allowed, policy

ADDRESS = ip_address("198.51.100.1")


def elements(*held: Held, book: Book = Book.ALLOW) -> dict[str, tuple[str, ...]]:
    return {item.name: item.elements for item in learned_sets([book], held, 10) if item.elements}


def test_each_book_has_a_set_for_each_family_and_for_every_port() -> None:
    made = {item.name: item.kind for item in learned_sets([Book.ALLOW], (), 10)}
    assert made == {
        "allow4": "ipv4_addr . inet_service",
        "allow6": "ipv6_addr . inet_service",
        "allow_any4": "ipv4_addr",
        "allow_any6": "ipv6_addr",
    }


def test_what_is_denied_is_denied_on_its_ports() -> None:
    made = list(learned_sets([Book.DENY], (), 10))
    assert [item.name for item in made] == ["deny4", "deny6"]
    assert {item.size for item in made} == {20}
    assert all(item.learned for item in made)


def test_an_element_is_in_the_set_of_its_book_family_and_port() -> None:
    held = (
        Held(ADDRESS, 443, 60.0, "a.example"),
        Held(ADDRESS, 0, 0.0001, "b.example"),
        Held(ip_address("2001:db8::1"), 443, 60.0, ""),
        Held(ADDRESS, 444, 60.0, "c.example", Book.DENY),
    )
    assert elements(*held) == {
        "allow4": ('198.51.100.1 . 443 timeout 60000ms comment "a.example"',),
        "allow_any4": ('198.51.100.1 timeout 1ms comment "b.example"',),
        "allow6": ("2001:db8::1 . 443 timeout 60000ms",),
    }
    assert list(elements(*held, book=Book.DENY)) == ["deny4"]


@pytest.mark.parametrize(("length", "told"), [(127, True), (128, False)])
def test_a_name_that_is_too_long_for_a_comment_is_left_out(length: int, told: bool) -> None:
    (element,) = elements(Held(ADDRESS, 443, 60.0, "a" * length))["allow4"]
    assert ("comment" in element) is told


def test_every_set_of_a_book_has_its_rule() -> None:
    assert [rule.text for rule in learned_rules(Book.HEARD)] == [
        "ip daddr . tcp dport @heard4 accept",
        "ip6 daddr . tcp dport @heard6 accept",
        "meta l4proto tcp ip daddr @heard_any4 accept",
        "meta l4proto tcp ip6 daddr @heard_any6 accept",
    ]


def test_networks_are_merged_and_those_of_destinations_kept_apart() -> None:
    text = (
        'networks = ["10.0.0.0/24", "10.0.1.0/24", "10.0.0.7", "2001:db8::/48"]\n\n'
        '[[destination]]\naddress = "192.0.2.1:*"\n'
    )
    made = static_sets(allowed(policy("corp.example:5000", more=text)))
    assert [(one.item.name, one.item.elements, one.destination) for one in made] == [
        ("static4_5000", ("10.0.0.0/23",), False),
        ("static6_5000", ("2001:db8::/48",), False),
        ("destination4_any", ("192.0.2.1/32",), True),
    ]
    assert [rule.text for rule in static_rules(made)] == [
        "tcp dport 5000 ip daddr @static4_5000 accept",
        "tcp dport 5000 ip6 daddr @static6_5000 accept",
        "meta l4proto tcp ip daddr @destination4_any accept",
    ]

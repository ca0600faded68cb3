"""Which rule of a table decides; that it is the kernel's own choice, tests/netns show."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from ramnet.core.allow import ANY_PORT
from ramnet.core.compiler import compile_table
from ramnet.core.config import Weak
from ramnet.core.explainrule import Decision, InSet, Verdict, decide, enters, told_by_table
from ramnet.core.policy import ClassMode, OnDeny
from ramnet.core.refusal import REJECTED, Refusal
from ramnet.core.ruleset import Chain, Rule, Table
from ramnet.core.scope import Classes, Scope
from ramnet.core.terms import ENGINE, OUTPUT, Book, Held, Rung, TrafficClass
from tests.unit.core.support import CGROUP, MARK, NETNS, RESOLVERS, UID, allowed, ip, policy
from tests.unit.core.support import settings as settings_of

WHO = TrafficClass
STRICT, CATALOG, OFF = ClassMode.STRICT, ClassMode.CATALOG, ClassMode.OFF
POLICY = policy(
    "r.example:5000",
    "any.example:*",
    more='networks = ["10.0.0.0/8", "2001:db8:a::/48"]\n'
    '[[destination]]\naddress = "192.0.2.0"\nports = [443]\n',
)
HELD = (
    Held(ip("198.51.100.1"), 5000, 60, "r.example"),
    Held(ip("2001:db8::1"), 5000, 60, "r.example"),
    Held(ip("198.51.100.2"), ANY_PORT, 60, "any.example"),
    Held(ip("198.51.100.1"), 5000, 60, "r.example", Book.HEARD),
    Held(ip("198.51.100.9"), 443, 60, "quay.io", Book.DENY),
)
ALLOW4 = "ip daddr . tcp dport @allow4 accept"


def table(
    engine: ClassMode = STRICT,
    containers: ClassMode = CATALOG,
    host: ClassMode = CATALOG,
    scope: Scope = CGROUP,
    rung: Rung = Rung.NATIVE,
    refusal: Refusal = REJECTED,
) -> Table:
    return compile_table(
        allowed(POLICY),
        RESOLVERS,
        HELD,
        settings_of(scope, rung),
        Classes(engine, containers, host),
        refusal=refusal,
    )


def asked(found: Table, who: WHO, address: str, port: int) -> Decision:
    return decide(found, who, ip(address), port, told_by_table(found))


def said(decision: Decision) -> tuple[str, str, str]:
    return str(decision.verdict), decision.chain, decision.rule


@pytest.mark.parametrize(
    ("who", "address", "port", "expected"),
    [
        (WHO.ENGINE, "198.51.100.1", 5000, ("accepted", "judge", ALLOW4)),
        (
            WHO.ENGINE,
            "2001:db8::1",
            5000,
            ("accepted", "judge", "ip6 daddr . tcp dport @allow6 accept"),
        ),
        (
            WHO.ENGINE,
            "198.51.100.2",
            8443,
            ("accepted", "judge", "meta l4proto tcp ip daddr @allow_any4 accept"),
        ),
        (
            WHO.ENGINE,
            "10.9.9.9",
            22,
            ("accepted", "judge", "meta l4proto tcp ip daddr @static4_any accept"),
        ),
        (
            WHO.ENGINE,
            "192.0.2.0",
            443,
            ("accepted", "judge", "tcp dport 443 ip daddr @destination4_443 accept"),
        ),
        (WHO.ENGINE, "198.51.100.1", 443, ("refused", "judge", "goto refuse_engine")),
        (WHO.ENGINE, "2001:db8::2", 5000, ("refused", "judge", "goto refuse_engine")),
        (
            WHO.HOST,
            "198.51.100.9",
            443,
            (
                "refused",
                "catalog_host",
                "meta l4proto { tcp, udp } ip daddr . th dport @deny4 goto refuse_host",
            ),
        ),
        (WHO.HOST, "198.51.100.9", 80, ("passes", "", "")),
        (
            WHO.CONTAINERS,
            "198.51.100.1",
            5000,
            ("accepted", "catalog_containers", "ip daddr . tcp dport @heard4 accept"),
        ),
        (WHO.CONTAINERS, "192.0.2.0", 443, ("passes", "", "")),
    ],
)
def test_the_rule_that_decides(
    who: WHO, address: str, port: int, expected: tuple[str, str, str]
) -> None:
    assert said(asked(table(), who, address, port)) == expected


def test_a_decision_has_the_element_and_the_comment_of_its_rule() -> None:
    found = asked(table(), WHO.ENGINE, "198.51.100.1", 5000)
    assert (found.name, found.found) == ("allow4", InSet("198.51.100.1 . 5000"))
    assert asked(table(), WHO.ENGINE, "198.51.100.1", 443).found is None
    weak = table(scope=replace(UID, weak=Weak.STRICT))
    found = asked(weak, WHO.ENGINE, "198.51.100.1", 22)
    assert (found.verdict, found.comment) == (
        Verdict.PASSES,
        "scope uid: the other ports are not judged",
    )


def test_a_query_to_a_trusted_resolver_is_accepted() -> None:
    found = asked(table(), WHO.ENGINE, "192.0.2.53", 53)
    assert (found.verdict, found.chain, found.name) == (Verdict.ACCEPTED, "engine", "resolvers4")
    assert asked(table(), WHO.ENGINE, "192.0.2.54", 53).verdict is Verdict.REFUSED


@pytest.mark.parametrize("who", [WHO.ENGINE, WHO.CONTAINERS])
def test_with_copies_a_first_packet_waits_before_it_is_refused(who: WHO) -> None:
    found = table(containers=STRICT, rung=Rung.OBSERVE)
    late = asked(found, who, "203.0.113.1", 443)
    assert (late.verdict, late.delayed) == (Verdict.REFUSED, True)
    known = asked(found, who, "198.51.100.1", 5000)
    assert (known.verdict, known.delayed) == (Verdict.ACCEPTED, False)
    assert not asked(table(containers=STRICT), who, "203.0.113.1", 443).delayed


@pytest.mark.parametrize(
    ("found", "chains"),
    [
        (table(), ["engine", "host", "catalog_containers"]),
        (table(containers=STRICT), ["engine", "host", "contained"]),
        (table(containers=OFF, host=OFF), ["engine", "", ""]),
        (table(scope=NETNS), ["engine", "engine", "catalog_containers"]),
    ],
)
def test_where_a_class_is_judged(found: Table, chains: list[str]) -> None:
    assert [enters(found, who) for who in (WHO.ENGINE, WHO.HOST, WHO.CONTAINERS)] == chains


def test_whom_nothing_judges_nothing_refuses() -> None:
    found = asked(table(host=OFF), WHO.HOST, "198.51.100.9", 443)
    assert (found.verdict, found.chain) == (Verdict.PASSES, "")
    found = asked(table(engine=OFF), WHO.ENGINE, "198.51.100.9", 443)
    assert (found.verdict, found.chain) == (Verdict.PASSES, "")


def test_in_audit_what_would_be_refused_is_recorded() -> None:
    found = table(containers=STRICT, refusal=Refusal(audit=True))
    for who in WHO:
        made = asked(found, who, "198.51.100.9", 443)
        assert (made.verdict, made.rule[-len("goto refuse_") - len(who) :]) == (
            Verdict.RECORDED,
            f"goto refuse_{who}",
        )
    assert asked(found, WHO.ENGINE, "198.51.100.1", 5000).verdict is Verdict.ACCEPTED


def test_every_rule_of_every_table_is_understood() -> None:
    """No rule that the compiler makes leaves a verdict open, whoever asks for whatever."""
    weak = [replace(scope, weak=Weak.STRICT, host=CATALOG) for scope in (CGROUP, MARK, UID, NETNS)]
    refusals = (Refusal(), Refusal(OnDeny.NOTICE, OnDeny.DROP, OnDeny.DROP), Refusal(audit=True))
    for scope, rung, engine, other, refusal in product(weak, Rung, ClassMode, ClassMode, refusals):
        found = table(engine, other, other, scope, rung, refusal)
        holds = told_by_table(found)
        for who, address, port in product(
            WHO, ("198.51.100.1", "203.0.113.1", "2001:db8::1"), (53, 443, 5000)
        ):
            decision = decide(found, who, ip(address), port, holds)
            assert decision.verdict is not Verdict.UNKNOWN, decision


def test_a_rule_of_another_form_leaves_the_verdict_open() -> None:
    odd = Rule("fib daddr type local accept")
    found = Table("ramnet", chains=(Chain(ENGINE, (odd,)), Chain(OUTPUT, ())))
    decision = asked(found, WHO.ENGINE, "198.51.100.1", 443)
    assert said(decision) == ("unknown", ENGINE, odd.text)
    dropped = replace(found, chains=(Chain(ENGINE, (Rule("drop"),)), Chain(OUTPUT, ())))
    assert asked(dropped, WHO.ENGINE, "198.51.100.1", 443).verdict is Verdict.REFUSED
    odd = Rule("tcp dport 443 meta mark set 1")
    found = replace(found, chains=(Chain(ENGINE, (odd,)), Chain(OUTPUT, ())))
    assert asked(found, WHO.ENGINE, "198.51.100.1", 443).verdict is Verdict.UNKNOWN


def test_a_set_that_is_not_there_holds_nothing() -> None:
    assert told_by_table(table())("nothing", ip("198.51.100.1"), 443) is None

"""How each class is judged, by the policy alone and by the rules."""

from __future__ import annotations

import pytest

from ramnet.core.explain import parse_target
from ramnet.core.explainclass import Judged, by_class, by_rules
from ramnet.core.explainpolicy import Rulebook
from ramnet.core.explainrule import Decision, InSet, Verdict
from ramnet.core.policy import ClassMode
from ramnet.core.terms import TrafficClass
from tests.unit.core.support import CATALOG, TODAY, allowed, ip, policy

WHO = TrafficClass
MODE = ClassMode
POLICY = policy(
    "docker.io",
    "r.example:5000",
    "localhost:*",
    more='networks = ["10.0.0.0/8"]\n[[destination]]\naddress = "git.example"\n'
    '[[destination]]\naddress = "ghcr.io"\n[[destination]]\naddress = "192.0.2.7"\n',
)
BOOK = Rulebook(POLICY, allowed(POLICY), CATALOG, TODAY)


def judged(who: WHO, mode: MODE, text: str, ports: frozenset[int] | None = None) -> Judged:
    return by_class(who, mode, parse_target(text), BOOK, ports)


@pytest.mark.parametrize(
    ("mode", "text", "engine", "host", "containers"),
    [
        (MODE.STRICT, "nginx", "accepted", "accepted", "accepted"),
        (MODE.STRICT, "quay.io", "refused", "refused", "refused"),
        (MODE.STRICT, "unknown.example", "refused", "refused", "refused"),
        # A destination is for engines; where the host is strict it is judged as they are.
        (MODE.STRICT, "git.example", "accepted", "accepted", "refused"),
        (MODE.STRICT, "192.0.2.7", "accepted", "accepted", "refused"),
        (MODE.STRICT, "10.1.2.3", "accepted", "accepted", "accepted"),
        (MODE.STRICT, "localhost:5000", "accepted", "accepted", "accepted"),
        (MODE.CATALOG, "nginx", "accepted", "accepted", "accepted"),
        (MODE.CATALOG, "quay.io", "refused", "refused", "refused"),
        (MODE.CATALOG, "quay.io:8443", "passes", "refused", "refused"),
        # On addresses that serve others, only the answers of DNS are refused.
        ("catalog", "gcr.io", "passes", "refused", "refused"),
        (MODE.CATALOG, "auth.docker.io:80", "passes", "passes", "passes"),
        (MODE.CATALOG, "unknown.example", "passes", "passes", "passes"),
        (MODE.CATALOG, "git.example", "accepted", "passes", "passes"),
        (MODE.CATALOG, "ghcr.io", "accepted", "refused", "refused"),
        (MODE.CATALOG, "192.0.2.1", "passes", "passes", "passes"),
        (MODE.CATALOG, "10.1.2.3", "accepted", "accepted", "accepted"),
        (MODE.OFF, "quay.io", "passes", "passes", "passes"),
    ],
)
def test_by_the_policy(mode: str, text: str, engine: str, host: str, containers: str) -> None:
    found = [judged(who, MODE(mode), text) for who in (WHO.ENGINE, WHO.HOST, WHO.CONTAINERS)]
    assert [str(item.verdict) for item in found] == [engine, host, containers]
    assert all(item.because and not item.decisions for item in found)


def test_ports_that_are_not_judged() -> None:
    ports = frozenset({443})
    assert judged(WHO.ENGINE, MODE.STRICT, "quay.io:22", ports).verdict is Verdict.PASSES
    assert judged(WHO.ENGINE, MODE.STRICT, "quay.io", ports).verdict is Verdict.REFUSED
    assert judged(WHO.CONTAINERS, MODE.STRICT, "quay.io:22", ports).verdict is Verdict.REFUSED


def test_the_reasons_of_catalog_mode() -> None:
    assert "which the policy does not list" in judged(WHO.HOST, MODE.CATALOG, "quay.io").because
    assert "by DNS answers only" in judged(WHO.HOST, MODE.CATALOG, "gcr.io").because
    assert "may serve others" in judged(WHO.ENGINE, MODE.CATALOG, "gcr.io").because
    assert "only other registries" in judged(WHO.HOST, MODE.CATALOG, "auth.docker.io:80").because
    assert "for engines only" in judged(WHO.CONTAINERS, MODE.STRICT, "git.example").because


def decision(verdict: Verdict, found: InSet | None = None) -> Decision:
    return Decision(ip("198.51.100.1"), verdict, "judge", "rule", "", "deny4", found)


@pytest.mark.parametrize(
    ("made", "because"),
    [
        (decision(Verdict.REFUSED, InSet("x", 9, "quay.io")), "it is in set deny4, where quay.io"),
        (decision(Verdict.REFUSED, InSet("x", 9)), "it is in set deny4"),
        (decision(Verdict.REFUSED), "no rule lets it pass"),
        (decision(Verdict.UNKNOWN), "see the rule"),
        (decision(Verdict.ACCEPTED, InSet("x", 9, "a.example")), "where a.example led"),
    ],
)
def test_of_an_address_the_rule_is_the_verdict(made: Decision, because: str) -> None:
    target = parse_target("198.51.100.1")
    found = by_rules(judged(WHO.HOST, MODE.CATALOG, "198.51.100.1"), target, (made,))
    assert (found.verdict, found.decisions) == (made.verdict, (made,))
    assert because in found.because


def test_what_no_rule_refuses_passes() -> None:
    before = judged(WHO.ENGINE, MODE.STRICT, "198.51.100.1")
    found = by_rules(before, parse_target("198.51.100.1"), (decision(Verdict.PASSES),))
    assert (found.verdict, found.because) == (Verdict.PASSES, "no rule refuses it")


def test_of_a_name_the_policy_is_the_verdict_and_a_rule_that_agrees_changes_nothing() -> None:
    before = judged(WHO.ENGINE, MODE.STRICT, "quay.io")
    made = decision(Verdict.ACCEPTED, InSet("x"))
    found = by_rules(before, parse_target("quay.io"), (made,))
    assert (found.verdict, found.because) == (Verdict.REFUSED, before.because)
    before = judged(WHO.ENGINE, MODE.STRICT, "198.51.100.1")
    found = by_rules(before, parse_target("198.51.100.1"), (decision(Verdict.REFUSED),))
    assert found.because == before.because
    assert by_rules(before, parse_target("198.51.100.1"), ()) == before

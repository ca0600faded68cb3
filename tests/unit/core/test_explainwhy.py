"""The whole chain, with a pretended kernel that holds what the daemon told it, or less."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ramnet.core.config import Weak
from ramnet.core.engine import State
from ramnet.core.explain import explain, parse_target
from ramnet.core.explainclass import NO_POLICY
from ramnet.core.explainpolicy import Rulebook
from ramnet.core.explainreport import why_report
from ramnet.core.explainrule import InSet, told_by_table
from ramnet.core.explainwhy import (
    AUDIT,
    MAX_LEASES,
    STRANDED,
    InForce,
    Why,
    by_policy,
    known_leases,
    names_of,
    why,
)
from ramnet.core.policy import ClassMode, Policy
from ramnet.core.scope import Classes
from ramnet.core.terms import Book, Rung, TrafficClass, element_of
from tests.unit.core.support import (
    CATALOG,
    CGROUP,
    TODAY,
    UID,
    Story,
    allowed,
    host,
    ip,
    policy,
    settings,
)

WHO = TrafficClass
CORP = policy("registry.corp.example:8443", "any.example:*", more='networks = ["10.0.0.0/8"]\n')
ADDRESS = "198.51.100.1"
RECORDED = "; nothing is refused in audit, it is recorded"


def story(found: Policy | None = CORP) -> Story:
    made = Story(settings=settings(CGROUP, Rung.NATIVE))
    made.start(found)
    made.ask("registry.corp.example", ADDRESS)
    return made


def explained(
    made: Story, text: str, who: WHO = WHO.ENGINE, *, lost: bool = False, now: float = 0.0
) -> Why:
    """Explain as the daemon does; with ``lost`` the kernel holds no element any more."""
    engine = made.engine
    plan, table = engine.applied, engine.table
    assert plan is not None
    assert table is not None
    books = {
        Book.ALLOW: engine.learner.leases,
        Book.HEARD: engine.heard.leases,
        Book.DENY: engine.denied.leases,
    }
    target = parse_target(text)
    known = known_leases(target, books, now)
    held = {
        element_of(book, lease.ip, lease.port): lease.remaining
        for book, leases in books.items()
        for lease in leases.snapshot(now)
    }
    derived = told_by_table(table)

    def holds(name: str, address: Any, port: int | None) -> InSet | None:
        key = str(address) if port is None else f"{address} . {port}"
        seconds = None if lost else held.get((name, key))
        return derived(name, address, port) if seconds is None else InSet(key, seconds)

    found = explain(target, plan.allowed, books[Book.ALLOW], now)
    book = Rulebook(plan.policy, plan.allowed, CATALOG, TODAY)
    in_force = InForce(table, holds, known, plan.judged, ("a note",))
    return why(found, who, plan.classes, book, in_force)


def alone(found: Policy, text: str) -> Why:
    """Explain without a daemon."""
    book = Rulebook(found, allowed(found), CATALOG, TODAY)
    classes = Classes(found.enforcement.engine, found.enforcement.containers, ClassMode.CATALOG)
    return by_policy(parse_target(text), WHO.ENGINE, classes, book)


def audit(engine: str = "strict") -> str:
    return f'[enforcement]\nmode = "audit"\nengine = "{engine}"\n'


def report(said: Why) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(why_report(said, CORP, source="daemon")))
    return made


def test_the_chain_of_a_host() -> None:
    said = report(explained(story(), "registry.corp.example:8443/app:v1", now=10.0))
    assert said["target"] == "registry.corp.example:8443/app:v1"
    assert (said["host"], said["port"], said["allowed"]) == ("registry.corp.example", 8443, True)
    assert (said["class"], said["source"], said["notes"]) == ("engine", "daemon", ["a note"])
    assert (said["reason"], said["registry"]) == (
        "policy: registry.address",
        "registry.corp.example:8443",
    )
    (entry,) = said["entries"]
    assert (entry["table"], entry["number"], entry["standing"]) == ("registry", 1, "allows")
    assert (entry["ports"], entry["expires"], entry["admits"]) == ([8443], None, None)
    lease = {
        "address": ADDRESS,
        "port": 8443,
        "seconds": 350,
        "names": ["registry.corp.example"],
    }
    assert said["leases"] == [lease]
    element = {"set": "allow4", "element": f"{ADDRESS} . 8443", "held": True, "kernel_seconds": 350}
    assert said["elements"][0] == {"book": "allow", **element, **lease}
    (decision,) = said["classes"]["engine"]["decisions"]
    assert (decision["verdict"], decision["chain"]) == ("accepted", "judge")
    assert decision["rule"] == "ip daddr . tcp dport @allow4 accept"
    assert (decision["set"], decision["element"]) == ("allow4", f"{ADDRESS} . 8443")
    assert decision["seconds"] == 350
    assert said["advice"] is None
    assert said["organization"] == "acme"


def test_an_element_that_the_kernel_lost_is_told() -> None:
    said = report(explained(story(), "registry.corp.example:8443", lost=True))
    # The next answer of DNS leads to an address that there is an element for.
    assert (said["allowed"], said["notes"]) == (True, ["a note", STRANDED])
    assert (said["elements"][0]["held"], said["elements"][0]["kernel_seconds"]) == (False, None)
    (decision,) = said["classes"]["engine"]["decisions"]
    assert (decision["verdict"], decision["rule"]) == ("refused", "goto refuse_engine")


def test_an_address_is_allowed_as_far_as_the_kernel_lets_it_pass() -> None:
    said = report(explained(story(), f"{ADDRESS}:8443", lost=True))
    assert said["classes"]["engine"]["verdict"] == "refused"
    assert said["allowed"] is False
    assert said["reason"] == (
        "the policy allows it (DNS: registry.corp.example led to it), but no rule lets it pass"
    )
    said = report(explained(story(), f"{ADDRESS}:8443"))
    assert (said["allowed"], said["notes"]) == (True, ["a note"])
    assert said["reason"] == "DNS: registry.corp.example led to it"


UNLISTED = "no registry of the policy covers it"
PASSES = f"{UNLISTED}, but it is not refused: "


@pytest.mark.parametrize(
    ("mode", "text", "verdict", "reason"),
    [
        ("strict", "free.example", "refused", UNLISTED),
        ("strict", "any.example", "accepted", "policy: registry.address"),
        ("catalog", "any.example", "accepted", "policy: registry.address"),
        (
            "catalog",
            "free.example",
            "passes",
            f"{PASSES}the catalogue does not know it as a registry's own host",
        ),
        (
            "catalog",
            "quay.io",
            "refused",
            "it is the registry quay.io, which the policy does not list",
        ),
        ("off", "quay.io", "passes", f"{PASSES}what this class sends is not judged"),
        ("off", "any.example", "passes", "what this class sends is not judged"),
    ],
)
@pytest.mark.parametrize("running", [True, False])
def test_engines_are_allowed_what_is_not_refused_to_them(
    running: bool, mode: str, text: str, verdict: str, reason: str
) -> None:
    found = policy("any.example:*", more=f'[enforcement]\nengine = "{mode}"\n')
    said = explained(story(found), text) if running else alone(found, text)
    assert str(said.judged.verdict) == verdict
    assert (said.allowed, said.reason) == (verdict != "refused", reason)


def test_a_port_that_is_not_judged_strictly() -> None:
    made = Story(settings=settings(replace(UID, weak=Weak.STRICT), Rung.NATIVE))
    made.start(CORP)
    said = explained(made, "free.example:22")
    assert said.allowed
    assert said.reason == f"{PASSES}port 22 is not judged strictly here"
    assert not explained(made, "free.example").allowed
    said = explained(made, "198.51.100.9:22")
    assert (said.allowed, str(said.judged.verdict)) == (True, "passes")
    assert said.judged.because == "port 22 is not judged strictly here"


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(
    ("mode", "text", "verdict", "reason"),
    [
        ("strict", "free.example", "recorded", f"{UNLISTED}{RECORDED}"),
        (
            "catalog",
            "quay.io",
            "recorded",
            f"it is the registry quay.io, which the policy does not list{RECORDED}",
        ),
        ("strict", "any.example", "accepted", "policy: registry.address"),
        ("off", "quay.io", "passes", f"{PASSES}what this class sends is not judged"),
    ],
)
def test_in_audit_all_is_allowed_and_what_would_be_refused_is_told(
    running: bool, mode: str, text: str, verdict: str, reason: str
) -> None:
    found = policy("any.example:*", more=audit(mode))
    said = explained(story(found), text) if running else alone(found, text)
    assert (said.allowed, str(said.judged.verdict), said.reason) == (True, verdict, reason)
    assert said.notes[0] == AUDIT


def test_in_audit_the_rules_of_an_address_only_record() -> None:
    made = story(policy("registry.corp.example:8443", more=audit()))
    said = report(explained(made, "198.51.100.9"))
    (decision,) = said["classes"]["engine"]["decisions"]
    assert (decision["verdict"], decision["rule"]) == ("recorded", "goto refuse_engine")
    assert (said["classes"]["engine"]["verdict"], said["allowed"]) == ("recorded", True)
    assert said["reason"] == (
        f"no network of the policy holds it and no allowed name led to it{RECORDED}"
    )
    lost = explained(made, f"{ADDRESS}:8443", lost=True)
    assert lost.allowed
    assert lost.reason.endswith(f"led to it), but no rule lets it pass{RECORDED}")
    made.engine.denied.teach(host("quay.io"), [ip("198.51.100.9")], 60, 0.0)
    said = report(explained(made, "198.51.100.9", WHO.HOST))
    assert said["classes"]["host"]["verdict"] == "recorded"
    assert said["reason"] == f"it is in set deny4{RECORDED}"


def test_locked_down_nothing_is_allowed_to_engines_for_want_of_a_policy() -> None:
    made = story(None)
    assert made.engine.state is State.LOCKED_DOWN
    for text in ("any.example", "198.51.100.9"):
        said = explained(made, text)
        assert (said.allowed, said.reason) == (False, NO_POLICY)
        assert said.judged.because == NO_POLICY
        others = explained(made, text, WHO.CONTAINERS)
        assert others.allowed
        assert others.reason.endswith("but it is not refused: what this class sends is not judged")


def test_what_other_classes_are_told_of_a_destination() -> None:
    more = '[[destination]]\naddress = "git.example"\n[enforcement]\ncontainers = "strict"\n'
    made = story(policy("any.example:*", more=more))
    said = explained(made, "git.example", WHO.CONTAINERS)
    assert (said.allowed, said.reason) == (False, "it is a destination, which is for engines only")
    assert explained(made, "git.example").reason == "policy: destination.address"
    assert explained(made, "any.example:22", WHO.CONTAINERS).reason == "policy: registry.address"


def test_what_the_policy_does_not_list_and_a_rule_accepts() -> None:
    said = explained(story(), "192.0.2.53:53")
    assert said.allowed
    assert said.reason == said.judged.because == "it is in set resolvers4"


def test_the_chain_of_an_address() -> None:
    made = story()
    said = explained(made, f"{ADDRESS}:8443")
    assert said.allowed
    assert names_of(said.known) == ("registry.corp.example",)
    assert [item.name for item in said.background.bearings] == ["registry.corp.example"]
    assert str(said.judged.verdict) == "accepted"
    later = explained(made, f"{ADDRESS}:8443", now=360.0)
    assert not later.allowed
    assert later.known == ()
    assert str(later.judged.verdict) == "refused"


def test_an_address_for_every_port() -> None:
    made = story()
    made.ask("any.example", "198.51.100.2")
    said = report(explained(made, "198.51.100.2:22"))
    assert said["entries"][0]["ports"] == "any"
    (element,) = said["elements"]
    assert (element["set"], element["element"], element["port"]) == (
        "allow_any4",
        "198.51.100.2",
        0,
    )
    assert element["held"] is True


def test_the_verdict_is_that_of_the_class_that_was_asked_for() -> None:
    made = story()
    for who, passes in ((WHO.ENGINE, False), (WHO.HOST, True), (WHO.CONTAINERS, True)):
        said = explained(made, "unknown.example", who)
        assert (said.who, said.allowed) == (who, passes)
        assert said.judged.who is who
    assert not explained(made, "quay.io", WHO.HOST).allowed
    assert explained(made, "registry.corp.example:8443", WHO.HOST).allowed


def test_an_address_of_a_registry_to_refuse() -> None:
    made = story()
    made.engine.denied.teach(host("quay.io"), [ip(ADDRESS)], 60, 0.0)
    said = explained(made, ADDRESS, WHO.HOST)
    assert not said.allowed
    assert said.judged.decisions[0].name == "deny4"
    assert [item.book for item in said.known] == [Book.DENY]


def test_no_more_leases_are_followed_than_anybody_reads() -> None:
    made = story()
    many = [f"198.51.100.{last}" for last in range(1, MAX_LEASES + 20)]
    made.ask("any.example", *many)
    assert len(explained(made, "any.example").known) == MAX_LEASES


@pytest.mark.parametrize(("text", "allowed"), [("any.example", True), ("quay.io", False)])
def test_without_a_daemon(text: str, allowed: bool) -> None:
    said = alone(CORP, text)
    assert said.allowed is allowed
    assert (said.known, said.notes) == ((), ())
    assert all(not item.decisions for item in said.classes)
    told = why_report(said, None, source="policy")
    assert (told["organization"], told["source"]) == (None, "policy")
    if not allowed:
        assert told["advice"]["command"] == "ramnet policy add quay.io"
        assert told["catalogue"][0]["registry"] == "quay.io"
        assert {item["allowed"] for item in told["companions"]} == {False}

"""The whole chain, with a pretended kernel that holds what the daemon told it, or less."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ramnet.core.explain import explain, parse_target
from ramnet.core.explainpolicy import Rulebook
from ramnet.core.explainreport import why_report
from ramnet.core.explainrule import InSet, told_by_table
from ramnet.core.explainwhy import (
    MAX_LEASES,
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
from tests.unit.core.support import CATALOG, CGROUP, TODAY, Story, host, ip, policy, settings

WHO = TrafficClass
CORP = policy("registry.corp.example:8443", "any.example:*", more='networks = ["10.0.0.0/8"]\n')
ADDRESS = "198.51.100.1"


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

    found = explain(target, plan.allowed, books[Book.ALLOW], now, plan.judged)
    book = Rulebook(plan.policy, plan.allowed, CATALOG, TODAY)
    in_force = InForce(table, holds, known, plan.judged, ("a note",))
    return why(found, who, plan.classes, book, in_force)


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
    assert said["allowed"] is True  # by the policy; what is enforced is another matter
    assert (said["elements"][0]["held"], said["elements"][0]["kernel_seconds"]) == (False, None)
    (decision,) = said["classes"]["engine"]["decisions"]
    assert (decision["verdict"], decision["rule"]) == ("refused", "goto refuse_engine")


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
    for who, allowed in ((WHO.ENGINE, False), (WHO.HOST, True), (WHO.CONTAINERS, True)):
        said = explained(made, "unknown.example", who)
        assert (said.who, said.allowed) == (who, allowed)
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
    plan = story().engine.applied
    assert plan is not None
    book = Rulebook(CORP, plan.allowed, CATALOG, TODAY)
    classes = Classes(ClassMode.STRICT, ClassMode.CATALOG, ClassMode.CATALOG)
    said = by_policy(parse_target(text), WHO.ENGINE, classes, book)
    assert said.allowed is allowed
    assert (said.known, said.notes) == ((), ())
    assert all(not item.decisions for item in said.classes)
    told = why_report(said, None, source="policy")
    assert (told["organization"], told["source"]) == (None, "policy")
    if not allowed:
        assert told["advice"]["command"] == "ramnet policy add quay.io"
        assert told["catalogue"][0]["registry"] == "quay.io"
        assert {item["allowed"] for item in told["companions"]} == {False}

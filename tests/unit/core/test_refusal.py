"""How refusals look: recorded, then answered as the policy says and the machine can."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from ramnet.core.compiler import compile_table
from ramnet.core.policy import ClassMode, OnDeny
from ramnet.core.refusal import REJECTED, Refusal, edge_refuse_chain, refusal_for
from ramnet.core.ruleset import Hook, Table
from ramnet.core.scope import Classes
from ramnet.core.terms import NOWHERE, Rung, Settings, TrafficClass
from tests.unit.core.support import CGROUP, allowed, policy, settings

PORT = 7261
NOTICED = replace(settings(CGROUP, Rung.NATIVE), notice=PORT)
EVERYBODY = Classes(ClassMode.STRICT, ClassMode.CATALOG, ClassMode.CATALOG)
NOTICE, REJECT, DROP = OnDeny.NOTICE, OnDeny.REJECT, OnDeny.DROP


def table(refusal: Refusal, given: Settings = NOTICED) -> Table:
    return compile_table(allowed(None), (), (), given, EVERYBODY, NOWHERE, refusal)


def rules(found: Table, chain: str) -> list[str]:
    return [rule.text for item in found.chains if item.name == chain for rule in item.rules]


@pytest.mark.parametrize(
    ("text", "notice", "found"),
    [
        ("", PORT, Refusal(NOTICE, NOTICE, REJECT)),
        ("", None, Refusal(REJECT, REJECT, REJECT)),
        ("on_deny = 'drop'", None, Refusal(DROP, DROP, DROP)),
        ("on_deny = {host = 'drop'}", PORT, Refusal(NOTICE, DROP, REJECT)),
        ("mode = 'audit'", PORT, Refusal(NOTICE, NOTICE, REJECT, audit=True)),
    ],
)
def test_what_the_policy_says_as_far_as_the_machine_can(
    text: str, notice: int | None, found: Refusal
) -> None:
    given = replace(NOTICED, notice=notice)
    assert refusal_for(policy("r.example", more=f"[enforcement]\n{text}\n"), given) == found


def test_without_a_policy_refusals_are_explained_as_well() -> None:
    assert refusal_for(None, NOTICED) == Refusal(NOTICE, NOTICE, REJECT)


@pytest.mark.parametrize(("who", "how"), list(product(TrafficClass, OnDeny)))
def test_every_class_is_recorded_and_answered_in_its_own_way(
    who: TrafficClass, how: OnDeny
) -> None:
    one: dict[str, Any] = {who: how}
    recorded, counted, *answers = rules(table(Refusal(**one)), f"refuse_{who}")
    assert recorded.endswith(f'log prefix "denied {who}" group 7262 snaplen 128')
    assert counted == "counter name refused"
    lead = (
        "meta l4proto tcp meta l4proto @notice limit rate 200/second burst 1500 packets"
        " meta mark set meta mark or 0x08000000 accept"
    )
    reject = ["meta l4proto tcp reject with tcp reset", "reject"]
    assert answers == {REJECT: reject, DROP: ["drop"], NOTICE: [lead, *reject]}[how]


@pytest.mark.parametrize("who", TrafficClass)
def test_in_audit_nothing_is_refused_and_all_of_it_recorded(who: TrafficClass) -> None:
    found = table(Refusal(NOTICE, DROP, REJECT, audit=True))
    recorded, _, last = rules(found, f"refuse_{who}")
    assert recorded.endswith(f'log prefix "would-deny {who}" group 7262 snaplen 128')
    assert last == "accept"
    assert "noticed" not in {item.name for item in found.chains}
    assert [rule.text for rule in edge_refuse_chain(Refusal(audit=True)).rules][-1] == "accept"


def test_in_audit_no_first_packet_waits() -> None:
    observed = replace(NOTICED, rung=Rung.OBSERVE)
    assert any("seen" in text for text in rules(table(REJECTED, observed), "judge"))
    assert not any("seen" in text for text in rules(table(Refusal(audit=True), observed), "judge"))


def test_what_is_led_to_the_notice_goes_nowhere_else() -> None:
    found = table(Refusal(NOTICE, REJECT, REJECT))
    chains = {item.name: item for item in found.chains}
    marked = "meta mark and 0x08000000 == 0x08000000"
    assert rules(found, "lead") == [f"{marked} meta l4proto tcp redirect to :{PORT}"]
    assert (chains["lead"].kind, chains["lead"].hook) == ("nat", Hook.OUTPUT)
    assert chains["lead"].priority < -100 < chains["noticed"].priority
    assert rules(found, "noticed")[1] == f"{marked} goto led"
    unmark = "meta mark set meta mark and 0xf7ffffff accept"
    assert rules(found, "led") == [
        f"ct status dnat ip daddr 127.0.0.1 tcp dport {PORT} {unmark}",
        f"ct status dnat ip6 daddr ::1 tcp dport {PORT} {unmark}",
        "meta l4proto tcp reject with tcp reset",
        "drop",
    ]
    assert rules(found, "answered") == ["meta skuid 0 accept", "drop"]


def test_where_nobody_is_led_there_are_no_rules_for_it() -> None:
    found = table(Refusal(REJECT, DROP, REJECT))
    assert "noticed" not in {item.name for item in found.chains}
    # Connections that were led before are still translated.
    assert [item.kind for item in found.chains if item.name == "lead"] == ["nat"]
    assert rules(found, "lead") == []
    without = table(Refusal(REJECT, DROP, REJECT), replace(NOTICED, notice=None))
    assert "lead" not in {item.name for item in without.chains}
    assert "notice" not in {item.name for item in found.sets}


@pytest.mark.parametrize(("families", "only"), [((4,), "ipv4"), ((6,), "ipv6")])
def test_a_family_without_a_responder_is_reset(families: tuple[int, ...], only: str) -> None:
    found = table(Refusal(NOTICE, NOTICE, REJECT), replace(NOTICED, notice_families=families))
    assert rules(found, "refuse_engine")[2].startswith(f"meta nfproto {only} meta l4proto tcp")

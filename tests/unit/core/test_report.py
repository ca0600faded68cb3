"""What status and explain say: keys that tools depend on, and no claim that is not true."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ramnet.core.compiler import HELD, IMPOSTERS, REFUSED, Resolver, Rung
from ramnet.core.config import DnsMode, ScopeMode
from ramnet.core.events import PolicyRejected, ResolversFound, TableLost
from ramnet.core.explain import explain, parse_target
from ramnet.core.kernel import Feature
from ramnet.core.modes import Modes
from ramnet.core.policy import policy_digest
from ramnet.core.report import Facts, explain_report, status_report
from tests.unit.core.support import RESOLVERS, Story, allowed, ip, policy, read

CORP = policy("registry.corp.example:8443", more='networks = ["10.0.0.0/8"]\n')
MODES = Modes(ScopeMode.NETNS, "configured", DnsMode.HOLD, "a queue", Rung.NATIVE)
OBSERVE = Modes(ScopeMode.NETNS, "configured", DnsMode.OBSERVE, "copies", Rung.OBSERVE)


def facts(
    *,
    pinned: bool = False,
    lost: int = 0,
    counters: dict[str, int] | None = None,
    modes: Modes = MODES,
) -> Facts:
    return Facts(
        version="1.2.3",
        pid=4711,
        kernel="6.12.0",
        missing=(Feature.QUEUE,),
        modes=modes,
        pinned=pinned,
        servers=("192.0.2.53",),
        policy_path="/etc/ramnet/policy.toml",
        counters=counters or {},
        lost=lost,
        hold={"waiting": 0},
    )


def report(story: Story, **given: Any) -> dict[str, Any]:
    said = status_report(story.engine, facts(**given))
    assert json.loads(json.dumps(said)) == said, "plain JSON values"
    return said


def problems(said: dict[str, Any]) -> list[str]:
    """The warnings but for what is so with every policy of this version."""
    return [line for line in said["warnings"] if not line.startswith("scope netns ")]


def started() -> Story:
    story = Story()
    story.start(CORP)
    return story


def test_the_keys_of_status() -> None:
    said = report(started())
    assert set(said) == {
        "schema",
        "state",
        "version",
        "pid",
        "kernel",
        "scope",
        "dns",
        "policy",
        "leases",
        "refused",
        "held_first_syn",
        "repairs",
        "classes",
        "not_covered",
        "warnings",
    }
    assert set(said["kernel"]) == {"release", "missing"}
    assert set(said["scope"]) == {"mode", "because", "ports"}
    assert set(said["dns"]) == {
        "mode",
        "rung",
        "because",
        "trust",
        "servers",
        "resolvers",
        "answers",
        "learned",
        "ignored",
        "copies_lost",
        "imposters",
        "paced",
        "blocked",
        "hold",
    }
    assert set(said["policy"]) == {"path", "organization", "registries", "digest", "problem"}
    assert set(said["classes"]) == {"engine", "containers", "host"}
    for item in said["classes"].values():
        assert set(item) == {"wanted", "enforced", "because"}


def test_status_while_a_policy_is_enforced() -> None:
    story = started()
    story.ask("registry.corp.example", "198.51.100.1")
    story.ask("registry.corp.example", "127.0.0.1", now=1.0)
    said = report(story, counters={REFUSED: 3, HELD: 5, IMPOSTERS: 7})
    assert (said["schema"], said["state"], said["version"], said["pid"]) == (
        1,
        "enforcing",
        "1.2.3",
        4711,
    )
    assert said["kernel"] == {"release": "6.12.0", "missing": ["queue"]}
    assert said["scope"] == {
        "mode": "netns",
        "because": "configured",
        "ports": [80, 443, 5000, 8443],
    }
    assert (said["dns"]["rung"], said["dns"]["imposters"], said["dns"]["blocked"]) == (
        "native",
        7,
        0,
    )
    assert said["dns"]["hold"] == {"waiting": 0}
    assert (said["leases"], said["refused"], said["held_first_syn"]) == (1, 3, 5)
    assert said["dns"]["trust"] == "network"
    assert said["dns"]["resolvers"] == [
        {"address": "192.0.2.53", "interface": 2, "answers_by": 2, "owners": None}
    ]
    assert (said["dns"]["answers"], said["dns"]["learned"]) == (2, 1)
    assert said["dns"]["ignored"] == {"address-not-teachable": 1}
    assert said["policy"] == {
        "path": "/etc/ramnet/policy.toml",
        "organization": "acme",
        "registries": ["registry.corp.example:8443"],
        "digest": policy_digest(CORP),
        "problem": None,
    }
    assert said["classes"]["engine"]["enforced"] == "strict"
    assert said["classes"]["containers"]["enforced"] == "catalog"
    assert "80, 443, 5000, 8443" in said["not_covered"][0]
    assert any("buildx" in line for line in said["not_covered"])
    assert all(line.startswith("policy key ") for line in problems(said))


def test_a_pinned_resolver_is_trusted_for_another_reason() -> None:
    assert report(started(), pinned=True)["dns"]["trust"] == "pinned"


def test_before_the_first_table_nothing_is_claimed() -> None:
    said = report(Story())
    assert said["state"] == "off"
    assert said["scope"]["ports"] == []
    assert said["dns"]["resolvers"] == []
    assert said["policy"]["digest"] is None
    assert {item["enforced"] for item in said["classes"].values()} == {"off"}
    assert problems(said) == []


def test_locked_down() -> None:
    story = Story()
    story.tell(PolicyRejected("line 1: bad"))
    story.start(None)
    said = report(story)
    assert said["state"] == "locked-down"
    assert said["policy"]["organization"] is None
    assert said["policy"]["digest"] is None
    assert said["policy"]["problem"] == "line 1: bad"
    assert problems(said) == ["policy rejected (locked): line 1: bad"]
    assert said["classes"]["engine"] == {
        "wanted": "strict",
        "enforced": "strict",
        "because": said["classes"]["engine"]["because"],
    }


def test_a_broken_edit_is_told_with_what_stands() -> None:
    story = started()
    story.tell(PolicyRejected("line 1: bad"))
    assert "policy rejected (the policy before stands): line 1: bad" in report(story)["warnings"]


def test_a_refused_table_is_told() -> None:
    story = started()
    story.refuses = "no memory"
    story.tell(read(policy("registry.other.example")))
    said = report(story)
    assert said["state"] == "degraded"
    assert said["policy"]["digest"] == policy_digest(CORP), "what is in force, not what is wanted"
    assert "the kernel refused a newer ruleset: no memory" in said["warnings"]


@pytest.mark.parametrize("found", [CORP, None])
def test_a_table_that_is_gone_is_not_claimed_to_be_enforced(found: Any) -> None:
    story = Story()
    story.start(found)
    story.refuses = "no memory"
    story.tell(TableLost("our table was removed"), 10.0)
    said = report(story)
    assert said["state"] in ("degraded", "off")
    assert said["classes"]["engine"]["enforced"] == "off"
    assert said["classes"]["host"]["enforced"] == "off"


@pytest.mark.parametrize(
    ("wanted", "modes", "enforced", "because"),
    [
        ("catalog", MODES, "catalog", "by DNS answers only"),
        ("strict", MODES, "catalog", "by DNS answers only"),
        ("off", MODES, "off", "the policy says so"),
        ("catalog", OBSERVE, "off", "none is held"),
    ],
)
def test_what_is_enforced_for_containers(
    wanted: str, modes: Modes, enforced: str, because: str
) -> None:
    story = Story()
    story.start(policy("r.example", more=f'[enforcement]\ncontainers = "{wanted}"\n'))
    said = report(story, modes=modes)["classes"]["containers"]
    assert (said["wanted"], said["enforced"]) == (wanted, enforced)
    assert because in said["because"]


def test_containers_are_not_judged_without_a_policy() -> None:
    story = Story()
    story.start(None)
    said = report(story)["classes"]["containers"]
    assert (said["wanted"], said["enforced"]) == ("catalog", "off")
    assert said["because"] == "there is no valid policy"


def test_a_resolver_on_this_machine_is_told_with_its_users() -> None:
    story = started()
    story.tell(ResolversFound((Resolver(ip("127.0.0.53"), 1, 1, frozenset({101, 0})),)))
    (said,) = report(story)["dns"]["resolvers"]
    assert said["owners"] == [0, 101]


def test_no_resolver_and_lost_copies_are_warnings() -> None:
    story = started()
    assert not any("resolver" in line for line in report(story)["warnings"])
    story.tell(ResolversFound(()))
    warnings = report(story, lost=2)["warnings"]
    assert "no resolver can be reached: no name can be learned" in warnings
    assert "2 bursts of DNS copies were lost: some answers were not learned" in warnings
    story.tell(ResolversFound(RESOLVERS))
    assert not any("resolver" in line for line in report(story)["warnings"])


def test_keys_of_the_policy_that_have_no_effect_yet_are_warnings() -> None:
    more = '[support]\ncontact = "it@acme.example"\n[enforcement]\nmode = "audit"\n'
    story = Story()
    story.start(policy("r.example", more=more))
    told = " ".join(report(story)["warnings"])
    assert "policy key support.contact:" in told
    assert "policy key enforcement.mode:" in told


def test_explain_of_a_host_with_a_lease() -> None:
    story = started()
    story.ask("registry.corp.example", "198.51.100.1")
    target = parse_target("registry.corp.example:8443/app:v1")
    found = explain(target, allowed(CORP), story.engine.learner.leases, 59.6)
    said = explain_report(found, source="daemon")
    assert said == {
        "schema": 1,
        "target": "registry.corp.example:8443/app:v1",
        "host": "registry.corp.example",
        "port": 8443,
        "allowed": True,
        "reason": "policy: registry.address",
        "registry": "registry.corp.example:8443",
        "leases": [
            {
                "address": "198.51.100.1",
                "port": 8443,
                "seconds": 300,
                "names": ["registry.corp.example"],
            }
        ],
        "source": "daemon",
    }


def test_explain_of_an_address_that_is_refused() -> None:
    found = explain(parse_target("[2001:db8::1]:5000"), allowed(CORP), None, 0.0)
    said = explain_report(found, source="policy")
    assert (said["host"], said["port"], said["allowed"]) == ("2001:db8::1", 5000, False)
    assert (said["registry"], said["leases"], said["source"]) == (None, [], "policy")

"""What status and explain say: keys that tools depend on, and no claim that is not true."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ramnet.core.config import DnsMode, ScopeMode, Weak
from ramnet.core.engineconf import Finding, Kind
from ramnet.core.events import (
    PolicyRejected,
    Resolved,
    ResolversFound,
    ScopeProbed,
    TableLost,
    Tick,
)
from ramnet.core.kernel import Feature
from ramnet.core.modes import Modes
from ramnet.core.policy import ClassMode, Policy, policy_digest
from ramnet.core.report import Facts, Notice, status_report
from ramnet.core.scope import Scope
from ramnet.core.terms import HELD, IMPOSTERS, REFUSED, Resolver, Rung
from tests.unit.core.support import (
    CGROUP,
    GROUPS,
    MARK,
    NETNS,
    RESOLVERS,
    STRICT,
    TODAY,
    UID,
    Story,
    addresses,
    host,
    ip,
    policy,
    read,
    settings,
)

CORP = policy("registry.corp.example:8443", more='networks = ["10.0.0.0/8"]\n')
FINDINGS = (
    Finding(Kind.WARNING, "dockerd (pid 7)", "uses a proxy", "list it"),
    Finding(Kind.NOT_COVERED, "podman (pid 8)", "is outside the slice", "move it"),
)


def modes(scope: Scope = STRICT, rung: Rung = Rung.NATIVE) -> Modes:
    """The rungs that go with a scope."""
    dns = DnsMode.OBSERVE if rung is Rung.OBSERVE else DnsMode.HOLD
    return Modes(scope.mode, "configured", dns, "a queue", rung, scope.host, "as it was asked for")


FACTS = Facts(
    version="1.2.3",
    pid=4711,
    kernel="6.12.0",
    missing=(Feature.QUEUE,),
    modes=modes(),
    pinned=False,
    servers=("192.0.2.53",),
    policy_path="/etc/ramnet/policy.toml",
    counters={},
    lost=0,
    groups=(),
    findings=(),
    left_out=(),
    plugged=(),
    hold={"waiting": 0},
    notice=Notice(7261, 3, ""),
)


def report(story: Story, **given: Any) -> dict[str, Any]:
    said = status_report(story.engine, replace(FACTS, **given))
    assert json.loads(json.dumps(said)) == said, "plain JSON values"
    return said


def started(found: Policy | None = CORP, scope: Scope = STRICT, rung: Rung = Rung.OBSERVE) -> Story:
    story = Story(settings=settings(scope, rung))
    story.start(found)
    return story


def judged(found: Policy | None, scope: Scope, rung: Rung = Rung.NATIVE) -> dict[str, Any]:
    """The status of a machine with this policy and scope."""
    return report(started(found, scope, rung), modes=modes(scope, rung))


def enforcing(**modes_of: str) -> Policy:
    rows = "".join(f'{key} = "{value}"\n' for key, value in modes_of.items())
    return policy("r.example", more=f"[enforcement]\n{rows}")


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
        "heard",
        "denied",
        "refused",
        "held_first_syn",
        "repairs",
        "refusal",
        "classes",
        "not_covered",
        "warnings",
    }
    assert set(said["kernel"]) == {"release", "missing"}
    assert set(said["scope"]) == {"mode", "because", "groups", "problem", "ports"}
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
    assert set(said["policy"]) == {
        "path",
        "organization",
        "registries",
        "digest",
        "problem",
        "trial",
    }
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
        "groups": [],
        "problem": None,
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
        "trial": None,
    }
    assert said["classes"]["engine"]["enforced"] == "strict"
    assert said["classes"]["containers"]["enforced"] == "catalog"
    assert "80, 443, 5000, 8443" in said["not_covered"][0]
    assert any("buildx" in line for line in said["not_covered"])
    assert all(line.startswith("policy key ") for line in said["warnings"])


def test_a_pinned_resolver_is_trusted_for_another_reason() -> None:
    assert report(started(), pinned=True)["dns"]["trust"] == "pinned"


def test_before_the_first_table_nothing_is_claimed() -> None:
    said = report(Story())
    assert said["state"] == "off"
    assert said["scope"]["ports"] == []
    assert said["dns"]["resolvers"] == []
    assert said["policy"]["digest"] is None
    assert {item["enforced"] for item in said["classes"].values()} == {"off"}
    assert said["warnings"] == []


def test_locked_down() -> None:
    story = Story()
    story.tell(PolicyRejected("line 1: bad"))
    story.start(None)
    said = report(story)
    assert said["state"] == "locked-down"
    assert said["policy"]["organization"] is None
    assert said["policy"]["digest"] is None
    assert said["policy"]["problem"] == "line 1: bad"
    assert said["warnings"] == ["policy rejected (there is no other): line 1: bad"]
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


# The scope


@pytest.mark.parametrize("scope", [CGROUP, MARK])
def test_where_engines_are_told_apart_every_port_is_judged(scope: Scope) -> None:
    said = report(started(CORP, scope), modes=modes(scope), groups=GROUPS)
    assert said["state"] == "enforcing"
    assert said["scope"] == {
        "mode": str(scope.mode),
        "because": "configured",
        "groups": [
            {"path": "ramnetengines.slice", "id": 4711},
            {"path": "user.slice/podman.service", "id": 4712},
        ],
        "problem": None,
        "ports": "all",
    }
    assert said["classes"]["engine"] == {
        "wanted": "strict",
        "enforced": "strict",
        "because": "as the policy says, on every TCP and UDP port",
    }
    assert not any("ports other than" in line or "QUIC" in line for line in said["not_covered"])


@pytest.mark.parametrize("scope", [UID, NETNS])
def test_a_weak_scope_says_what_it_costs(scope: Scope) -> None:
    said = judged(CORP, scope)
    assert said["state"] == "degraded"
    engine = said["classes"]["engine"]
    assert (engine["wanted"], engine["enforced"]) == ("strict", "catalog")
    assert f"scope {scope.mode} cannot tell engines apart" in engine["because"]
    assert "weak" in engine["because"]
    assert "engines: a registry that nobody catalogued is not refused" in said["not_covered"]
    # Of strict judgement alone it would be said which ports it leaves out.
    assert not any("ports other than" in line for line in said["not_covered"])


@pytest.mark.parametrize("mode", [ScopeMode.UID, ScopeMode.NETNS])
def test_a_weak_scope_that_is_strict_says_which_ports_and_of_whom(mode: ScopeMode) -> None:
    said = judged(CORP, Scope(mode, uids=(0,), weak=Weak.STRICT, host=ClassMode.CATALOG))
    assert said["state"] == "enforcing"
    assert said["classes"]["engine"]["because"] == (
        f"scope {mode} judges TCP to port 80, 443, 5000, 8443, of whoever counts as an engine"
    )
    ports, udp, *_ = said["not_covered"]
    assert ports == f"TCP ports other than 80, 443, 5000, 8443 (scope {mode})"
    assert udp == f"UDP, QUIC included (scope {mode})"


def test_a_scope_that_does_not_work_is_told_everywhere() -> None:
    story = started(CORP, CGROUP)
    story.tell(ScopeProbed("no packet was counted"))
    said = report(story, modes=modes(CGROUP))
    assert said["state"] == "degraded"
    assert said["scope"]["problem"] == "no packet was counted"
    assert said["classes"]["engine"]["because"] == (
        "scope cgroup was tried and does not tell engines apart: no packet was counted"
    )
    assert "engines are not told apart: no packet was counted" in said["warnings"]


def test_no_strict_engines_are_claimed_where_they_are_not_told_apart() -> None:
    """What is enforced is what holds for an engine that is taken for another program."""
    for weak, enforced in ((Weak.CATALOG, "catalog"), (Weak.STRICT, "strict")):
        scope = Scope(ScopeMode.CGROUP, GROUPS, weak=weak, host=ClassMode.CATALOG)
        story = started(CORP, scope)
        story.tell(ScopeProbed("no packet was counted"))
        said = report(story, modes=modes(scope))
        assert said["classes"]["engine"]["enforced"] == enforced
        assert said["classes"]["host"]["enforced"] == enforced
        assert "any program may be an engine" in said["classes"]["host"]["because"]
        quiet = [line for line in said["not_covered"] if "catalogued is not refused" in line]
        assert bool(quiet) is (weak is Weak.CATALOG)


def test_without_a_policy_a_weak_scope_claims_nothing() -> None:
    story = Story(settings=settings(UID))
    story.tell(PolicyRejected("line 1: bad"))
    story.start(None)
    said = report(story, modes=modes(UID))
    assert said["state"] == "degraded"
    assert {item["enforced"] for item in said["classes"].values()} == {"off"}
    (warning,) = said["warnings"]
    assert warning.endswith(": line 1: bad")
    assert "the policy before stands" not in warning, "there was none"


# The classes


@pytest.mark.parametrize(
    ("wanted", "rung", "because"),
    [
        ("catalog", Rung.NATIVE, "by DNS answers over UDP and by the addresses of known"),
        ("catalog", Rung.OBSERVE, "by the addresses of known"),
        ("strict", Rung.NATIVE, "as the policy says, for what comes from a bridge"),
        ("off", Rung.NATIVE, "the policy says so"),
    ],
)
def test_what_is_enforced_for_containers(wanted: str, rung: Rung, because: str) -> None:
    said = judged(enforcing(containers=wanted), CGROUP, rung)
    found = said["classes"]["containers"]
    assert (found["wanted"], found["enforced"]) == (wanted, wanted)
    assert found["because"].startswith(because)
    (line,) = [item for item in said["not_covered"] if "traffic of containers" in item] or [""]
    assert bool(line) is (wanted != "strict")
    assert ("nobody catalogued" in line) is (wanted == "catalog")


def test_containers_are_not_judged_without_a_policy() -> None:
    said = judged(None, CGROUP)["classes"]["containers"]
    assert (said["wanted"], said["enforced"]) == ("catalog", "off")
    assert said["because"] == "there is no valid policy in force"


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        (ClassMode.CATALOG, "tools that users run: a registry that nobody catalogued"),
        (ClassMode.OFF, "tools that users run (skopeo, podman, ctr, curl)"),
    ],
)
def test_what_is_enforced_for_the_host(mode: ClassMode, says: str) -> None:
    said = judged(CORP, Scope(ScopeMode.CGROUP, GROUPS, host=mode))
    assert said["classes"]["host"] == {
        "wanted": str(mode),
        "enforced": str(mode),
        "because": "as it was asked for",
    }
    assert says in said["not_covered"]


def test_the_host_under_netns_is_judged_as_engines_are() -> None:
    for scope, enforced in ((STRICT, "strict"), (NETNS, "catalog")):
        found = judged(CORP, scope)["classes"]["host"]
        assert found["enforced"] == enforced
        assert found["because"] == "scope netns cannot tell host programs from engines"


def test_the_host_is_left_alone_without_a_policy() -> None:
    found = judged(None, CGROUP)["classes"]["host"]
    assert found == {
        "wanted": "catalog",
        "enforced": "off",
        "because": "there is no valid policy",
    }


@pytest.mark.parametrize("engine", ["catalog", "off"])
def test_engines_that_the_policy_does_not_judge_strictly(engine: str) -> None:
    said = judged(enforcing(engine=engine), CGROUP)
    assert said["state"] == "enforcing"
    found = said["classes"]["engine"]
    assert (found["wanted"], found["enforced"]) == (engine, engine)
    assert found["because"] != "as the policy says, on every TCP and UDP port", "not judged so"
    assert any(line.startswith("engines: ") for line in said["not_covered"])


def test_a_lock_down_is_because_there_is_no_policy() -> None:
    said = judged(None, CGROUP)
    assert said["state"] == "locked-down"
    assert said["classes"]["engine"]["because"] == ("there is no valid policy: nothing is allowed")


def test_how_much_is_held_for_whom() -> None:
    story = started(enforcing(containers="strict"), CGROUP)
    story.tell(Resolved(host("r.example"), addresses("198.51.100.1", "198.51.100.2"), 60))
    story.tell(Resolved(host("quay.io"), addresses("198.51.100.3"), 60))
    said = report(story, modes=modes(CGROUP))
    assert (said["leases"], said["heard"], said["denied"]) == (2, 2, 1)


def edge_lines(said: dict[str, Any]) -> list[str]:
    return [line for line in said["not_covered"] if "macvlan and ipvlan" in line]


def test_containers_with_an_address_of_their_own_are_told_where_they_are_not_judged() -> None:
    given = replace(settings(CGROUP), egress=True)
    story = Story(settings=given, refuses_edge="no such device")
    story.start(enforcing(containers="catalog"))
    (line,) = edge_lines(report(story, modes=modes(CGROUP)))
    assert line.endswith("no such device")
    story.refuses_edge = ""
    story.tell(Tick(TODAY), 60.0)
    assert edge_lines(report(story, modes=modes(CGROUP))) == []
    (line,) = edge_lines(report(story, modes=modes(CGROUP), missing=(Feature.EGRESS,)))
    assert "the kernel has no egress hook" in line
    (line,) = edge_lines(report(story, modes=modes(CGROUP), left_out=("eth7", "eth8")))
    assert "eth7, eth8" in line
    story.start(enforcing(containers="off"))
    none = report(story, modes=modes(CGROUP), missing=(Feature.EGRESS,))
    assert edge_lines(none) == [], "no container is judged at all, which is said"


def test_what_was_found_in_the_engines_settings_is_told_by_its_kind() -> None:
    said = report(started(), findings=FINDINGS)
    assert "dockerd (pid 7): uses a proxy" in said["warnings"]
    assert "podman (pid 8): is outside the slice" in said["not_covered"]
    assert "podman (pid 8): is outside the slice" not in said["warnings"]
    assert "dockerd (pid 7): uses a proxy" not in said["not_covered"]


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


AUDIT = policy("r.example", more='[enforcement]\nmode = "audit"\n')


def test_a_policy_that_only_watches_enforces_nothing() -> None:
    said = report(started(AUDIT, CGROUP), modes=modes(CGROUP))
    assert (said["state"], said["refusal"]["mode"]) == ("auditing", "audit")
    assert {found["enforced"] for found in said["classes"].values()} == {"off"}
    assert said["classes"]["engine"] == {
        "wanted": "strict",
        "enforced": "off",
        "because": "audit: what 'strict' would refuse is recorded, and passes",
    }
    assert said["not_covered"] == ["everything: the policy's mode is audit, so nothing is refused"]


def test_how_each_class_is_refused() -> None:
    story = Story(settings=replace(settings(CGROUP), notice=7261))
    story.start(policy("r.example", more='[enforcement.on_deny]\nhost = "drop"\n'))
    said = report(story, modes=modes(CGROUP))
    notice = {"port": 7261, "answered": 3, "problem": None}
    assert said["refusal"] == {
        "mode": "enforce",
        "on_deny": {"engine": "notice", "host": "drop", "containers": "reject"},
        "notice": notice,
    }
    assert said["warnings"] == []
    said = report(story, modes=modes(CGROUP), notice=Notice(7261, 3, "the responder is away"))
    assert said["refusal"]["on_deny"]["engine"] == "reject"
    assert any("the responder is away" in text for text in said["warnings"])


def test_a_policy_on_trial_is_told() -> None:
    story = Story()
    story.start(CORP)
    assert report(story)["policy"]["trial"] is None
    trial = {"digest": "sha256:0", "deadline": 1.0, "seconds_left": 42}
    told = report(story, trial=trial, trial_problem="cannot be put back")
    assert told["policy"]["trial"] == trial
    (first,) = (line for line in told["warnings"] if "is on trial" in line)
    assert "back in 42 s unless `ramnet policy confirm`" in first
    assert "the trial of a policy: cannot be put back" in told["warnings"]


def test_what_the_policy_is_warned_of_is_a_warning() -> None:
    story = Story()
    story.start(CORP)
    assert "policy: registry: odd" in report(story, cautions=("policy: registry: odd",))["warnings"]

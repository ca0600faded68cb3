"""What ``status`` says, as JSON values (``schema: 1``; keys are only ever added).

The rule here is honesty: a class says what was wanted, what is enforced and why they differ, and
what is not covered is listed, not left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ramnet.core.config import ScopeMode
from ramnet.core.engine import Engine, State
from ramnet.core.engineconf import Finding, Kind
from ramnet.core.kernel import Feature
from ramnet.core.modes import Modes
from ramnet.core.plan import Plan
from ramnet.core.policy import ClassMode, Mode, OnDeny, OnDenyEach, Policy
from ramnet.core.refusal import REJECTED
from ramnet.core.scope import Classes, Group
from ramnet.core.terms import HELD, IMPOSTERS, PACED, REFUSED, Rung, TrafficClass

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Notice:
    """The responder: where it listens, how many it has answered, and why it cannot, if so."""

    port: int | None
    answered: int
    because: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the daemon knows and the engine does not."""

    version: str
    pid: int
    kernel: str
    missing: tuple[Feature, ...]
    modes: Modes
    pinned: bool
    servers: tuple[str, ...]
    policy_path: str
    counters: dict[str, int]
    lost: int
    groups: tuple[Group, ...]
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...]
    plugged: tuple[str, ...]
    hold: dict[str, Any] | None
    notice: Notice
    record_problems: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    trial: dict[str, Any] | None = None
    trial_problem: str = ""


def status_report(engine: Engine, facts: Facts) -> dict[str, Any]:
    """Describe what is enforced right now."""
    plan = engine.applied
    return {
        "schema": SCHEMA,
        "state": str(engine.state),
        "version": facts.version,
        "pid": facts.pid,
        "kernel": {"release": facts.kernel, "missing": [str(item) for item in facts.missing]},
        "scope": {
            "mode": str(facts.modes.scope),
            "because": facts.modes.scope_because,
            "groups": [{"path": item.path, "id": item.ident} for item in facts.groups],
            "problem": engine.scope_problem or None,
            "ports": _ports(facts, plan),
        },
        "dns": _dns(engine, facts, plan),
        "policy": _policy(engine, facts, plan),
        "leases": len(engine.learner.leases),
        "heard": len(engine.heard.leases),
        "denied": len(engine.denied.leases),
        "refused": facts.counters.get(REFUSED, 0),
        "held_first_syn": facts.counters.get(HELD, 0),
        "repairs": engine.repairs,
        "refusal": _refusal(facts, plan),
        "classes": _classes(engine, facts, plan),
        "not_covered": _not_covered(engine, facts, plan),
        "warnings": _warnings(engine, facts, plan),
    }


def standby_report(version: str, pid: int, kernel: str) -> dict[str, Any]:
    """Describe a daemon that waits for another one to end: nothing here is its own doing."""
    because = "another ramnet enforces its own policy in this network namespace"
    unknown = {"wanted": "unknown", "enforced": "unknown", "because": because}
    return {
        "schema": SCHEMA,
        "version": version,
        "pid": pid,
        "state": str(State.STANDBY),
        "because": because,
        "kernel": kernel,
        "scope": {"mode": None},
        "dns": {"mode": None, "trust": None},
        "policy": {"organization": None, "registries": [], "digest": None, "problem": None},
        "leases": 0,
        "classes": {name: dict(unknown) for name in ("engine", "containers", "host")},
        "not_covered": [],
        "warnings": [],
    }


def _ports(facts: Facts, plan: Plan | None) -> list[int] | str:
    """Return the TCP ports on which engines are judged; "all" where the scope is precise."""
    if facts.modes.scope.precise:
        return "all"
    return sorted(plan.allowed.ports) if plan is not None else []


def _dns(engine: Engine, facts: Facts, plan: Plan | None) -> dict[str, Any]:
    resolvers = plan.resolvers if plan is not None else ()
    return {
        "mode": str(facts.modes.dns),
        "rung": str(facts.modes.rung),
        "because": facts.modes.dns_because,
        "trust": "pinned" if facts.pinned else "network",
        "servers": list(facts.servers),
        "resolvers": [
            {
                "address": str(item.address),
                "interface": item.interface,
                "answers_by": item.answers,
                "owners": None if item.owners is None else sorted(item.owners),
            }
            for item in resolvers
        ],
        "answers": engine.learner.answers,
        "learned": engine.learner.learned,
        "ignored": {str(why): count for why, count in sorted(engine.learner.ignored.items())},
        "copies_lost": facts.lost,
        "imposters": facts.counters.get(IMPOSTERS, 0),
        "paced": facts.counters.get(PACED, 0),
        "blocked": engine.blocker.blocked,
        "hold": facts.hold,
    }


def _policy(engine: Engine, facts: Facts, plan: Plan | None) -> dict[str, Any]:
    policy = plan.policy if plan is not None else None
    return {
        "path": facts.policy_path,
        "organization": policy.organization if policy is not None else None,
        "registries": list(plan.allowed.registries) if plan is not None else [],
        "digest": plan.digest if plan is not None and policy is not None else None,
        "problem": engine.policy_problem or None,
        "trial": facts.trial,
    }


def _classes(engine: Engine, facts: Facts, plan: Plan | None) -> dict[str, dict[str, str]]:
    policy = plan.policy if plan is not None else None
    classes = _enforced(engine, plan)
    wanted = policy.enforcement.engine if policy is not None else ClassMode.STRICT
    found = {
        "engine": {
            "wanted": str(wanted),
            "enforced": str(classes.engine),
            "because": _engine_because(engine, facts, plan, wanted),
        },
        "containers": _containers(engine, facts, plan, classes.containers),
        "host": {
            "wanted": str(facts.modes.host),
            "enforced": str(classes.host),
            "because": _host_because(engine, facts, plan, classes.host),
        },
    }
    if plan is not None and plan.refusal.audit:
        for who in TrafficClass:
            judged: ClassMode = getattr(plan.classes, who)
            found[who]["because"] = f"audit: what '{judged}' would refuse is recorded, and passes"
    return found


def _refusal(facts: Facts, plan: Plan | None) -> dict[str, Any]:
    """Say how each class is refused; in audit, that nobody is."""
    refusal = plan.refusal if plan is not None else REJECTED
    how = {who: refusal.of(who) for who in TrafficClass}
    if facts.notice.because:
        how = {who: OnDeny.REJECT if one is OnDeny.NOTICE else one for who, one in how.items()}
    return {
        "mode": str(Mode.AUDIT if refusal.audit else Mode.ENFORCE),
        "on_deny": {str(who): str(one) for who, one in how.items()},
        "notice": {
            "port": facts.notice.port,
            "answered": facts.notice.answered,
            "problem": facts.notice.because or None,
        },
    }


def _enforced(engine: Engine, plan: Plan | None) -> Classes:
    """Say how each class is judged; engines that are not told apart are judged like anybody."""
    if plan is None or engine.state in (State.OFF, State.AUDITING):
        return _NOTHING
    classes = plan.classes
    if engine.scope_problem:
        return replace(classes, engine=min(classes.engine, classes.host, key=_STRICTNESS.index))
    return classes


_STRICTNESS = (ClassMode.OFF, ClassMode.CATALOG, ClassMode.STRICT)
_NOTHING = Classes(ClassMode.OFF, ClassMode.OFF, ClassMode.OFF)


def _engine_because(engine: Engine, facts: Facts, plan: Plan | None, wanted: ClassMode) -> str:
    if plan is None or engine.state is State.OFF:
        return "no ruleset is loaded"
    scope = facts.modes.scope
    if engine.scope_problem:
        return f"scope {scope} was tried and does not tell engines apart: {engine.scope_problem}"
    if plan.classes.engine is not ClassMode.STRICT:
        why = f"scope {scope} cannot tell engines apart, and [scope] weak does not say strict"
        return why if plan.classes.engine is not wanted else "the policy says so"
    if not facts.modes.scope.precise:
        ports = ", ".join(map(str, sorted(plan.allowed.ports)))
        return f"scope {scope} judges TCP to port {ports}, of whoever counts as an engine"
    if plan.policy is None:
        return "there is no valid policy: nothing is allowed"
    return "as the policy says, on every TCP and UDP port"


def _host_because(engine: Engine, facts: Facts, plan: Plan | None, enforced: ClassMode) -> str:
    if engine.scope_problem and plan is not None:
        return "any program may be an engine: they are not told apart"
    if facts.modes.scope is ScopeMode.NETNS and enforced is not ClassMode.OFF:
        return "scope netns cannot tell host programs from engines"
    if plan is not None and plan.policy is None:
        return "there is no valid policy"
    return facts.modes.host_because


def _containers(
    engine: Engine, facts: Facts, plan: Plan | None, enforced: ClassMode
) -> dict[str, str]:
    policy = plan.policy if plan is not None else None
    wanted = policy.enforcement.containers if policy is not None else ClassMode.CATALOG
    report = {"wanted": str(wanted), "enforced": str(enforced)}
    if wanted is ClassMode.OFF:
        return {**report, "because": "the policy says so"}
    if engine.state is State.OFF or policy is None:
        return {**report, "because": "there is no valid policy in force"}
    if enforced is ClassMode.STRICT:
        return {**report, "because": "as the policy says, for what comes from a bridge"}
    answers = "by DNS answers over UDP and " if facts.modes.rung is not Rung.OBSERVE else ""
    return {
        **report,
        "because": f"{answers}by the addresses of known registries that are not allowed; best"
        " effort: a registry that nobody catalogued, or one on shared addresses that is asked for"
        " by another resolver (--dns, DNS over HTTPS), passes",
    }


def _not_covered(engine: Engine, facts: Facts, plan: Plan | None) -> list[str]:
    if engine.state is State.AUDITING:
        return ["everything: the policy's mode is audit, so nothing is refused"]
    classes = _enforced(engine, plan)
    found = []
    if not facts.modes.scope.precise and classes.engine is ClassMode.STRICT and plan is not None:
        listed = ", ".join(map(str, sorted(plan.allowed.ports)))
        found += [
            f"TCP ports other than {listed} (scope {facts.modes.scope})",
            f"UDP, QUIC included (scope {facts.modes.scope})",
        ]
    if classes.engine is not ClassMode.STRICT:
        found.append("engines: a registry that nobody catalogued is not refused")
    if classes.containers is not ClassMode.STRICT:
        some = ": a registry that nobody catalogued"
        what = some if classes.containers is ClassMode.CATALOG else ""
        found.append(f"traffic of containers (buildx builders, Docker-in-Docker, kind){what}")
    found += _edge_not_covered(engine, facts, classes)
    if classes.host is ClassMode.OFF:
        found.append("tools that users run (skopeo, podman, ctr, curl)")
    elif classes.host is ClassMode.CATALOG:
        found.append("tools that users run: a registry that nobody catalogued")
    return [
        *found,
        *(str(item) for item in facts.findings if item.kind is Kind.NOT_COVERED),
        "builders and engines on other machines (a remote Kubernetes cluster, Docker contexts)",
        "connections that were open before ramnet started or before a registry was removed",
        "other names on an allowed address: registries that share a CDN with an allowed one",
        "what reaches this machine without a registry: docker load, copied files",
    ]


def _edge_not_covered(engine: Engine, facts: Facts, classes: Classes) -> Iterator[str]:
    if classes.containers is ClassMode.OFF:
        return
    networks = "containers on macvlan and ipvlan networks"
    if Feature.EGRESS in facts.missing:
        yield f"{networks}: the kernel has no egress hook ({Feature.EGRESS})"
    elif engine.edge.problem:
        yield f"{networks}: {engine.edge.problem}"
    if facts.plugged:
        on = ", ".join(facts.plugged)
        yield f"containers that are plugged into {on}, where the network outside is as well"
    if facts.left_out:
        yield f"{networks} on {', '.join(facts.left_out)}: more devices, or names, than rules take"


def _warnings(engine: Engine, facts: Facts, plan: Plan | None) -> list[str]:
    found = []
    if engine.policy_problem:
        valid = plan is not None and plan.policy is not None
        stands = "the policy before stands" if valid else "there is no other"
        found.append(f"policy rejected ({stands}): {engine.policy_problem}")
    if facts.trial is not None:
        left = facts.trial["seconds_left"]
        why = f"the policy is on trial: the one before is back in {left} s"
        found.append(f"{why} unless `ramnet policy confirm` keeps it")
    if facts.trial_problem:
        found.append(f"the trial of a policy: {facts.trial_problem}")
    if engine.table_problem:
        found.append(f"the kernel refused a newer ruleset: {engine.table_problem}")
    if engine.scope_problem:
        found.append(f"engines are not told apart: {engine.scope_problem}")
    found += [str(item) for item in facts.findings if item.kind is Kind.WARNING]
    if plan is not None and not plan.resolvers:
        found.append("no resolver can be reached: no name can be learned")
    if facts.lost:
        found.append(f"{facts.lost} bursts of DNS copies were lost: some answers were not learned")
    found += [*facts.record_problems, *_answered_otherwise(facts, plan), *facts.cautions]
    return found


def _answered_otherwise(facts: Facts, plan: Plan | None) -> Iterator[str]:
    """Tell which refusals cannot look as the policy wants them to."""
    if plan is None or plan.refusal.audit:
        return
    wanted = _on_deny(plan.policy)
    if OnDeny.NOTICE in (wanted.engine, wanted.host) and facts.notice.because:
        yield f"refused connections get no notice, they are only refused: {facts.notice.because}"


def _on_deny(policy: Policy | None) -> OnDenyEach:
    return policy.enforcement.on_deny if policy is not None else OnDenyEach()

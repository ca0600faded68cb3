"""What ``status`` and ``explain`` say, as JSON values (``schema: 1``; keys are only ever added).

The rule here is honesty: a class says what was wanted, what is enforced and why they differ, and
what is not covered is listed, not left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ramnet.core.compiler import HELD, IMPOSTERS, PACED, REFUSED, Rung
from ramnet.core.engine import Engine, Plan, State
from ramnet.core.explain import Explanation
from ramnet.core.kernel import Feature
from ramnet.core.leases import Lease
from ramnet.core.modes import Modes
from ramnet.core.policy import ClassMode, not_yet_in_force

SCHEMA = 1


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
    hold: dict[str, Any] | None


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
            "ports": sorted(plan.allowed.ports) if plan is not None else [],
        },
        "dns": _dns(engine, facts, plan),
        "policy": _policy(engine, facts, plan),
        "leases": len(engine.learner.leases),
        "refused": facts.counters.get(REFUSED, 0),
        "held_first_syn": facts.counters.get(HELD, 0),
        "repairs": engine.repairs,
        "classes": _classes(engine, facts, plan),
        "not_covered": _not_covered(engine, facts, plan),
        "warnings": _warnings(engine, facts, plan),
    }


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
    }


def _classes(engine: Engine, facts: Facts, plan: Plan | None) -> dict[str, dict[str, str]]:
    policy = plan.policy if plan is not None else None
    engine_enforced = "off" if engine.state is State.OFF else "strict"
    wanted = policy.enforcement if policy is not None else None
    return {
        "engine": {
            "wanted": str(wanted.engine) if wanted is not None else "strict",
            "enforced": engine_enforced,
            "because": "scope netns judges every program of this network namespace as an engine,"
            " on the judged ports",
        },
        "containers": _containers(engine, facts, plan),
        "host": {
            "wanted": "catalog",
            "enforced": engine_enforced,
            "because": "scope netns cannot tell host programs from engines",
        },
    }


def _containers(engine: Engine, facts: Facts, plan: Plan | None) -> dict[str, str]:
    wanted = plan.containers if plan is not None else ClassMode.CATALOG
    report = {"wanted": str(wanted), "enforced": str(ClassMode.OFF)}
    if wanted is ClassMode.OFF:
        return {**report, "because": "the policy says so"}
    if facts.modes.rung is Rung.OBSERVE:
        return {**report, "because": "only a held DNS answer can be changed, and none is held"}
    if engine.state in (State.OFF, State.LOCKED_DOWN):
        return {**report, "because": "there is no valid policy"}
    return {
        "wanted": str(wanted),
        "enforced": str(ClassMode.CATALOG),
        "because": "by DNS answers only: a registry's API host that is not allowed does not exist"
        " for containers; --dns servers by TCP or HTTPS and bare addresses pass",
    }


def _not_covered(engine: Engine, facts: Facts, plan: Plan | None) -> list[str]:
    blocked = _containers(engine, facts, plan)["enforced"] != ClassMode.OFF
    but = ", but for refused names" if blocked else ""
    ports = sorted(plan.allowed.ports) if plan is not None else []
    listed = ", ".join(map(str, ports))
    return [
        f"TCP ports other than {listed} (scope netns)",
        "UDP, QUIC included (scope netns)",
        f"traffic of containers (buildx builders, Docker-in-Docker, kind){but}",
        "connections that were open before ramnet started or before a registry was removed",
        "other names on an allowed address: registries that share a CDN with an allowed one",
        "what reaches this machine without a registry: docker load, copied files",
    ]


def _warnings(engine: Engine, facts: Facts, plan: Plan | None) -> list[str]:
    found = []
    if engine.policy_problem:
        stands = "the policy before stands" if engine.state is not State.LOCKED_DOWN else "locked"
        found.append(f"policy rejected ({stands}): {engine.policy_problem}")
    if engine.table_problem:
        found.append(f"the kernel refused a newer ruleset: {engine.table_problem}")
    found.append(
        "scope netns judges docker-proxy as an engine: a port published on localhost that leads to"
        " a judged port of a container is refused"
    )
    if plan is not None and not plan.resolvers:
        found.append("no resolver can be reached: no name can be learned")
    if facts.lost:
        found.append(f"{facts.lost} bursts of DNS copies were lost: some answers were not learned")
    if plan is not None and plan.policy is not None:
        found += [f"policy key {item.key}: {item.why}" for item in not_yet_in_force(plan.policy)]
    return found


def explain_report(found: Explanation, *, source: str) -> dict[str, Any]:
    """Describe one verdict; ``source`` is ``daemon``, or ``policy`` where none could be asked."""
    target = found.target
    return {
        "schema": SCHEMA,
        "target": target.text,
        "host": target.host if target.host is not None else str(target.address),
        "port": target.port,
        "allowed": found.allowed,
        "reason": found.reason,
        "registry": found.registry or None,
        "leases": [_lease(item) for item in found.leases],
        "source": source,
    }


def _lease(lease: Lease) -> dict[str, Any]:
    return {
        "address": str(lease.ip),
        "port": lease.port,
        "seconds": round(lease.remaining),
        "names": list(lease.names),
    }

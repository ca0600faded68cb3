"""What ``explain`` says, as JSON values (``schema: 1``; keys are only ever added)."""

from __future__ import annotations

from typing import Any, Final

from ramnet.core.catalog import Owner
from ramnet.core.explain import Explanation
from ramnet.core.explainclass import Judged
from ramnet.core.explainpolicy import Bearing, Companion
from ramnet.core.explainrule import Decision
from ramnet.core.explainwhy import Known, Why
from ramnet.core.leases import Lease
from ramnet.core.policy import Policy, RegistryEntry

SCHEMA: Final = 1


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


def why_report(why: Why, policy: Policy | None, *, source: str) -> dict[str, Any]:
    """Describe a verdict and the whole chain behind it; ``policy`` is what it is by."""
    behind = why.background
    return explain_report(why.found, source=source) | {
        "allowed": why.allowed,
        "reason": why.reason,
        "class": str(why.who),
        "organization": policy.organization if policy is not None else None,
        "entries": [_bearing(item) for item in behind.bearings],
        "catalogue": [_owner(item) for item in behind.owners],
        "companions": [_companion(item) for item in behind.companions],
        "elements": [_known(item) for item in why.known],
        "classes": {str(item.who): _judged(item) for item in why.classes},
        "notes": list(why.notes),
        "advice": behind.advice.report(policy) if behind.advice is not None else None,
    }


def _lease(lease: Lease) -> dict[str, Any]:
    return {
        "address": str(lease.ip),
        "port": lease.port,
        "seconds": round(lease.remaining),
        "names": list(lease.names),
    }


def _bearing(item: Bearing) -> dict[str, Any]:
    entry = item.entry
    registry = entry if isinstance(entry, RegistryEntry) else None
    expires = registry.expires if registry is not None else None
    return {
        "table": item.table,
        "number": item.number,
        "address": str(entry.address),
        "nickname": entry.nickname,
        "expires": expires.isoformat() if expires is not None else None,
        "because": entry.reason,
        "standing": str(item.standing),
        "covers": item.name or None,
        "pattern": str(item.pattern),
        "ports": "any" if item.grant.ports is None else sorted(item.grant.ports),
        "via": item.grant.via,
        "admits": item.admits or None,
    }


def _owner(item: Owner) -> dict[str, Any]:
    host = item.host
    return {
        "registry": item.entry.key,
        "title": item.entry.title,
        "note": item.entry.note or None,
        "role": str(host.role),
        "pattern": str(host.pattern),
        "region": item.region or None,
        "optional": item.optional,
        "registry_only": host.registry_only,
        "shared": host.shared,
        "source": str(host.source),
        "cite": host.cite,
    }


def _companion(item: Companion) -> dict[str, Any]:
    return {
        "pattern": str(item.pattern),
        "role": str(item.role),
        "port": item.port,
        "allowed": item.allowed,
        "optional": item.optional,
    }


def _known(item: Known) -> dict[str, Any]:
    name, element = item.place
    seconds = item.found.seconds if item.found is not None else None
    return {
        "book": str(item.book),
        "set": name,
        "element": element,
        "held": item.found is not None,
        "kernel_seconds": round(seconds) if seconds is not None else None,
        **_lease(item.lease),
    }


def _judged(item: Judged) -> dict[str, Any]:
    return {
        "mode": str(item.mode),
        "verdict": str(item.verdict),
        "because": item.because,
        "decisions": [_decision(one) for one in item.decisions],
    }


def _decision(item: Decision) -> dict[str, Any]:
    seconds = item.found.seconds if item.found is not None else None
    return {
        "address": str(item.address),
        "verdict": str(item.verdict),
        "chain": item.chain or None,
        "rule": item.rule or None,
        "comment": item.comment or None,
        "set": item.name or None,
        "element": item.found.element if item.found is not None else None,
        "seconds": round(seconds) if seconds is not None else None,
        "delayed": item.delayed,
    }

"""What ``ramnet doctor REF`` finds on its way: each hop with its verdict, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from ramnet.core.advice import Advice, Host, Kind, advise, catalogued
from ramnet.core.allow import HTTPS, allow_list
from ramnet.core.catalog import Catalog, CatalogEntry, CatalogHost
from ramnet.core.explain import Target, explain
from ramnet.core.explainclass import by_class
from ramnet.core.explainpolicy import Rulebook
from ramnet.core.explainrule import Verdict as Judged
from ramnet.core.names import HostName, parse_address
from ramnet.core.policy import ClassMode, Policy
from ramnet.core.reference import Reference
from ramnet.core.terms import TrafficClass
from ramnet.core.urls import Url

SCHEMA = 1
# What stands for the label of a wildcard where a verdict on it is wanted.
_SAMPLE = "any"


class Role(StrEnum):
    """What a hop is for."""

    PING = "ping"
    TOKEN = "token"  # noqa: S105 - a word, not one
    MANIFEST = "manifest"
    CONFIG = "config"
    LAYER = "layer"
    REDIRECT = "redirect"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policy says; ``registry`` is its entry, empty when none allows it."""

    allowed: bool
    reason: str
    registry: str = ""


@dataclass(frozen=True, slots=True)
class Dns:
    """What DNS says of a host; ``cname`` is the name at the end of its chain, if it has one."""

    addresses: tuple[str, ...] = ()
    cname: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Hop:
    """One request of a pull, sent or not.

    ``purpose`` says of a redirect what it leads to. ``address`` is the one that answered, or the
    last one that was tried; ``status`` is what came back. ``error`` says why the walk cannot pass
    here, and is empty where it can.
    """

    role: Role
    url: Url
    verdict: Verdict
    dns: Dns = Dns()
    purpose: Role | None = None
    dialled: bool = False
    address: str = ""
    status: int | None = None
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing stands in the way here."""
        return self.verdict.allowed and not self.error


@dataclass(frozen=True, slots=True)
class Companion:
    """A host that the catalogue has for the registry, judged without going there."""

    host: CatalogHost
    verdict: Verdict
    dns: Dns = Dns()


@dataclass(frozen=True, slots=True)
class Missing:
    """A host that the pull needs and the policy refuses, and what would allow it."""

    host: Host
    port: int
    roles: tuple[Role, ...]
    advice: Advice


class Judge:
    """Says what a policy means for one pull: ``traffic`` is the class that pulls."""

    def __init__(
        self,
        policy: Policy,
        catalog: Catalog,
        today: date,
        traffic: TrafficClass,
        reference: Reference,
    ) -> None:
        self.policy = policy
        self.traffic = traffic
        self.reference = reference
        self._catalog = catalog
        self._book = Rulebook(policy, allow_list(policy, catalog, today), catalog, today)
        self._mode = _mode(policy, traffic)

    @property
    def entry(self) -> CatalogEntry | None:
        """What the catalogue knows of the registry."""
        return catalogued(parse_address(self.reference.domain), self._catalog)

    @property
    def registry(self) -> str:
        """The address of the policy's entry for the registry: the one it has, or would have."""
        wire = self.reference.wire
        host = wire.pattern.name if wire.pattern is not None else wire.ip
        found = self._entry(host, wire.port or HTTPS) if host is not None else ""
        if found in {str(entry.address) for entry in self.policy.registry}:
            return found
        known = self.entry
        return known.key if known is not None else str(parse_address(self.reference.domain))

    def verdict(self, host: Host, port: int) -> Verdict:
        """Judge one host, as the class is judged that pulls."""
        found = by_class(self.traffic, self._mode, _target(host, port), self._book)
        return Verdict(found.verdict is not Judged.REFUSED, found.because, self._entry(host, port))

    def companions(self) -> Iterator[CatalogHost]:
        """Yield the hosts that the catalogue has for the registry, as the policy's entry asks."""
        known = self.entry
        if known is None:
            return
        entries = (one for one in self.policy.registry if str(one.address) == self.registry)
        entry = next(entries, None)
        wanted = known.hosts_for(
            entry.regions if entry is not None else (),
            unverified=entry is not None and entry.unverified_hosts,
        )
        yield from wanted

    def judged(self, host: CatalogHost) -> Verdict:
        """Judge a host of the catalogue; a wildcard by a name that it covers."""
        pattern = host.pattern
        name = HostName(f"{_SAMPLE}.{pattern.name}") if pattern.wildcard else pattern.name
        return self.verdict(name, min(host.ports))

    def advice(self, host: Host, port: int) -> Advice:
        """Say what would allow a host that is refused."""
        own = self.reference.wire
        if (own.pattern.name if own.pattern is not None else own.ip) == host:
            return Advice(Kind.REGISTRY, self.registry)
        return advise(host, port, self.registry, self.policy, self._catalog)

    def _entry(self, host: Host, port: int) -> str:
        """Return the address of the entry that allows a host, empty where none does."""
        return explain(_target(host, port), self._book.allowed, None, 0.0).registry


def _target(host: Host, port: int) -> Target:
    name = host if isinstance(host, str) else None
    return Target(str(host), name, None if isinstance(host, str) else host, port)


def _mode(policy: Policy, traffic: TrafficClass) -> ClassMode:
    """Return how a class is to be judged; of programs of the host the policy says nothing."""
    match traffic:
        case TrafficClass.ENGINE:
            return policy.enforcement.engine
        case TrafficClass.CONTAINERS:
            return policy.enforcement.containers
        case TrafficClass.HOST:
            return ClassMode.CATALOG


@dataclass(frozen=True, slots=True)
class Walk:
    """A whole walk. ``dialled_as`` is whose connections were made, empty when none were.

    ``finished`` is False where it took too long.
    """

    judge: Judge
    dialled_as: str
    because: str
    hops: tuple[Hop, ...]
    companions: tuple[Companion, ...]
    warnings: tuple[str, ...] = ()
    finished: bool = True

    @property
    def passed(self) -> bool:
        """Whether a pull would pass, as far as it was walked."""
        return self.finished and bool(self.hops) and all(hop.passed for hop in self.hops)

    @property
    def missing(self) -> tuple[Missing, ...]:
        """What the policy lacks, each host once, in the order of the walk."""
        wanted: dict[tuple[Host, int], list[Role]] = {}
        for hop in self.hops:
            if not hop.verdict.allowed:
                roles = wanted.setdefault((hop.url.host, hop.url.port), [])
                roles.append(hop.purpose or hop.role)
        return tuple(
            Missing(host, port, tuple(dict.fromkeys(roles)), self.judge.advice(host, port))
            for (host, port), roles in wanted.items()
        )


def doctor_report(walk: Walk) -> dict[str, Any]:
    """Describe a walk as JSON values, schema 1."""
    known = walk.judge.entry
    return {
        "schema": SCHEMA,
        "ref": str(walk.judge.reference),
        "registry": walk.judge.registry,
        "catalogue": None
        if known is None
        else {"key": known.key, "title": known.title, "note": known.note or None},
        "class": str(walk.judge.traffic),
        "dialled_as": walk.dialled_as or None,
        "because": walk.because,
        "passed": walk.passed,
        "hops": [_hop(hop) for hop in walk.hops],
        "companions": [_companion(item) for item in walk.companions],
        "missing": [_missing(item, walk.judge.policy) for item in walk.missing],
        "warnings": list(walk.warnings),
    }


def _hop(hop: Hop) -> dict[str, Any]:
    return {
        "role": str(hop.role),
        "purpose": str(hop.purpose or hop.role),
        "url": str(hop.url),
        "host": str(hop.url.host),
        "port": hop.url.port,
        **_verdict(hop.verdict),
        "dns": _dns(hop.dns),
        "dialled": hop.dialled,
        "address": hop.address or None,
        "status": hop.status,
        "error": hop.error or None,
    }


def _companion(item: Companion) -> dict[str, Any]:
    return {
        "host": str(item.host.pattern),
        "role": str(item.host.role),
        "ports": sorted(item.host.ports),
        "source": str(item.host.source),
        **_verdict(item.verdict),
        "dns": _dns(item.dns),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "allowed": verdict.allowed,
        "reason": verdict.reason,
        "registry": verdict.registry or None,
    }


def _dns(dns: Dns) -> dict[str, Any]:
    return {
        "addresses": list(dns.addresses),
        "cname": dns.cname or None,
        "error": dns.error or None,
    }


def _missing(item: Missing, policy: Policy) -> dict[str, Any]:
    return {
        "host": str(item.host),
        "port": item.port,
        "roles": [str(role) for role in item.roles],
        "advice": item.advice.report(policy),
    }

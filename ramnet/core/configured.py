"""The registries that a machine is configured to use, and what the policy says of each.

``ramnet doctor`` without a reference: from the facts that its settings are (``enginefacts``) to
rows of source, registry, verdict and advice. What an engine would be allowed decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final

from ramnet.core.advice import Advice, Kind, advise
from ramnet.core.allow import HTTPS, allow_list
from ramnet.core.catalog import Catalog, Owner, Role
from ramnet.core.dnsremarks import Place, Remark, Said, askable, places, remarks, targets
from ramnet.core.enginefacts import Endpoint, Fact, Insecure, Mirror, Named, Unreadable
from ramnet.core.explain import Target, explain, parse_target
from ramnet.core.names import HostName
from ramnet.core.placeholders import ANY
from ramnet.core.policy import Mode, Policy

SCHEMA: Final = 1
# A report that nobody reads to its end helps nobody; what is left out is counted.
MAX_ROWS: Final = 500
# Names that DNS is asked for, two questions each: some seconds of a slow resolver.
MAX_NAMES: Final = 500

_Network = IPv4Network | IPv6Network
_INSECURE: Final = "insecure"


class Verdict(StrEnum):
    """What the policy says of something that is configured."""

    ALLOWED = "allowed"
    DENIED = "denied"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Use:
    """A registry, or a network of them, that one file or command line names; and what for."""

    where: Endpoint | _Network
    roles: tuple[str, ...]
    source: str

    @property
    def target(self) -> Target | None:
        """What a client dials; None for a network, and for what cannot be read."""
        if isinstance(self.where, Endpoint) and self.where.address is not None:
            return parse_target(str(self.where))
        return None

    @property
    def shown(self) -> str:
        """The registry as a policy would write it."""
        if not isinstance(self.where, Endpoint) or self.where.address is None:
            return str(self.where)
        port = None if self.where.port == HTTPS else self.where.port
        return str(replace(self.where.address, port=port))


@dataclass(frozen=True, slots=True)
class Row:
    """A use, judged. ``registry`` is the policy's entry that allows it, empty when none does."""

    use: Use
    verdict: Verdict
    reason: str
    registry: str = ""
    note: str = ""
    advice: Advice | None = None
    remarks: tuple[Remark, ...] = ()


def uses(facts: Iterable[Fact]) -> tuple[Use, ...]:
    """Return the registries of the facts in their order, each once for each source."""
    found: dict[tuple[str, Endpoint | _Network], tuple[str, ...]] = {}
    for fact in facts:
        match fact:
            case Mirror(registry, where, source):
                role = f"mirror of {registry}"
            case Named(where, role, source):
                pass
            case Insecure(where, source):
                role = _INSECURE
            case _:
                continue
        roles = found.get((source, where), ())
        found[source, where] = (*roles, role) if role not in roles else roles
    return tuple(Use(where, roles, source) for (source, where), roles in found.items())


class Survey:
    """All of it: made of settings and a policy, complete once ``answer`` knows what DNS says."""

    def __init__(
        self, facts: Iterable[Fact], policy: Policy, catalog: Catalog, today: date
    ) -> None:
        known = tuple(facts)
        found = uses(known)
        self.policy = policy
        self.unreadable = tuple(dict.fromkeys(one for one in known if isinstance(one, Unreadable)))
        self.left_out = max(0, len(found) - MAX_ROWS)
        self.entries: tuple[tuple[Place, Remark], ...] = ()
        self.said: Mapping[HostName, Said] = {}
        self._catalog = catalog
        self._today = today
        self._allowed = allow_list(policy, catalog, today)
        self._places = tuple(places(policy, today))
        self.rows = tuple(self._row(use) for use in found[:MAX_ROWS])

    @property
    def passed(self) -> bool:
        """Whether the policy refuses nothing that is configured, as far as all could be read."""
        denied = any(row.verdict is Verdict.DENIED for row in self.rows)
        return not (denied or self.unreadable or self.left_out)

    @property
    def audit(self) -> bool:
        """Whether the policy only watches: what is denied passes and is recorded."""
        return self.policy.enforcement.mode is Mode.AUDIT

    @property
    def all_names(self) -> tuple[HostName, ...]:
        """The names worth a look-up.

        Only what is allowed: of other registries this machine may well be told that they do not
        exist, by ramnet itself.
        """
        rows = (row.use.target for row in self.rows if row.verdict is Verdict.ALLOWED)
        hosts = (target.host for target in rows if target is not None)
        of_rows = (host for host in hosts if host is not None and askable(host))
        return tuple(dict.fromkeys([*of_rows, *(place.name for place in self._places)]))

    @property
    def names(self) -> tuple[HostName, ...]:
        """Those of ``all_names`` that are asked for: no more than ``MAX_NAMES``."""
        return self.all_names[:MAX_NAMES]

    def answer(self, said: Mapping[HostName, Said]) -> None:
        """Take what DNS says into the rows and the policy's entries."""
        self.said = said
        self.rows = tuple(
            replace(row, remarks=self._remarks(row.use.target.host))
            if row.verdict is Verdict.ALLOWED and row.use.target is not None
            else row
            for row in self.rows
        )
        found = [(one, remark) for one in self._places for remark in self._remarks(one.name)]
        self.entries = (*found, *targets(self._places, said))[:MAX_ROWS]

    def _remarks(self, name: HostName | None) -> tuple[Remark, ...]:
        if name is None or name not in self.said:
            return ()
        return remarks(name, self.said[name], self._allowed, self._catalog)

    def _row(self, use: Use) -> Row:
        if isinstance(use.where, _Network):
            return self._network(use, use.where)
        target = use.target
        if target is None:
            return Row(use, Verdict.UNKNOWN, "where it leads cannot be read")
        found = explain(target, self._allowed, None, 0.0)
        owners = self._catalog.owners_of(target.host) if target.host is not None else ()
        owner = owners[0] if owners and target.port == HTTPS else None
        note = owner.entry.note if owner is not None and owner.host.role is Role.API else ""
        if found.allowed:
            return Row(use, Verdict.ALLOWED, found.reason, found.registry, note)
        advice = self._advice(use, target, owner)
        reason = self._expired(advice.address) or found.reason
        return Row(use, Verdict.DENIED, reason, note=note, advice=advice)

    def _network(self, use: Use, where: _Network) -> Row:
        for network, grant in self._allowed.networks:
            if _holds(network, where):
                return Row(use, Verdict.ALLOWED, grant.via, grant.registry)
        reason = (
            "a network: of the registries in it, those that the policy does not list are refused"
        )
        return Row(use, Verdict.UNKNOWN, reason)

    def _advice(self, use: Use, target: Target, owner: Owner | None) -> Advice:
        """Say what would allow it: mostly an entry for the registry whose host it is."""
        if owner is None or ANY in owner.entry.key or target.host is None:
            return Advice(Kind.REGISTRY, use.shown)
        if owner.host.role is Role.API:
            return Advice(Kind.REGISTRY, owner.entry.key)
        return advise(target.host, target.port, owner.entry.key, self.policy, self._catalog)

    def _expired(self, address: str) -> str:
        for entry in self.policy.registry:
            if str(entry.address) == address and entry.expires and entry.expires < self._today:
                return f"the policy's entry {address} ended on {entry.expires}"
        return ""

    def report(self) -> dict[str, Any]:
        """Describe it as JSON values, schema 1."""
        failed = [one.error for one in self.said.values() if one.error]
        return {
            "schema": SCHEMA,
            "organization": self.policy.organization,
            "audit": self.audit,
            "passed": self.passed,
            "registries": [_row(row, self.policy) for row in self.rows],
            "left_out": self.left_out,
            "entries": [
                {"place": place.key, "host": place.name, **_remark(remark)}
                for place, remark in self.entries
            ],
            "unreadable": [{"source": one.source, "why": one.why} for one in self.unreadable],
            "dns": {
                "asked": len(self.said),
                "failed": len(failed),
                "error": failed[0] if failed else None,
                "not_asked": len(self.all_names) - len(self.said),
            },
        }


def _holds(network: _Network, inner: _Network) -> bool:
    match network, inner:
        case IPv4Network(), IPv4Network():
            return inner.subnet_of(network)
        case IPv6Network(), IPv6Network():
            return inner.subnet_of(network)
    return False


def _row(row: Row, policy: Policy) -> dict[str, Any]:
    target = row.use.target
    return {
        "source": row.use.source,
        "registry": row.use.shown,
        "host": None if target is None else str(target.host or target.address),
        "port": None if target is None else target.port,
        "roles": list(row.use.roles),
        "verdict": str(row.verdict),
        "reason": row.reason,
        "entry": row.registry or None,
        "note": row.note or None,
        "advice": None if row.advice is None else row.advice.report(policy),
        "remarks": [_remark(remark) for remark in row.remarks],
    }


def _remark(remark: Remark) -> dict[str, Any]:
    return {"text": remark.text, "hint": remark.hint}

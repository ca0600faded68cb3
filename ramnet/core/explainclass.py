"""How each traffic class is judged: by what a policy says, and by the rules that are loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ramnet.core.allow import ANY_PORT, Registries, deny_list
from ramnet.core.explain import Explanation, Target, covers, explain
from ramnet.core.explainpolicy import Rulebook, addresses_of
from ramnet.core.explainrule import Decision, Verdict
from ramnet.core.names import HostName
from ramnet.core.policy import ClassMode, Mode, Policy
from ramnet.core.terms import TrafficClass

NOT_CATALOGUED = "the catalogue does not know it as a registry's own host"
NO_POLICY = "there is no valid policy: nothing is allowed"
NO_ADDRESS = "it is not known whether the address is a registry's"


@dataclass(frozen=True, slots=True)
class Judged:
    """What becomes of a target when one class dials it, and why.

    ``decisions`` are the rules behind it, one for each address that is known; none without a
    daemon.
    """

    who: TrafficClass
    mode: ClassMode
    verdict: Verdict
    because: str
    decisions: tuple[Decision, ...] = ()


def by_class(
    who: TrafficClass,
    mode: ClassMode,
    target: Target,
    book: Rulebook,
    judged: frozenset[int] | None = None,
    found: Explanation | None = None,
) -> Judged:
    """Judge a target for one class by the policy and the catalogue, without the rules.

    ``judged`` are the ports that the rules judge strictly, None for every one. ``found`` is what
    ``explain`` says with the leases; of an address only networks are known without.
    """
    passes = Judged(who, mode, Verdict.PASSES, "what this class sends is not judged")
    if mode is ClassMode.OFF:
        return passes
    found = found or explain(target, book.allowed, None, 0.0)
    # Whose lease it is that an address has, only the rules tell each class.
    leased = target.address is not None and bool(found.leases)
    destination = found.allowed and not leased and not _of_registry(target, book)
    everywhere = who is TrafficClass.ENGINE or (
        who is TrafficClass.HOST and mode is ClassMode.STRICT
    )
    if found.allowed and (everywhere or not destination):
        return Judged(who, mode, Verdict.ACCEPTED, found.reason)
    if mode is ClassMode.STRICT:
        if who is not TrafficClass.CONTAINERS and judged is not None and target.port not in judged:
            return replace(passes, because=f"port {target.port} is not judged strictly here")
        only = "it is a destination, which is for engines only"
        return Judged(who, mode, Verdict.REFUSED, only if destination else found.reason)
    if target.host is None:
        return replace(passes, because=NO_ADDRESS)
    return _by_catalog(replace(passes, because=NOT_CATALOGUED), target.host, target.port, book)


def _by_catalog(judged: Judged, host: HostName, port: int, book: Rulebook) -> Judged:
    """Refuse what the catalogue knows as a registry and the policy does not name on any port."""
    if Registries(book.allowed).ports_of(host):
        return replace(judged, because="the policy names it; only other registries are refused")
    known = book.catalog.registry_of(host)
    if known is None:
        return judged
    why = f"it is the registry {known.key}, which the policy does not list"
    if port in deny_list(book.allowed, book.catalog).ports_of(host):
        return replace(judged, verdict=Verdict.REFUSED, because=why)
    if judged.who is TrafficClass.ENGINE:  # which hears every answer
        return replace(judged, because=f"{why}; but its addresses may serve others too")
    by_answers = f"{why}; by DNS answers only, for its addresses may serve others too"
    return replace(judged, verdict=Verdict.REFUSED, because=by_answers)


def as_enforced(judged: Judged, policy: Policy | None) -> Judged:
    """Say what becomes of a refusal in audit, and why it is one without a valid policy."""
    if judged.verdict is not Verdict.REFUSED:
        return judged
    if policy is None:
        return replace(judged, because=NO_POLICY)
    audit = policy.enforcement.mode is Mode.AUDIT
    return replace(judged, verdict=Verdict.RECORDED) if audit else judged


def by_rules(judged: Judged, target: Target, decisions: tuple[Decision, ...]) -> Judged:
    """Put the rules of the table behind a verdict; of an address they are the verdict."""
    judged = replace(judged, decisions=decisions)
    if target.address is None or not decisions:
        return judged
    (decision,) = decisions
    if decision.verdict is judged.verdict:
        return judged
    return replace(judged, verdict=decision.verdict, because=_because(decision))


def _because(decision: Decision) -> str:
    held = decision.found
    if held is not None:
        led = f", where {held.comment} led" if held.comment else ""
        return f"it is in set {decision.name}{led}"
    if decision.verdict is Verdict.PASSES:
        return decision.comment or "no rule refuses it"
    return "see the rule" if decision.verdict is Verdict.UNKNOWN else "no rule lets it pass"


def _of_registry(target: Target, book: Rulebook) -> bool:
    """Whether a registry's entry allows the target, not only that of a destination."""
    if target.host is not None:
        ports = Registries(book.allowed).ports_of(target.host)
        if target.port in ports or ANY_PORT in ports:
            return True
    addresses = addresses_of(target)
    grants = (grant for address in addresses for grant in book.allowed.grants_for(address))
    return any(covers(grant, target.port) and not grant.destination for grant in grants)

"""The whole chain behind a verdict: policy, catalogue, names, leases, elements, rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from ramnet.core.allow import ANY_PORT, Addr
from ramnet.core.explain import Explanation, Target, explain
from ramnet.core.explainclass import Judged, as_enforced, by_class, by_rules
from ramnet.core.explainpolicy import Background, Rulebook, background
from ramnet.core.explainrule import Holds, InSet, Verdict, decide
from ramnet.core.leases import Lease, LeaseTable
from ramnet.core.names import HostName
from ramnet.core.policy import ClassMode, Mode
from ramnet.core.ruleset import Table
from ramnet.core.scope import Classes
from ramnet.core.terms import Book, TrafficClass, element_of

# Addresses of one name that are followed into the kernel, a few questions each; CDNs have hundreds,
# and what holds for one of them holds for the others.
MAX_LEASES: Final = 64

AUDIT: Final = "the policy's mode is audit: what would be refused is recorded, and passes"
STRANDED: Final = (
    "the policy allows the name, but no rule is for the addresses that are known of it now"
)


@dataclass(frozen=True, slots=True)
class Known:
    """A lease, the element that it is in the kernel, and what of it is there.

    ``found`` is None where the kernel was not asked, or does not hold it.
    """

    book: Book
    lease: Lease
    found: InSet | None = None

    @property
    def place(self) -> tuple[str, str]:
        """The set, and the element in nft's language."""
        return element_of(self.book, self.lease.ip, self.lease.port)


@dataclass(frozen=True, slots=True)
class Why:
    """A verdict for the class ``who``, and all that is behind it."""

    found: Explanation
    who: TrafficClass
    background: Background
    classes: tuple[Judged, ...]
    known: tuple[Known, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def judged(self) -> Judged:
        """How the class that was asked for is judged."""
        return next(item for item in self.classes if item.who is self.who)

    @property
    def allowed(self) -> bool:
        """Whether it is not refused to the class, listed in the policy or not."""
        return self.judged.verdict in (Verdict.ACCEPTED, Verdict.PASSES, Verdict.RECORDED)

    @property
    def reason(self) -> str:
        """Why it is allowed, or is not; what the policy does not list and still passes is told."""
        judged, found = self.judged, self.found
        match judged.verdict:
            case Verdict.ACCEPTED:
                return found.reason if found.allowed else judged.because
            case Verdict.PASSES if not found.allowed:
                return f"{found.reason}, but it is not refused: {judged.because}"
            case Verdict.RECORDED:
                return f"{self._against}; nothing is refused in audit, it is recorded"
            case Verdict.REFUSED:
                return self._against
        return judged.because

    @property
    def _against(self) -> str:
        """Why it is refused, or would be."""
        judged, found = self.judged, self.found
        if found.allowed and found.target.address is not None:
            return f"the policy allows it ({found.reason}), but {judged.because}"
        return judged.because


@dataclass(frozen=True, slots=True)
class InForce:
    """What a running daemon adds: the table that is loaded, and what its sets hold.

    ``judged`` are the ports on which engines are judged strictly, None for every one.
    """

    table: Table
    holds: Holds
    known: tuple[Known, ...]
    judged: frozenset[int] | None
    notes: tuple[str, ...] = ()


def known_leases(target: Target, books: Mapping[Book, LeaseTable], now: float) -> tuple[Known, ...]:
    """Return the leases of a target on its port, at most ``MAX_LEASES`` of each book."""
    return tuple(
        Known(book, lease)
        for book, table in books.items()
        for lease in islice(_leases(target, table, now), MAX_LEASES)
    )


def _leases(target: Target, table: LeaseTable, now: float) -> Iterator[Lease]:
    if target.host is not None:
        found = table.by_name(target.host, now)
    else:
        assert target.address is not None  # noqa: S101 - a target is a host or an address
        found = table.find(target.address, now)
    return (lease for lease in found if lease.port in (target.port, ANY_PORT))


def names_of(known: Iterable[Known]) -> tuple[HostName, ...]:
    """Return the names that led to what is known, each once."""
    return tuple(dict.fromkeys(name for item in known for name in item.lease.names))


def why(
    found: Explanation,
    who: TrafficClass,
    classes: Classes,
    book: Rulebook,
    in_force: InForce | None = None,
    behind: Background | None = None,
) -> Why:
    """Put the whole chain behind a verdict of ``explain``.

    ``behind`` is the part that may take long, where it was found already (``background``).
    """
    target = found.target
    ports = in_force.judged if in_force is not None else None
    judged = [
        as_enforced(by_class(one, mode_of(classes, one), target, book, ports, found), book.policy)
        for one in TrafficClass
    ]
    known: tuple[Known, ...] = ()
    notes: list[str] = []
    if book.policy is not None and book.policy.enforcement.mode is Mode.AUDIT:
        notes.append(AUDIT)
    if in_force is not None:
        known = tuple(_asked(item, in_force.holds) for item in in_force.known)
        addresses = _addresses(target, known)
        judged = [_followed(one, target, addresses, in_force) for one in judged]
        notes += in_force.notes
    behind = behind or background(target, names_of(known), book)
    said = Why(found, who, behind, tuple(judged), known, tuple(notes))
    return replace(said, notes=(*said.notes, STRANDED)) if _stranded(said.judged) else said


def _stranded(judged: Judged) -> bool:
    """Whether a name is allowed, and the rules let no address that is known of it pass."""
    refused = (Verdict.REFUSED, Verdict.RECORDED)
    every = bool(judged.decisions) and all(one.verdict in refused for one in judged.decisions)
    return every and judged.verdict is Verdict.ACCEPTED


def by_policy(target: Target, who: TrafficClass, classes: Classes, book: Rulebook) -> Why:
    """Explain without a daemon: no leases, no rules."""
    return why(explain(target, book.allowed, None, 0.0), who, classes, book)


def mode_of(classes: Classes, who: TrafficClass) -> ClassMode:
    """Return how one class is judged."""
    found: ClassMode = getattr(classes, who)
    return found


def _asked(item: Known, holds: Holds) -> Known:
    name, _ = item.place
    key = None if item.lease.port == ANY_PORT else item.lease.port
    return Known(item.book, item.lease, holds(name, item.lease.ip, key))


def _addresses(target: Target, known: tuple[Known, ...]) -> tuple[Addr, ...]:
    if target.address is not None:
        return (target.address,)
    return tuple(dict.fromkeys(item.lease.ip for item in known))


def _followed(
    judged: Judged, target: Target, addresses: tuple[Addr, ...], in_force: InForce
) -> Judged:
    table, holds = in_force.table, in_force.holds
    decisions = (decide(table, judged.who, address, target.port, holds) for address in addresses)
    return by_rules(judged, target, tuple(decisions))

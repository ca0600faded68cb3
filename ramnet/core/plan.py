"""One consistent picture: a policy, what it means on this machine, and whom to believe."""

from __future__ import annotations

from dataclasses import dataclass

from ramnet.core.allow import ANY_PORT, NOBODY, AllowList, DenyList, Permit, Registries
from ramnet.core.egress import Local, Uplink
from ramnet.core.names import HostName
from ramnet.core.policy import ClassMode, Policy
from ramnet.core.refusal import REJECTED, Refusal
from ramnet.core.scope import Classes
from ramnet.core.terms import Book, Resolver

NOTHING_LOCAL = Local(frozenset(), frozenset())


@dataclass(frozen=True, slots=True)
class Plan:
    """What the rules are compiled from.

    ``policy`` is None where none is valid. ``precise``: engines, and nobody else, are judged as
    engines. The rest is what the machine is like.
    """

    policy: Policy | None
    digest: str
    allowed: AllowList
    denied: DenyList
    classes: Classes
    precise: bool
    resolvers: tuple[Resolver, ...] = ()
    bridges: tuple[int, ...] = ()
    uplinked: tuple[int, ...] = ()
    uplinks: tuple[Uplink, ...] = ()
    local: Local = NOTHING_LOCAL
    refusal: Refusal = REJECTED

    @property
    def judged(self) -> frozenset[int] | None:
        """The TCP ports on which engines are judged strictly; None for all of them."""
        if self.classes.engine is not ClassMode.STRICT:
            return frozenset()
        return None if self.precise else self.allowed.ports

    @property
    def exact(self) -> tuple[HostName, ...]:
        """The names that the daemon is to look up itself.

        First the few that are refused: until they are known nobody is; what is allowed is learned
        from the first answer as well.
        """
        return tuple(dict.fromkeys((*self.denied.hosts, *self.allowed.exact)))

    def permit(self, book: Book) -> Permit:
        """Return what a book is to hold."""
        if book is Book.ALLOW:
            return self.allowed
        if book is Book.HEARD:
            return Registries(self.allowed) if self.classes.hears else NOBODY
        return self.denied

    def means_the_same(self, other: Plan) -> bool:
        """Whether another plan holds the same names in each book."""
        return self.allowed is other.allowed and self.classes == other.classes

    @property
    def without_policy(self) -> str:
        """What it means that there is no valid policy."""
        if self.classes.engine is ClassMode.STRICT:
            return "locked down, every judged connection is refused"
        return "nobody is judged, for the scope cannot tell engines from other programs"

    def announce(self) -> str:
        """Tell the operator what is in force."""
        if self.policy is None:
            return f"no valid policy: {self.without_policy}"
        count = len(self.allowed.registries)
        noun = "registry" if count == 1 else "registries"
        what = "is watched, nothing is refused" if self.refusal.audit else "is in force"
        return f"policy {self.digest} of {self.policy.organization} {what}: {count} {noun}"


def covers(permit: Permit, name: HostName, port: int) -> bool:
    """Whether an element with this port may be held for a name."""
    ports = permit.ports_of(name)
    return port in ports or (ANY_PORT in ports and port != ANY_PORT)

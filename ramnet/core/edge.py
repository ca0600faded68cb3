"""Decides when the table of the uplinks (``core.egress``) is to be loaded, and what is in it.

It is apart from the table of all of IP: an uplink that goes away in the wrong moment makes the
kernel refuse it, and that must not keep the rest from being enforced.
"""

from __future__ import annotations

from collections.abc import Iterable

from ramnet.core.egress import EgressSets, compile_egress, egress_books
from ramnet.core.events import Command, Level, LoadEgress, Log
from ramnet.core.plan import Plan
from ramnet.core.policy import ClassMode
from ramnet.core.ruleset import Table
from ramnet.core.terms import Book, Held, Settings

# After a table that the kernel did not take: a device that went away has been noticed by then.
RETRY_SECONDS = 1.0


class Edge:
    """Owns what is known of the table of the uplinks."""

    def __init__(self, settings: Settings) -> None:
        self.problem = ""
        self._settings = settings
        self._loaded: Plan | None = None
        self._loading: Plan | None = None
        self._retry_at: float | None = None

    @property
    def mode(self) -> ClassMode:
        """How containers on macvlan and ipvlan networks are judged at the moment."""
        plan = self._loaded
        if plan is None or self.problem or not plan.uplinks:
            return ClassMode.OFF
        return plan.classes.containers

    def follow(self, plan: Plan, held: Iterable[Held]) -> list[Command]:
        """Load what a plan means, unless it is what is loaded; ``held`` are all leases."""
        if not self._settings.egress:
            return []
        before = self._loaded if not self.problem else None
        if before is not None and _same(before, plan):
            return []
        self._loading = plan
        mode = plan.classes.containers
        books = egress_books(mode)
        keep = before is not None and before.means_the_same(plan)
        return [LoadEgress(self._compile(plan, mode, books, held), books, keep)]

    def _compile(
        self, plan: Plan, mode: ClassMode, books: tuple[Book, ...], held: Iterable[Held]
    ) -> Table | None:
        known = tuple(item for item in held if item.book in books)
        resolvers = tuple(dict.fromkeys(item.address for item in plan.resolvers))
        sets = EgressSets(plan.allowed, known, resolvers)
        return compile_egress(plan.uplinks, plan.local, mode, sets, self._settings, plan.refusal)

    def loaded(self) -> None:
        """Note that the kernel took it."""
        self._loaded, self._loading, self.problem, self._retry_at = self._loading, None, "", None

    def lost(self, problem: str, now: float) -> list[Command]:
        """Note that it is not there; try again later, or at once where it was there before."""
        before, self.problem = self.problem, problem
        refused, self._loading = self._loading is not None, None
        self._retry_at = now + RETRY_SECONDS if refused else now
        if before == problem:
            return []
        why = f"containers on macvlan and ipvlan networks are not judged: {problem}"
        return [Log(Level.WARNING, why)]

    def due(self, now: float) -> bool:
        """Whether it is time to try again."""
        return self._retry_at is not None and now >= self._retry_at


def _same(one: Plan, other: Plan) -> bool:
    return one.means_the_same(other) and (one.uplinks, one.local, one.resolvers, one.refusal) == (
        other.uplinks,
        other.local,
        other.resolvers,
        other.refusal,
    )

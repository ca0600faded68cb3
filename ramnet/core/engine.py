"""The engine: events in, commands out. Everything that ramnet decides while running is here.

No I/O and no clock: ``handle(event, now)`` with ``now`` in seconds of CLOCK_MONOTONIC. The caller
carries commands out in order, before it hands over the next event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum

from ramnet.core.allow import (
    NOBODY,
    Permit,
    allow_list,
    deny_list,
)
from ramnet.core.blocker import Blocker
from ramnet.core.catalog import Catalog
from ramnet.core.compiler import compile_table
from ramnet.core.config import Limits, ScopeMode
from ramnet.core.denier import Denier
from ramnet.core.dnsrules import blocks_answers, blocks_hosts_answers
from ramnet.core.edge import Edge
from ramnet.core.events import (
    Addr,
    AnswerCopy,
    Command,
    EgressLoaded,
    EgressLost,
    Event,
    Level,
    LinksFound,
    LoadTable,
    Log,
    PolicyChanged,
    PolicyRead,
    PolicyRejected,
    QueryCopy,
    Resolved,
    ResolveNames,
    ResolversFound,
    ScopeProbed,
    Started,
    TableLoaded,
    TableLost,
    TableRefused,
    Tick,
    Unresolved,
    WriteLeases,
)
from ramnet.core.learner import Learner, Lesson
from ramnet.core.leases import Key
from ramnet.core.names import HostName
from ramnet.core.plan import Plan, covers
from ramnet.core.policy import ClassMode
from ramnet.core.refusal import refusal_for
from ramnet.core.ruleset import Table
from ramnet.core.scope import Classes, classes_for
from ramnet.core.terms import Book, Held, Machine, Resolver, Rung, Settings, element_of

# After a table that the kernel did not take, and between repairs of one that went away: often
# enough to heal by itself, and no busy loop when it cannot.
RETRY_SECONDS = 5.0


class State(StrEnum):
    """What ``status`` says first."""

    ENFORCING = "enforcing"
    AUDITING = "auditing"
    DEGRADED = "degraded"
    LOCKED_DOWN = "locked-down"
    STANDBY = "standby"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class _Known:
    """What the daemon's own look-up of a name last gave, of one address family."""

    at: float
    addresses: tuple[Addr, ...]


class Engine:
    """Owns the policy in force, the leases and the queries that wait for an answer."""

    def __init__(self, catalog: Catalog, limits: Limits, settings: Settings, today: date) -> None:
        self._catalog = catalog
        self._limits = limits
        self._settings = settings
        self._today = today
        # What the live probe found wrong; empty where engines are told apart.
        self.scope_problem = ""
        classes = Classes(ClassMode.OFF, ClassMode.OFF, ClassMode.OFF)
        nothing = allow_list(None, catalog, today)
        blank = Plan(None, "", nothing, NOBODY, classes, settings.scope.precise)
        self._wanted = self._meaning(blank)
        self._applied: Plan | None = None
        self._loading: tuple[Plan, Table, frozenset[_Place]] | None = None
        self._updating = False
        self._table: Table | None = None
        self._retry_at: float | None = None
        self._resolved: dict[HostName, dict[int, _Known]] = {}
        self.heard = Learner(limits, Book.HEARD)
        self.learner = Learner(limits)
        self.denied = Denier(limits)
        self._learners = (self.learner, self.heard, self.denied)
        self.blocker = Blocker(catalog)
        # Whether programs of the host are shown a notice: then they are to hear where a refused
        # registry is.
        self.leads_host = False
        self.edge = Edge(settings)
        self.policy_problem = ""
        self.table_problem = ""
        self.repairs = 0
        # Whether what is in force may have gone from the kernel.
        self.lost = False

    @property
    def applied(self) -> Plan | None:
        """What the kernel enforces; None before the first table is loaded."""
        return self._applied

    @property
    def table(self) -> Table | None:
        """The table that is loaded; what was learned since is not in it."""
        return self._table

    @property
    def local_resolvers(self) -> tuple[Resolver, ...]:
        """The trusted resolvers at addresses of this machine, redirected or not."""
        found = self._wanted.resolvers
        return tuple(item for item in found if item.owners is not None or not item.direct)

    @property
    def state(self) -> State:
        """Summarise: what is enforced, never what is only wanted."""
        if self._applied is None or self.lost:
            return State.OFF
        if self._applied.refusal.audit:
            return State.AUDITING
        locked = self._applied.classes.engine is ClassMode.STRICT and not self.scope_problem
        if self._applied.policy is None and locked:
            return State.LOCKED_DOWN
        weak = self._applied.policy is None or self.weakened
        return State.DEGRADED if self.table_problem or weak else State.ENFORCING

    @property
    def weakened(self) -> bool:
        """Whether engines are judged less strictly than the policy wants, for want of a scope."""
        plan = self._applied
        if self.scope_problem or plan is None:
            return True
        return plan.policy is not None and plan.classes.engine is not plan.policy.enforcement.engine

    def handle(  # noqa: C901, PLR0911, PLR0912 - one case an event, and nothing else
        self, event: Event, now: float
    ) -> list[Command]:
        """Take one event in and return what is to be done, in order."""
        match event:
            case QueryCopy():
                self.note_query(event, now)
                return []
            case AnswerCopy():
                return _commands(self.listener(forwarded=event.forwarded).packet(event.packet, now))
            case Resolved():
                return self._resolved_name(event, now)
            case Unresolved():
                return self._unresolved(event, now)
            case Tick():
                return self._tick(event, now)
            case Started():
                return self._started(event, now)
            case PolicyRead():
                return self._policy_read(event, now)
            case PolicyRejected():
                return self._policy_rejected(event)
            case ResolversFound():
                return self._resolvers_found(event, now)
            case LinksFound():
                return self._links_found(event, now)
            case ScopeProbed():
                return self._scope_probed(event, now)
            case TableLoaded():
                return self._table_loaded(now)
            case EgressLoaded():
                self.edge.loaded()
                return []
            case EgressLost():
                return self.edge.lost(event.problem, now)
            case TableRefused():
                return self._table_refused(event.problem, now)
            case TableLost():
                return self._table_lost(event.problem, now)

    def note_query(self, copy: QueryCopy, now: float) -> None:
        """Remember a query that has left, for whoever learns from its answer."""
        learner = self.denied if copy.host else self.listener(forwarded=copy.forwarded)
        learner.query(copy.packet, now)

    def listener(self, *, forwarded: bool) -> Learner:
        """Return who learns from what the machine itself hears, or containers do."""
        return self.heard if forwarded else self.learner

    # Policy, resolvers and the table

    def _meaning(self, plan: Plan) -> Plan:
        """Work out anew what the policy of a plan means."""
        scope = self._settings.scope
        classes = classes_for(plan.policy, scope, blind=bool(self.scope_problem))
        denied = deny_list(plan.allowed, self._catalog) if classes.catalog else NOBODY
        refusal = refusal_for(plan.policy, self._settings)
        return replace(plan, classes=classes, denied=denied, refusal=refusal)

    def _started(self, event: Started, now: float) -> list[Command]:
        for held in event.held:
            for learner in self._learners:
                if held.name and held.book is learner.book:
                    name = HostName(held.name)
                    learner.leases.restore(held.address, held.port, name, held.seconds, now)
        return self._load(self._wanted, now)

    def _policy_read(self, event: PolicyRead, now: float) -> list[Command]:
        self.policy_problem = ""
        if self._wanted.policy is not None and event.digest == self._wanted.digest:
            return []
        allowed = event.allowed or allow_list(event.policy, self._catalog, self._today)
        made = replace(self._wanted, policy=event.policy, digest=event.digest, allowed=allowed)
        self._wanted = self._meaning(made)
        return self._reload(now)

    def _policy_rejected(self, event: PolicyRejected) -> list[Command]:
        if event.problem == self.policy_problem:
            return []
        self.policy_problem = event.problem
        stood = self._applied if self._applied is not None else self._wanted
        if stood.policy is None:
            stands = f"no policy was valid yet: {stood.without_policy}"
        else:
            stands = f"the policy {stood.digest} stays in force"
        return [Log(Level.ERROR, f"policy rejected; {stands}: {event.problem}")]

    def _resolvers_found(self, event: ResolversFound, now: float) -> list[Command]:
        if event.resolvers == self._wanted.resolvers:
            return []
        self._wanted = replace(self._wanted, resolvers=event.resolvers)
        return self._reload(now)

    def _links_found(self, event: LinksFound, now: float) -> list[Command]:
        before = self._wanted
        self._wanted = replace(
            before,
            bridges=event.bridges,
            uplinked=event.uplinked,
            uplinks=event.uplinks,
            local=event.local,
        )
        strict = before.classes.containers is ClassMode.STRICT
        by_group = self._settings.scope.mode is ScopeMode.CGROUP
        bridges = (event.bridges, event.uplinked) != (before.bridges, before.uplinked)
        if (strict and bridges) or (by_group and event.local.addresses != before.local.addresses):
            return self._reload(now)
        if self._applied is None:
            return []
        if self._applied is before:
            self._applied = self._wanted
        else:
            self._applied = replace(self._applied, uplinks=event.uplinks, local=event.local)
        return self._follow_edge(now)

    def _follow_edge(self, now: float) -> list[Command]:
        """Bring the table of the uplinks to what is in force."""
        if self._applied is None:
            return []
        return self.edge.follow(self._applied, self._held(self._applied, now))

    def _scope_probed(self, event: ScopeProbed, now: float) -> list[Command]:
        """Judge everybody as ``[scope] weak`` says for as long as engines are not told apart."""
        before, self.scope_problem = self.scope_problem, event.problem
        if event.problem == before:
            return []
        told = Log(Level.INFO, "engines are told apart again")
        if event.problem:
            told = Log(Level.ERROR, f"engines are not told apart: {event.problem}")
        if bool(before) is bool(event.problem):
            return [told]
        self._wanted = self._meaning(self._wanted)
        return [told, *self._reload(now)]

    def _reload(self, now: float) -> list[Command]:
        """Load what is wanted now; before the start, everything is gathered first."""
        if self._applied is None:
            return []
        return self._update(now) if self._retry_at is None else self._load(self._wanted, now)

    def _load(self, plan: Plan, now: float) -> list[Command]:
        """Put the whole table in place, with every lease in it."""
        self._updating = False
        self._permit_both(plan)
        held = tuple(self._held(plan, now))
        table = self._compile(plan, held)
        places = frozenset((item.book, (item.address, item.port)) for item in held)
        self._loading = plan, table, places
        return [LoadTable(table)]

    def _compile(self, plan: Plan, held: Iterable[Held]) -> Table:
        return compile_table(
            plan.allowed,
            plan.resolvers,
            held,
            self._settings,
            plan.classes,
            Machine(plan.bridges, plan.uplinked, plan.local.addresses),
            plan.refusal,
        )

    def _update(self, now: float) -> list[Command]:
        """Change the rules around the learned sets, and drop what is not allowed any more."""
        plan = self._wanted
        self._updating = True
        table = self._compile(plan, ())
        self._permit_both(plan)
        there = {item.name for item in self._table.sets} if self._table is not None else set()
        drop: list[tuple[str, str]] = []
        kept: set[_Place] = set()
        if self._applied is None or not plan.means_the_same(self._applied):
            for learner in self._learners:
                permit = plan.permit(learner.book)
                for lease in learner.leases.snapshot(now):
                    if any(covers(permit, name, lease.port) for name in lease.names):
                        kept.add((learner.book, (lease.ip, lease.port)))
                    else:
                        drop.append(element_of(learner.book, lease.ip, lease.port))
        staying = there & {item.name for item in table.sets}
        self._loading = plan, table, frozenset(kept)
        goes = tuple((name, element) for name, element in drop if name in staying)
        return [LoadTable(table, self._table, goes)]

    def _permit_both(self, plan: Plan) -> None:
        """Learn only what the policy in force and that of ``plan`` allow.

        Then it need not be dropped, and a table that is refused takes nothing back.
        """
        plans = (plan,) if self._applied is None else (self._applied, plan)
        for learner in self._learners:
            learner.permit(*(item.permit(learner.book) for item in plans))

    def _held(self, plan: Plan, now: float) -> Iterator[Held]:
        """Yield the leases that a plan still holds, each with the name that leads there."""
        for learner in self._learners:
            permit = plan.permit(learner.book)
            for lease in learner.leases.snapshot(now):
                for name in lease.names:
                    if covers(permit, name, lease.port):
                        yield Held(lease.ip, lease.port, lease.remaining, name, learner.book)
                        break

    def _table_loaded(self, now: float) -> list[Command]:
        if self._loading is None:
            return []
        before = self._applied
        plan, self._table, kept = self._loading
        self._loading, self.lost = None, False
        if plan is self._wanted:
            self._retry_at, self.table_problem = None, ""
        else:  # what stood is back; what is wanted is still to come
            self._retry_at = now + RETRY_SECONDS
        self._applied = plan
        self._block(plan)
        # A resolver on loopback is out of reach of containers: the engine asks for them.
        strict = plan.classes.containers is ClassMode.STRICT
        self.learner.also = self.heard if strict else None
        commands: list[Command] = []
        for learner in self._learners:
            permit = plan.permit(learner.book)
            learner.permit(permit)
            dropped = learner.leases.retain(_covered_by(permit), now)
            # The name that let an element stay has run out since: now nothing allows it any more.
            late = tuple(key for key in dropped if (learner.book, key) in kept)
            if late:
                commands.append(WriteLeases((), late, learner.book))
        self._resolved = {
            name: known for name, known in self._resolved.items() if self._wants(name)
        }
        if before is not None:
            commands += self._open_new_ports(now)
        if before is None or before.digest != plan.digest:
            commands.append(Log(Level.INFO, plan.announce()))
            commands.append(
                PolicyChanged(before.policy if before else None, plan.policy, plan.digest)
            )
        if before is None or before.exact != plan.exact:
            commands.append(ResolveNames(plan.exact[: self._limits.warm_names]))
        return [*commands, *self._follow_edge(now)]

    def _block(self, plan: Plan) -> None:
        """Tell which answers are changed from now on."""
        classes, settings = plan.classes, self._settings
        blocks = blocks_answers(classes.containers, settings.rung) or blocks_hosts_answers(
            classes, settings
        )
        blocks = blocks and plan.policy is not None and not plan.refusal.audit
        organization = plan.policy.organization if plan.policy else ""
        self.blocker.use(plan.allowed if blocks else None, organization)
        self.leads_host = plan.refusal.leads_host

    def _wants(self, name: HostName) -> bool:
        """Tell whether what a name leads to is noted anywhere."""
        return any(learner.ports_of(name) for learner in self._learners)

    def _table_refused(self, problem: str, now: float) -> list[Command]:
        """Keep what stands; try again later.

        An update is refused when what it changes is not there: then the whole table is loaded.
        """
        if self._updating:
            self.repairs += 1
            why = f"the ruleset could not be changed ({problem}); loading the whole table again"
            return [Log(Level.WARNING, why), *self._load(self._wanted, now)]
        self._loading = None
        if self._applied is not None:
            for learner in self._learners:
                learner.permit(self._applied.permit(learner.book))
        self._retry_at = now + RETRY_SECONDS
        if problem == self.table_problem:
            return []
        self.table_problem = problem
        return [Log(Level.ERROR, f"the kernel refused the ruleset: {problem}")]

    def _table_lost(self, problem: str, now: float) -> list[Command]:
        """Put back what was in force at once; while that fails, at the pace of retries.

        Not what is wanted: the kernel may be refusing that.
        """
        if self._applied is None or self.lost:
            return []
        self.lost = True
        self.repairs += 1
        why = f"{problem}; loading the whole table again"
        return [Log(Level.WARNING, why), *self._load(self._applied, now)]

    def _tick(self, event: Tick, now: float) -> list[Command]:
        for learner in self._learners:
            learner.leases.expire(now)
            if self._settings.rung is Rung.OBSERVE:  # otherwise the reader of the queue owns them
                learner.queries.expire(now)
        if event.today != self._today:
            self._today = event.today
            wanted = self._wanted
            allowed = allow_list(wanted.policy, self._catalog, self._today)
            self._wanted = self._meaning(replace(wanted, allowed=allowed))
            return self._reload(now)
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = now + RETRY_SECONDS
            stood = self._applied if self.lost else None
            return self._load(stood or self._wanted, now)
        return self._follow_edge(now) if self.edge.due(now) else []

    def refuse_answer(self, name: HostName, packet: bytes, now: float) -> Lesson | None:
        """Have what an answer leads to refused to programs of the host; None where it cannot be."""
        plan = self._applied
        if plan is None or not self.leads_host:
            return None

        def open_to_all(address: Addr) -> bool:
            return bool(self.heard.leases.find(address, now)) or any(
                True for _ in plan.allowed.grants_for(address)
            )

        return self.denied.refuse(name, packet, open_to_all, now)

    # For the record

    def names_at(self, address: Addr, now: float) -> Iterator[tuple[HostName, Book]]:
        """Yield the names that led to an address, and in which book that is."""
        for learner in self._learners:
            for lease in learner.leases.find(address, now):
                for name in lease.names:
                    yield name, learner.book

    # DNS

    def _resolved_name(self, event: Resolved, now: float) -> list[Command]:
        known = self._resolved.setdefault(event.name, {})
        for version in (4, 6):
            addresses = tuple(ip for ip in event.addresses if ip.version == version)
            if addresses:
                known[version] = _Known(now, addresses)
        return self._teach(event.name, event.addresses, event.ttl, now)

    def _unresolved(self, event: Unresolved, now: float) -> list[Command]:
        """Keep what a name had (RFC 8767, serve stale): no answer is no reason to refuse a pull.

        Bounded by the longest lease: a resolver that is away for longer proves nothing any more.
        """
        commands = []
        for known in self._resolved.get(event.name, {}).values():
            if now - known.at <= self._limits.lease_max_seconds:
                commands += self._teach(event.name, known.addresses, 0, now)
        return commands

    def _open_new_ports(self, now: float) -> list[Command]:
        """Open what is known of the names whose ports are more than they were.

        The resolver keeps its pace for a name that it has, and would tell again within the hour.
        """
        commands: list[Command] = []
        for name, families in self._resolved.items():
            for known in families.values():
                if now - known.at <= self._limits.lease_max_seconds:
                    commands += self._teach(name, known.addresses, 0, now)
        return commands

    def _teach(
        self, name: HostName, addresses: tuple[Addr, ...], ttl: int, now: float
    ) -> list[Command]:
        lessons = [
            learner.teach(name, addresses, ttl, now)
            for learner in self._learners
            if learner.ports_of(name)
        ]
        return _commands([lesson for lesson in lessons if lesson is not None])


# Where an element is: the book, and its key there.
_Place = tuple[Book, Key]


def _covered_by(permit: Permit) -> Callable[[HostName, Addr, int], bool]:
    return lambda name, _ip, port: covers(permit, name, port)


def _commands(lessons: list[Lesson]) -> list[Command]:
    return [lesson.write for lesson in lessons if lesson.write is not None]

"""The engine: events in, commands out. Everything that ramnet decides while running is here.

No I/O and no clock: ``handle(event, now)`` with ``now`` in seconds of CLOCK_MONOTONIC. The caller
carries commands out in order, before it hands over the next event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from ramnet.core.allow import AllowList, allow_list
from ramnet.core.blocker import Blocker
from ramnet.core.catalog import Catalog
from ramnet.core.compiler import (
    Held,
    Resolver,
    Rung,
    Settings,
    blocks_answers,
    compile_table,
    element_of,
)
from ramnet.core.config import Limits
from ramnet.core.events import (
    Addr,
    AnswerCopy,
    Command,
    Event,
    Level,
    LoadTable,
    Log,
    PolicyRead,
    PolicyRejected,
    QueryCopy,
    Resolved,
    ResolveNames,
    ResolversFound,
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
from ramnet.core.policy import ClassMode, Policy
from ramnet.core.ruleset import Table

# After a table that the kernel did not take, and between repairs of one that went away: often
# enough to heal by itself, and no busy loop when it cannot.
RETRY_SECONDS = 5.0


class State(StrEnum):
    """What ``status`` says first."""

    ENFORCING = "enforcing"
    DEGRADED = "degraded"
    LOCKED_DOWN = "locked-down"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Plan:
    """One consistent picture: a policy, what it allows, and whom to believe."""

    policy: Policy | None
    digest: str
    allowed: AllowList
    resolvers: tuple[Resolver, ...]

    @property
    def containers(self) -> ClassMode:
        """How forwarded traffic is to be judged; without a policy as by default."""
        return self.policy.enforcement.containers if self.policy else ClassMode.CATALOG


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
        self._wanted = Plan(None, "", allow_list(None, catalog, today), ())
        self._applied: Plan | None = None
        self._loading: tuple[Plan, Table, frozenset[Key]] | None = None
        self._updating = False
        self._table: Table | None = None
        self._retry_at: float | None = None
        self._resolved: dict[HostName, dict[int, _Known]] = {}
        self.learner = Learner(limits)
        self.blocker = Blocker(catalog)
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
    def local_resolvers(self) -> tuple[Resolver, ...]:
        """The trusted resolvers at addresses of this machine, redirected or not."""
        found = self._wanted.resolvers
        return tuple(item for item in found if item.owners is not None or not item.direct)

    @property
    def state(self) -> State:
        """Summarise: what is enforced, never what is only wanted."""
        if self._applied is None or self.lost:
            return State.OFF
        if self._applied.policy is None:
            return State.LOCKED_DOWN
        return State.DEGRADED if self.table_problem else State.ENFORCING

    def handle(  # noqa: C901, PLR0911, PLR0912 - one case an event, and nothing else
        self, event: Event, now: float
    ) -> list[Command]:
        """Take one event in and return what is to be done, in order."""
        match event:
            case QueryCopy():
                self.learner.query(event.packet, now)
                return []
            case AnswerCopy():
                return _commands(self.learner.packet(event.packet, now))
            case Resolved():
                return self._resolved_name(event, now)
            case Unresolved():
                return self._unresolved(event, now)
            case Tick():
                return self._tick(event, now)
            case Started():
                for held in event.held:
                    if held.name:
                        name = HostName(held.name)
                        self.learner.leases.restore(
                            held.address, held.port, name, held.seconds, now
                        )
                return self._load(self._wanted, now)
            case PolicyRead():
                return self._policy_read(event, now)
            case PolicyRejected():
                return self._policy_rejected(event)
            case ResolversFound():
                return self._resolvers_found(event, now)
            case TableLoaded():
                return self._table_loaded(now)
            case TableRefused():
                return self._table_refused(event.problem, now)
            case TableLost():
                return self._table_lost(event.problem, now)

    # Policy, resolvers and the table

    def _policy_read(self, event: PolicyRead, now: float) -> list[Command]:
        self.policy_problem = ""
        if self._wanted.policy is not None and event.digest == self._wanted.digest:
            return []
        allowed = event.allowed or allow_list(event.policy, self._catalog, self._today)
        self._wanted = Plan(event.policy, event.digest, allowed, self._wanted.resolvers)
        return self._reload(now)

    def _policy_rejected(self, event: PolicyRejected) -> list[Command]:
        if event.problem == self.policy_problem:
            return []
        self.policy_problem = event.problem
        stood = self._applied if self._applied is not None else self._wanted
        if stood.policy is None:
            stands = "no policy was valid yet: every judged connection is refused"
        else:
            stands = f"the policy {stood.digest} stays in force"
        return [Log(Level.ERROR, f"policy rejected; {stands}: {event.problem}")]

    def _resolvers_found(self, event: ResolversFound, now: float) -> list[Command]:
        if event.resolvers == self._wanted.resolvers:
            return []
        wanted = self._wanted
        self._wanted = Plan(wanted.policy, wanted.digest, wanted.allowed, event.resolvers)
        return self._reload(now)

    def _reload(self, now: float) -> list[Command]:
        """Load what is wanted now; before the start, everything is gathered first."""
        if self._applied is None:
            return []
        return self._update(now) if self._retry_at is None else self._load(self._wanted, now)

    def _load(self, plan: Plan, now: float) -> list[Command]:
        """Put the whole table in place, with every lease in it."""
        self._updating = False
        self._permit_both(plan)
        held = tuple(self._held(plan.allowed, now))
        table = self._compile(plan, held)
        self._loading = plan, table, frozenset((item.address, item.port) for item in held)
        return [LoadTable(table)]

    def _compile(self, plan: Plan, held: Iterable[Held]) -> Table:
        return compile_table(plan.allowed, plan.resolvers, held, self._settings, plan.containers)

    def _update(self, now: float) -> list[Command]:
        """Change the rules around the learned sets, and drop what is not allowed any more."""
        plan = self._wanted
        self._updating = True
        table = self._compile(plan, ())
        self._permit_both(plan)
        drop: list[tuple[str, str]] = []
        kept: set[Key] = set()
        if self._applied is None or plan.allowed is not self._applied.allowed:
            for lease in self.learner.leases.snapshot(now):
                if any(lease.port in plan.allowed.ports_of(name) for name in lease.names):
                    kept.add((lease.ip, lease.port))
                else:
                    drop.append(element_of(lease.ip, lease.port))
        self._loading = plan, table, frozenset(kept)
        return [LoadTable(table, self._table, tuple(drop))]

    def _permit_both(self, plan: Plan) -> None:
        """Learn only what the policy in force and that of ``plan`` allow.

        Then it need not be dropped, and a table that is refused takes nothing back.
        """
        applied = () if self._applied is None else (self._applied.allowed,)
        self.learner.permit(*applied, plan.allowed)

    def _held(self, allowed: AllowList, now: float) -> Iterator[Held]:
        """Yield the leases that a policy still allows, each with the name that leads there."""
        for lease in self.learner.leases.snapshot(now):
            for name in lease.names:
                if lease.port in allowed.ports_of(name):
                    yield Held(lease.ip, lease.port, lease.remaining, name)
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
        allowed = plan.allowed
        self.learner.permit(allowed)
        blocks = blocks_answers(plan.containers, self._settings.rung) and plan.policy is not None
        organization = plan.policy.organization if plan.policy else ""
        self.blocker.use(allowed if blocks else None, organization)
        dropped = self.learner.leases.retain(
            lambda name, _ip, port: port in allowed.ports_of(name), now
        )
        # The name that let an element stay has run out since: now nothing allows it any more.
        late = tuple(key for key in dropped if key in kept)
        self._resolved = {
            name: known for name, known in self._resolved.items() if allowed.ports_of(name)
        }
        commands: list[Command] = self._open_new_ports(now) if before is not None else []
        if late:
            commands.insert(0, WriteLeases((), late))
        if before is None or before.digest != plan.digest:
            commands.append(Log(Level.INFO, _announce(plan)))
        if before is None or before.allowed is not allowed:
            commands.append(ResolveNames(allowed.exact[: self._limits.warm_names]))
        return commands

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
            self.learner.permit(self._applied.allowed)
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
        self.learner.leases.expire(now)
        if self._settings.rung is Rung.OBSERVE:  # otherwise their owner is the reader of the queue
            self.learner.queries.expire(now)
        if event.today != self._today:
            self._today = event.today
            wanted = self._wanted
            allowed = allow_list(wanted.policy, self._catalog, self._today)
            self._wanted = Plan(wanted.policy, wanted.digest, allowed, wanted.resolvers)
            return self._reload(now)
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = now + RETRY_SECONDS
            stood = self._applied if self.lost else None
            return self._load(stood or self._wanted, now)
        return []

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
        lesson = self.learner.teach(name, addresses, ttl, now)
        return _commands([lesson] if lesson is not None else [])


def _commands(lessons: list[Lesson]) -> list[Command]:
    return [lesson.write for lesson in lessons if lesson.write is not None]


def _announce(plan: Plan) -> str:
    if plan.policy is None:
        return "locked down: no valid policy, every judged connection is refused"
    count = len(plan.allowed.registries)
    noun = "registry" if count == 1 else "registries"
    return f"policy {plan.digest} of {plan.policy.organization} is in force: {count} {noun}"

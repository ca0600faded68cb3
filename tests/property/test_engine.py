"""The engine against a kernel that is pretended: whatever comes, in whatever order.

The kernel here takes tables and elements as the real one would, refuses some and loses its table
now and then. After every event no book may hold what the policy in force does not give it, and the
engine must not claim what the kernel does not hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.allow import ANY_PORT
from ramnet.core.config import Limits
from ramnet.core.engine import Engine, State
from ramnet.core.events import (
    Addr,
    Event,
    LoadTable,
    Log,
    PolicyRejected,
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
from ramnet.core.names import HostName
from ramnet.core.policy import ClassMode, Policy, policy_digest
from ramnet.core.ruleset import Table
from ramnet.core.scope import Scope, classes_for
from ramnet.core.terms import Book, Held, Resolver, element_of
from tests.unit.core.support import (
    CATALOG,
    CGROUP,
    NETNS,
    SERVER,
    STRICT,
    TODAY,
    answer,
    host,
    links,
    policy,
    query,
    read,
    settings,
)

# A book, an address and a port.
Place = tuple[Book, Addr, int]

EXPIRING = f"expires = {TODAY + timedelta(days=1)}\n"
TO_GIT = '[[destination]]\naddress = "git.example"\nports = [443, 9418]\n'


def containers(mode: str) -> str:
    return f'[enforcement]\ncontainers = "{mode}"\n'


POLICIES = [
    policy("a.example", "b.example:5000"),
    policy("a.example:5000", "*.w.example", more=EXPIRING + containers("strict")),
    policy("b.example:*", more='networks = ["10.0.0.0/8"]\n' + containers("off")),
    policy("a.example", "quay.io", more=TO_GIT + containers("strict")),
    policy("b.example:*", more=containers("strict")),
    policy(),
]
NAMES = ["a.example", "b.example", "x.w.example", "git.example", "quay.io", "other.example"]
ADDRESSES = ["198.51.100.1", "198.51.100.2", "2001:db8::1", "127.0.0.1"]
FOUR = ADDRESSES[:2]
SCOPES = st.sampled_from([STRICT, NETNS, CGROUP, replace(CGROUP, host=ClassMode.OFF)])
# The kernel keeps milliseconds, cut off.
ROUNDING = 0.002

_ELEMENT = re.compile(r"(\S+)(?: \. (\d+))?(?: timeout (\d+)ms)?(?: comment \"(.*)\")?")
_HOST_SET = re.compile(f"({'|'.join(Book)})(_any)?[46]")


def place_of(name: str, element: str) -> tuple[Place, float]:
    """Read where an element is and how long it lives."""
    in_set, found = _HOST_SET.fullmatch(name), _ELEMENT.fullmatch(element)
    assert in_set is not None
    assert found is not None, element
    assert (in_set[2] is None) is (found[2] is not None), "a port belongs to the other set"
    address = ip_address(found[1])
    assert name.endswith(str(address.version))
    return (Book(in_set[1]), address, int(found[2] or ANY_PORT)), int(found[3] or 0) / 1000


@dataclass
class Kernel:
    """A table, and the elements of its host sets with their expiry."""

    table: Table | None = None
    held: dict[Place, float] = field(default_factory=dict)

    def sets(self) -> set[str]:
        """The names of the host sets that are there."""
        found = self.table.sets if self.table is not None else ()
        return {item.name for item in found if _HOST_SET.fullmatch(item.name)}

    def load(self, command: LoadTable, now: float) -> None:
        before = self.sets()
        if command.before is None:
            self.held = {}
        else:
            assert command.before.sets == (self.table or command.table).sets
            after = {item.name for item in command.table.sets}
            for name, element in command.drop:
                assert name in before & after, "nft would refuse the whole transaction"
                self.held.pop(place_of(name, element)[0], None)
        self.table = command.table
        for item in command.table.sets:
            if item.name in self.sets() and (command.before is None or item.name not in before):
                for text in item.elements:
                    place, seconds = place_of(item.name, text)
                    self.held[place] = now + seconds
        there = self.sets()
        self.held = {
            place: due for place, due in self.held.items() if element_of(*place)[0] in there
        }

    def write(self, command: WriteLeases, now: float) -> None:
        for item in command.add:
            assert item.book is command.book
            place = (item.book, item.address, item.port)
            assert element_of(*place)[0] in self.sets(), "there is no such set"
            self.held[place] = now + item.seconds
        for address, port in command.drop:
            self.held.pop((command.book, address, port), None)

    def alive(self, now: float) -> dict[Place, float]:
        return {place: due for place, due in self.held.items() if due > now}


class World:
    """Carries commands out as the daemon does, and remembers what was ever said of a name."""

    def __init__(self, scope: Scope = STRICT) -> None:
        self.now = 1000.0
        self.today: date = TODAY
        limits = Limits(leases_per_name=8, leases_total=256, pending_queries=64)
        self.engine = Engine(CATALOG, limits, settings(scope), TODAY)
        self.kernel = Kernel()
        self.refusing = False
        # The names that led to an address, as one or the other book may have heard.
        self.said: dict[tuple[Book, Addr], set[str]] = {}

    def heard(self, name: str, address: str, *books: Book) -> None:
        for book in books or Book:
            self.said.setdefault((book, ip_address(address)), set()).add(name)

    def tell(self, *events: Event) -> None:
        waiting = list(events)
        while waiting:
            for command in self.engine.handle(waiting.pop(0), self.now):
                match command:
                    case LoadTable() if self.refusing or (
                        command.before is not None and self.kernel.table is None
                    ):
                        waiting.insert(0, TableRefused("no"))
                    case LoadTable():
                        self.kernel.load(command, self.now)
                        waiting.insert(0, TableLoaded())
                    case WriteLeases() if self.refusing or self.kernel.table is None:
                        waiting.insert(0, TableLost("an element could not be written"))
                    case WriteLeases():
                        self.kernel.write(command, self.now)
                    case ResolveNames(names=names):
                        assert len(set(names)) == len(names) < 100
                    case Log(message=message):
                        assert message

    def check(self) -> None:
        engine, kernel = self.engine, self.kernel
        plan = engine.applied
        if plan is None:
            assert engine.state is State.OFF
            return
        held = kernel.alive(self.now)
        for book, address, port in held:
            names = self.said.get((book, address), set())
            ports = [plan.permit(book).ports_of(HostName(name)) for name in names]
            assert any({port, ANY_PORT} & found for found in ports), (
                f"{book}: {address} port {port} is held, and no name that it is for led there"
            )
            assert not address.is_loopback
            if book is Book.HEARD:
                classes = plan.classes
                assert classes.catalog or classes.containers is ClassMode.STRICT
        allowed = {place[1:] for place in held if place[0] is Book.ALLOW}
        if not engine.table_problem and kernel.table is not None:
            for learner in (engine.learner, engine.heard, engine.denied):
                for lease in learner.leases.snapshot(self.now):
                    due = held.get((learner.book, lease.ip, lease.port), self.now)
                    assert due >= self.now + lease.remaining - ROUNDING, "more than is held"
        if plan.policy is None:
            assert engine.state in (State.LOCKED_DOWN, State.DEGRADED, State.OFF)
            assert not allowed
        if engine.state is State.ENFORCING:
            assert plan.policy is not None
            assert plan.classes.engine is plan.policy.enforcement.engine
            assert not engine.scope_problem


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("policy"), st.sampled_from(POLICIES)),
        st.tuples(st.just("rejected"), st.sampled_from(["line 1", "line 2"])),
        st.tuples(st.just("resolvers"), st.integers(0, 2)),
        st.tuples(st.just("ask"), st.sampled_from(NAMES), st.sampled_from(FOUR)),
        st.tuples(st.just("lie"), st.sampled_from(NAMES), st.sampled_from(FOUR)),
        st.tuples(st.just("overhear"), st.sampled_from(NAMES), st.sampled_from(FOUR)),
        st.tuples(st.just("bridges"), st.integers(0, 2)),
        st.tuples(st.just("probe"), st.sampled_from(["", "one", "two"])),
        st.tuples(
            st.just("resolved"),
            st.sampled_from(NAMES),
            st.lists(st.sampled_from(ADDRESSES), max_size=3),
        ),
        st.tuples(st.just("unresolved"), st.sampled_from(NAMES)),
        st.tuples(st.just("time"), st.sampled_from([0.5, 5.0, 100.0, 400.0])),
        st.tuples(st.just("day"), st.just(1)),
        st.tuples(st.just("refuse"), st.booleans()),
        st.tuples(st.just("lose"), st.just(0)),
    ),
    max_size=40,
)


def perform(  # noqa: C901, PLR0912 - one case an operation
    world: World, operation: tuple[object, ...]
) -> None:
    match operation:
        case ("policy", Policy() as found):
            world.tell(read(found))
        case ("rejected", str(problem)):
            world.tell(PolicyRejected(problem))
        case ("resolvers", int(count)):
            world.tell(ResolversFound(tuple(Resolver(SERVER, n, n) for n in range(count))))
        case ("ask", str(name), str(address)):
            # Under `strict` containers may have asked by way of the engine.
            world.heard(name, address, Book.ALLOW, Book.HEARD)
            world.tell(query(name), answer(name, address))
        case ("lie", str(name), str(address)):
            world.tell(answer(name, address, ident=9))
        case ("overhear", str(name), str(address)):
            world.heard(name, address, Book.HEARD)
            told = replace(answer(name, address), forwarded=True)
            world.tell(query(name, forwarded=True), told)
        case ("bridges", int(count)):
            world.tell(links(*range(count)))
        case ("probe", str(problem)):
            world.tell(ScopeProbed(problem))
        case ("resolved", str(name), list(found)):
            for text in found:
                world.heard(name, text)
            world.tell(Resolved(host(name), tuple(map(ip_address, found)), 30))
        case ("unresolved", str(name)):
            world.tell(Unresolved(host(name), "timeout"))
        case ("time", float(seconds)):
            world.now += seconds
            world.tell(Tick(world.today))
        case ("day", _):
            world.today += timedelta(days=1)
            world.tell(Tick(world.today))
        case ("refuse", bool(refusing)):
            world.refusing = refusing
        case _:
            world.kernel = Kernel()
            world.tell(TableLost("gone"))


RESTORED = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(ADDRESSES), st.sampled_from(Book))
)


@given(OPERATIONS, RESTORED, SCOPES)
def test_whatever_comes_nothing_is_open_that_the_policy_in_force_does_not_allow(
    operations: list[tuple[object, ...]], restored: list[tuple[str, str, Book]], scope: Scope
) -> None:
    world = World(scope)
    start = len(operations) // 4
    for operation in operations[:start]:
        perform(world, operation)
        world.check()
    for name, text, book in restored:
        world.heard(name, text, book)
    held = (Held(ip_address(text), 443, 90.0, name, book) for name, text, book in restored)
    world.tell(Started(tuple(held)))
    world.check()
    for operation in operations[start:]:
        perform(world, operation)
        world.check()


@given(OPERATIONS, SCOPES)
def test_when_the_kernel_is_well_again_what_is_wanted_is_in_force_within_a_retry(
    operations: list[tuple[object, ...]], scope: Scope
) -> None:
    world = World(scope)
    world.tell(Started(()))
    wanted = problem = ""
    for operation in operations:
        perform(world, operation)
        if operation[0] == "policy" and isinstance(operation[1], Policy):
            wanted = policy_digest(operation[1])
        if operation[0] == "probe":
            problem = str(operation[1])
    world.refusing = False
    for _ in range(12):
        world.now += 1.0
        if world.kernel.table is None:  # as the daemon's own tick does
            world.tell(TableLost("gone"))
        world.tell(Tick(world.today))
    assert world.kernel.table is not None
    assert world.engine.applied is not None
    assert world.engine.applied.digest == wanted
    assert world.engine.table_problem == ""
    plan = world.engine.applied
    assert plan.classes == classes_for(plan.policy, scope, blind=bool(problem))
    world.check()

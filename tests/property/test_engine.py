"""The engine against a kernel that is pretended: whatever comes, in whatever order.

The kernel here takes tables and elements as the real one would, refuses some and loses its table
now and then. After every event it must not hold what the policy in force does not allow, and the
engine must not claim what the kernel does not hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date, timedelta
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.compiler import ALLOW, Held, Resolver
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
    Started,
    TableLoaded,
    TableLost,
    TableRefused,
    Tick,
    Unresolved,
    WriteLeases,
)
from ramnet.core.names import HostName
from ramnet.core.policy import Policy, policy_digest
from ramnet.core.ruleset import Table
from tests.unit.core.support import (
    CATALOG,
    SERVER,
    SETTINGS,
    TODAY,
    answer,
    host,
    policy,
    query,
    read,
)

Pair = tuple[Addr, int]

EXPIRING = f"expires = {TODAY + timedelta(days=1)}\n"
POLICIES = [
    policy("a.example", "b.example:5000"),
    policy("a.example:5000", "*.w.example", more=EXPIRING),
    policy("b.example:*", more='networks = ["10.0.0.0/8"]\n'),
    policy(),
]
NAMES = ["a.example", "b.example", "x.w.example", "other.example"]
ADDRESSES = ["198.51.100.1", "198.51.100.2", "2001:db8::1", "127.0.0.1"]
FOUR = ADDRESSES[:2]
# The kernel keeps milliseconds, cut off.
ROUNDING = 0.002

_ELEMENT = re.compile(r"(\S+) \. (\d+)(?: timeout (\d+)ms)?(?: comment \"(.*)\")?")


@dataclass
class Kernel:
    """A table, and the elements of its host sets with their expiry."""

    table: Table | None = None
    held: dict[Pair, float] = field(default_factory=dict)

    def load(self, command: LoadTable, now: float) -> None:
        if command.before is None:
            self.held = {}
        else:
            assert command.before.sets == (self.table or command.table).sets
            for _, element in command.drop:
                address, _, port = element.partition(" . ")
                self.held.pop((ip_address(address), int(port)), None)
        self.table = command.table
        for item in command.table.sets:
            if item.name in (f"{ALLOW}4", f"{ALLOW}6"):
                for text in item.elements:
                    found = _ELEMENT.fullmatch(text)
                    assert found is not None, text
                    pair = ip_address(found[1]), int(found[2])
                    self.held[pair] = now + int(found[3]) / 1000

    def write(self, command: WriteLeases, now: float) -> None:
        for item in command.add:
            self.held[item.address, item.port] = now + item.seconds
        for key in command.drop:
            self.held.pop(key, None)

    def alive(self, now: float) -> dict[Pair, float]:
        return {pair: due for pair, due in self.held.items() if due > now}


class World:
    """Carries commands out as the daemon does, and remembers what was ever said of a name."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.today: date = TODAY
        limits = Limits(leases_per_name=8, leases_total=256, pending_queries=64)
        self.engine = Engine(CATALOG, limits, SETTINGS, TODAY)
        self.kernel = Kernel()
        self.refusing = False
        self.said: dict[Addr, set[str]] = {}
        self.accepted: Policy | None = None

    def heard(self, name: str, address: str) -> None:
        self.said.setdefault(ip_address(address), set()).add(name)

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
                        assert len(names) <= len(NAMES)
                    case Log(message=message):
                        assert message

    def check(self) -> None:
        engine, kernel = self.engine, self.kernel
        plan = engine.applied
        if plan is None:
            assert engine.state is State.OFF
            return
        held = kernel.alive(self.now)
        for address, port in held:
            names = self.said.get(address, set())
            assert any(port in plan.allowed.ports_of(HostName(name)) for name in names), (
                f"{address} port {port} is open, and no name that is allowed led there"
            )
            assert not address.is_loopback
        if not engine.table_problem and kernel.table is not None:
            for lease in engine.learner.leases.snapshot(self.now):
                due = held.get((lease.ip, lease.port), self.now)
                assert due >= self.now + lease.remaining - ROUNDING, "more than the kernel holds"
        if plan.policy is None:
            assert engine.state in (State.LOCKED_DOWN, State.OFF)
            assert not held


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("policy"), st.sampled_from(POLICIES)),
        st.tuples(st.just("rejected"), st.sampled_from(["line 1", "line 2"])),
        st.tuples(st.just("resolvers"), st.integers(0, 2)),
        st.tuples(st.just("ask"), st.sampled_from(NAMES), st.sampled_from(FOUR)),
        st.tuples(st.just("lie"), st.sampled_from(NAMES), st.sampled_from(FOUR)),
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


def perform(world: World, operation: tuple[object, ...]) -> None:
    match operation:
        case ("policy", Policy() as found):
            world.tell(read(found))
        case ("rejected", str(problem)):
            world.tell(PolicyRejected(problem))
        case ("resolvers", int(count)):
            world.tell(ResolversFound(tuple(Resolver(SERVER, n, n) for n in range(count))))
        case ("ask", str(name), str(address)):
            world.heard(name, address)
            world.tell(query(name), answer(name, address))
        case ("lie", str(name), str(address)):
            world.tell(answer(name, address, ident=9))
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


@given(OPERATIONS, st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(ADDRESSES))))
def test_whatever_comes_nothing_is_open_that_the_policy_in_force_does_not_allow(
    operations: list[tuple[object, ...]], restored: list[tuple[str, str]]
) -> None:
    world = World()
    start = len(operations) // 4
    for operation in operations[:start]:
        perform(world, operation)
        world.check()
    for name, text in restored:
        world.heard(name, text)
    world.tell(Started(tuple(Held(ip_address(a), 443, 90.0, n) for n, a in restored)))
    world.check()
    for operation in operations[start:]:
        perform(world, operation)
        world.check()


@given(OPERATIONS)
def test_when_the_kernel_is_well_again_what_is_wanted_is_in_force_within_a_retry(
    operations: list[tuple[object, ...]],
) -> None:
    world = World()
    world.tell(Started(()))
    wanted = ""
    for operation in operations:
        perform(world, operation)
        if operation[0] == "policy" and isinstance(operation[1], Policy):
            wanted = policy_digest(operation[1])
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
    world.check()

"""The engine with traffic classes: how it is judged, the three books, and what a scope is worth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ramnet.core.allow import ANY_PORT
from ramnet.core.config import ScopeMode, Weak
from ramnet.core.engine import State
from ramnet.core.events import (
    AnswerCopy,
    Level,
    Log,
    PolicyRejected,
    Resolved,
    ResolveNames,
    ScopeProbed,
    Started,
    TableLoaded,
    WriteLeases,
)
from ramnet.core.learner import Ignored
from ramnet.core.policy import ClassMode, Policy
from ramnet.core.ruleset import Table, render_update
from ramnet.core.scope import Classes, Scope
from ramnet.core.terms import Book, Held, Rung
from tests.unit.core.support import (
    CGROUP,
    CLIENT,
    MARK,
    NETNS,
    SERVER,
    STRICT,
    UID,
    Story,
    addresses,
    answer,
    host,
    ip,
    links,
    loads,
    logs,
    policy,
    query,
    read,
    reply,
    settings,
    told,
    udp,
    writes,
)

ONE, TWO, SIX = "198.51.100.1", "198.51.100.2", "2001:db8::1"
NAME, LOGS, QUAY = "r.example", "logs.example", "quay.io"
TO_LOGS = f'[[destination]]\naddress = "{LOGS}"\nports = [443, 4317]\n'
BROKEN = ScopeProbed("a packet of an engine was not counted")


def asks(*registries: str, more: str = "", **enforcement: str) -> Policy:
    """A policy with these registries and rows of the table ``enforcement``."""
    rows = "".join(f'{key} = "{value}"\n' for key, value in enforcement.items())
    return policy(*registries, more=f"{more}[enforcement]\n{rows}")


def started(found: Policy | None, scope: Scope = CGROUP, rung: Rung = Rung.OBSERVE) -> Story:
    story = Story(settings=settings(scope, rung))
    story.start(found)
    return story


def classes(story: Story) -> Classes:
    assert story.engine.applied is not None
    return story.engine.applied.classes


def sets(table: Table) -> dict[str, tuple[str, ...]]:
    return {item.name: item.elements for item in table.sets}


# What is enforced, and what the state says of it


@pytest.mark.parametrize("scope", [CGROUP, MARK])
@pytest.mark.parametrize("engine", list(ClassMode))
def test_with_engines_told_apart_what_the_policy_wants_is_enforced(
    scope: Scope, engine: ClassMode
) -> None:
    story = started(asks(NAME, engine=engine), scope)
    assert classes(story).engine is engine
    assert story.engine.state is State.ENFORCING
    assert not story.engine.weakened


@pytest.mark.parametrize("scope", [UID, NETNS])
@pytest.mark.parametrize(
    ("weak", "engine", "state"),
    [
        (Weak.CATALOG, "strict", State.DEGRADED),
        (Weak.CATALOG, "catalog", State.ENFORCING),
        (Weak.CATALOG, "off", State.ENFORCING),
        (Weak.STRICT, "strict", State.ENFORCING),
    ],
)
def test_a_weaker_judgement_than_the_policy_wants_is_degraded(
    scope: Scope, weak: Weak, engine: str, state: State
) -> None:
    story = started(asks(NAME, engine=engine), replace(scope, weak=weak))
    assert story.engine.state is state
    assert story.engine.weakened is (state is State.DEGRADED)


@pytest.mark.parametrize(
    ("scope", "state"),
    [
        (CGROUP, State.LOCKED_DOWN),
        (MARK, State.LOCKED_DOWN),
        (STRICT, State.LOCKED_DOWN),
        (replace(UID, weak=Weak.STRICT), State.LOCKED_DOWN),
        (UID, State.DEGRADED),
        (NETNS, State.DEGRADED),
    ],
)
def test_without_a_policy_engines_are_locked_where_they_can_be_told(
    scope: Scope, state: State
) -> None:
    story = started(None, scope)
    assert story.engine.state is state
    judged_alike = scope.mode is ScopeMode.NETNS
    assert classes(story).host is (classes(story).engine if judged_alike else ClassMode.OFF)
    assert classes(story).containers is ClassMode.OFF


@pytest.mark.parametrize("scope", [UID, NETNS])
def test_nobody_is_told_that_a_connection_is_refused_where_none_is(scope: Scope) -> None:
    """Without a policy a weak scope locks nobody: the log must not say that it does."""
    story = Story(settings=settings(scope))
    story.tell(PolicyRejected("line 1: no"))
    said = logs(story.start(None)) + logs(story.tell(PolicyRejected("line 2: no")))
    assert said
    assert not any("every judged connection is refused" in line for line in said), said


def test_engines_that_are_not_told_apart_are_told_once_and_degrade() -> None:
    story = started(asks(NAME))
    assert story.tell(ScopeProbed("")) == []
    said = story.tell(BROKEN)
    assert said[0] == Log(Level.ERROR, f"engines are not told apart: {BROKEN.problem}")
    assert len(logs(said)) == 1
    assert story.tell(BROKEN) == []
    assert (story.engine.state, story.engine.weakened) == (State.DEGRADED, True)
    assert story.engine.scope_problem == BROKEN.problem
    assert logs(story.tell(ScopeProbed("another"))) == ["engines are not told apart: another"]
    assert logs(story.tell(ScopeProbed(""))) == ["engines are told apart again"]
    assert (story.engine.state, story.engine.weakened) == (State.ENFORCING, False)


@pytest.mark.parametrize(
    ("weak", "host_mode"),
    [
        (Weak.CATALOG, ClassMode.OFF),
        (Weak.STRICT, ClassMode.STRICT),
        (Weak.REFUSE, ClassMode.STRICT),
    ],
)
def test_while_engines_are_not_told_apart_anybody_may_be_one(
    weak: Weak, host_mode: ClassMode
) -> None:
    scope = replace(CGROUP, weak=weak, host=ClassMode.OFF)
    story = started(asks(NAME, containers="off"), scope)
    before = story.engine.applied
    story.tell(Resolved(host(NAME), addresses(ONE), 60))
    said = story.tell(BROKEN, 1.0)
    (load,) = loads(said)
    assert story.engine.state is State.DEGRADED
    assert classes(story) == Classes(ClassMode.STRICT, ClassMode.OFF, host_mode)
    assert load.drop == ()
    assert story.held(1.0) == {(ONE, 443)}, "nothing that was learned is lost"
    assert loads(story.tell(ScopeProbed("still not"), 3.0)) == [], "no other rules"
    (load,) = loads(story.tell(ScopeProbed(""), 4.0))
    assert story.engine.applied == before
    assert load.drop == ()
    assert story.held(4.0, Book.DENY) == set()
    assert story.held(4.0) == {(ONE, 443)}


def test_the_rules_of_the_first_table_know_what_the_probe_found_before() -> None:
    story = Story(settings=settings(replace(CGROUP, weak=Weak.STRICT)))
    assert len(story.tell(BROKEN)) == 1
    story.start(asks(NAME))
    assert classes(story).host is ClassMode.STRICT
    assert story.engine.state is State.DEGRADED


def test_no_lock_down_is_claimed_of_engines_that_are_not_told_apart() -> None:
    story = started(None)
    story.tell(BROKEN)
    assert story.engine.state is State.DEGRADED


def test_before_the_first_table_everything_is_weak() -> None:
    story = Story(settings=settings(CGROUP))
    assert story.engine.weakened
    assert story.engine.state is State.OFF


def test_which_ports_are_judged() -> None:
    for scope, judged in ((CGROUP, None), (STRICT, {80, 443, 5000, 8443}), (NETNS, set())):
        story = started(policy("r.example:8443", more=TO_LOGS), scope)
        assert story.engine.applied is not None
        assert story.engine.applied.judged == judged


# Bridges


def test_bridges_change_the_rules_where_containers_are_judged_strictly() -> None:
    story = started(asks(NAME, containers="strict"))
    (load,) = loads(story.tell(links(7, 3)))
    assert load.before is not None
    assert sets(load.table)["bridges"] == ("3 . 3", "7 . 7")
    assert story.tell(links(7, 3)) == []


def test_bridges_are_noted_for_when_a_policy_needs_them() -> None:
    story = started(asks(NAME))
    assert story.tell(links(7)) == []
    (load,) = loads(story.tell(read(asks(NAME, containers="strict"))))
    assert sets(load.table)["bridges"] == ("7 . 7",)


# Which book a name goes into


@pytest.mark.parametrize(
    ("containers", "host_mode", "heard"),
    [
        ("strict", ClassMode.OFF, True),
        # What is allowed is exempt from what the catalogue refuses, and may share an address.
        ("catalog", ClassMode.OFF, True),
        ("off", ClassMode.CATALOG, True),
        ("off", ClassMode.OFF, False),
    ],
)
def test_a_registry_goes_into_the_books_of_engines_and_of_whoever_else_is_judged(
    containers: str, host_mode: ClassMode, heard: bool
) -> None:
    story = started(asks(NAME, containers=containers), replace(CGROUP, host=host_mode))
    said = story.tell(Resolved(host(NAME), addresses(ONE), 60))
    assert writes(said, Book.ALLOW) == [(ONE, 443)]
    assert writes(said, Book.HEARD) == ([(ONE, 443)] if heard else [])
    assert writes(said, Book.DENY) == []
    assert story.held(book=Book.HEARD) == ({(ONE, 443)} if heard else set())


@pytest.mark.parametrize("containers", ["strict", "catalog"])
def test_a_destination_is_for_engines_only(containers: str) -> None:
    story = started(asks(NAME, more=TO_LOGS, containers=containers))
    said = story.tell(Resolved(host(LOGS), addresses(ONE), 60))
    assert set(writes(said, Book.ALLOW)) == {(ONE, 443), (ONE, 4317)}
    assert writes(said, Book.HEARD) == []


def test_a_registry_that_is_a_destination_is_refused_to_everybody_but_engines() -> None:
    more = f'[[destination]]\naddress = "{QUAY}"\n'
    story = started(asks(NAME, more=more, containers="catalog"), CGROUP, Rung.NATIVE)
    said = story.tell(Resolved(host(QUAY), addresses(ONE), 60))
    assert writes(said, Book.ALLOW) == [(ONE, 443)]
    assert writes(said, Book.DENY) == [(ONE, 443)]
    assert writes(said, Book.HEARD) == []
    assert blocks(story)


def test_a_registry_that_is_not_allowed_goes_into_the_book_of_the_catalogue() -> None:
    story = started(asks(NAME))
    said = story.tell(Resolved(host(QUAY), addresses(ONE, SIX), 60))
    assert set(writes(said, Book.DENY)) == {(ONE, 443), (SIX, 443)}
    assert [item.book for item in said if isinstance(item, WriteLeases)] == [Book.DENY]
    allowed = started(asks(QUAY))
    said = allowed.tell(Resolved(host(QUAY), addresses(ONE), 60))
    assert writes(said, Book.ALLOW) == [(ONE, 443)]
    assert writes(said, Book.DENY) == []


@pytest.mark.parametrize(
    ("scope", "containers", "needed"),
    [
        (CGROUP, "off", True),
        (replace(CGROUP, host=ClassMode.OFF), "catalog", True),
        (replace(CGROUP, host=ClassMode.OFF), "strict", False),
        (STRICT, "off", False),
        (NETNS, "off", True),
    ],
)
def test_the_catalogue_is_looked_up_where_anybody_is_judged_by_it(
    scope: Scope, containers: str, needed: bool
) -> None:
    story = Story(settings=settings(scope))
    (names,) = (
        item.names
        for item in story.start(asks(NAME, containers=containers))
        if isinstance(item, ResolveNames)
    )
    assert names[-1] == NAME, "what is refused comes first: it is open until it is known"
    assert (QUAY in names) is needed
    said = story.tell(Resolved(host(QUAY), addresses(ONE), 60))
    assert writes(said, Book.DENY) == ([(ONE, 443)] if needed else [])


def test_an_entry_for_any_port_is_an_element_without_one() -> None:
    found = asks("any.example:*", containers="strict")
    story = started(found)
    said = story.tell(Resolved(host("any.example"), addresses(ONE, SIX), 60))
    assert set(writes(said)) == {(ONE, ANY_PORT), (SIX, ANY_PORT)}
    assert set(writes(said, Book.HEARD)) == {(ONE, ANY_PORT), (SIX, ANY_PORT)}
    narrower = asks("any.example:5000", containers="strict")
    (load,) = loads(story.tell(read(narrower)))
    assert set(load.drop) == {
        ("allow_any4", ONE),
        ("allow_any6", SIX),
        ("heard_any4", ONE),
        ("heard_any6", SIX),
    }
    assert story.held() == {(ONE, 5000), (SIX, 5000)}, "opened on the port that it has now"


def test_what_an_entry_for_any_port_covers_stays_when_it_comes() -> None:
    story = started(policy("any.example:5000"))
    story.ask("any.example", ONE)
    (load,) = loads(story.tell(read(policy("any.example:*"))))
    assert load.drop == ()
    assert story.held() == {(ONE, 5000)}


# Copies of what containers ask and hear


def container_hears(story: Story, name: str, address: str) -> list[tuple[str, int]]:
    """Let a container ask; return what it taught the book of containers, and nobody else."""
    story.tell(query(name, forwarded=True))
    said = story.tell(replace(answer(name, address), forwarded=True))
    assert all(item.book is Book.HEARD for item in said if isinstance(item, WriteLeases))
    return writes(said, Book.HEARD)


@pytest.mark.parametrize("mode", ["strict", "catalog"])
def test_what_containers_hear_is_for_containers_only(mode: str) -> None:
    story = started(asks(NAME, "*.w.example", containers=mode))
    assert container_hears(story, "a.w.example", ONE) == [(ONE, 443)]
    assert story.held() == set()
    assert container_hears(story, QUAY, TWO) == []


def test_a_destination_is_not_learned_from_what_containers_hear() -> None:
    story = started(asks(NAME, more=TO_LOGS, containers="strict"))
    assert container_hears(story, LOGS, ONE) == []
    assert story.engine.heard.ignored == {Ignored.NOT_ALLOWED: 1}


def test_the_queries_of_one_are_not_answered_by_what_the_other_hears() -> None:
    found = asks(NAME, containers="strict")
    for asked, heard in ((True, False), (False, True)):
        story = started(found)
        story.tell(query(NAME, forwarded=asked))
        assert story.tell(replace(answer(NAME, ONE), forwarded=heard)) == []
        assert story.held() == story.held(book=Book.HEARD) == set()


def test_what_engines_hear_is_for_strict_containers_too() -> None:
    """Docker's server asks for them, from the engine, where the resolver is on loopback."""
    story = started(asks("*.w.example", containers="strict", more=TO_LOGS))
    story.ask("a.w.example", ONE)
    assert story.held() == story.held(book=Book.HEARD) == {(ONE, 443)}
    story.ask(LOGS, TWO)
    assert story.held(book=Book.HEARD) == {(ONE, 443)}, "a destination is the engine's only"


def test_what_engines_hear_is_for_engines_only_where_containers_are_not_strict() -> None:
    story = started(asks("*.w.example"))
    assert writes(story.ask("a.w.example", ONE)) == [(ONE, 443)]
    assert story.held(book=Book.HEARD) == set()


# What the kernel still holds at the start


def test_every_book_is_taken_up_again_by_what_it_is_for() -> None:
    story = Story(settings=settings(CGROUP))
    story.tell(read(asks(NAME, "any.example:*", more=TO_LOGS, containers="strict")))
    held = (
        Held(ip(ONE), 443, 100.0, NAME),
        Held(ip(ONE), 443, 90.0, NAME, Book.HEARD),
        Held(ip(TWO), 4317, 100.0, LOGS),
        Held(ip(TWO), 443, 100.0, LOGS, Book.HEARD),  # a destination is not for containers
        Held(ip(SIX), 443, 80.0, QUAY, Book.DENY),
        Held(ip(SIX), 443, 80.0, NAME, Book.DENY),  # refused then, allowed now
        Held(ip(SIX), ANY_PORT, 70.0, "any.example"),
    )
    (load,) = loads(story.tell(Started(held)))
    found = {name: items for name, items in sets(load.table).items() if "timeout" in str(items)}
    assert found == {
        "allow4": (
            f'{ONE} . 443 timeout 100000ms comment "{NAME}"',
            f'{TWO} . 4317 timeout 100000ms comment "{LOGS}"',
        ),
        "allow_any6": (f'{SIX} timeout 70000ms comment "any.example"',),
        "heard4": (f'{ONE} . 443 timeout 90000ms comment "{NAME}"',),
        "deny6": (f'{SIX} . 443 timeout 80000ms comment "{QUAY}"',),
    }
    assert story.held(book=Book.HEARD) == {(ONE, 443)}
    assert story.held(book=Book.DENY) == {(SIX, 443)}


def test_a_book_that_nobody_needs_any_more_is_forgotten_at_the_start() -> None:
    story = Story(settings=settings(STRICT))
    story.tell(read(asks(NAME, containers="off")))
    held = (Held(ip(ONE), 443, 100.0, NAME, Book.HEARD), Held(ip(TWO), 443, 9.0, QUAY, Book.DENY))
    (load,) = loads(story.tell(Started(held)))
    assert not {"heard4", "deny4"} & set(sets(load.table))
    assert story.held(book=Book.HEARD) == story.held(book=Book.DENY) == set()


# Policy edits


def full(scope: Scope = CGROUP) -> Story:
    """Containers are judged strictly, the host as ``scope`` says; every book holds something."""
    story = started(asks(NAME, "two.example", containers="strict"), scope)
    for name, address in ((NAME, ONE), ("two.example", TWO), (QUAY, SIX)):
        story.tell(Resolved(host(name), addresses(address), 60))
    return story


def test_a_name_that_is_allowed_no_more_is_dropped_from_every_book_that_has_it() -> None:
    story = full()
    (load,) = loads(story.tell(read(asks(NAME, containers="strict"))))
    assert set(load.drop) == {("allow4", f"{TWO} . 443"), ("heard4", f"{TWO} . 443")}


def test_a_refused_registry_that_is_allowed_now_changes_its_book() -> None:
    story = full()
    said = story.tell(read(asks(NAME, "two.example", QUAY, containers="strict")))
    (load,) = loads(said)
    assert load.drop == (("deny6", f"{SIX} . 443"),)
    assert writes(said, Book.ALLOW) == [(SIX, 443)]
    assert writes(said, Book.HEARD) == [(SIX, 443)]
    back = story.tell(read(asks(NAME, "two.example", containers="strict")))
    (load,) = loads(back)
    assert set(load.drop) == {("allow6", f"{SIX} . 443"), ("heard6", f"{SIX} . 443")}


def test_nothing_is_dropped_from_a_set_that_goes_itself() -> None:
    story = full(replace(CGROUP, host=ClassMode.OFF))
    (load,) = loads(story.tell(read(asks(NAME, containers="off"))))
    assert load.drop == (("allow4", f"{TWO} . 443"),)
    assert "heard4" not in sets(load.table)
    assert load.before is not None
    update = render_update(load.before, load.table, load.drop)
    assert "delete set inet ramnet heard4\n" in update
    assert "delete element inet ramnet heard4" not in update
    assert story.held(book=Book.HEARD) == set()


def test_from_the_catalogue_to_strict_what_containers_may_reach_stays() -> None:
    story = started(asks(NAME, containers="catalog"))
    story.tell(Resolved(host(NAME), addresses(ONE), 60))
    (load,) = loads(story.tell(read(asks(NAME, containers="strict")), 10.0))
    assert load.before is not None
    update = render_update(load.before, load.table, load.drop)
    assert "set bridges {" in update
    assert "set heard4" not in update
    assert story.held(10.0, Book.HEARD) == {(ONE, 443)}


def test_a_set_that_a_policy_brings_is_made_and_filled() -> None:
    story = started(asks(NAME, containers="off"), replace(CGROUP, host=ClassMode.OFF))
    story.tell(Resolved(host(NAME), addresses(ONE), 60))
    said = story.tell(read(asks(NAME, containers="strict")), 10.0)
    (load,) = loads(said)
    assert load.before is not None
    assert load.drop == ()
    update = render_update(load.before, load.table, load.drop)
    for name in ("heard4", "heard6", "heard_any4", "heard_any6", "bridges"):
        assert f"  set {name} {{\n" in update
    assert "set allow4" not in update, "it stays as it is"
    assert "set deny4" not in update, "nobody is judged by the catalogue"
    assert said.index(load) < next(
        at
        for at, item in enumerate(said)
        if isinstance(item, WriteLeases) and item.book is Book.HEARD
    )
    assert writes(said, Book.HEARD) == [(ONE, 443)]


def test_nothing_is_written_to_a_set_before_it_is_there() -> None:
    story = started(asks(NAME, containers="off"), replace(CGROUP, host=ClassMode.OFF))
    story.engine.handle(read(asks(NAME, containers="strict")), 0.0)
    said = story.engine.handle(Resolved(host(NAME), addresses(ONE), 60), 0.0)
    assert [item.book for item in said if isinstance(item, WriteLeases)] == [Book.ALLOW]
    said = story.engine.handle(TableLoaded(), 1.0)
    assert writes(said, Book.HEARD) == [(ONE, 443)]


def test_a_refused_change_of_classes_leaves_the_books_as_they_were() -> None:
    story = full()
    story.refuses = "no memory"
    story.tell(read(asks(QUAY, containers="off")), 1.0)
    assert story.held(1.0) == {(ONE, 443), (TWO, 443)}
    assert story.held(1.0, Book.HEARD) == {(ONE, 443), (TWO, 443)}
    assert story.held(1.0, Book.DENY) == {(SIX, 443)}
    assert classes(story).containers is ClassMode.STRICT
    said = story.tell(Resolved(host(NAME), addresses("198.51.100.9"), 60), 2.0)
    assert writes(said, Book.HEARD) == [("198.51.100.9", 443)]


# Blocked answers


def blocks(story: Story) -> bool:
    packet = udp(SERVER, 53, CLIENT, 40_000, reply(QUAY, ONE))
    return story.engine.blocker.blocks(packet) == QUAY


@pytest.mark.parametrize(
    ("containers", "host_mode", "rung", "blocked"),
    [
        ("off", ClassMode.OFF, Rung.NATIVE, False),
        ("off", ClassMode.CATALOG, Rung.NATIVE, True),
        ("catalog", ClassMode.OFF, Rung.COMPAT, True),
        ("strict", ClassMode.OFF, Rung.NATIVE, True),
        ("catalog", ClassMode.CATALOG, Rung.OBSERVE, False),
    ],
)
def test_answers_are_changed_where_they_are_held_and_somebody_is_judged(
    containers: str, host_mode: ClassMode, rung: Rung, blocked: bool
) -> None:
    story = started(asks(NAME, containers=containers), replace(CGROUP, host=host_mode), rung)
    assert blocks(story) is blocked


def test_without_a_policy_no_answer_is_changed() -> None:
    assert not blocks(started(None, CGROUP, Rung.NATIVE))


def test_copies_by_their_direction_are_equal_to_none_of_the_other() -> None:
    assert query(NAME) != query(NAME, forwarded=True)
    assert told(b"") == AnswerCopy(told(b"").packet, forwarded=False)


# What programs of the host are shown a notice for


def led(notice: int | None = 7261, **enforcement: str) -> Story:
    """A machine whose host class is judged by the catalogue, with a responder."""
    story = Story(settings=replace(settings(CGROUP, Rung.NATIVE), notice=notice))
    story.start(asks(NAME, **enforcement))
    story.tell(Resolved(host(NAME), addresses(ONE), 60))
    return story


def asked(story: Story, name: str, *found: str) -> bytes:
    """Have a program of the host ask for a name, and return the answer."""
    story.engine.handle(replace(query(name), host=True), 1.0)
    return udp(SERVER, 53, CLIENT, 40_000, reply(name, *found))


def test_what_an_answer_leads_to_is_refused_before_it_is_heard() -> None:
    story = led()
    lesson = story.engine.refuse_answer(host(QUAY), asked(story, QUAY, TWO), 1.0)
    assert lesson is not None
    assert lesson.write is not None
    assert [(str(item.address), item.port) for item in lesson.write.add] == [(TWO, 443)]
    assert list(story.engine.names_at(ip(TWO), 1.0)) == [(QUAY, Book.DENY)]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (QUAY, ONE),  # of an allowed registry
        (QUAY, "10.0.0.1"),  # of a gateway
        ("a.quay.example", TWO),  # not in the catalogue
    ],
)
def test_what_cannot_be_refused_by_its_address_is_not_to_be_heard(name: str, address: str) -> None:
    story = led()
    assert story.engine.refuse_answer(host(name), asked(story, name, address), 1.0) is None


def test_an_answer_that_nobody_asked_for_refuses_nothing() -> None:
    story = led()
    packet = udp(SERVER, 53, CLIENT, 40_000, reply(QUAY, TWO))
    assert story.engine.refuse_answer(host(QUAY), packet, 1.0) is None
    story.engine.handle(replace(query("other.example"), host=True), 1.0)
    assert story.engine.refuse_answer(host(QUAY), packet, 1.0) is None
    assert not story.held(1.0, Book.DENY)


def test_what_an_engine_asked_is_not_what_the_host_asked() -> None:
    story = led()
    story.engine.handle(query(QUAY), 1.0)
    packet = udp(SERVER, 53, CLIENT, 40_000, reply(QUAY, TWO))
    assert story.engine.refuse_answer(host(QUAY), packet, 1.0) is None


@pytest.mark.parametrize(
    ("notice", "enforcement"),
    [(None, {}), (7261, {"on_deny": "reject"}), (7261, {"mode": "audit"})],
)
def test_without_a_notice_nobody_is_to_hear_it(
    notice: int | None, enforcement: dict[str, str]
) -> None:
    story = led(notice, **enforcement)
    assert story.engine.refuse_answer(host(QUAY), asked(story, QUAY, TWO), 1.0) is None

"""The engine as a transcript: events in, commands out, time as an argument."""

from __future__ import annotations

from datetime import date, timedelta
from ipaddress import IPv4Address

import pytest

from ramnet.core.config import Limits
from ramnet.core.engine import RETRY_SECONDS, State
from ramnet.core.events import (
    AnswerCopy,
    Command,
    Event,
    Level,
    LoadTable,
    Log,
    PolicyChanged,
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
from ramnet.core.learner import Ignored
from ramnet.core.policy import policy_digest
from ramnet.core.queries import QUERY_SECONDS
from ramnet.core.ruleset import Table
from ramnet.core.terms import Held, Resolver
from tests.unit.core.support import (
    RESOLVERS,
    SERVER,
    TODAY,
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
    told,
    writes,
)

NO_CONTAINERS = '[enforcement]\ncontainers = "off"\n'  # then the catalogue has nobody to judge
CORP = policy("registry.corp.example:5000")
WIDER = policy("registry.corp.example:5000", "*.mirror.example")
OTHER = policy("registry.other.example")
NAME = "registry.corp.example"
ONE, TWO, SIX = "198.51.100.1", "198.51.100.2", "2001:db8::1"
LOST = TableLost("our table was removed")


def elements(table: Table, name: str) -> tuple[str, ...]:
    return next(item.elements for item in table.sets if item.name == name)


def state(story: Story) -> State:
    return story.engine.state


def only_load(commands: list[Command]) -> LoadTable:
    (load,) = loads(commands)
    return load


# The start


def test_everything_is_gathered_before_the_first_table() -> None:
    corp = policy("registry.corp.example:5000", more=NO_CONTAINERS)
    story = Story()
    assert story.tell(ResolversFound(RESOLVERS)) == []
    assert story.tell(read(corp)) == []
    assert story.tell(links(4)) == []
    assert story.tell(Tick(TODAY)) == []
    assert state(story) is State.OFF
    assert story.engine.applied is None

    (load,) = story.engine.handle(Started(()), 0.0)
    assert isinstance(load, LoadTable)
    assert load.before is None
    assert elements(load.table, "judged") == ("80", "443", "5000")
    assert elements(load.table, "resolvers4") == ("192.0.2.53 . 2",)
    assert state(story) is State.OFF, "nothing is enforced before the kernel says so"

    said = story.engine.handle(TableLoaded(), 0.0)
    assert said == [
        Log(Level.INFO, f"policy {policy_digest(corp)} of acme is in force: 1 registry"),
        PolicyChanged(None, corp, policy_digest(corp)),
        ResolveNames((host(NAME),)),
    ]
    assert state(story) is State.ENFORCING


def test_without_a_valid_policy_at_boot_everything_is_locked_down() -> None:
    story = Story()
    (told_once,) = logs(story.tell(PolicyRejected("line 3: version: is missing")))
    assert told_once == (
        "policy rejected; no policy was valid yet: locked down, every judged connection is refused:"
        " line 3: version: is missing"
    )
    said = story.start(None)
    assert only_load(said).before is None
    assert logs(said) == ["no valid policy: locked down, every judged connection is refused"]
    assert ResolveNames(()) in said
    assert story.engine.state is State.LOCKED_DOWN
    assert story.ask(NAME, ONE) == [], "nothing may be learned"


def test_a_policy_ends_the_lock_down() -> None:
    story = Story()
    locked = only_load(story.start(None))
    said = story.tell(read(CORP))
    assert only_load(said).before == locked.table
    assert state(story) is State.ENFORCING


def test_the_first_table_is_tried_again_when_it_was_refused() -> None:
    story = Story(refuses="no memory")
    assert logs(story.start(CORP)) == ["the kernel refused the ruleset: no memory"]
    assert state(story) is State.OFF
    story.refuses = ""
    assert story.tell(Tick(TODAY), RETRY_SECONDS - 0.1) == []
    only_load(story.tell(Tick(TODAY), RETRY_SECONDS))
    assert state(story) is State.ENFORCING


def test_an_answer_to_no_load_changes_nothing() -> None:
    story = Story()
    assert story.engine.handle(TableLoaded(), 0.0) == []
    assert state(story) is State.OFF


# What the kernel still holds at the start


def test_elements_of_a_run_before_are_kept_by_their_name() -> None:
    story = Story()
    story.tell(read(CORP))
    held = (
        Held(ip(ONE), 5000, 100.0, NAME),
        Held(ip(SIX), 5000, 50.0, NAME),
        Held(ip(TWO), 5000, 100.0, "registry.other.example"),  # allowed then, not now
        Held(ip("198.51.100.3"), 443, 100.0, NAME),  # a port that the policy does not give it
        Held(ip("198.51.100.4"), 5000, 100.0, ""),  # nothing says that the policy allows it
        Held(ip("127.0.0.1"), 5000, 100.0, NAME),  # no name may lead there
        Held(ip("198.51.100.5"), 5000, 0.0, NAME),  # has run out
    )
    load = only_load(story.tell(Started(held), 10.0))
    assert elements(load.table, "allow4") == (f'{ONE} . 5000 timeout 100000ms comment "{NAME}"',)
    assert elements(load.table, "allow6") == (f'{SIX} . 5000 timeout 50000ms comment "{NAME}"',)
    assert story.held(10.0) == {(ONE, 5000), (SIX, 5000)}
    assert story.held(70.0) == {(ONE, 5000)}


def test_a_restored_lease_is_not_written_again_by_the_answer_that_led_there() -> None:
    story = Story()
    story.tell(read(CORP))
    story.tell(Started((Held(ip(ONE), 5000, 360.0, NAME),)))
    assert story.ask(NAME, ONE) == []


# Policy edits


def test_a_new_policy_changes_the_rules_and_drops_what_it_does_not_allow() -> None:
    story = Story()
    first = only_load(story.start(WIDER))
    story.ask(NAME, ONE)
    story.ask("a.mirror.example", TWO)
    assert story.held() == {(ONE, 5000), (TWO, 443)}

    said = story.tell(read(CORP))
    load = only_load(said)
    assert load.before == first.table
    assert load.drop == (("allow4", f"{TWO} . 443"),)
    assert elements(load.table, "allow4") == (), "what was learned stays in the kernel as it is"
    assert story.held() == {(ONE, 5000)}
    assert policy_digest(CORP) in logs(said)[0]
    assert not any(isinstance(item, ResolveNames) for item in said), "the same names as before"
    assert any(isinstance(item, ResolveNames) for item in story.tell(read(OTHER)))


def test_the_table_after_next_is_changed_from_the_one_in_between() -> None:
    story = Story()
    story.start(CORP)
    second = only_load(story.tell(read(WIDER)))
    third = only_load(story.tell(read(OTHER)))
    assert third.before == second.table


def test_a_lease_that_two_names_led_to_stays_while_one_of_them_is_allowed() -> None:
    story = Story()
    story.start(policy("a.example", "b.example"))
    story.ask("a.example", ONE)
    story.ask("b.example", ONE)
    load = only_load(story.tell(read(policy("b.example"))))
    assert load.drop == ()
    (lease,) = story.engine.learner.leases.snapshot(0.0)
    assert lease.names == ("b.example",)
    assert only_load(story.tell(read(OTHER))).drop == (("allow4", f"{ONE} . 443"),)


def test_a_lease_goes_when_its_name_stays_allowed_on_another_port_only() -> None:
    story = Story()
    story.start(CORP)
    story.ask(NAME, ONE)
    load = only_load(story.tell(read(policy(f"{NAME}:5001"))))
    assert load.drop == (("allow4", f"{ONE} . 5000"),)


def test_a_port_that_a_policy_edit_adds_to_a_resolved_name_is_open_at_once() -> None:
    """The resolver keeps its pace for a name it knows: up to an hour until it would tell again."""
    story = Story()
    story.start(CORP)
    story.tell(Resolved(host(NAME), addresses(ONE), 3600))
    said = story.tell(read(policy(f"{NAME}:5000", f"{NAME}:5001")), 10.0)
    assert (ONE, 5001) in writes(said)


def test_what_was_resolved_longer_ago_than_any_lease_opens_no_new_port() -> None:
    story = Story(Limits(lease_max_seconds=3600))
    story.start(CORP)
    story.tell(Resolved(host(NAME), addresses(ONE), 3600))
    said = story.tell(read(policy(f"{NAME}:5000", f"{NAME}:5001")), 3600.1)
    assert writes(said) == []


def test_an_element_goes_whose_name_ran_out_while_the_table_was_loaded() -> None:
    """It stayed for the name that is still allowed; what is left of it is one that is not."""
    story = Story()
    story.start(policy("a.example", "b.example"))
    story.ask("a.example", ONE, now=0.0)
    story.ask("b.example", ONE, now=300.0)
    (load,) = loads(story.engine.handle(read(policy("a.example")), 350.0))
    assert load.drop == ()
    said = story.engine.handle(TableLoaded(), 400.0)
    assert WriteLeases((), ((ip(ONE), 443),)) in said
    assert story.held(400.0) == set()


def test_the_same_policy_again_is_no_change() -> None:
    story = Story()
    story.start(CORP)
    assert story.tell(read(CORP)) == []
    assert story.tell(read(policy("registry.corp.example:5000"))) == []


def test_a_broken_edit_leaves_the_policy_standing_and_is_told_once() -> None:
    story = Story()
    story.start(CORP)
    story.ask(NAME, ONE)
    (log,) = story.tell(PolicyRejected("line 2: no"))
    assert log == Log(
        Level.ERROR,
        f"policy rejected; the policy {policy_digest(CORP)} stays in force: line 2: no",
    )
    assert story.tell(PolicyRejected("line 2: no")) == []
    assert logs(story.tell(PolicyRejected("line 9: no"))) != []
    assert story.engine.policy_problem == "line 9: no"
    assert state(story) is State.ENFORCING
    assert story.held() == {(ONE, 5000)}
    assert story.tell(read(CORP)) == []
    assert story.engine.policy_problem == ""


# Tables that the kernel does not take


def test_a_refused_table_leaves_the_policy_before_in_force() -> None:
    story = Story()
    story.start(CORP)
    story.ask(NAME, ONE)
    story.refuses = "Device or resource busy"
    said = story.tell(read(OTHER), 100.0)
    change, whole = loads(said)
    assert change.before is not None
    assert whole.before is None, "what is to be changed may not be there"
    assert logs(said) == [
        "the ruleset could not be changed (Device or resource busy); loading the whole table again",
        "the kernel refused the ruleset: Device or resource busy",
    ]
    assert story.engine.state is State.DEGRADED
    assert story.engine.applied is not None
    assert story.engine.applied.policy == CORP
    assert story.held(100.0) == {(ONE, 5000)}
    assert writes(story.ask(NAME, TWO, now=101.0)) == [(TWO, 5000)]
    assert story.ask("registry.other.example", ONE, now=101.0) == [], "not in force yet"


def test_a_refused_table_is_tried_again_whole_at_the_pace_of_retries() -> None:
    story = Story()
    story.start(CORP)
    story.ask(NAME, ONE)
    story.refuses = "busy"
    story.tell(read(WIDER), 10.0)
    assert story.tell(Tick(TODAY), 10.0 + RETRY_SECONDS - 0.5) == []
    again = story.tell(Tick(TODAY), 10.0 + RETRY_SECONDS)
    assert only_load(again).before is None
    assert logs(again) == [], "the same problem is told once"
    assert story.tell(Tick(TODAY), 10.0 + RETRY_SECONDS + 1) == []

    story.refuses = ""
    last = story.tell(Tick(TODAY), 10.0 + 2 * RETRY_SECONDS)
    load = only_load(last)
    assert load.before is None
    assert len(elements(load.table, "allow4")) == 1, "what was learned goes into the whole table"
    assert state(story) is State.ENFORCING
    assert story.engine.table_problem == ""
    assert story.tell(Tick(TODAY), 10.0 + 3 * RETRY_SECONDS) == []


def test_another_problem_of_the_kernel_is_told_too() -> None:
    story = Story(refuses="one")
    story.start(CORP)
    story.refuses = "two"
    said = story.tell(Tick(TODAY), RETRY_SECONDS)
    assert logs(said) == ["the kernel refused the ruleset: two"]


def test_a_new_policy_while_a_retry_is_due_is_tried_at_once_and_whole() -> None:
    story = Story()
    story.start(CORP)
    story.refuses = "busy"
    story.tell(read(OTHER))
    story.refuses = ""
    load = only_load(story.tell(read(WIDER), 0.1))
    assert load.before is None
    assert state(story) is State.ENFORCING


def test_a_rejected_policy_is_logged_with_the_one_that_is_really_in_force() -> None:
    story = Story()
    story.start(CORP)
    story.refuses = "busy"
    story.tell(read(OTHER))
    (said,) = logs(story.tell(PolicyRejected("line 1: no")))
    assert policy_digest(CORP) in said
    assert policy_digest(OTHER) not in said


# Tables that go away


def test_a_lost_table_is_put_back_whole_with_what_was_learned() -> None:
    story = Story()
    story.start(CORP)
    story.ask(NAME, ONE, now=0.0)
    said = story.tell(LOST, 60.0)
    assert said[0] == Log(Level.WARNING, "our table was removed; loading the whole table again")
    load = only_load(said)
    assert load.before is None
    assert elements(load.table, "allow4") == (f'{ONE} . 5000 timeout 300000ms comment "{NAME}"',)
    assert story.engine.repairs == 1
    assert state(story) is State.ENFORCING


def test_a_table_that_cannot_be_put_back_is_tried_at_the_pace_of_retries() -> None:
    story = Story()
    story.start(CORP)
    story.refuses = "no memory"
    assert len(loads(story.tell(LOST, 1.0))) == 1
    tried = []
    for second in range(2, 22):
        story_said = story.tell(LOST, float(second)) + story.tell(Tick(TODAY), float(second))
        tried += [second for _ in loads(story_said)]
    assert tried == [6, 11, 16, 21]
    assert story.engine.repairs == 1
    assert story.engine.state in (State.DEGRADED, State.OFF)


def test_nothing_is_lost_before_there_was_a_table() -> None:
    story = Story()
    assert story.tell(LOST) == []
    assert story.engine.repairs == 0


def test_what_was_in_force_is_put_back_when_the_kernel_refuses_what_is_wanted() -> None:
    """A policy that the kernel never takes must not cost the one that it had taken."""
    big = policy("registry.other.example", more='networks = ["10.30.0.0/24"]\n')
    story = Story()
    stood = only_load(story.start(CORP)).table
    story.refuses = "too big"
    refused = loads(story.tell(read(big), 1.0))[-1]
    tried: list[Table] = []
    for second in range(2, 20):
        for event in (LOST, Tick(TODAY)):
            for load in loads(story.engine.handle(event, float(second))):
                tried.append(load.table)
                bad = load.table == refused.table
                story.engine.handle(TableRefused("too big") if bad else TableLoaded(), second)
    assert stood in tried, "the table of the policy in force was never put back"


# Resolvers


def test_other_resolvers_change_the_rules_and_nothing_else() -> None:
    story = Story()
    story.start(CORP)
    story.ask(NAME, ONE)
    moved = (Resolver(SERVER, 3, 4),)
    said = story.tell(ResolversFound(moved))
    (load,) = said
    assert isinstance(load, LoadTable)
    assert load.before is not None
    assert load.drop == ()
    assert elements(load.table, "resolvers4") == ("192.0.2.53 . 3",)
    assert elements(load.table, "answerers4") == ("192.0.2.53 . 4",)
    assert story.engine.applied is not None
    assert story.engine.applied.resolvers == moved
    assert story.tell(ResolversFound(moved)) == []


def test_resolvers_at_addresses_of_this_machine_are_known() -> None:
    stub = Resolver(IPv4Address("127.0.0.53"), 1, 1, frozenset({101}))
    redirected = Resolver(IPv4Address("192.0.2.9"), 4, 7)
    story = Story()
    story.tell(ResolversFound((stub, *RESOLVERS, redirected)))
    assert story.engine.local_resolvers == (stub, redirected)


# Expiry


def test_an_entry_ends_with_its_day() -> None:
    last_day = TODAY + timedelta(days=1)
    story = Story()
    story.start(policy("old.example", more=f"expires = {last_day}\n{NO_CONTAINERS}"))
    story.ask("old.example", ONE)
    only_load(story.tell(Tick(last_day)))
    assert story.held() == {(ONE, 443)}
    said = story.tell(Tick(last_day + timedelta(days=1)))
    assert only_load(said).drop == (("allow4", f"{ONE} . 443"),)
    assert said[-1] == ResolveNames(())
    assert story.held() == set()
    assert story.tell(Tick(last_day + timedelta(days=1))) == []
    assert story.tell(read(OTHER)) != []


def test_a_policy_that_is_read_later_is_judged_by_the_day_it_is_then() -> None:
    story = Story()
    story.start(None)
    story.tell(Tick(date(2030, 1, 1)))
    story.tell(read(policy("old.example", more="expires = 2029-12-31\n")))
    assert story.engine.applied is not None
    assert story.engine.applied.allowed.registries == ()


# Learning from DNS


def test_an_answer_to_a_query_opens_its_addresses() -> None:
    story = Story()
    story.start(CORP)
    said = story.ask(NAME, ONE, TWO)
    assert said == [
        WriteLeases((Held(ip(ONE), 5000, 360, NAME), Held(ip(TWO), 5000, 360, NAME)), ())
    ]
    assert (story.engine.learner.answers, story.engine.learner.learned) == (1, 2)
    assert story.ask(NAME, ONE, TWO, now=1.0) == [], "known for long enough"


def test_an_ipv6_answer_and_another_case_of_letters_teach_as_well() -> None:
    story = Story()
    story.start(CORP)
    story.tell(query("ReGistry.Corp.Example", "AAAA"))
    said = story.tell(answer("REGISTRY.corp.EXAMPLE", SIX, qtype="AAAA"))
    assert writes(said) == [(SIX, 5000)]


def test_a_name_under_a_wildcard_is_learned_by_its_own_name() -> None:
    story = Story()
    story.start(WIDER)
    (write,) = story.ask("deep.a.mirror.example", ONE)
    assert isinstance(write, WriteLeases)
    assert write.add[0].name == "deep.a.mirror.example"
    assert story.ask("mirror.example", ONE) == []


@pytest.mark.parametrize(
    ("copy", "why"),
    [
        (answer(NAME, ONE, ident=8), Ignored.NO_QUERY),
        (answer(NAME, ONE, port=40_001), Ignored.NO_QUERY),
        (answer("other.mirror.example", ONE), Ignored.NO_QUERY),
        (answer(NAME, SIX, qtype="AAAA"), Ignored.NO_QUERY),
        (told(reply(NAME, ONE), server=IPv4Address("192.0.2.66")), Ignored.NO_QUERY),
        (told(reply(NAME, ONE), client=IPv4Address("192.0.2.11")), Ignored.NO_QUERY),
        (answer("elsewhere.example", ONE), Ignored.NOT_ALLOWED),
        (told(b""), Ignored.MALFORMED),
        (told(reply(NAME, ONE)[:-1]), Ignored.MALFORMED),
        (AnswerCopy(b""), Ignored.MALFORMED),
        (AnswerCopy(b"\x45" + b"\0" * 100), Ignored.MALFORMED),
        (answer(NAME), Ignored.NO_ADDRESS),
        (answer(NAME, "127.0.0.1"), Ignored.NOT_TEACHABLE),
        (answer(NAME, "169.254.169.254"), Ignored.NOT_TEACHABLE),
    ],
)
def test_what_is_not_the_answer_to_a_query_teaches_nothing(copy: AnswerCopy, why: Ignored) -> None:
    story = Story()
    story.start(WIDER)
    story.tell(query(NAME))
    assert story.tell(copy) == []
    assert story.engine.learner.ignored == {why: 1}
    assert story.held() == set()


def test_a_lie_does_not_use_the_query_up() -> None:
    story = Story()
    story.start(CORP)
    story.tell(query(NAME))
    story.tell(answer(NAME, TWO, ident=8))
    assert writes(story.tell(answer(NAME, ONE))) == [(ONE, 5000)]


def test_an_unsolicited_and_a_second_answer_teach_nothing() -> None:
    story = Story()
    story.start(CORP)
    assert story.tell(answer(NAME, ONE)) == []
    story.ask(NAME, ONE)
    assert story.tell(answer(NAME, TWO)) == []
    assert story.engine.learner.ignored == {Ignored.NO_QUERY: 2}


@pytest.mark.parametrize(("after", "learned"), [(-0.1, True), (0.0, True), (0.1, False)])
def test_an_answer_is_waited_for_so_long(after: float, learned: bool) -> None:
    story = Story()
    story.start(CORP)
    story.tell(query(NAME), 100.0)
    said = story.tell(answer(NAME, ONE), 100.0 + QUERY_SECONDS + after)
    assert bool(said) is learned


def test_a_tick_forgets_old_queries_and_keeps_young_ones() -> None:
    story = Story()
    story.start(CORP)
    story.tell(query(NAME, ident=1), 0.0)
    story.tell(query(NAME, ident=2), 5.0)
    story.tell(Tick(TODAY), QUERY_SECONDS + 1)
    assert len(story.engine.learner.queries) == 1
    assert story.tell(answer(NAME, ONE, ident=1), QUERY_SECONDS + 1) == []
    assert story.tell(answer(NAME, ONE, ident=2), QUERY_SECONDS + 1) != []


def test_a_query_that_is_sent_again_is_waited_for_from_then_on() -> None:
    story = Story()
    story.start(CORP)
    story.tell(query(NAME), 0.0)
    story.tell(query(NAME), 9.0)
    story.tell(Tick(TODAY), 11.0)
    assert story.tell(answer(NAME, ONE), 12.0) != []


def test_pending_queries_are_bounded_and_the_oldest_go_first() -> None:
    story = Story(Limits(pending_queries=64))
    story.start(CORP)
    for port in range(65):
        story.tell(query(NAME, port=port))
    assert len(story.engine.learner.queries) == 64
    assert story.tell(answer(NAME, ONE, port=0)) == []
    assert story.tell(answer(NAME, ONE, port=1)) != []


def test_a_name_that_is_not_allowed_any_more_when_the_answer_comes_is_not_learned() -> None:
    story = Story()
    story.start(CORP)
    story.tell(query(NAME))
    story.tell(read(OTHER))
    assert story.tell(answer(NAME, ONE)) == []
    assert story.engine.learner.ignored == {Ignored.NOT_ALLOWED: 1}


def test_while_one_policy_replaces_another_only_what_both_allow_is_learned() -> None:
    """A refused table takes nothing back, and an accepted one has nothing more to drop."""
    story = Story()
    story.start(policy("both.example", "old.example:5000"))
    story.engine.handle(read(policy("both.example", "new.example", "old.example:5001")), 0.0)
    assert writes(story.ask("both.example", ONE)) == [(ONE, 443)]
    assert story.ask("old.example", ONE) == []
    assert story.ask("new.example", ONE) == []
    story.engine.handle(TableLoaded(), 0.0)
    assert writes(story.ask("new.example", TWO)) == [(TWO, 443)]
    assert writes(story.ask("old.example", TWO)) == [(TWO, 5001)]


@pytest.mark.parametrize("packet", [b"", b"\x45", b"\x45" + b"\0" * 40, b"\x60" + b"\xff" * 100])
def test_a_query_that_does_not_parse_is_passed_over(packet: bytes) -> None:
    story = Story()
    story.start(CORP)
    assert story.tell(QueryCopy(packet)) == []
    assert story.tell(answer(NAME, ONE)) == []


def test_before_the_first_table_nothing_is_learned() -> None:
    story = Story()
    story.tell(read(CORP))
    assert story.ask(NAME, ONE) == []
    assert story.held() == set()


def test_what_is_over_a_limit_is_counted_and_what_a_name_loses_is_dropped() -> None:
    story = Story(Limits(leases_per_name=8, leases_total=256))
    story.start(CORP)
    first = [f"198.51.100.{n}" for n in range(1, 9)]
    story.ask(NAME, *first)
    said = story.ask(NAME, "203.0.113.1", now=10.0)
    (write,) = said
    assert isinstance(write, WriteLeases)
    assert write.drop == ((ip("198.51.100.1"), 5000),)
    story.ask(NAME, *(f"203.0.113.{n}" for n in range(1, 11)), now=20.0)
    assert story.engine.learner.ignored == {Ignored.FULL: 2}


# The daemon's own look-ups


def test_a_resolved_name_opens_its_addresses_on_its_ports() -> None:
    story = Story()
    story.start(policy("two.example:5000", "two.example:5001"))
    said = story.tell(Resolved(host("two.example"), addresses(ONE, SIX), 600))
    assert set(writes(said)) == {(ONE, 5000), (ONE, 5001), (SIX, 5000), (SIX, 5001)}
    assert isinstance(said[0], WriteLeases)
    assert {item.seconds for item in said[0].add} == {660}


def test_a_result_that_comes_after_the_name_was_removed_opens_nothing() -> None:
    story = Story()
    story.start(CORP)
    story.tell(read(OTHER))
    assert story.tell(Resolved(host(NAME), addresses(ONE), 60)) == []


def test_a_failed_look_up_keeps_what_the_name_had() -> None:
    story = Story()
    story.start(CORP)
    story.tell(Resolved(host(NAME), addresses(ONE, SIX), 60), 0.0)
    said = story.tell(Unresolved(host(NAME), "timeout"), 350.0)
    assert set(writes(said)) == {(ONE, 5000), (SIX, 5000)}
    assert story.held(700.0) == {(ONE, 5000), (SIX, 5000)}


@pytest.mark.parametrize(("now", "kept"), [(3600.0, True), (3600.1, False)])
def test_what_a_name_had_is_given_up_after_the_longest_lease(now: float, kept: bool) -> None:
    story = Story(Limits(lease_max_seconds=3600))
    story.start(CORP)
    story.tell(Resolved(host(NAME), addresses(ONE), 60), 0.0)
    failed = Unresolved(host(NAME), "timeout")
    for before in range(300, 3301, 300):
        assert writes(story.tell(failed, float(before))) == [(ONE, 5000)]
    assert bool(story.tell(failed, now)) is kept
    assert story.held(3700.0) == ({(ONE, 5000)} if kept else set())


def test_each_family_keeps_its_own_last_answer() -> None:
    story = Story()
    story.start(CORP)
    story.tell(Resolved(host(NAME), addresses(ONE), 60), 0.0)
    story.tell(Resolved(host(NAME), addresses(SIX), 60), 1.0)
    story.tell(Resolved(host(NAME), addresses(TWO), 60), 2.0)
    said = story.tell(Unresolved(host(NAME), "timeout"), 350.0)
    assert set(writes(said)) == {(TWO, 5000), (SIX, 5000)}


@pytest.mark.parametrize("event", [Unresolved(host(NAME), "no"), Resolved(host(NAME), (), 0)])
def test_no_address_was_ever_known(event: Event) -> None:
    story = Story()
    story.start(CORP)
    assert story.tell(event) == []


def test_what_a_removed_name_had_is_forgotten_with_it() -> None:
    story = Story()
    story.start(CORP)
    story.tell(Resolved(host(NAME), addresses(ONE), 60))
    story.tell(read(OTHER))
    story.tell(read(CORP))
    assert story.tell(Unresolved(host(NAME), "timeout")) == []


def test_names_to_resolve_are_bounded() -> None:
    story = Story(Limits(warm_names=2))
    names = ("a.example", "b.example", "c.example", "*.d.example")
    said = story.start(policy(*names, more=NO_CONTAINERS))
    assert said[-1] == ResolveNames((host("a.example"), host("b.example")))

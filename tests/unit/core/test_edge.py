"""When the table of the uplinks is loaded, and that it stands apart from the table of all of IP."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from ramnet.core.edge import RETRY_SECONDS
from ramnet.core.egress import Local, Uplink
from ramnet.core.engine import State
from ramnet.core.events import (
    Command,
    EgressLost,
    LinksFound,
    LoadEgress,
    Resolved,
    ResolversFound,
    Tick,
)
from ramnet.core.policy import ClassMode, Policy
from ramnet.core.ruleset import Family, Table
from ramnet.core.terms import Book, Rung
from tests.unit.core.support import (
    CGROUP,
    TODAY,
    Story,
    addresses,
    host,
    loads,
    logs,
    policy,
    read,
    settings,
)

ONE = "198.51.100.1"
WAN, VLAN = Uplink(2, "eth0"), Uplink(5, "eth0.50")
LOCAL = Local(frozenset({"02:00:00:00:00:01"}), frozenset(addresses("192.0.2.2")))
BOOKS = {
    "catalog": (Book.HEARD, Book.DENY),
    "strict": (Book.HEARD,),
    "off": (),
}


def asks(containers: str, *registries: str) -> Policy:
    more = f'[enforcement]\ncontainers = "{containers}"\n'
    return policy(*(registries or ("r.example",)), more=more)


def devices(*uplinks: Uplink, bridges: tuple[int, ...] = (), local: Local = LOCAL) -> LinksFound:
    return LinksFound(bridges, uplinks, local)


def edges(commands: Iterable[Command]) -> list[LoadEgress]:
    return [item for item in commands if isinstance(item, LoadEgress)]


def started(found: Policy | None, *uplinks: Uplink, egress: bool = True) -> Story:
    story = Story(settings=replace(settings(CGROUP, Rung.NATIVE), egress=egress))
    story.tell(devices(*uplinks))
    story.start(found)
    return story


def judged(story: Story) -> ClassMode:
    """How containers beyond the uplinks are judged now."""
    return story.engine.edge.mode


def sets(table: Table | None) -> dict[str, tuple[str, ...]]:
    assert table is not None
    assert table.family is Family.NETDEV
    return {item.name: item.elements for item in table.sets}


@pytest.mark.parametrize("mode", BOOKS)
def test_what_is_loaded_for_the_uplinks_of_a_machine(mode: str) -> None:
    story = Story(settings=replace(settings(CGROUP), egress=True))
    story.tell(devices(WAN, VLAN))
    said = story.start(asks(mode))
    (edge,) = edges(said)
    assert (edge.table is None) is (mode == "off")
    assert set(edge.books) == set(BOOKS[mode])
    assert said.index(edge) > said.index(loads(said)[0]), "the table of all of IP comes first"
    assert judged(story) is ClassMode(mode)
    if edge.table is not None:
        assert [chain.device for chain in edge.table.chains[2:]] == ["eth0", "eth0.50"]
        assert sets(edge.table)["own"] == ("02:00:00:00:00:01",)


def test_without_an_uplink_there_is_no_table_and_nobody_is_judged_there() -> None:
    story = Story(settings=replace(settings(CGROUP), egress=True))
    (edge,) = edges(story.start(asks("catalog")))
    assert edge.table is None, "one of a run before is removed"
    assert judged(story) is ClassMode.OFF
    (edge,) = edges(story.tell(devices(WAN)))
    assert edge.table is not None
    assert judged(story) is ClassMode.CATALOG


def test_without_the_hook_nothing_is_loaded() -> None:
    story = started(asks("strict"), WAN, egress=False)
    assert edges(story.tell(devices(VLAN))) == []
    assert edges(story.tell(read(asks("catalog")))) == []
    assert judged(story) is ClassMode.OFF


def test_it_is_loaded_again_when_what_it_says_is_not_so_any_more() -> None:
    story = started(asks("strict"), WAN)
    assert edges(story.tell(devices(WAN))) == [], "the same devices"
    assert len(edges(story.tell(devices(WAN, VLAN)))) == 1
    moved = replace(LOCAL, addresses=frozenset(addresses("192.0.2.3")))
    (edge,) = edges(story.tell(devices(WAN, VLAN, local=moved)))
    assert "192.0.2.3" in sets(edge.table)["local4"]
    (edge,) = edges(story.tell(ResolversFound(())))
    assert sets(edge.table)["resolvers4"] == ()
    (edge,) = edges(story.tell(read(asks("catalog"))))
    assert set(edge.books) == set(BOOKS["catalog"])
    assert edges(story.tell(read(asks("catalog")))) == []


def test_bridges_and_uplinks_that_change_at_once_are_both_followed() -> None:
    story = started(asks("strict"), WAN)
    said = story.tell(devices(VLAN, bridges=(9,)))
    (load,) = loads(said)
    assert {item.name: item.elements for item in load.table.sets}["bridges"] == ("9 . 9",)
    (edge,) = edges(said)
    assert edge.table is not None
    assert [chain.device for chain in edge.table.chains[2:]] == ["eth0.50"]


def test_what_is_known_is_in_it_from_the_beginning() -> None:
    story = started(asks("catalog"))
    story.tell(Resolved(host("r.example"), addresses(ONE), 60))
    story.tell(Resolved(host("quay.io"), addresses("198.51.100.2"), 60))
    (edge,) = edges(story.tell(devices(WAN)))
    found = sets(edge.table)
    assert found["heard4"] == (f'{ONE} . 443 timeout 360000ms comment "r.example"',)
    assert found["deny4"] == ('198.51.100.2 . 443 timeout 360000ms comment "quay.io"',)


def test_that_the_kernel_does_not_take_it_keeps_nothing_else_from_being_enforced() -> None:
    story = Story(settings=replace(settings(CGROUP), egress=True), refuses_edge="no such device")
    story.tell(devices(WAN))
    said = story.start(asks("catalog"))
    assert "containers on macvlan and ipvlan networks are not judged: no such device" in logs(said)
    assert story.engine.state is State.ENFORCING
    assert judged(story) is ClassMode.OFF
    assert story.tell(Tick(TODAY), RETRY_SECONDS - 0.1) == []
    again = story.tell(Tick(TODAY), RETRY_SECONDS)
    assert (len(edges(again)), logs(again)) == (1, []), "the same problem is told once"
    story.refuses_edge = ""
    assert len(edges(story.tell(Tick(TODAY), 2 * RETRY_SECONDS))) == 1
    assert judged(story) is ClassMode.CATALOG
    assert edges(story.tell(Tick(TODAY), 9 * RETRY_SECONDS)) == []


def test_it_is_put_back_when_it_is_gone() -> None:
    story = started(asks("catalog"), WAN)
    (said,) = logs(story.tell(EgressLost("another program removed our table"), 10.0))
    assert "another program removed our table" in said
    assert judged(story) is ClassMode.OFF
    assert len(edges(story.tell(Tick(TODAY), 10.0 + RETRY_SECONDS))) == 1
    assert (judged(story), story.engine.edge.problem) == (ClassMode.CATALOG, "")


def test_it_follows_what_is_in_force_and_not_what_is_wanted() -> None:
    story = started(asks("catalog"), WAN)
    story.refuses = "no memory"
    assert edges(story.tell(read(asks("strict")), 1.0)) == []
    (edge,) = edges(story.tell(devices(WAN, VLAN), 2.0))
    assert set(edge.books) == set(BOOKS["catalog"])
    assert judged(story) is ClassMode.CATALOG
    story.refuses = ""
    (edge,) = edges(story.tell(Tick(TODAY), 20.0))
    assert set(edge.books) == set(BOOKS["strict"])


def test_before_the_start_there_is_nothing_to_follow() -> None:
    story = Story(settings=replace(settings(CGROUP), egress=True))
    story.tell(EgressLost("it was never there"), 0.0)
    assert story.tell(Tick(TODAY), RETRY_SECONDS) == []

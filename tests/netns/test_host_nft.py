"""Whole rulesets on a real kernel: what is rendered is taken, whole or not at all."""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck
from hypothesis import given as over
from hypothesis import settings as runs
from hypothesis import strategies as st

from ramnet.core.compiler import compile_table
from ramnet.core.config import ScopeMode
from ramnet.core.policy import ClassMode, Policy
from ramnet.core.ruleset import (
    Table,
    render_create,
    render_remove,
    render_replace,
    render_update,
)
from ramnet.core.scope import Classes, Group, Scope
from ramnet.core.terms import TABLE, Book, Held, Machine, Resolver, Rung, element_of
from ramnet.errors import HostError
from ramnet.host.elements import Element, Elements
from ramnet.host.nft import ERROR_CHARACTERS, Nft
from ramnet.host.scratch import in_scratch_netns
from tests.netns.groups import own_group
from tests.unit.core.support import MARK, NETNS, STRICT, UID, allowed, ip, policy, settings

T = TypeVar("T")

ALLOW = Book.ALLOW
CGROUPS = Path("/sys/fs/cgroup")  # where nft looks for the paths of cgroups
ENGINES = Classes(ClassMode.STRICT, ClassMode.OFF, ClassMode.OFF)
CORP = policy("registry.corp.example:8443", more='networks = ["10.0.0.0/8", "2001:db8::/32"]\n')
OTHER = policy("localhost:*", "other.example:9000", more='networks = ["172.16.0.0/12"]\n')
LONG = ".".join(["a" * 31] * 4)


def compiled(
    found: Policy | None,
    *held: Held,
    interface: int = 1,
    classes: Classes = ENGINES,
    scope: Scope = STRICT,
    rung: Rung = Rung.OBSERVE,
) -> Table:
    resolvers = (Resolver(IPv4Address("192.0.2.53"), interface, interface),)
    machine = Machine((7, 9), (8,), frozenset({IPv4Address("192.0.2.2")}))
    return compile_table(allowed(found), resolvers, held, settings(scope, rung), classes, machine)


def names_of(nft: Nft) -> set[str]:
    return set(re.findall(r"set (\S+) {", nft.list_table("inet", TABLE)))


def settled(text: str) -> str:
    """A listing without the times that pass, and without what runs out at once."""
    text = re.sub(r" expires [0-9a-z]+", "", text)
    return re.sub(r"\t\telements = { 2001:db8::1 [^}]*}\n", "", text)


# One transaction


def test_a_mistake_anywhere_changes_nothing() -> None:
    def work() -> None:
        nft = Nft()
        nft.apply(render_create(compiled(CORP)))
        before = nft.list_table("inet", TABLE)
        for bad in ("add rule inet ramnet nothing accept\n", "nonsense\n"):
            with pytest.raises(HostError, match=r"^nft: "):
                nft.apply(render_replace(compiled(OTHER)) + bad)
            assert nft.list_table("inet", TABLE) == before

    in_scratch_netns(work)


def test_a_table_is_put_in_the_place_of_whatever_was_there() -> None:
    def work() -> None:
        nft = Nft()
        nft.apply("table inet other {\n chain c {\n accept\n }\n}\n")
        for found in (CORP, OTHER, None, CORP):
            nft.apply(render_replace(compiled(found)))
        text = nft.list_table("inet", TABLE)
        nft.apply(render_remove(TABLE) + render_create(compiled(CORP)))
        assert nft.list_table("inet", TABLE) == text
        nft.apply(render_remove(TABLE))
        nft.apply(render_remove(TABLE))
        assert nft.tables() == (("inet", "other"),), "nobody else's table is touched"

    in_scratch_netns(work)


def test_the_kernel_lists_what_was_meant() -> None:
    def work() -> None:
        nft = Nft()
        held = Held(ip("198.51.100.1"), 8443, 300.0, "registry.corp.example")
        nft.apply(render_create(compiled(CORP, held)))
        text = " ".join(settled(nft.list_table("inet", TABLE)).split())
        for part in (
            "elements = { 80, 443, 5000, 8443 }",
            '198.51.100.1 . 8443 timeout 5m comment "registry.corp.example"',
            "elements = { 10.0.0.0/8 }",
            "elements = { 2001:db8::/32 }",
            'elements = { 192.0.2.53 . "lo" }',
            "type filter hook output priority mangle - 10; policy accept;",
            "type filter hook input priority 110; policy accept;",
            "tcp dport 8443 ip daddr @static4_8443 accept",
            "log group 7261 snaplen 512" if "snaplen 512" in text else "log snaplen 512 group 7261",
            'counter name "refused" meta l4proto tcp reject with tcp reset',
        ):
            assert part in text, part

    in_scratch_netns(work)


@pytest.mark.parametrize("length", [125, 126, 127])
def test_names_as_long_as_a_comment_may_be(length: int) -> None:
    """The compiler's limit must be the one that nft and the kernel have."""

    def work() -> None:
        nft = Nft()
        held = Held(ip("198.51.100.1"), 8443, 300.0, LONG[:length])
        nft.apply(render_create(compiled(CORP, held)))
        elements = Elements(TABLE)
        (found,) = elements.list(ALLOW)
        elements.close()
        assert found.comment == LONG[:length]

    in_scratch_netns(work)


@pytest.mark.parametrize("extra", [1, 10, 126])
def test_a_name_that_is_too_long_for_a_comment_is_loaded_without(extra: int) -> None:
    def work() -> None:
        name = f"{LONG}{'.b' * (extra // 2)}{'b' * (extra % 2)}"
        assert len(name) == 127 + extra
        held = Held(ip("198.51.100.1"), 8443, 300.0, name)
        nft = Nft()
        nft.apply(render_create(compiled(CORP, held)))
        assert "198.51.100.1 . 8443" in nft.list_table("inet", TABLE)

    in_scratch_netns(work)


# Updates around what was learned


def learned_before_an_update(work: Callable[[Nft, Elements, Table], T]) -> T:
    def body() -> T:
        nft = Nft()
        old = compiled(CORP, Held(ip("198.51.100.9"), 8443, 500.0, "held.example"))
        nft.apply(render_create(old))
        elements = Elements(TABLE)
        elements.write(
            ALLOW,
            [
                Element(ip("198.51.100.1"), 8443, 300.0, "kept.example"),
                Element(ip("198.51.100.2"), 8443, 300.0, "gone.example"),
                Element(ip("2001:db8::1"), 443, 0.001, "over.example"),
            ],
        )
        try:
            return work(nft, elements, old)
        finally:
            elements.close()

    return in_scratch_netns(body)


def table_number(elements: Elements) -> int:
    found = elements.identity()
    assert found is not None
    return found[0]


DROP = (
    (f"{ALLOW}4", "198.51.100.2 . 8443"),
    (f"{ALLOW}6", "2001:db8::1 . 443"),  # has run out: cannot be deleted as it is
    (f"{ALLOW}4", "203.0.113.7 . 443"),  # was never there
)


def test_an_update_keeps_what_was_learned_with_its_timeout_and_drops_what_it_is_told() -> None:
    def work(nft: Nft, elements: Elements, old: Table) -> None:
        handle = table_number(elements)
        nft.apply(render_update(old, compiled(OTHER), DROP))
        found = {str(item.address): item for item in elements.list(ALLOW)}
        assert found.keys() == {"198.51.100.1", "198.51.100.9"}
        assert 250 < found["198.51.100.1"].timeout <= 300
        assert 450 < found["198.51.100.9"].timeout <= 500
        assert found["198.51.100.1"].comment == "kept.example"
        assert table_number(elements) == handle, "not another table"

    learned_before_an_update(work)


def test_an_update_makes_the_same_rules_and_sets_as_a_whole_load() -> None:
    def work(nft: Nft, _elements: Elements, old: Table) -> None:
        nft.apply(render_update(old, compiled(OTHER, interface=1), DROP))
        for name in (f"{ALLOW}4", f"{ALLOW}6"):
            nft.apply(f"flush set inet {TABLE} {name}\n")
        updated = nft.list_table("inet", TABLE)
        nft.apply(render_replace(compiled(OTHER, interface=1)))
        assert pieces(updated) == pieces(nft.list_table("inet", TABLE))
        assert "static4_8443" not in updated
        assert "static4_any" in updated

    learned_before_an_update(work)


def pieces(listing: str) -> set[str]:
    """The sets, counters and chains of a table in any order."""
    whole = listing.rstrip().removesuffix("\n}")
    return {" ".join(part.split()) for part in re.split(r"\n\n|\n\t(?=set|chain|counter)", whole)}


def test_updates_back_and_forth_end_where_they_began() -> None:
    def work() -> None:
        nft = Nft()
        tables = [compiled(found) for found in (CORP, OTHER, None, CORP)]
        nft.apply(render_create(tables[0]))
        first = pieces(nft.list_table("inet", TABLE))
        for old, new in pairwise(tables):
            nft.apply(render_update(old, new, ()))
        assert pieces(nft.list_table("inet", TABLE)) == first

    in_scratch_netns(work)


def test_counters_go_on_counting_through_an_update() -> None:
    def work() -> None:
        nft = Nft()
        text = render_create(compiled(CORP))
        nft.apply(text.replace("counter refused { }", "counter refused { packets 7 bytes 9 }"))
        nft.apply(render_update(compiled(CORP), compiled(OTHER), ()))
        elements = Elements(TABLE)
        counters = elements.counters()
        elements.close()
        assert counters["refused"] == 7

    in_scratch_netns(work)


@pytest.mark.parametrize(
    "bad", [("nothing", "198.51.100.2 . 8443"), (f"{ALLOW}4", "2001:db8::1 . 443")]
)
def test_an_update_with_a_part_that_fails_changes_nothing(bad: tuple[str, str]) -> None:
    def work(nft: Nft, elements: Elements, old: Table) -> None:
        before = settled(nft.list_table("inet", TABLE))
        with pytest.raises(HostError):
            nft.apply(render_update(old, compiled(OTHER), (*DROP, bad)))
        assert settled(nft.list_table("inet", TABLE)) == before
        assert len(list(elements.list(ALLOW))) >= 3

    learned_before_an_update(work)


def test_an_update_of_a_table_that_is_gone_fails_and_makes_none() -> None:
    """Half of a table would be worse than none: nobody would notice that it is not whole."""

    def work() -> None:
        nft = Nft()
        with pytest.raises(HostError):
            nft.apply(render_update(compiled(CORP), compiled(OTHER), ()))
        assert nft.tables() == ()

    in_scratch_netns(work)


NETWORKS = st.one_of(
    st.builds(
        lambda value, prefix: f"{IPv4Address(value >> (32 - prefix) << (32 - prefix))}/{prefix}",
        st.integers(0x01000000, 0xDFFFFFFF),
        st.integers(3, 32),
    ),
    st.builds(
        lambda value, prefix: f"{IPv6Address(value >> (128 - prefix) << (128 - prefix))}/{prefix}",
        st.integers(0x2000 << 112, (0x4000 << 112) - 1),
        st.integers(4, 128),
    ),
)
REGISTRIES = st.tuples(
    st.sampled_from(
        ["a.example", "b.example", "localhost", "*.c.example", "docker.io", "10.0.0.1"]
    ),
    st.sampled_from(["", ":5000", ":8443", ":*"]),
)


DESTINATIONS = st.tuples(
    st.sampled_from(["git.example", "*.logs.example", "10.0.0.9", "[2001:db8::9]"]),
    st.sampled_from(["", ":22", ":4317", ":*"]),
)
MODES = st.sampled_from(ClassMode)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    chosen = draw(st.lists(REGISTRIES, max_size=4, unique=True))
    networks = draw(st.lists(NETWORKS, max_size=8, unique=True)) if chosen else []
    more = f"networks = {networks}\n".replace("'", '"') if networks else ""
    for address, port in draw(st.lists(DESTINATIONS, max_size=3, unique=True)):
        more += f'[[destination]]\naddress = "{address}{port}"\n'
    return policy(*(host + port for host, port in chosen), more=more)


@pytest.fixture(scope="module")
def groups() -> Iterator[tuple[Group, ...]]:
    """Cgroups at two levels, as nft has to find them."""
    with own_group() as first:
        second = first / "engine.service"
        second.mkdir()
        yield tuple(
            Group(path.name, level, path.stat().st_ino, str(path.relative_to(CGROUPS)))
            for level, path in ((1, first), (2, second))
        )


SCOPES = {
    "cgroup": Scope(ScopeMode.CGROUP),
    "mark": MARK,
    "uid": UID,
    "netns": NETNS,
}


@pytest.mark.parametrize("mode", SCOPES)
@runs(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@over(
    st.lists(
        st.tuples(policies(), st.builds(Classes, MODES, MODES, MODES)), min_size=2, max_size=3
    ),
    st.sampled_from([Rung.OBSERVE, Rung.COMPAT]),
)
def test_the_kernel_takes_every_policy_and_every_change_between_two(
    groups: tuple[Group, ...], mode: str, found: list[tuple[Policy, Classes]], rung: Rung
) -> None:
    scope = replace(SCOPES[mode], groups=groups)

    def work() -> None:
        nft = Nft()
        tables = [
            compiled(item, classes=classes, scope=scope, rung=rung) for item, classes in found
        ]
        nft.apply(render_create(tables[0]))
        for old, new in pairwise(tables):
            nft.apply(render_update(old, new, ()))
        updated = pieces(nft.list_table("inet", TABLE))
        nft.apply(render_replace(tables[-1]))
        assert pieces(nft.list_table("inet", TABLE)) == updated

    in_scratch_netns(work)


def test_a_group_is_in_the_set_of_its_level_by_its_id(groups: tuple[Group, ...]) -> None:
    """nft takes paths only; what the kernel compares is the id, and netlink feeds that."""

    def work() -> None:
        table = compiled(CORP, scope=Scope(ScopeMode.CGROUP, groups))
        Nft().apply(render_create(table))
        elements = Elements(TABLE)
        try:
            for group in groups:
                assert elements.groups(group.level) == {group.ident}
        finally:
            elements.close()

    in_scratch_netns(work)


def test_a_group_that_is_not_there_is_refused_whole(groups: tuple[Group, ...]) -> None:
    gone = replace(groups[0], place=f"{groups[0].place}-gone")

    def work() -> None:
        nft = Nft()
        with pytest.raises(HostError, match=r"^nft: "):
            nft.apply(render_create(compiled(CORP, scope=Scope(ScopeMode.CGROUP, (gone,)))))
        assert nft.tables() == ()

    in_scratch_netns(work)


def test_every_book_is_read_back_from_its_sets() -> None:
    everything = Classes(ClassMode.STRICT, ClassMode.STRICT, ClassMode.CATALOG)
    held = tuple(
        Held(ip(address), port, 300.0, f"{book}.example", book)
        for book, ports in ((Book.ALLOW, (443, 0)), (Book.HEARD, (443, 0)), (Book.DENY, (443,)))
        for port in ports
        for address in ("198.51.100.1", "2001:db8::1")
    )

    def work() -> None:
        nft = Nft()
        table = compiled(CORP, *held, classes=everything, scope=replace(MARK, groups=()))
        nft.apply(render_create(table))
        elements = Elements(TABLE)
        try:
            for book in Book:
                found = {(item.address, item.port, item.comment) for item in elements.list(book)}
                assert found == {
                    (item.address, item.port, item.name) for item in held if item.book is book
                }
            drop = [element_of(item.book, item.address, item.port) for item in held]
            nft.apply(render_update(table, table, drop))
            assert [item for book in Book for item in elements.list(book)] == []
        finally:
            elements.close()

    in_scratch_netns(work)


def test_sets_come_and_go_with_the_classes_and_what_stays_keeps_what_it_has() -> None:
    strict = Classes(ClassMode.STRICT, ClassMode.STRICT, ClassMode.OFF)
    catalog = Classes(ClassMode.STRICT, ClassMode.CATALOG, ClassMode.OFF)

    def work() -> None:
        nft = Nft()
        tables = [compiled(CORP, classes=modes) for modes in (ENGINES, strict, catalog, ENGINES)]
        nft.apply(render_create(tables[0]))
        elements = Elements(TABLE)

        def change(at: int) -> set[str]:
            nft.apply(render_update(tables[at - 1], tables[at], ()))
            return names_of(nft)

        try:
            elements.write(Book.ALLOW, [Element(ip("198.51.100.1"), 8443, 300.0, "a.example")])
            first = names_of(nft)
            came = {"heard4", "heard6", "heard_any4", "heard_any6"}
            assert change(1) == first | came | {"bridges", "uplinked"}
            elements.write(Book.HEARD, [Element(ip("198.51.100.2"), 8443, 300.0, "b.example")])
            assert change(2) == first | came | {"deny4", "deny6"}
            assert [item.comment for item in elements.list(Book.HEARD)] == ["b.example"]
            elements.write(Book.DENY, [Element(ip("198.51.100.3"), 443, 300.0, "c.example")])
            assert change(3) == first
            assert [item.comment for item in elements.list(Book.ALLOW)] == ["a.example"]
        finally:
            elements.close()

    in_scratch_netns(work)


# Errors


def test_the_text_of_an_error_is_one_short_line() -> None:
    def work() -> None:
        items = ", ".join(f"10.0.{n // 250}.{n % 250}" for n in range(20_000))
        nft = Nft()
        with pytest.raises(HostError) as caught:
            nft.apply(
                f"table inet t {{ set s {{ type inet_service; elements = {{ {items} }}; }}; }}\n"
            )
        assert len(caught.value.message) <= len("nft: ") + ERROR_CHARACTERS + len(" ...")
        assert "\n" not in caught.value.message
        with pytest.raises(HostError, match="No such file or directory"):
            nft.list_table("inet", "nothing")

    in_scratch_netns(work)


def test_listing_tables_after_text_and_text_after_tables() -> None:
    def work() -> None:
        nft = Nft()
        assert nft.tables() == ()
        nft.apply("table inet a\ntable ip b\n")
        assert set(nft.tables()) == {("inet", "a"), ("ip", "b")}
        assert nft.list_table("inet", "a").startswith("table inet a {")
        assert set(nft.tables()) == {("inet", "a"), ("ip", "b")}

    in_scratch_netns(work)


def test_what_cannot_be_listed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nft = Nft()

    class Failing:
        def set_json_output(self, _on: object) -> None:
            pass

        def cmd(self, _text: str) -> tuple[int, str, str]:
            return -1, "", "Error:\n  netlink:   broken"

    monkeypatch.setattr(nft, "_nft", Failing())
    with pytest.raises(HostError, match=r"^nft: Error: netlink: broken$"):
        nft.tables()


def without_bindings(name: str, *arguments: Any, **keywords: Any) -> ModuleType:
    if name == "nftables":
        raise ImportError("No module named 'nftables'")
    return IMPORT(name, *arguments, **keywords)


IMPORT = builtins.__import__


def test_missing_bindings_are_told_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nftables", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_bindings)
    with pytest.raises(HostError, match="bindings cannot be loaded") as caught:
        Nft()
    assert "libnftables1" in caught.value.hint


def test_a_missing_library_is_told_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("libnftables.so.1: cannot open shared object file")

    fake = ModuleType("nftables")
    vars(fake)["Nftables"] = missing
    monkeypatch.setitem(sys.modules, "nftables", fake)
    with pytest.raises(HostError, match="libnftables cannot be loaded") as caught:
        Nft()
    assert "libnftables1" in caught.value.hint

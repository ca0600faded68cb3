"""Set elements by netlink, against the kernel's own listing and pyroute2's reading of our bytes."""

from __future__ import annotations

import errno
import os
import random
import re
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.nftsocket import nft_set_elem_list_msg

from ramnet.core.compiler import compile_table
from ramnet.core.policy import ClassMode
from ramnet.core.ruleset import Chain, Counter, Hook, Rule, Table, render_create, render_remove
from ramnet.core.scope import PROBED, Classes
from ramnet.core.terms import (
    ALIVE,
    ALIVE_SECONDS,
    HELD,
    IMPOSTERS,
    PACED,
    REFUSED,
    TABLE,
    Book,
    Rung,
    Settings,
)
from ramnet.errors import HostError
from ramnet.host import elements as module
from ramnet.host import netlink
from ramnet.host.elements import BATCH_ELEMENTS, Element, Elements
from ramnet.host.netlink import NetfilterSocket
from ramnet.host.nft import Nft
from ramnet.host.scratch import in_scratch_netns
from tests.netns.groups import own_group, program_in
from tests.unit.core.support import allowed

T = TypeVar("T")
Work = Callable[[Elements, Nft], T]

ALLOW = Book.ALLOW
NO_OTHERS = Classes(ClassMode.STRICT, ClassMode.OFF, ClassMode.OFF)

ONE, TWO, SIX = (ip_address(text) for text in ("198.51.100.1", "198.51.100.2", "2001:db8::1"))
LONG = ".".join(["a" * 31] * 4)  # 127 characters
GROWTHS = 20


def on_kernel(work: Work[T], size: int = 1024) -> T:
    """Do it with our table loaded, in a namespace of its own."""

    def body() -> T:
        nft = Nft()
        settings = Settings(0x0100_0000, size, Rung.COMPAT)
        table = compile_table(allowed(None), (), (), settings, NO_OTHERS)
        nft.apply(render_create(table))
        elements = Elements(TABLE)
        try:
            return work(elements, nft)
        finally:
            elements.close()

    return in_scratch_netns(body)


def listed(elements: Elements) -> dict[tuple[str, int], Element]:
    return {(str(item.address), item.port): item for item in elements.list(ALLOW)}


def seen_by_nft(nft: Nft) -> str:
    """The listing of the kernel, with one blank between words."""
    return " ".join(nft.list_table("inet", TABLE).split())


# Adding, extending, removing


def test_what_is_added_is_listed_by_nft_and_read_back() -> None:
    def work(elements: Elements, nft: Nft) -> None:
        added = [Element(ONE, 443, 300.0, "r.example"), Element(SIX, 5000, 60.0, "six.example")]
        elements.write(ALLOW, added)
        text = seen_by_nft(nft)
        assert "198.51.100.1 . 443 timeout 5m expires" in text
        assert 'comment "r.example"' in text
        assert "2001:db8::1 . 5000 timeout 1m expires" in text
        found = listed(elements)
        assert found.keys() == {("198.51.100.1", 443), ("2001:db8::1", 5000)}
        first = found["198.51.100.1", 443]
        assert first.comment == "r.example"
        assert 290 < first.timeout <= 300

    on_kernel(work)


def test_nothing_to_write_is_nothing_to_do() -> None:
    on_kernel(lambda elements, _nft: elements.write(ALLOW, []))


def test_what_nft_itself_has_written_is_read_back() -> None:
    def work(elements: Elements, nft: Nft) -> None:
        nft.apply(
            f"add element inet {TABLE} {ALLOW}4 {{ 198.51.100.1 . 443 timeout 90s"
            ' comment "by hand" , 198.51.100.2 . 80 }\n'
        )
        found = listed(elements)
        first = found["198.51.100.1", 443]
        assert first.comment == "by hand"
        assert 80 < first.timeout <= 90
        assert found["198.51.100.2", 80] == Element(TWO, 80)

    on_kernel(work)


@pytest.mark.parametrize(("before", "after"), [(30.0, 300.0), (300.0, 30.0), (0.5, 0.25)])
def test_the_timeout_and_the_comment_of_an_element_really_change(
    before: float, after: float
) -> None:
    """A plain add of an element that exists succeeds and changes nothing before kernel 6.12."""

    def work(elements: Elements, _nft: Nft) -> None:
        elements.write(ALLOW, [Element(ONE, 443, before, "old.example")])
        elements.write(ALLOW, [Element(ONE, 443, after, "new.example")])
        found = listed(elements)["198.51.100.1", 443]
        assert after * 0.9 - 0.2 < found.timeout <= after
        assert found.comment == "new.example"

    on_kernel(work)


def test_an_element_that_has_just_run_out_is_written_and_removed_all_the_same() -> None:
    def work(elements: Elements, _nft: Nft) -> None:
        many = [Element(ip_address("198.51.0.0") + n, 443, 0.001, "x") for n in range(100)]
        elements.write(ALLOW, many)
        elements.write(ALLOW, [], many[:50])
        elements.write(ALLOW, [Element(e.address, e.port, 60.0, "y") for e in many[50:]])
        found = listed(elements)
        assert len(found) == 50
        assert all(item.comment == "y" for item in found.values())

    on_kernel(work)


def test_what_is_dropped_is_gone_and_the_rest_stays() -> None:
    def work(elements: Elements, _nft: Nft) -> None:
        elements.write(ALLOW, [Element(ip, port, 60.0) for ip in (ONE, SIX) for port in (80, 443)])
        elements.write(ALLOW, [Element(TWO, 443, 60.0)], [Element(ONE, 80), Element(SIX, 443)])
        assert listed(elements).keys() == {
            ("198.51.100.1", 443),
            ("198.51.100.2", 443),
            ("2001:db8::1", 80),
        }

    on_kernel(work)


def test_dropping_what_is_not_there_is_no_error() -> None:
    def work(elements: Elements, _nft: Nft) -> None:
        elements.write(ALLOW, [], [Element(ONE, 443), Element(SIX, 443)])
        assert listed(elements) == {}

    on_kernel(work)


@pytest.mark.parametrize(
    "count", [BATCH_ELEMENTS - 1, BATCH_ELEMENTS, BATCH_ELEMENTS + 1, 5 * BATCH_ELEMENTS]
)
def test_more_than_a_batch(count: int) -> None:
    def work(elements: Elements, _nft: Nft) -> None:
        base = ip_address("2001:db8::")
        many = [Element(base + n, 65_535, 3600.0, LONG[:120]) for n in range(count)]
        elements.write(ALLOW, many)
        found = listed(elements)
        assert len(found) == count
        assert {item.comment for item in found.values()} == {LONG[:120]}
        elements.write(ALLOW, [], many)
        assert listed(elements) == {}

    on_kernel(work)


def test_a_list_is_whole_while_the_set_grows() -> None:
    """The kernel makes room in a hash set while it is read: parts of a list repeat others then."""
    base = ip_address("2001:db8::")
    many = [Element(base + n, 65_535, 3600.0, LONG[:120]) for n in range(16 * BATCH_ELEMENTS)]

    def work(elements: Elements, _nft: Nft) -> None:
        for end in range(BATCH_ELEMENTS, len(many) + 1, BATCH_ELEMENTS):
            elements.write(ALLOW, many[end - BATCH_ELEMENTS : end])
            found = [item.address for item in elements.list(ALLOW)]
            assert sorted(found) == [item.address for item in many[:end]]

    for _ in range(GROWTHS):
        on_kernel(work, size=2 * len(many))


@pytest.mark.parametrize(
    ("name", "kept"),
    [(LONG[:126], True), (LONG, True), (LONG + "b", False), (LONG * 2, False), ("", False)],
)
def test_a_name_that_is_too_long_for_a_comment_goes_without(name: str, kept: bool) -> None:
    """The bound is nft's own, 127 characters: the compiler, which writes nft's language, has it."""

    def work(elements: Elements, nft: Nft) -> None:
        elements.write(ALLOW, [Element(ONE, 443, 60.0, name)])
        assert listed(elements)["198.51.100.1", 443].comment == (name if kept else "")
        assert (f'comment "{name}"' in seen_by_nft(nft)) is kept

    on_kernel(work)


# Errors


def test_a_missing_set_or_table_is_told() -> None:
    def work(elements: Elements, nft: Nft) -> None:
        with pytest.raises(HostError) as caught:
            elements.write("nothing", [Element(ONE, 443, 60.0)])
        assert "1 elements to set nothing of table ramnet" in caught.value.message
        assert os.strerror(errno.ENOENT) in caught.value.message
        assert "ramnet status" in caught.value.hint
        nft.apply(render_remove(TABLE))
        with pytest.raises(HostError, match=os.strerror(errno.ENOENT)):
            elements.write(ALLOW, [Element(ONE, 443, 60.0)])
        assert list(elements.list(ALLOW)) == []
        assert elements.counters() == {}
        assert elements.identity() is None

    on_kernel(work)


def test_the_socket_is_of_use_after_an_error() -> None:
    def work(elements: Elements, _nft: Nft) -> None:
        many = [Element(ip_address("198.51.0.0") + n, 443, 60.0) for n in range(200)]
        for _ in range(3):
            with pytest.raises(HostError):
                elements.write("nothing", many)
        elements.write(ALLOW, many)
        assert len(listed(elements)) == 200
        assert elements.identity() is not None

    on_kernel(work)


def test_a_batch_that_does_not_fit_is_not_applied_by_half() -> None:
    def work(elements: Elements, _nft: Nft) -> None:
        many = [Element(ip_address("198.51.0.0") + n, 443, 60.0) for n in range(20)]
        elements.write(ALLOW, many[:10])
        with pytest.raises(HostError, match=os.strerror(errno.ENFILE)):
            elements.write(ALLOW, many[10:])
        assert len(listed(elements)) == 10

    on_kernel(work, size=8)


# The table's identity, and its counters


def test_a_table_is_told_from_any_other_and_from_what_it_was() -> None:
    def work(elements: Elements, nft: Nft) -> None:
        first = elements.identity()
        assert first is not None
        assert elements.identity() == first
        elements.write(ALLOW, [Element(ONE, 443, 60.0)])
        elements.refresh_alive()
        assert elements.identity() == first, "elements come and go"
        nft.apply(f"add rule inet {TABLE} judge counter\n")
        assert elements.identity() != first, "a rule that somebody added"
        nft.apply(f"flush chain inet {TABLE} output\n")
        flushed = elements.identity()
        assert flushed is not None
        assert dict(flushed[1])["output"] < dict(first[1])["output"]
        nft.apply(render_remove(TABLE) + render_create(Table(TABLE)))
        made = elements.identity()
        assert made is not None
        assert made[0] != first[0]
        assert made[1] == ()
        nft.apply(f"table inet other {{ chain c {{ }}; }}\ntable ip {TABLE}\n")
        assert elements.identity() == made, "tables of another family or name are not ours"
        nft.apply(f"delete table inet {TABLE}\n")
        assert elements.identity() is None

    on_kernel(work)


def test_the_daemon_is_alive_for_a_moment() -> None:
    def work(elements: Elements, nft: Nft) -> None:
        assert " elements" not in nft_set(nft, ALIVE)
        for _ in range(3):
            elements.refresh_alive()
            assert re.search(r"tcp timeout 1s .*udp timeout 1s", nft_set(nft, ALIVE))
        time.sleep(ALIVE_SECONDS + 0.2)
        assert " elements" not in nft_set(nft, ALIVE), "it ran out by itself"
        nft.apply(render_remove(TABLE))
        with pytest.raises(HostError, match="refreshing set alive"):
            elements.refresh_alive()

    on_kernel(work)


def nft_set(nft: Nft, name: str) -> str:
    text = seen_by_nft(nft)
    start = text.index(f"set {name} {{")
    return text[start : text.index("set caches4")]


def test_a_queue_rule_that_nft_cannot_say() -> None:
    def work(elements: Elements, nft: Nft) -> None:
        elements.append_queue_rule("hold", 7)
        assert "chain hold { queue num 7 bypass }" in seen_by_nft(nft) or (
            "NFQUEUE" in seen_by_nft(nft)
        )
        found = elements.identity()
        assert found is not None
        assert dict(found[1])["hold"] == 2, "a rule, and the jump to the chain"
        with pytest.raises(HostError, match="appending xt target NFQUEUE to chain nothing"):
            elements.append_queue_rule("nothing", 7)

    on_kernel(work)


def test_counters_are_read_by_name() -> None:
    def work(elements: Elements, nft: Nft) -> None:
        assert elements.counters() == dict.fromkeys((REFUSED, HELD, IMPOSTERS, PACED, PROBED), 0)
        rule = Chain("out", (Rule("counter name seen"),), Hook.OUTPUT, 0)
        nft.apply(
            render_remove(TABLE) + render_create(Table(TABLE, (Counter("seen"),), (), (rule,)))
        )
        assert elements.counters() == {"seen": 0}
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(3):
                sender.sendto(b"x", ("127.0.0.1", 9))
        assert elements.counters()["seen"] >= 3

    on_kernel(work)


# The ids of cgroups


def on_groups(work: Work[T]) -> T:
    """Do it with two sets of cgroups, the first of them small."""

    def body() -> T:
        nft = Nft()
        nft.apply(
            f"table inet {TABLE} {{ set engines1 {{ type cgroupsv2; size 4; }}\n"
            "set engines2 { type cgroupsv2; }\n}\n"
        )
        elements = Elements(TABLE)
        try:
            return work(elements, nft)
        finally:
            elements.close()

    return in_scratch_netns(body)


def test_ids_are_fed_and_read_back_by_level() -> None:
    def work(elements: Elements, _nft: Nft) -> None:
        assert elements.groups(1) == frozenset()
        elements.feed_groups(1, [1, 2**63 + 5])
        elements.feed_groups(2, iter([3]))
        assert elements.groups(1) == {1, 2**63 + 5}
        assert elements.groups(2) == {3}
        assert elements.groups(3) == frozenset(), "there is no such set"

    on_groups(work)


def test_ids_that_nft_has_looked_up_are_read_back() -> None:
    """An independent writer: the path of a group that is there, and its inode."""
    with own_group() as group:

        def work(elements: Elements, nft: Nft) -> None:
            place = os.path.relpath(group, "/sys/fs/cgroup")
            nft.apply(f'add element inet {TABLE} engines1 {{ "{place}" }}\n')
            assert elements.groups(1) == {group.stat().st_ino}
            assert place in nft.list_table("inet", TABLE)
            elements.feed_groups(1, [], [group.stat().st_ino])
            elements.feed_groups(2, [group.stat().st_ino])
            assert elements.groups(1) == frozenset()
            assert place in nft.list_table("inet", TABLE), "nft finds the path of our id"

        on_groups(work)


def test_ids_come_and_go_at_once() -> None:
    def work(elements: Elements, _nft: Nft) -> None:
        elements.feed_groups(1, [1, 2])
        elements.feed_groups(1, [2, 3], [1, 4])
        assert elements.groups(1) == {2, 3}
        elements.feed_groups(1, [5, 5], [5, 2])
        assert elements.groups(1) == {3, 5}, "what is wanted stays"
        elements.feed_groups(1, [])
        assert elements.groups(1) == {3, 5}

    on_groups(work)


def test_no_packet_sees_a_group_missing_while_its_id_is_fed_again() -> None:
    """The old and the new id change places, as when a group was made anew."""
    with own_group() as group:
        ident, stale = group.stat().st_ino, 2**40

        def work(elements: Elements, nft: Nft) -> None:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            nft.apply(
                f"add counter inet {TABLE} missed\n"
                f"add chain inet {TABLE} out {{ type filter hook output priority 0; }}\n"
                f"add rule inet {TABLE} out socket cgroupv2 level 1 @engines1 return\n"
                f"add rule inet {TABLE} out udp dport 9 counter name missed\n"
            )
            elements.feed_groups(1, [ident])
            flood = "import select\nsender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            flood += "print(flush=True)\nwhile not select.select([0], [], [], 0)[0]:\n"
            flood += "    sender.sendto(b'x', ('127.0.0.1', 9))\n"
            with subprocess.Popen(
                program_in(group, flood), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as program:
                assert program.stdout is not None
                program.stdout.readline()
                for _ in range(200):
                    elements.feed_groups(1, [ident], [stale])
                    elements.feed_groups(1, [ident, stale])
                program.communicate("\n", timeout=10)
            assert elements.counters()["missed"] == 0

        on_groups(work)


def test_ids_that_cannot_be_fed_are_told_and_none_is() -> None:
    def work(elements: Elements, _nft: Nft) -> None:
        with pytest.raises(HostError, match="feeding cgroups to set engines3 of table ramnet: No"):
            elements.feed_groups(3, [1])
        elements.feed_groups(1, [1, 2, 3])
        with pytest.raises(HostError, match=os.strerror(errno.ENFILE)):
            elements.feed_groups(1, [4, 5, 6], [1])
        assert elements.groups(1) == {1, 2, 3}

    on_groups(work)


# An independent reader of the bytes that are sent


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Keep what is sent, and answer that all is well."""
    sent: list[bytes] = []

    def keep(_self: NetfilterSocket, data: bytes, _sequences: range) -> dict[int, int]:
        sent.append(data)
        return {}

    monkeypatch.setattr(NetfilterSocket, "acknowledged", keep)
    return sent


def decoded(data: bytes) -> list[tuple[int, int, Any]]:
    """Type, flags and pyroute2's reading of each message between the edges of a transaction."""
    found = []
    offset = 0
    while offset < len(data):
        length, kind, flags, _, _ = netlink.HEADER.unpack_from(data, offset)
        assert length % 4 == 0
        body = nft_set_elem_list_msg(data[offset : offset + length])
        if kind not in (netlink.NFNL_MSG_BATCH_BEGIN, netlink.NFNL_MSG_BATCH_END):
            body.decode()
        found.append((kind, flags, body))
        offset += length
    return found


def test_pyroute2_reads_our_bytes_as_they_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = recorded(monkeypatch)
    elements = Elements(TABLE)
    elements.write(ALLOW, [Element(SIX, 5000, 1.5, "r.example")], [Element(ONE, 443)])
    elements.close()
    (data,) = sent
    (begin, *steps, end) = decoded(data)
    assert (begin[0], end[0]) == (netlink.NFNL_MSG_BATCH_BEGIN, netlink.NFNL_MSG_BATCH_END)
    new, gone = module.NFT_MSG_NEWSETELEM, module.NFT_MSG_DELSETELEM
    assert [kind for kind, _, _ in steps] == [new, gone, new, gone, new]
    for index, (kind, flags, body) in enumerate(steps):
        assert flags == 0x1 | 0x4 | (0x400 if kind == new else 0)
        assert body["nfgen_family"] == module.NFPROTO_INET
        assert body.get_attr("NFTA_SET_ELEM_LIST_TABLE") == TABLE
        six = index >= 2  # what goes is first: a full set has no room before
        assert body.get_attr("NFTA_SET_ELEM_LIST_SET") == (f"{ALLOW}6" if six else f"{ALLOW}4")
        (element,) = body.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS")
        key = element.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE")
        address, port = (SIX, 5000) if six else (ONE, 443)
        assert key == address.packed + struct.pack(">HH", port, 0)
        timeout = element.get_attr("NFTA_SET_ELEM_TIMEOUT")
        if kind == gone:
            assert timeout is None
        else:
            assert timeout == (1500 if six else 1)
        comment = element.get_attr("NFTA_SET_ELEM_USERDATA")
        if six and kind == new:
            assert b"r.example\0" in bytes(body.data)
        else:
            assert comment is None


# Any bytes


@given(st.binary(max_size=300))
def test_any_bytes_of_a_comment_give_text(data: bytes) -> None:
    assert module._parse_comment(data).isascii() or "\ufffd" in module._parse_comment(data)  # noqa: SLF001


@given(st.integers(0, 2**32))
def test_a_listing_with_bits_turned_over_gives_elements_or_none(seed: int) -> None:
    chance = random.Random(seed)
    key = netlink.nested(1, netlink.attribute(1, ONE.packed + b"\x01\xbb\0\0"))
    body = netlink.NFGEN.pack(1, 0, 0) + netlink.nested(3, netlink.nested(1, key))
    assert len(list(module._parse_list(memoryview(body), 4))) == 1  # noqa: SLF001
    broken = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    for item in module._parse_list(memoryview(bytes(broken)), 4):  # noqa: SLF001
        assert item.port <= 65_535

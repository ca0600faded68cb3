"""NFLOG: copies of DNS packets, and one owner for a group."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import pytest

from ramnet.core.events import AnswerCopy, QueryCopy
from ramnet.core.packet import Datagram, Flow, parse_packet
from ramnet.core.ruleset import Chain, Hook, Rule, Table, render_create
from ramnet.core.terms import NFLOG_GROUP
from ramnet.errors import HostError
from ramnet.host.nflog import BURST, NflogReader
from ramnet.host.nft import Nft
from ramnet.host.scratch import in_scratch_netns
from tests.netns.nflogworld import beyond, started_in

T = TypeVar("T")

SECONDS = 10.0


def logging_rules() -> str:
    """Log what goes to and comes from port 53, as our own rules do."""
    out = Rule(f"udp dport 53 log group {NFLOG_GROUP}")
    back = Rule(f"udp sport 53 log group {NFLOG_GROUP}")
    return render_create(
        Table(
            "t",
            chains=(Chain("o", (out,), Hook.OUTPUT, 0), Chain("i", (back,), Hook.INPUT, 0)),
        )
    )


def with_reader(work: Callable[[NflogReader], T]) -> T:
    def body() -> T:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        reader = NflogReader(NFLOG_GROUP)
        try:
            Nft().apply(logging_rules())
            return work(reader)
        finally:
            reader.close()

    return in_scratch_netns(body)


def wait(reader: NflogReader, count: int) -> list[QueryCopy | AnswerCopy]:
    found: list[QueryCopy | AnswerCopy] = []
    while len(found) < count:
        readable, _, _ = select.select([reader.fileno()], [], [], SECONDS)
        assert readable, f"{len(found)} of {count} packets came"
        found += reader.read()
    return found


def said(copy: QueryCopy | AnswerCopy) -> tuple[Flow, bytes]:
    parsed = parse_packet(copy.packet)
    assert isinstance(parsed, Datagram)
    return parsed.flow, parsed.payload


def test_a_group_has_one_owner() -> None:
    def work() -> None:
        first = NflogReader(NFLOG_GROUP)
        with pytest.raises(HostError) as caught:
            NflogReader(NFLOG_GROUP)
        assert f"NFLOG group {NFLOG_GROUP} belongs to another process" in caught.value.message
        assert "ramnet status" in caught.value.hint
        NflogReader(NFLOG_GROUP + 1).close()
        first.close()
        NflogReader(NFLOG_GROUP).close()

    in_scratch_netns(work)


def test_the_loser_leaves_no_socket_behind() -> None:
    def work() -> None:
        first = NflogReader(NFLOG_GROUP)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
        for _ in range(5):
            with pytest.raises(HostError):
                NflogReader(NFLOG_GROUP)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        first.close()

    in_scratch_netns(work)


def test_another_namespace_has_groups_of_its_own() -> None:
    def inner() -> None:
        NflogReader(NFLOG_GROUP).close()

    def outer() -> None:
        reader = NflogReader(NFLOG_GROUP)
        in_scratch_netns(inner)
        reader.close()

    in_scratch_netns(outer)


@pytest.mark.parametrize(
    ("family", "text"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_query_and_its_answer_are_told_apart(family: int, text: str) -> None:
    def work(reader: NflogReader) -> None:
        with (
            socket.socket(family, socket.SOCK_DGRAM) as server,
            socket.socket(family, socket.SOCK_DGRAM) as client,
        ):
            server.settimeout(SECONDS)
            server.bind((text, 53))
            client.bind((text, 0))
            port = client.getsockname()[1]
            client.sendto(b"question", (text, 53))
            data, sender = server.recvfrom(100)
            server.sendto(data + b" and answer", sender)
        packed = ip_address(text).packed
        asked, answered = wait(reader, 2)
        flow = Flow(packed, port, packed, 53)
        assert isinstance(asked, QueryCopy)
        assert isinstance(answered, AnswerCopy)
        assert (asked.forwarded, answered.forwarded) == (False, False)
        assert said(asked) == (flow, b"question")
        assert said(answered) == (flow.reverse, b"question and answer")
        assert list(reader.read()) == []
        assert reader.lost == 0

    with_reader(work)


# Two hosts with a router between them, where the reader is; each has an address that ends in 2.
_SERVES = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("10.9.2.2", 53))
    print("ready", flush=True)
    data, sender = server.recvfrom(100)
    server.sendto(data + b" and answer", sender)
"""
_ASKS = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(10)
    client.bind(("10.9.1.2", 4000))
    client.sendto(b"question", ("10.9.2.2", 53))
    client.recvfrom(100)
"""


def test_what_is_forwarded_is_told_from_what_is_our_own() -> None:
    forwarding = Rule(f"udp dport 53 log group {NFLOG_GROUP}")
    back = Rule(f"udp sport 53 log group {NFLOG_GROUP}")
    chain = Chain("f", (forwarding, back), Hook.FORWARD, 0)

    def work(reader: NflogReader) -> None:
        Nft().apply(render_create(Table("forwarding", chains=(chain,))))
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="utf-8")
        with ExitStack() as stack:
            ends = [stack.enter_context(beyond(f"10.9.{number}")) for number in (1, 2)]
            server = stack.enter_context(started_in(ends[1], _SERVES))
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            client = stack.enter_context(started_in(ends[0], _ASKS))
            assert client.wait(SECONDS) == 0
        asked, answered = wait(reader, 2)
        flow = Flow(ip_address("10.9.1.2").packed, 4000, ip_address("10.9.2.2").packed, 53)
        assert isinstance(asked, QueryCopy)
        assert isinstance(answered, AnswerCopy)
        assert (asked.forwarded, answered.forwarded) == (True, True)
        assert said(asked) == (flow, b"question")
        assert said(answered) == (flow.reverse, b"question and answer")
        assert list(reader.read()) == []

    with_reader(work)


def test_a_read_takes_no_more_than_a_burst() -> None:
    def work(reader: NflogReader) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for n in range(BURST + 10):
                client.sendto(b"%d" % n, ("127.0.0.1", 53))
        found = list(reader.read())
        assert len(found) <= BURST
        found += wait(reader, BURST + 10 - len(found))
        assert [said(copy)[1] for copy in found] == [b"%d" % n for n in range(BURST + 10)]

    with_reader(work)


def test_copies_that_do_not_fit_are_counted_and_reading_goes_on() -> None:
    def work(reader: NflogReader) -> None:
        own = socket.socket(fileno=os.dup(reader.fileno()))
        own.setsockopt(socket.SOL_SOCKET, 33, 4096)  # SO_RCVBUFFORCE
        own.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(200):
                client.sendto(b"x" * 1000, ("127.0.0.1", 53))
            flood = list(reader.read())
            assert 0 < len(flood) < 200
            assert reader.lost > 0
            list(reader.read())
            client.sendto(b"after", ("127.0.0.1", 53))
        assert said(wait(reader, 1)[-1])[1] == b"after"

    with_reader(work)


def test_a_socket_that_went_away_is_an_error_of_ours() -> None:
    def work() -> None:
        reader = NflogReader(NFLOG_GROUP)
        reader.close()
        with pytest.raises(HostError, match=os.strerror(errno.EBADF)):
            list(reader.read())

    in_scratch_netns(work)

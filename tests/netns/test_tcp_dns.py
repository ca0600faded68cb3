"""Answers over TCP: however they are cut, the set knows before the client does."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from tests.netns.dnsworld import (
    LEARN_SECONDS,
    addr,
    patched,
    policy,
    query,
    reply,
    socket_in,
    status,
)
from tests.netns.holdworld import (
    PORT,
    RESOLVER_V6,
    SCRIPTED,
    config,
    elements,
    held,
    nft,
    wait_nothing_held,
    without_hold,
    world,
)
from tests.netns.support import Ramnet, remove_rules

pytestmark = pytest.mark.netns

FRESH = policy("*.fresh.example")
OWN = {SCRIPTED: "192.0.2.2", RESOLVER_V6: "2001:db8:ffff::2"}
# Long enough for a segment to be acknowledged: the next one is not put together with it.
PAUSE = 0.003


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with world() as made:
        yield made


@dataclass(slots=True)
class Wire:
    """A TCP connection from a client to a resolver, both ends in the hands of a test."""

    client: socket.socket
    server: socket.socket
    _buffer: bytes = field(default=b"")

    def ask(self, *queries: bytes) -> None:
        """Send queries in one segment and wait until the server has them."""
        self.send_query(b"".join(map(framed, queries)))

    def send_query(self, octets: bytes) -> None:
        self.client.sendall(octets)
        self._exactly(len(octets))

    def _exactly(self, size: int) -> None:
        while size:
            part = self.server.recv(size)
            assert part
            size -= len(part)

    def answer(self, *pieces: bytes, pause: float = PAUSE) -> None:
        """Send each piece as a segment."""
        for piece in pieces:
            self.server.sendall(piece)
            time.sleep(pause)

    def read(self) -> bytes:
        """Return the next message."""
        while len(self._buffer) < 2 or len(self._buffer) < 2 + self._length:
            part = self.client.recv(1 << 16)
            assert part
            self._buffer += part
        size = 2 + self._length
        message, self._buffer = self._buffer[2:size], self._buffer[size:]
        return message

    @property
    def _length(self) -> int:
        return int.from_bytes(self._buffer[:2], "big")


class Wires:
    """Makes connections to a resolver, and sockets that dial from the client at once."""

    def __init__(self, lab: Lab, server: str = SCRIPTED) -> None:
        self._lab, self._server = lab, server
        self._stack = ExitStack()
        self._listener = self._keep(socket_in(lab.world, server, socket.SOCK_STREAM, 53))
        self._listener.listen(1024)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _keep(self, sock: socket.socket) -> socket.socket:
        self._stack.enter_context(sock)
        sock.settimeout(LEARN_SECONDS)
        return sock

    def open(self) -> Wire:
        """Make a connection."""
        client = self._keep(socket_in(self._lab.client, OWN[self._server], socket.SOCK_STREAM))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect((self._server, 53))
        server = self._keep(self._listener.accept()[0])
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Wire(client, server)

    def dialer(self) -> socket.socket:
        """Make a socket that only has to connect: nothing is left to do after the answer."""
        return self._keep(socket_in(self._lab.client, OWN[SCRIPTED], socket.SOCK_STREAM))


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def cut(data: bytes, *places: int) -> list[bytes]:
    """Cut octets at these places."""
    edges = [0, *places, len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def told(asked: bytes, name: str, *addresses: str) -> bytes:
    return framed(reply(asked, *(addr(name, one) for one in addresses)))


def refused(dialers: Sequence[socket.socket], addresses: Sequence[str]) -> list[str]:
    """Connect one after the other; return where it did not succeed."""
    codes = [sock.connect_ex((one, PORT)) for sock, one in zip(dialers, addresses, strict=True)]
    return [one for one, code in zip(addresses, codes, strict=True) if code]


def one_by_one(wires: Wires, count: int, block: int) -> list[str]:
    """Ask for fresh names, each over a connection of its own; return what was refused."""
    bad: list[str] = []
    for number in range(count):
        wire, dialer = wires.open(), wires.dialer()
        name, address = f"n{number}.fresh.example", f"10.110.{block}.{number}"
        asked = query(name)
        wire.ask(asked)
        wire.answer(told(asked, name, address), pause=0)
        wire.read()
        bad += refused([dialer], [address])
    return bad


def test_an_answer_over_tcp_is_learned_before_it_is_heard(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet(FRESH, config=config())
    with Wires(lab) as wires:
        assert one_by_one(wires, 100, 1) == []
    hold = held(daemon)
    assert (hold["held"], hold["released_late"]) == (100, 0)
    assert status(daemon)["refused"] == 0


def test_without_the_hold_rule_it_is_refused(lab: Lab, ramnet: Ramnet) -> None:
    """The control: learned from a copy, which the client's SYN is faster than."""
    daemon = ramnet(FRESH, config=config())
    without_hold(lab.client)
    with Wires(lab) as wires:
        assert one_by_one(wires, 100, 2) != []
    wait_until(lambda: status(daemon)["leases"] == 100, LEARN_SECONDS, "learning from copies")


def test_over_ipv6(lab: Lab, ramnet: Ramnet) -> None:
    ramnet(FRESH, config=config())
    with Wires(lab, RESOLVER_V6) as wires:
        assert one_by_one(wires, 30, 3) == []


@pytest.mark.parametrize("count", [2, 20, 200])
def test_several_messages_in_a_segment(lab: Lab, ramnet: Ramnet, count: int) -> None:
    """Queries in one segment and answers in one segment (pipelining, RFC 7766)."""
    daemon = ramnet(FRESH, config=config())
    names = [f"p{number}.fresh.example" for number in range(count)]
    addresses = [f"10.111.{count & 255}.{number}" for number in range(count)]
    queries = [query(name, ident=number) for number, name in enumerate(names)]
    with Wires(lab) as wires:
        wire = wires.open()
        dialers = [wires.dialer() for _ in names]
        wire.ask(*queries)
        wire.answer(b"".join(map(told, queries, names, addresses)))
        for dialer, address in zip(dialers, addresses, strict=True):
            wire.read()
            assert refused([dialer], [address]) == []
    assert "no-matching-query" not in status(daemon)["dns"]["ignored"]


def test_answers_in_another_order(lab: Lab, ramnet: Ramnet) -> None:
    ramnet(FRESH, config=config())
    names = [f"o{number}.fresh.example" for number in range(20)]
    addresses = [f"10.112.1.{number}" for number in range(20)]
    queries = [query(name, ident=number) for number, name in enumerate(names)]
    with Wires(lab) as wires:
        wire = wires.open()
        dialers = [wires.dialer() for _ in names]
        for one in queries:  # pipelined: none waits for the answer of the one before
            wire.ask(one)
        answers = list(map(told, queries, names, addresses))
        for at in reversed(range(20)):
            wire.answer(answers[at], pause=0)
            wire.read()
            assert refused([dialers[at]], [addresses[at]]) == []


CUTS = {
    "behind the length": (2,),
    "in the length": (1,),
    "in the header": (7,),
    "before the last octet": (-1,),
    "three": (20, 60),
    "in many": tuple(range(100, 900, 100)),
}


@pytest.mark.parametrize("places", CUTS.values(), ids=CUTS)
def test_a_message_over_several_segments(lab: Lab, ramnet: Ramnet, places: tuple[int, ...]) -> None:
    """The last segment is the one that is held; sixty addresses are in it."""
    daemon = ramnet(FRESH, config=config())
    addresses = [f"10.113.1.{number}" for number in range(60)]
    name = "big.fresh.example"
    with Wires(lab) as wires:
        wire, dialers = wires.open(), [wires.dialer() for _ in addresses]
        asked = query(name)
        wire.ask(asked)
        pieces = cut(told(asked, name, *addresses), *places)
        wire.answer(*pieces[:-1])
        assert elements(lab.client, "10.113.1.") == []
        wire.answer(pieces[-1], pause=0)
        wire.read()
        assert refused(dialers, addresses) == []
    assert held(daemon)["held"] >= 1  # and what was sent again meanwhile


def test_segments_of_one_octet(lab: Lab, ramnet: Ramnet) -> None:
    """Two messages, one octet at a time; the border between them is in no segment."""
    daemon = ramnet(FRESH, config=config())
    with Wires(lab) as wires:
        wire, dialers = wires.open(), [wires.dialer(), wires.dialer()]
        names = ["s1.fresh.example", "s2.fresh.example"]
        addresses = ["10.114.1.1", "10.114.1.2"]
        queries = [query(name) for name in names]
        wire.ask(*queries)
        data = b"".join(map(told, queries, names, addresses))
        wire.answer(*(data[at : at + 1] for at in range(len(data))))
        for address, dialer in zip(addresses, dialers, strict=True):
            wire.read()
            assert refused([dialer], [address]) == []
        assert held(daemon)["seen"] >= len(data)  # they were segments of one octet


@pytest.mark.parametrize("place", [2, 20], ids=["behind the length", "in the name"])
def test_a_query_over_two_segments(lab: Lab, ramnet: Ramnet, place: int) -> None:
    """Old programs write the length by itself."""
    ramnet(FRESH, config=config())
    with Wires(lab) as wires:
        wire, dialer = wires.open(), wires.dialer()
        asked = query("two.fresh.example")
        for piece in cut(framed(asked), place):
            wire.send_query(piece)
        wire.answer(told(asked, "two.fresh.example", "10.115.1.1"), pause=0)
        wire.read()
        assert refused([dialer], ["10.115.1.1"]) == []


# --- segments that are lost, late, or come twice


@contextmanager
def losing(lab: Lab, size: int) -> Iterator[None]:
    """Lose the first TCP segment from the resolver whose IP packet has this length, once."""
    rule = f"ip saddr {SCRIPTED} tcp sport 53 ip length {size} limit rate 1/day burst 1 packets"
    hook = "type filter hook prerouting priority -400"
    chain = f"chain c {{ {hook}; {rule} counter name lost drop; }};"
    nft(lab.client, f"table ip loss {{ counter lost {{ }}; {chain} }}")
    try:
        yield
        lost = lab.client.run(["nft", "list", "counter", "ip", "loss", "lost"]).stdout
        assert "packets 1 " in lost
    finally:
        lab.client.run(["nft", "delete", "table", "ip", "loss"])


def test_a_lost_segment_comes_after_those_behind_it(lab: Lab, ramnet: Ramnet) -> None:
    """What is early waits in the stream, as it does in the client; the gap is closed later."""
    daemon = ramnet(FRESH, config=config())
    names = [f"l{number}.fresh.example" for number in range(6)]
    addresses = [f"10.116.1.{number}" for number in range(6)]
    queries = [query(name) for name in names]
    with Wires(lab) as wires:
        wire, dialers = wires.open(), [wires.dialer() for _ in names]
        wire.ask(*queries)
        answers = list(map(told, queries, names, addresses))
        # The second piece has a length of its own: 12 octets of timestamps, 40 of headers.
        data = b"".join(answers)
        pieces = cut(data, 30, 30 + 77, 150, 200, 250)
        with losing(lab, 77 + 52):
            wire.answer(*pieces, pause=0.001)
            for at in range(6):
                wire.read()
                assert refused([dialers[at]], [addresses[at]]) == []
    assert status(daemon)["refused"] == 0


def test_a_retransmission_does_not_overtake_what_is_held(lab: Lab) -> None:
    """The server sends again after 0.2 s what was not acknowledged; the first is still held."""
    slow = """
import time
from ramnet.host.elements import Elements
write = Elements.write

def patched(self, name, add, drop=()):
    time.sleep(0.3)
    write(self, name, add, drop)

Elements.write = patched
"""
    try:
        with patched(lab, slow, FRESH, config()) as daemon, Wires(lab) as wires:
            wire, dialer = wires.open(), wires.dialer()
            asked, name, address = query("r.fresh.example"), "r.fresh.example", "10.117.1.1"
            wire.ask(asked)
            begin = time.monotonic()
            wire.answer(told(asked, name, address), pause=0)
            wire.read()
            took = time.monotonic() - begin
            assert refused([dialer], [address]) == [], took
            assert took > 0.28
            hold = wait_nothing_held(daemon)
            assert hold["released_late"] == 0
            # The SYN-ACK and its like are seen, too: what matters is that it came twice.
            assert hold["seen"] >= 3
    finally:
        remove_rules(lab.client)


# --- bounds


def test_the_longest_message_and_what_follows_it(lab: Lab, ramnet: Ramnet) -> None:
    """65,535 octets of nobody's name, then an answer that counts, in the same stream."""
    ramnet(FRESH, config=config())
    with Wires(lab) as wires:
        wire, dialer = wires.open(), wires.dialer()
        asked, name = query("after.fresh.example"), "after.fresh.example"
        wire.ask(asked)
        long = reply(query("x.other.example"), addr("x.other.example", "10.118.9.9"))
        answer = told(asked, name, "10.118.1.1")
        wire.answer(framed(long.ljust(65_535, b"\0")) + answer, pause=0)
        assert len(wire.read()) == 65_535
        wire.read()
        assert refused([dialer], ["10.118.1.1"]) == []


def test_an_endless_stream_costs_no_memory(lab: Lab, ramnet: Ramnet) -> None:
    """Ten thousand messages of nobody's names over one connection, and one that counts."""
    daemon = ramnet(FRESH, config=config())
    with Wires(lab) as wires:
        wire, dialer = wires.open(), wires.dialer()
        asked, name = query("end.fresh.example"), "end.fresh.example"
        wire.ask(asked)
        other = framed(reply(query("x.other.example"), addr("x.other.example", "10.118.9.9")))
        for _ in range(100):
            wire.server.sendall(other * 100)
            for _ in range(100):
                wire.read()
        wire.answer(told(asked, name, "10.118.2.1"), pause=0)
        wire.read()
        assert refused([dialer], ["10.118.2.1"]) == []
    assert status(daemon)["dns"]["ignored"]["name-not-allowed"] >= 10_000


def test_more_streams_than_are_followed(lab: Lab, ramnet: Ramnet) -> None:
    """The oldest of 600 is given up: it still gets its answer, unlearned; a new one is learned."""
    ramnet(FRESH, config=config())
    with Wires(lab) as wires:
        many = [wires.open() for _ in range(600)]
        for wire, number in ((many[0], 0), (many[-1], 1)):
            asked, name = query(f"m{number}.fresh.example"), f"m{number}.fresh.example"
            dialer, address = wires.dialer(), f"10.118.3.{number}"
            wire.ask(asked)
            wire.answer(told(asked, name, address), pause=0)
            assert wire.read()[:2] == asked[:2]
            assert bool(refused([dialer], [address])) == (number == 0)

"""The guard: which packets pass before a connection is judged, and how it is judged."""

from __future__ import annotations

import random
import struct
from datetime import date
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet.core import guard as module
from ramnet.core.allow import AllowList, allow_list
from ramnet.core.catalog import Catalog
from ramnet.core.guard import (
    IDLE_SECONDS,
    JUDGED_SECONDS,
    MAX_HELD,
    Action,
    Actions,
    Guard,
    why_refused,
)
from ramnet.core.names import HostName
from ramnet.core.opening import Opening, Protocol
from ramnet.core.packet import TCP_FIN, TCP_RST, TCP_SYN, Flow
from ramnet.core.policy import parse_policy
from tests.unit.core.hellos import Hello, ech, name_entry

A, V, R, D = Action.ACCEPT, Action.VERIFY, Action.REFUSE, Action.DROP
GOOD = HostName("registry.example")
ISN = 0xFFFF_FFF0  # sequence numbers wrap within the hello
SOURCE, TARGET = b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x07"
HELLO = Hello().wire()
BAD_HELLO = Hello(names=(name_entry("other.example"),)).wire()
ACK = 0x10


def packet(
    offset: int, payload: bytes = b"", flags: int = ACK, port: int = 40_000, isn: int = ISN
) -> bytes:
    """An IPv4 packet of the client; ``offset`` counts from its first octet of data."""
    tcp = struct.pack(
        ">HHIIBBHHH", port, 443, (isn + 1 + offset) % 2**32, 0, 5 << 4, flags, 0, 0, 0
    )
    total = 40 + len(payload)
    head = struct.pack(">BBHHHBBH", 0x45, 0, total, 0, 0, 64, 6, 0) + SOURCE + TARGET
    return head + tcp + payload


def syn(payload: bytes = b"", port: int = 40_000, isn: int = ISN) -> bytes:
    return packet(-1, payload, TCP_SYN, port, isn)


class Client:
    """A guard and one client of it; packets are numbered from 1 on."""

    def __init__(self, *, begin: bool = True) -> None:
        self.judged: list[tuple[Flow, Opening, bool]] = []
        self.guard = Guard(self._judge)
        self.now = 0.0
        self._ident = 0
        if begin:
            assert self.send(syn()) == [(1, A)]
            assert self.send(packet(0)) == [(2, A)]

    def _judge(self, flow: Flow, opening: Opening, forwarded: bool) -> str:
        self.judged.append((flow, opening, forwarded))
        return "" if opening.host == GOOD else "no"

    def send(self, data: bytes, *, forwarded: bool = False) -> Actions:
        self._ident += 1
        return self.guard.packet(self._ident, data, self.now, forwarded=forwarded)

    def says(self, offset: int, payload: bytes) -> list[Action]:
        return [action for _, action in self.send(packet(offset, payload))]


def test_a_hello_in_one_segment_is_judged_and_the_rest_passes() -> None:
    client = Client()
    assert client.says(0, HELLO) == [V]
    assert client.judged == [
        (Flow(SOURCE, 40_000, TARGET, 443), Opening(Protocol.TLS, GOOD), False)
    ]
    assert client.says(len(HELLO), b"more") == [V]
    assert client.says(0, HELLO) == [V]
    assert (client.guard.verified, client.guard.refused) == (1, 0)


def test_another_name_is_refused_once_and_then_dropped() -> None:
    client = Client()
    assert client.says(0, BAD_HELLO) == [R]
    assert client.says(0, BAD_HELLO) == [D]
    assert client.says(len(BAD_HELLO), b"more") == [D]
    assert client.guard.refused == 1


def test_what_is_forwarded_is_judged_as_such() -> None:
    client = Client()
    client.send(packet(0, HELLO), forwarded=True)
    assert client.judged[0][2] is True


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_hello_in_segments_passes_but_for_the_last(size: int) -> None:
    for hello, last in ((HELLO, V), (BAD_HELLO, R)):
        client = Client()
        found = [client.says(at, hello[at : at + size]) for at in range(0, len(hello), size)]
        assert found[-1][-1] is last
        passed = [action for actions in found[:-1] for action in actions]
        assert set(passed) <= {A}
        # The first octet alone might be of anything: it waits for the second.
        assert sum(map(len, found)) == len(found)


def test_a_head_waits_as_a_whole() -> None:
    head = b"GET /v2/ HTTP/1.1\r\nHost: registry.example\r\n\r\n"
    client = Client()
    assert client.send(packet(0, head[:8])) == []
    assert client.send(packet(8, head[8:12])) == []
    assert client.send(packet(12, head[12:])) == [(3, V), (4, V), (5, V)]
    bad = head.replace(b"registry", b"another.")
    client = Client()
    assert client.send(packet(0, bad[:8])) == []
    assert client.send(packet(8, bad[8:])) == [(3, D), (4, R)]


def test_only_so_many_packets_wait() -> None:
    client = Client()
    found = [client.says(at, b"A") for at in range(MAX_HELD + 3)]
    assert found == [[]] * MAX_HELD + [[D]] * 3
    rest = b" / HTTP/1.1\r\nHost: registry.example\r\n\r\n"
    assert client.says(MAX_HELD + 3, rest) == [V] * (MAX_HELD + 1)
    # What was dropped is sent again.
    assert client.says(MAX_HELD, b"A") == [V]


def test_what_comes_again_or_too_early() -> None:
    client = Client()
    assert client.says(100, HELLO[100:]) == [D]
    assert client.says(-1, b"\0") == [D]  # a probe of keep-alive
    assert client.says(0, HELLO[:100]) == [A]
    assert client.says(0, HELLO[:100]) == [A]
    assert client.says(50, HELLO[50:]) == [V]
    waiting = Client()
    assert waiting.says(0, b"GET ") == []
    assert waiting.says(0, b"GET ") == [D]


def test_octets_that_come_again_as_others_are_refused() -> None:
    client = Client()
    assert client.says(0, HELLO[:100]) == [A]
    assert client.says(60, b"\xff" + HELLO[61:]) == [R]
    assert "not the same" in client.judged[0][1].problem


def test_a_syn_with_data_is_dropped_and_comes_again_without() -> None:
    client = Client(begin=False)
    assert client.send(syn(HELLO)) == [(1, D)]
    assert client.send(syn()) == [(2, A)]
    assert client.send(syn()) == [(3, A)]
    assert client.says(0, HELLO) == [V]


def test_a_new_syn_begins_anew() -> None:
    client = Client()
    assert client.send(packet(0, b"GET ")) == []
    assert client.send(syn(isn=7)) == [(3, D), (4, A)]
    assert client.send(packet(0, HELLO, isn=7)) == [(5, V)]
    assert client.send(syn(isn=9)) == [(6, A)]
    assert client.send(packet(0, BAD_HELLO, isn=9)) == [(7, R)]


def test_a_connection_whose_beginning_nobody_saw() -> None:
    client = Client(begin=False)
    assert client.send(packet(0)) == [(1, A)]
    assert client.send(packet(0, b"", ACK | TCP_FIN)) == [(2, A)]
    assert client.send(packet(0, HELLO)) == [(3, R)]
    assert client.judged[0][1].problem == "it began before ramnet did"


def test_a_reset_ends_it() -> None:
    client = Client()
    assert client.send(packet(0, b"GET ")) == []
    assert client.send(packet(4, b"", TCP_RST)) == [(3, D), (4, A)]
    assert len(client.guard) == 0


def test_what_is_no_segment_is_dropped() -> None:
    client = Client(begin=False)
    udp = bytearray(packet(0))
    udp[9] = 17
    for data in (b"", b"\x45", bytes(udp), packet(0)[:30]):
        assert [action for _, action in client.send(data)] == [D]


def test_time_ends_what_nobody_uses() -> None:
    client = Client()
    assert client.send(packet(0, b"GET ")) == []
    client.send(syn(port=40_001))
    client.send(packet(0, HELLO, port=40_001))
    assert client.guard.expire(JUDGED_SECONDS) == []
    assert client.guard.expire(JUDGED_SECONDS + 1) == []
    assert len(client.guard) == 1
    assert client.guard.expire(IDLE_SECONDS + 1) == [(3, D)]
    assert len(client.guard) == 0


def test_connections_and_octets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(module, "MAX_OCTETS", 1200)
    client = Client(begin=False)
    for port in range(5):
        client.send(syn(port=port))
    assert len(client.guard) == 3
    assert client.guard.forgotten == 2
    assert client.send(packet(0, b"GET ", port=2)) == []
    for port in (3, 4):
        client.send(packet(0, Hello(padding=700).wire()[:600], port=port))
    # What waited of the first was dropped with it.
    assert client.guard.forgotten == 3
    assert client.send(packet(4, b"/", port=2))[0][1] is R
    assert len(client.guard) == 2


@given(st.integers(0, 2**32), st.binary(max_size=40))
def test_any_order_and_repetition_of_segments_verifies_nothing_else(
    seed: int, noise: bytes
) -> None:
    rng = random.Random(seed)
    hello = rng.choice((HELLO, BAD_HELLO))
    pieces = [(at, hello[at : at + 60]) for at in range(0, len(hello), 60)]
    client = Client()
    for _ in range(60):
        at, piece = rng.choice(pieces)
        piece = piece[: rng.randint(1, len(piece))]
        client.send(packet(at, piece if rng.random() < 0.95 else piece + noise))
    good = all(opening.host == GOOD for _, opening, _ in client.judged)
    assert client.guard.verified == (1 if client.judged and good else 0)


# --- the judgement

POLICY = """
version = 1
organization = "acme"
[[registry]]
address = "registry.example"
[[registry]]
address = "second.example:5000"
[[destination]]
address = "git.example"
ports = [22, 443]
"""


@pytest.fixture(scope="module")
def allowed() -> AllowList:
    policy = parse_policy(POLICY, source="policy.toml", ramnet_version="1.0")
    return allow_list(policy, Catalog(()), date(2026, 1, 1))


def judged(
    allowed: AllowList, opening: Opening, *led: str, port: int = 443, forwarded: bool = False
) -> str:
    names = [HostName(name) for name in led]
    return why_refused(opening, "192.0.2.7", port, names, allowed, forwarded=forwarded)


def tls(name: str | None, *, ech: bool = False) -> Opening:
    return Opening(Protocol.TLS, HostName(name) if name else None, ech=ech)


def test_a_name_that_led_there_may_go_on(allowed: AllowList) -> None:
    assert judged(allowed, tls("registry.example"), "other.example", "registry.example") == ""
    http = Opening(Protocol.HTTP, GOOD, 80)
    assert judged(allowed, http, "registry.example", port=80) == ""


def test_another_tenant_of_the_address_may_not(allowed: AllowList) -> None:
    why = judged(allowed, tls("other.example"), "registry.example")
    assert why == "it is for other.example, which the policy does not allow"


def test_a_name_must_have_led_to_the_address(allowed: AllowList) -> None:
    why = judged(allowed, tls("registry.example"), "git.example")
    assert "no answer of a trusted resolver led at 192.0.2.7" in why
    assert "does not allow" in judged(allowed, tls("second.example"), "registry.example")


def test_what_has_no_name_or_hides_it(allowed: AllowList) -> None:
    assert "SNI" in judged(allowed, tls(None), "registry.example")
    assert "ECH" in judged(allowed, tls("registry.example", ech=True), "registry.example")
    assert "SNI" in judged(allowed, tls(None), "git.example")
    address = Opening(Protocol.HTTP, ip_address("192.0.2.7"))
    assert "192.0.2.7" in judged(allowed, address, "registry.example")
    problem = Opening(Protocol.TLS, problem="extension 0 twice")
    assert "extension 0 twice" in judged(allowed, problem, "registry.example")


@pytest.mark.parametrize("protocol", [Protocol.UNKNOWN, Protocol.HTTP2])
def test_a_destination_speaks_what_it_does(allowed: AllowList, protocol: Protocol) -> None:
    opening = Opening(protocol)
    assert judged(allowed, opening, "git.example", port=22) == ""
    assert judged(allowed, opening, "git.example", port=23)
    assert judged(allowed, opening, "git.example", port=22, forwarded=True)
    assert judged(allowed, opening, "registry.example")
    # But no name that is not its own.
    assert judged(allowed, tls("quay.io"), "git.example")
    assert judged(allowed, tls("git.example"), "git.example") == ""


def test_a_proxy_that_is_not_declared(allowed: AllowList) -> None:
    relayed = Opening(Protocol.HTTP, GOOD, 443, relayed=True)
    assert "not declared" in judged(allowed, relayed, "registry.example")


def test_ech_of_a_real_hello_is_seen() -> None:
    client = Client()
    client.says(0, Hello(extras=(ech(),)).wire())
    assert client.judged[0][1].ech

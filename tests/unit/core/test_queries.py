"""What an answer is held against."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

import pytest

from ramnet.core.packet import TCP_SYN, Flow
from ramnet.core.queries import QUERY_SECONDS, QueryLog
from tests.unit.core.support import CLIENT, SERVER, question, udp

NAME = "r.example"
ANSWER = Flow(SERVER.packed, 53, CLIENT.packed, 40_000)
ASKED = question(NAME)[12:]


def tcp(payload: bytes, port: int = 40_000, *, sequence: int = 1, flags: int = 0x18) -> bytes:
    body = struct.pack("!HHIIBBHHH", port, 53, sequence, 0, 0x50, flags, 0, 0, 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 6, 0)
    return head + CLIENT.packed + SERVER.packed + body


def log(*packets: bytes, limit: int = 64) -> QueryLog:
    found = QueryLog(limit)
    for packet in packets:
        found.add(packet, 0.0)
    return found


def query(name: str = NAME, qtype: str = "A", *, ident: int = 7, port: int = 40_000) -> bytes:
    return udp(CLIENT, port, SERVER, 53, question(name, qtype, ident=ident))


def test_the_answer_to_a_query() -> None:
    assert log(query()).asked(ANSWER, 7, ASKED, 0.0)
    assert log(query("R.eXample")).asked(ANSWER, 7, ASKED.upper(), 0.0), "case does not count"


def test_over_ipv6() -> None:
    server, client = IPv6Address("2001:db8::53"), IPv6Address("2001:db8::10")
    found = log(udp(client, 40_000, server, 53, question(NAME)))
    assert found.asked(Flow(server.packed, 53, client.packed, 40_000), 7, ASKED, 0.0)
    assert not found.asked(ANSWER, 7, ASKED, 0.0)


@pytest.mark.parametrize("before", [b"", question("other.example", ident=9)])
def test_over_tcp_with_any_framing(before: bytes) -> None:
    mine = question(NAME)
    payload = b"".join(len(m).to_bytes(2, "big") + m for m in (before, mine) if m)
    syn = tcp(b"", sequence=0, flags=TCP_SYN)
    assert log(syn, tcp(payload)).asked(ANSWER, 7, ASKED, 0.0)
    for cut in range(1, len(payload)):
        pieces = tcp(payload[:cut]), tcp(payload[cut:], sequence=1 + cut)
        assert log(syn, *pieces).asked(ANSWER, 7, ASKED, 0.0), f"cut at {cut}"
    assert not log(syn, tcp(payload[:-1])).asked(ANSWER, 7, ASKED, 0.0), "not all of it has left"
    assert not log(syn, tcp(payload)).asked(ANSWER, 8, ASKED, 0.0)
    assert not log(syn, tcp(payload, 40_001)).asked(ANSWER, 7, ASKED, 0.0)
    assert not log(tcp(payload)).asked(ANSWER, 7, ASKED, 0.0), "the beginning was not seen"


@pytest.mark.parametrize(
    "packet",
    [
        query(ident=8),
        query(port=40_001),
        query("q.example"),
        query("x.r.example"),
        query(qtype="AAAA"),
        udp(SERVER, 40_000, SERVER, 53, question(NAME)),
        udp(CLIENT, 40_000, CLIENT, 53, question(NAME)),
        udp(CLIENT, 40_000, SERVER, 54, question(NAME)),
        udp(CLIENT, 40_000, SERVER, 53, b"\0\7\x81\x80" + question(NAME)[4:]),  # an answer
        udp(CLIENT, 40_000, SERVER, 53, question(NAME)[:4] + b"\0\2" + question(NAME)[6:]),
        udp(CLIENT, 40_000, SERVER, 53, question(NAME)[:-1]),
        tcp(b""),
        b"",
        b"\x45",
        b"\x60" + b"\0" * 39,
        query()[:30],
    ],
)
def test_what_is_not_the_query(packet: bytes) -> None:
    assert not log(packet).asked(ANSWER, 7, ASKED, 0.0)


def test_queries_are_kept_for_so_long_and_no_more_than_so_many() -> None:
    found = log(query(), limit=2)
    assert found.asked(ANSWER, 7, ASKED, QUERY_SECONDS)
    assert not found.asked(ANSWER, 7, ASKED, QUERY_SECONDS + 0.1)
    assert len(found) == 0
    for port in (1, 2, 3):
        found.add(query(port=port), 20.0)
    assert len(found) == 2
    answers = [Flow(SERVER.packed, 53, CLIENT.packed, port) for port in (1, 2, 3)]
    assert [found.asked(flow, 7, ASKED, 20.0) for flow in answers] == [False, True, True]


def test_the_same_query_twice_is_forgotten_once_at_a_time() -> None:
    found = QueryLog(8)
    found.add(query(), 0.0)
    found.add(query(), 5.0)
    found.expire(QUERY_SECONDS + 1)
    assert len(found) == 1
    assert found.asked(ANSWER, 7, ASKED, QUERY_SECONDS + 1)

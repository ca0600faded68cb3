"""Names that were heard: found for any name, and nothing that is heard can do harm."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import dnslib
import pytest

from ramnet.core import heard as module
from ramnet.core.heard import (
    MAX_ADDRESSES,
    MAX_ANSWER_BYTES,
    MAX_ANSWERS,
    MAX_AT_ONCE,
    MAX_NAMES,
    HeardNames,
)
from tests.unit.core.support import CLIENT, SERVER, ip, question, reply, udp

ONE = "198.51.100.1"
TWO = "198.51.100.2"


def packet(name: str, *addresses: str, qtype: str = "A") -> bytes:
    return udp(SERVER, 53, CLIENT, 40_000, reply(name, *addresses, qtype=qtype))


def chained(name: str, target: str, address: str) -> bytes:
    record = dnslib.DNSRecord.question(name).reply()
    for line in (f"{name} 60 IN CNAME {target}", f"{target} 60 IN A {address}"):
        record.add_answer(*dnslib.RR.fromZone(line))
    return udp(SERVER, 53, CLIENT, 40_000, bytes(record.pack()))


def tcp(payload: bytes) -> bytes:
    body = struct.pack("!HHIIBBHHH", 53, 40_000, 1, 1, 5 << 4, 0x18, 1024, 0, 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 6, 0)
    return head + SERVER.packed + CLIENT.packed + body


def names(heard: HeardNames, address: str = ONE) -> tuple[str, ...]:
    return heard.names_of(ip(address))


def test_a_name_that_no_policy_knows_is_found() -> None:
    heard = HeardNames()
    heard.heard(packet("nobody-allows.example", ONE, TWO))
    assert names(heard) == names(heard, TWO) == ("nobody-allows.example",)
    assert names(heard, "198.51.100.3") == ()


def test_over_ipv6() -> None:
    heard = HeardNames()
    answer = reply("a.example", "2001:db8::1", qtype="AAAA")
    server, client = IPv6Address("2001:db8::53"), IPv6Address("2001:db8::10")
    heard.heard(udp(server, 53, client, 40_000, answer))
    assert names(heard, "2001:db8::1") == ("a.example",)


def test_it_is_the_name_that_was_asked_for_not_the_end_of_its_chain() -> None:
    heard = HeardNames()
    heard.heard(chained("quay.example", "edge.cdn.example", ONE))
    assert names(heard) == ("quay.example",)


def test_an_address_beside_the_chain_is_not_the_names() -> None:
    heard = HeardNames()
    record = dnslib.DNSRecord.question("a.example").reply()
    record.add_answer(*dnslib.RR.fromZone(f"b.example 60 IN A {ONE}"))
    heard.heard(udp(SERVER, 53, CLIENT, 40_000, bytes(record.pack())))
    assert names(heard) == ()


def test_the_name_heard_last_comes_first_and_each_once() -> None:
    heard = HeardNames()
    for name in ("a.example", "b.example", "a.example"):
        heard.heard(packet(name, ONE))
    assert names(heard) == ("a.example", "b.example")
    for n in range(10):
        heard.heard(packet(f"n{n}.example", ONE))
    found = names(heard)
    assert (len(found), found[0]) == (MAX_NAMES, "n9.example")


def test_a_message_in_a_segment() -> None:
    heard = HeardNames()
    message = reply("a.example", ONE)
    heard.heard(tcp(struct.pack("!H", len(message)) + message))
    heard.heard(tcp(struct.pack("!H", len(message) + 1) + reply("b.example", ONE)))
    assert names(heard) == ("a.example",)


def test_nothing_is_parsed_until_a_name_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(_message: bytes) -> None:
        raise AssertionError("parsed")

    heard = HeardNames()
    monkeypatch.setattr(module, "parse_answer", parse)
    heard.heard(packet("a.example", ONE))
    assert heard.waiting == 1
    with pytest.raises(AssertionError, match="parsed"):
        names(heard)


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"\x45",
        b"\xff" * 200,
        udp(SERVER, 53, CLIENT, 40_000, b""),
        udp(SERVER, 53, CLIENT, 40_000, b"\xff" * 60),
        udp(SERVER, 53, CLIENT, 40_000, question("a.example")),
        udp(SERVER, 53, CLIENT, 40_000, reply("a.example", ONE)[:-3]),
        packet("a.example", ONE)[:-5],
        packet(r"a\032b.example", ONE),
        tcp(b"\0"),
    ],
)
def test_garbage_does_no_harm(lie: bytes) -> None:
    heard = HeardNames()
    heard.heard(lie)
    heard.heard(packet("b.example", ONE))
    heard.heard(lie)
    assert names(heard) == ("b.example",)


def test_the_ring_is_bounded_in_number_and_octets() -> None:
    heard = HeardNames()
    heard.heard(packet("early.example", TWO))
    for _ in range(MAX_ANSWERS):
        heard.heard(packet("a.example", ONE))
    heard.heard(packet("large.example", TWO) + b"\0" * MAX_ANSWER_BYTES)
    assert heard.waiting == MAX_ANSWERS
    assert (names(heard), names(heard, TWO), heard.waiting) == (
        ("a.example",),
        (),
        MAX_ANSWERS - 2 * MAX_AT_ONCE,
    )


def test_the_index_is_bounded_and_forgets_what_was_heard_longest_ago() -> None:
    heard = HeardNames()
    first = int(IPv4Address("10.0.0.0"))
    per_answer = 200
    for start in range(0, MAX_ADDRESSES + per_answer, per_answer):
        found = [str(IPv4Address(first + start + n)) for n in range(per_answer)]
        heard.heard(packet("a.example", *found))
        names(heard)
    assert len(heard) == MAX_ADDRESSES
    assert names(heard, "10.0.0.0") == ()
    assert names(heard, found[-1]) == ("a.example",)

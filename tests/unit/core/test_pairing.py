"""A copy of a packet becomes a record, and finds what the notice saw of its connection."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from ramnet.core.activity import Addr, NameFrom, Record, RefusalCopy, Seen, Verdict
from ramnet.core.pairing import (
    MAX_WAITING,
    PAIR_SECONDS,
    Ends,
    Pairing,
    answered,
    notice_may_see,
    refused,
)
from ramnet.core.terms import TrafficClass
from tests.unit.core.support import CLIENT, SERVER, reply, syn, udp

NOON = 1_800_000_000.0
TARGET = IPv4Address("198.51.100.7")


def copy(
    packet: bytes, traffic: TrafficClass = TrafficClass.ENGINE, *, indev: str = "", outdev: str = ""
) -> RefusalCopy:
    return RefusalCopy(Verdict.DENIED, traffic, packet, 1000, 1000, indev, outdev)


def one(number: int = 0) -> tuple[Record, Ends]:
    record, ends = refused(copy(syn(CLIENT, TARGET, source_port=40_000 + number)), NOON)
    assert ends is not None
    return record, ends


def saw(number: int = 0, name: str = "quay.io", port: int = 443) -> Seen:
    return Seen(name, NameFrom.SNI, TARGET, port, CLIENT, 40_000 + number)


# From a packet


@pytest.mark.parametrize(
    ("source", "target"),
    [(CLIENT, TARGET), (IPv6Address("2001:db8::10"), IPv6Address("2001:db8::7"))],
)
def test_the_record_of_a_syn(source: Addr, target: Addr) -> None:
    record, ends = refused(copy(syn(source, target)), NOON)
    assert ends == (source, 40_000, target, 443)
    assert (record.first, record.last, record.count) == (NOON, NOON, 1)
    assert (record.verdict, record.traffic, record.uid) == (Verdict.DENIED, "engine", 1000)
    assert (record.source, record.address) == (str(source), str(target))
    assert (record.port, record.protocol) == (443, "tcp")
    assert (record.name, record.why, record.interface) == ("", "", "")


def test_the_record_of_a_datagram_whose_copy_is_cut() -> None:
    packet = udp(CLIENT, 40_000, TARGET, 443, b"x" * 1_200)[:128]
    record, ends = refused(copy(packet), NOON)
    assert (record.protocol, record.port, ends) == ("udp", 443, None)


def test_of_another_protocol_the_addresses_are_known() -> None:
    packet = bytearray(syn(CLIENT, TARGET))
    packet[9] = 1
    record, ends = refused(copy(bytes(packet)), NOON)
    assert (record.source, record.address, ends) == (str(CLIENT), str(TARGET), None)
    assert (record.port, record.protocol) == (None, "")
    six = bytearray(syn(IPv6Address("::1"), IPv6Address("2001:db8::7")))
    six[6] = 0  # a hop-by-hop header follows
    assert refused(copy(bytes(six)), NOON)[0].address == "2001:db8::7"


@pytest.mark.parametrize("packet", [b"", b"\x45", b"\x60" * 30, b"\xff" * 128])
def test_what_is_no_packet_is_recorded_without_addresses(packet: bytes) -> None:
    record, ends = refused(copy(packet), NOON)
    assert (record.address, record.source, ends) == ("", "", None)


def test_where_it_came_in_or_was_about_to_leave() -> None:
    packet = syn(CLIENT, TARGET)
    box = TrafficClass.CONTAINERS
    assert (
        refused(copy(packet, box, indev="docker0", outdev="eth0"), NOON)[0].interface == "docker0"
    )
    assert refused(copy(packet, box, outdev="eth0"), NOON)[0].interface == "eth0"
    assert refused(copy(packet, outdev="eth0"), NOON)[0].interface == ""


@pytest.mark.parametrize(("forwarded", "traffic"), [(True, "containers"), (False, "host")])
def test_the_record_of_a_changed_answer(forwarded: bool, traffic: str) -> None:
    packet = udp(SERVER, 53, CLIENT, 40_000, reply("quay.io", "198.51.100.7"))
    record = answered("quay.io", packet, NOON, Verdict.DENIED, forwarded=forwarded)
    assert (record.traffic, record.source, record.name) == (traffic, str(CLIENT), "quay.io")
    assert (record.protocol, record.address, record.port) == ("dns", "", None)
    assert answered("quay.io", b"x", NOON, Verdict.DENIED, forwarded=True).source == ""


def test_who_may_be_led_to_the_notice() -> None:
    packet = syn(CLIENT, TARGET)
    assert notice_may_see(copy(packet))
    assert notice_may_see(copy(packet, TrafficClass.HOST))
    assert not notice_may_see(copy(packet, TrafficClass.CONTAINERS))
    assert not notice_may_see(RefusalCopy(Verdict.WOULD_DENY, TrafficClass.ENGINE, packet))


# Pairing


def test_a_refusal_gets_the_name_that_the_notice_saw() -> None:
    pairing = Pairing()
    assert pairing.refusal(*one(), now=0.0) is None
    found = pairing.seen(saw(), 0.01)
    assert found is not None
    assert (found.name, found.name_from) == ("quay.io", NameFrom.SNI)
    assert (pairing.due(9.0), len(pairing)) == ([], 0)


def test_what_the_notice_saw_may_come_first() -> None:
    pairing = Pairing()
    assert pairing.seen(saw(), 0.0) is None
    found = pairing.refusal(*one(), now=0.01)
    assert found is not None
    assert found.name == "quay.io"
    assert len(pairing) == 0


def test_a_connection_that_said_no_name_does_not_wait() -> None:
    pairing = Pairing()
    record, ends = one()
    pairing.refusal(record, ends, 0.0)
    assert pairing.seen(saw(name=""), 0.01) == record


@pytest.mark.parametrize("other", [saw(1), saw(port=80)])
def test_another_connection_gives_no_name(other: Seen) -> None:
    pairing = Pairing()
    record, ends = one()
    pairing.refusal(record, ends, 0.0)
    assert pairing.seen(other, 0.01) is None
    assert pairing.due(PAIR_SECONDS - 0.1) == []
    assert pairing.due(PAIR_SECONDS) == [record]


def test_what_the_notice_saw_makes_no_record_by_itself() -> None:
    pairing = Pairing()
    pairing.seen(saw(), 0.0)
    assert pairing.due(PAIR_SECONDS) == []
    assert len(pairing) == 0
    record, ends = one()
    assert pairing.refusal(record, ends, PAIR_SECONDS + 0.1) is None, "too late for its name"


def test_a_packet_that_is_sent_again_counts() -> None:
    pairing = Pairing()
    record, ends = one()
    pairing.refusal(record, ends, 0.0)
    assert pairing.refusal(record, ends, 1.0) is None
    (found,) = pairing.due(PAIR_SECONDS)
    assert found.count == 2


def test_what_waits_is_bounded() -> None:
    pairing = Pairing()
    for number in range(MAX_WAITING):
        assert pairing.refusal(*one(number), now=0.0) is None
        assert pairing.seen(saw(number, port=1), 0.0) is None
    record, ends = one(MAX_WAITING)
    assert pairing.refusal(record, ends, 0.0) == record, "recorded without waiting"
    pairing.seen(saw(MAX_WAITING, port=1), 0.0)
    assert len(pairing) == 2 * MAX_WAITING
    assert len(pairing.close()) == MAX_WAITING
    assert len(pairing) == 0

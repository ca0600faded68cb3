"""The DNS parser against an independent one (dnslib), and against bytes of any kind."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import dnslib
from hypothesis import assume, given
from hypothesis import strategies as st

from ramnet.core import dns
from ramnet.core.dns import Answer, parse_answer, parse_answer_head, parse_query
from ramnet.errors import WireError

LABELS = st.text("abcXYZ019-_", min_size=1, max_size=12).map(str.encode)
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(tuple)
TTLS = st.integers(0, 2**32 - 1)
Labels = tuple[bytes, ...]


@dataclass(frozen=True)
class Built:
    """A response made by dnslib, and what it says, worked out from how it was made."""

    payload: bytes
    question: Labels
    qtype: int
    addresses: frozenset[IPv4Address | IPv6Address]
    ttl: int


def lower(labels: Labels) -> Labels:
    return tuple(label.lower() for label in labels)


def swapped(labels: Labels, draw: random.Random) -> Labels:
    """The same name in another mixture of cases."""
    return tuple(
        bytes(draw.choice((octet, *bytes([octet]).swapcase())) for octet in label)
        for label in labels
    )


def counted_ttl(ttl: int) -> int:
    return 0 if ttl >= 2**31 else ttl


@st.composite
def responses(draw: st.DrawFn) -> Built:
    qtype = draw(st.sampled_from([dns.TYPE_A, dns.TYPE_AAAA]))
    chain = draw(st.lists(NAMES, min_size=1, max_size=8, unique_by=lower))
    strangers = draw(st.lists(NAMES, max_size=3))
    chance = draw(st.randoms(use_true_random=False))
    packed = st.binary(min_size=4, max_size=4)
    if qtype == dns.TYPE_AAAA:
        packed = st.binary(min_size=16, max_size=16)
    addresses = [ip_address(raw) for raw in draw(st.lists(packed, max_size=6))]
    ttls = draw(st.lists(TTLS, min_size=len(chain), max_size=len(chain)))

    def address_record(owner: Labels, ip: IPv4Address | IPv6Address, ttl: int) -> dnslib.RR:
        data = dnslib.A(str(ip)) if ip.version == 4 else dnslib.AAAA(str(ip))
        label = dnslib.DNSLabel(swapped(owner, chance))
        return dnslib.RR(label, qtype, ttl=ttl, rdata=data)

    records = [
        dnslib.RR(
            dnslib.DNSLabel(swapped(owner, chance)),
            dns.TYPE_CNAME,
            ttl=ttl,
            rdata=dnslib.CNAME(dnslib.DNSLabel(swapped(target, chance))),
        )
        for owner, target, ttl in zip(chain, chain[1:], ttls, strict=False)
    ]
    records += [address_record(chain[-1], ip, ttls[-1]) for ip in addresses]
    known = {lower(name) for name in chain[-1:]}
    noise = ip_address(bytes(4 if qtype == dns.TYPE_A else 16))
    records += [address_record(name, noise, 0) for name in strangers if lower(name) not in known]
    chance.shuffle(records)

    message = dnslib.DNSRecord(
        dnslib.DNSHeader(id=draw(st.integers(0, 65_535)), qr=1, ra=1),
        q=dnslib.DNSQuestion(dnslib.DNSLabel(swapped(chain[0], chance)), qtype),
    )
    message.add_answer(*records)
    if draw(st.booleans()):
        message.add_ar(dnslib.EDNS0(udp_len=1232))
    return Built(
        payload=bytes(message.pack()),
        question=lower(chain[0]),
        qtype=qtype,
        addresses=frozenset(addresses),
        ttl=min(map(counted_ttl, ttls)) if addresses else 0,
    )


def judged_by_dnslib(message: dnslib.DNSRecord) -> tuple[set[str], int]:
    """The addresses and the TTL of a message as dnslib reads it, followed the plain way."""
    owner = lower(message.q.qname.label)
    links = {
        lower(rr.rname.label): (lower(rr.rdata.label.label), counted_ttl(rr.ttl))
        for rr in message.rr
        if rr.rtype == dns.TYPE_CNAME and rr.rclass == dns.CLASS_IN
    }
    ttls = []
    while owner in links:
        owner, ttl = links.pop(owner)
        ttls.append(ttl)
    found = [
        rr
        for rr in message.rr
        if (rr.rtype, rr.rclass, lower(rr.rname.label)) == (message.q.qtype, 1, owner)
    ]
    ttls += [counted_ttl(rr.ttl) for rr in found]
    return {str(ip_address(bytes(rr.rdata.data))) for rr in found}, min(ttls) if found else 0


def attempt(payload: bytes) -> Answer | None:
    """Parse in every way; anything but a value or a WireError fails the test."""
    for read in (parse_query, parse_answer_head):
        with suppress(WireError):
            read(payload)
    try:
        answer = parse_answer(payload)
    except WireError:
        return None
    assert len(answer.addresses) <= dns.MAX_ADDRESSES
    assert len(answer.chain) <= dns.MAX_CNAMES
    assert 0 <= answer.ttl < 2**31
    assert len(answer.question.wire) <= dns.MAX_NAME
    return answer


@given(responses())
def test_what_was_built_is_read(built: Built) -> None:
    answer = parse_answer(built.payload)
    wire = b"".join(bytes([len(label)]) + label for label in built.question) + b"\0"
    assert answer.question.wire == wire
    assert answer.question.qtype == built.qtype
    assert set(answer.addresses) == built.addresses
    assert answer.ttl == built.ttl
    head = parse_answer_head(built.payload)
    assert (head.id, head.question) == (answer.id, answer.question)


@given(st.binary(max_size=300))
def test_any_octets(payload: bytes) -> None:
    attempt(payload)


@given(st.binary(max_size=200), st.integers(0, 6), st.integers(0, 6))
def test_any_octets_behind_a_good_question(tail: bytes, answers: int, others: int) -> None:
    head = dnslib.DNSRecord(dnslib.DNSHeader(id=1, qr=1), q=dnslib.DNSQuestion("a.b")).pack()
    attempt(head[:6] + bytes([0, answers, 0, others, 0, 0]) + head[12:] + tail)


@given(responses(), st.data())
def test_every_cut_is_a_wire_error(built: Built, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(built.payload) - 1))
    assert attempt(built.payload[:cut]) is None


@given(responses(), st.data())
def test_flipped_octets_are_read_as_dnslib_reads_them_or_not_at_all(
    built: Built, data: st.DataObject
) -> None:
    octets = bytearray(built.payload)
    places = st.integers(2, len(octets) - 1)
    for place, value in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=3)
    ):
        octets[place] = value
    answer = attempt(bytes(octets))
    assume(answer is not None)
    assert answer is not None
    try:
        message = dnslib.DNSRecord.parse(bytes(octets))
    except (dnslib.DNSError, ValueError):
        return
    assert answer.id == message.header.id
    assert answer.question.qtype == message.q.qtype
    assert answer.truncated == bool(message.header.tc)
    assert answer.rcode == message.header.rcode
    asked = (dns.TYPE_A, dns.TYPE_AAAA)
    silent = answer.truncated or answer.rcode or message.q.qtype not in asked
    if silent or message.q.qclass != dns.CLASS_IN:
        assert (answer.addresses, answer.ttl) == ((), 0)
        return
    expected, ttl = judged_by_dnslib(message)
    assert {str(ip) for ip in answer.addresses} == expected
    assert answer.ttl == ttl

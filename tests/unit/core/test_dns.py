from __future__ import annotations

import struct
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from itertools import permutations

import dnslib
import pytest

from ramnet.core import dns
from ramnet.core.dns import Answer, parse_answer, parse_answer_head, parse_query
from ramnet.errors import WireError

NAME = "registry-1.docker.io"
HEADER = 12


def reply(zone: str, *, name: str = NAME, qtype: str = "A", **header: int) -> bytes:
    """A response to ``name`` with the records of ``zone`` as its answer section, in that order."""
    record = dnslib.DNSRecord.question(name, qtype).reply()
    for one in dnslib.RR.fromZone(zone):
        record.add_answer(one)
    for key, value in header.items():
        setattr(record.header, key, value)
    return bytes(record.pack())


def raw(
    *sections: bytes, flags: int = 0x8180, counts: tuple[int, int, int, int] = (1, 0, 0, 0)
) -> bytes:
    """A message whose octets are given: for what no library would build."""
    return struct.pack("!HHHHHH", 7, flags, *counts) + b"".join(sections)


def question(name: bytes = b"\x01a\x00", qtype: int = dns.TYPE_A, qclass: int = 1) -> bytes:
    return name + struct.pack("!HH", qtype, qclass)


def record(owner: bytes, rtype: int, data: bytes, *, ttl: int = 60, length: int = -1) -> bytes:
    size = len(data) if length < 0 else length
    return owner + struct.pack("!HHIH", rtype, 1, ttl, size) + data


def answers(*records: bytes, name: bytes = b"\x01a\x00") -> bytes:
    return raw(question(name), *records, counts=(1, len(records), 0, 0))


def readable(value: object) -> str:
    """The part of a test's name that stands for a parameter: octets are not worth reading."""
    return value if isinstance(value, str) else ""


def texts(answer: Answer) -> list[str]:
    return [str(ip) for ip in answer.addresses]


# The head


def test_query_gives_id_and_question_in_lower_case() -> None:
    query = dnslib.DNSRecord.question("ReGistry-1.DockeR.io", "AAAA")
    parsed = parse_query(query.pack())
    assert parsed.id == query.header.id
    assert parsed.question.name == NAME
    assert parsed.question.wire == b"\x0aregistry-1\x06docker\x02io\x00"
    assert (parsed.question.qtype, parsed.question.qclass) == (dns.TYPE_AAAA, dns.CLASS_IN)


def test_answer_has_the_head_of_its_query_whatever_the_case() -> None:
    query = dnslib.DNSRecord.question("qUAY.io")
    mixed = query.reply()
    mixed.q.qname = dnslib.DNSLabel("QuaY.Io")
    assert parse_answer_head(mixed.pack()) == parse_query(query.pack())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_is_read(kind: Callable[[bytes], dns.Payload]) -> None:
    payload = reply(f"{NAME}. 60 A 192.0.2.1")
    assert texts(parse_answer(kind(payload))) == ["192.0.2.1"]
    assert parse_answer_head(kind(payload)).question.name == NAME


@pytest.mark.parametrize("name", [b"\x00", b"\x03a.b\x01c\x00", b"\x02\xff\x00\x00"])
def test_a_name_that_no_host_has_is_told_by_its_octets_only(name: bytes) -> None:
    parsed = parse_query(raw(question(name), flags=0x0100)).question
    assert parsed.name is None
    assert parsed.wire == name


def test_head_does_not_look_at_records() -> None:
    payload = answers(b"\xc0\x0c\x00")
    assert parse_answer_head(payload + b"\0" * 11).id == 7
    with pytest.raises(WireError):
        parse_answer(payload + b"\xff" * 11)


@pytest.mark.parametrize(
    ("payload", "where", "message"),
    [
        (b"", "header", "0 octets"),
        (raw()[:11], "header", "11 octets"),
        (raw(question()) + b"\0" * 65_536, "header", "octets"),
        (raw(question(), flags=0x0100), "header", "a query"),
        (raw(question(), flags=0xA180), "header", "opcode 4"),
        (raw(counts=(0, 0, 0, 0)), "header", "0 questions"),
        (raw(question(), question(), counts=(2, 0, 0, 0)), "header", "2 questions"),
        (raw(question(), counts=(1, 1, 0, 0)), "header", "1 records"),
        (raw(question(), bytes(19), counts=(1, 0, 1, 1)), "header", "2 records"),
        (raw(question(), counts=(1, 65_535, 65_535, 65_535)), "header", "196605 records"),
        (raw(b"\x05ab\0\0\0\0\0"), "question", "ends early"),
        (raw(b"\x01a\x00\x00\x01\x00"), "question", "ends early"),
        (raw(b"\x01a\x01a\x01a\x01a"), "question", "ends early"),
        (raw(question(b"\xc0\x0c")), "question", "0xc0"),
        (raw(question(b"\x01a\xc0\x0c")), "question", "0xc0"),
        (raw(question(b"\x40" + b"a" * 64 + b"\0")), "question", "0x40"),
        (raw(question(b"\x01a" * 127 + b"\x01b\x00")), "question", "257 octets"),
    ],
    ids=readable,
)
def test_malformed_head(payload: bytes, where: str, message: str) -> None:
    for read in (parse_answer_head, parse_answer):
        with pytest.raises(WireError, match=message) as caught:
            read(payload)
        assert caught.value.where == where


def test_response_is_not_a_query() -> None:
    with pytest.raises(WireError, match="not a query"):
        parse_query(raw(question()))


def test_longest_name_and_label() -> None:
    longest = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"b" * 61 + b"\0"
    assert len(longest) == dns.MAX_NAME
    parsed = parse_answer(answers(record(b"\xc0\x0c", 1, bytes(4)), name=longest))
    assert parsed.question.wire == longest
    assert texts(parsed) == ["0.0.0.0"]


# Which addresses an answer gives


def test_cname_and_two_addresses() -> None:
    parsed = parse_answer(
        reply(f"{NAME}. 60 CNAME edge.cdn.net.\nedge.cdn.net. 30 A 192.0.2.1\n"
              "edge.cdn.net. 40 A 192.0.2.2")
    )  # fmt: skip
    assert parsed.addresses == (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))
    assert parsed.ttl == 30
    assert parsed.chain == ("edge.cdn.net",)
    assert (parsed.rcode, parsed.truncated) == (0, False)


@pytest.mark.parametrize(
    "zone",
    list(
        permutations(
            [
                "C.example. 70 A 192.0.2.9",
                "b.EXAMPLE. 50 CNAME c.example.",
                f"{NAME.upper()}. 60 CNAME B.example.",
            ]
        )
    ),
)
def test_records_may_come_in_any_order_and_case(zone: tuple[str, ...]) -> None:
    parsed = parse_answer(reply("\n".join(zone)))
    assert texts(parsed) == ["192.0.2.9"]
    assert parsed.chain == ("b.example", "c.example")
    assert parsed.ttl == 50


def test_ipv6() -> None:
    parsed = parse_answer(reply(f"{NAME}. 60 AAAA 2001:db8::1", qtype="AAAA"))
    assert parsed.addresses == (IPv6Address("2001:db8::1"),)


def test_addresses_of_the_other_type_are_not_taken() -> None:
    zone = f"{NAME}. 60 AAAA 2001:db8::1\n{NAME}. 60 A 192.0.2.1"
    assert texts(parse_answer(reply(zone))) == ["192.0.2.1"]
    assert texts(parse_answer(reply(zone, qtype="AAAA"))) == ["2001:db8::1"]


@pytest.mark.parametrize("qtype", ["ANY", "CNAME", "HTTPS", "TXT"])
def test_other_questions_give_no_addresses(qtype: str) -> None:
    parsed = parse_answer(reply(f"{NAME}. 60 A 192.0.2.1", qtype=qtype))
    assert (parsed.addresses, parsed.ttl, parsed.chain) == ((), 0, ())


def test_other_classes_give_no_addresses() -> None:
    chaos = struct.pack("!HHIH4s", 1, 3, 60, 4, bytes(4))
    inside = raw(question(), b"\xc0\x0c" + chaos, counts=(1, 1, 0, 0))
    asked = raw(question(qclass=3), record(b"\xc0\x0c", 1, bytes(4)), counts=(1, 1, 0, 0))
    assert parse_answer(inside).addresses == parse_answer(asked).addresses == ()


def test_addresses_of_other_names_are_not_taken() -> None:
    zone = f"{NAME}. 60 A 192.0.2.1\nevil.example. 5 A 192.0.2.66\nio. 5 A 192.0.2.67"
    parsed = parse_answer(reply(zone))
    assert texts(parsed) == ["192.0.2.1"]
    assert parsed.ttl == 60


def test_addresses_in_the_middle_of_the_chain_are_not_taken() -> None:
    zone = f"{NAME}. 60 A 192.0.2.66\n{NAME}. 60 CNAME b.example.\nb.example. 60 A 192.0.2.1"
    assert texts(parse_answer(reply(zone))) == ["192.0.2.1"]


def test_a_chain_that_nothing_links_to_the_question_gives_nothing() -> None:
    parsed = parse_answer(reply("b.example. 60 CNAME c.example.\nc.example. 60 A 192.0.2.66"))
    assert (parsed.addresses, parsed.chain) == ((), ())


def test_a_chain_without_an_address_is_told() -> None:
    parsed = parse_answer(reply(f"{NAME}. 60 CNAME b.example."))
    assert (parsed.addresses, parsed.ttl, parsed.chain) == ((), 0, ("b.example",))


def test_addresses_in_other_sections_are_not_taken() -> None:
    message = dnslib.DNSRecord.question(NAME).reply()
    message.add_answer(*dnslib.RR.fromZone(f"{NAME}. 60 CNAME b.example."))
    message.add_auth(*dnslib.RR.fromZone("b.example. 60 A 192.0.2.66"))
    message.add_ar(*dnslib.RR.fromZone("b.example. 60 A 192.0.2.67"), dnslib.EDNS0(udp_len=1232))
    assert parse_answer(message.pack()).addresses == ()


def test_dname_is_passed_over_and_its_cname_counts() -> None:
    dname = dnslib.RR("old.example", 39, ttl=9, rdata=dnslib.RD(b"\x03new\x07example\x00"))
    message = dnslib.DNSRecord.question("a.old.example").reply()
    message.add_answer(dname)
    message.add_answer(
        *dnslib.RR.fromZone("a.old.example. 60 CNAME a.new.example.\na.new.example. 60 A 192.0.2.1")
    )
    parsed = parse_answer(message.pack())
    assert texts(parsed) == ["192.0.2.1"]
    assert parsed.ttl == 60


@pytest.mark.parametrize(
    ("chain", "address", "least"), [(5, 60, 5), (60, 5, 5), (0, 5, 0), (5, 0x8000_0000, 0)]
)
def test_ttl_is_the_least_of_the_chain_and_the_addresses(
    chain: int, address: int, least: int
) -> None:
    zone = f"{NAME}. {chain} CNAME b.example.\nb.example. {address} A 192.0.2.1"
    assert parse_answer(reply(zone)).ttl == least


def test_an_address_twice_counts_once_with_the_lesser_ttl() -> None:
    parsed = parse_answer(reply(f"{NAME}. 60 A 192.0.2.1\n{NAME}. 30 A 192.0.2.1"))
    assert texts(parsed) == ["192.0.2.1"]
    assert parsed.ttl == 30


@pytest.mark.parametrize("rcode", [2, 3, 5])
def test_an_error_teaches_nothing(rcode: int) -> None:
    parsed = parse_answer(reply(f"{NAME}. 60 A 192.0.2.1", rcode=rcode))
    assert (parsed.rcode, parsed.addresses, parsed.ttl) == (rcode, (), 0)


def test_a_truncated_answer_teaches_nothing() -> None:
    parsed = parse_answer(reply(f"{NAME}. 60 A 192.0.2.1", tc=1))
    assert parsed.truncated
    assert (parsed.addresses, parsed.ttl, parsed.chain) == ((), 0, ())


def test_a_truncated_answer_may_count_records_that_did_not_fit() -> None:
    assert parse_answer(raw(question(), flags=0x8380, counts=(1, 40, 2, 2))).truncated


def test_octets_behind_the_message_are_ignored() -> None:
    payload = reply(f"{NAME}. 60 A 192.0.2.1")
    assert parse_answer(payload + b"\xc0padding") == parse_answer(payload)


def test_addresses_beyond_the_limit_are_passed_over() -> None:
    many = [record(b"\xc0\x0c", 1, struct.pack("!I", n)) for n in range(dns.MAX_ADDRESSES + 1)]
    parsed = parse_answer(answers(*many))
    assert len(parsed.addresses) == dns.MAX_ADDRESSES
    assert parsed.addresses[0] == IPv4Address(0)


def link(owner: int, target: int, *, ttl: int = 60) -> bytes:
    """A CNAME from one numbered name to another; number 0 is the question's name ``a``."""
    names = [b"\x01a\x00"] + [bytes((2, 98, 65 + n, 0)) for n in range(20)]
    return record(names[owner], dns.TYPE_CNAME, names[target], ttl=ttl)


def test_the_longest_chain() -> None:
    links = [link(n, n + 1) for n in range(dns.MAX_CNAMES)]
    end = bytes((2, 98, 65 + dns.MAX_CNAMES - 1, 0))
    parsed = parse_answer(answers(*links, record(end, 1, bytes([192, 0, 2, 1]))))
    assert texts(parsed) == ["192.0.2.1"]
    assert len(parsed.chain) == dns.MAX_CNAMES


def test_the_same_cname_twice_counts_once() -> None:
    address = record(b"\x02BA\x00", 1, bytes([192, 0, 2, 1]))
    parsed = parse_answer(answers(link(0, 1), link(0, 1, ttl=7), link(0, 1), address))
    assert texts(parsed) == ["192.0.2.1"]
    assert parsed.ttl == 7


def test_a_target_that_is_no_host_name_is_followed_but_not_listed() -> None:
    odd = b"\x03a b\x00"
    cname = record(b"\xc0\x0c", dns.TYPE_CNAME, odd)
    parsed = parse_answer(answers(cname, record(odd, 1, bytes([192, 0, 2, 1]))))
    assert (texts(parsed), parsed.chain) == (["192.0.2.1"], ())


# Malformed records. The question's name takes octets 12 to 14, the first record starts at 19.

A = dns.TYPE_A
CNAME = dns.TYPE_CNAME
FIRST = 19
TOO_LONG = (b"\x3f" + b"a" * 63) * 4 + b"\0"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (answers(record(b"\xc0\x0c", A, bytes(3))), "address of 3"),
        (answers(record(b"\xc0\x0c", A, bytes(16))), "address of 16"),
        (answers(record(b"\xc0\x0c", A, bytes(4), length=5)), "data of the record at 19"),
        (answers(b"\xc0\x0c" + bytes(9)), "record at 19 ends early"),
        (answers(b"\x3f" + bytes(20)), "name at 19 ends early"),
        (answers(b"\x01a" * 20), "name at 19 ends early"),
        (answers(bytes(10) + b"\xc0"), "data of the record at 19"),
        (answers(record(b"\x80", A, bytes(4))), "0x80 at 19"),
        (answers(record(b"\x01a\x40", A, bytes(4))), "0x40 at 21"),
        # Pointers: to itself, forward, into the header, back to the start of the same name.
        (answers(record(b"\xc0\x13", A, bytes(4))), "pointer at 19"),
        (answers(record(b"\xc0\x15", A, bytes(4))), "pointer at 19"),
        (answers(record(b"\xc0\x0b", A, bytes(4))), "pointer at 19"),
        (answers(record(b"\x01a\xc0\x13", A, bytes(4))), "pointer at 21"),
        (answers(record(b"\xc0\x0c", CNAME, b"\xc0")), "pointer at 31 ends early"),
        (answers(record(b"\xc0\x0c", CNAME, b"\x80\x00")), "0x80 at 31"),
        (answers(record(b"\xc0\x0c", CNAME, b"\x01b\x00\x00")), "does not fill"),
        (answers(record(b"\xc0\x0c", CNAME, b"\x01b", length=2)), "no end"),
        (answers(record(b"\xc0\x0c", CNAME, b"")), "no end"),
        (answers(record(b"\xc0\x0c", CNAME, TOO_LONG)), "no end"),
        (answers(record(TOO_LONG, A, bytes(4))), "no end"),
        (
            answers(
                record(b"\xc0\x0c", CNAME, TOO_LONG[:192] + b"\0"),
                record((b"\x3e" + b"b" * 62) + b"\xc0\x1f", A, bytes(4)),
            ),
            "a name of 256 octets",
        ),
        (answers(*[link(n, n + 1) for n in range(17)]), "more than 16 CNAME"),
        (answers(link(0, 1), link(0, 2)), "two CNAMEs"),
        (answers(link(0, 0)), "loop"),
        (answers(link(0, 1), link(1, 2), link(2, 1)), "loop"),
    ],
    ids=readable,
)
def test_malformed_answer_section(payload: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message) as caught:
        parse_answer(payload)
    assert caught.value.where == "answer"


@pytest.mark.parametrize(
    ("section", "counts"), [("authority", (1, 0, 1, 0)), ("additional", (1, 0, 0, 1))]
)
def test_malformed_record_in_other_sections(
    section: str, counts: tuple[int, int, int, int]
) -> None:
    with pytest.raises(WireError, match="data of the record") as caught:
        parse_answer(raw(question(), record(b"\0", 2, b"", length=1), counts=counts))
    assert caught.value.where == section


def pointer_ladder(rungs: int) -> bytes:
    """Names in an unknown record, each a pointer to the one before, and an owner on top."""
    at = FIRST + 11
    ladder = struct.pack("!H", 0xC000 | HEADER)
    ladder += b"".join(struct.pack("!H", 0xC000 | at + 2 * n) for n in range(rungs - 2))
    top = struct.pack("!H", 0xC000 | at + 2 * (rungs - 2))
    return answers(record(b"\0", 65_280, ladder), record(top, A, bytes(4)))


def test_pointers_are_followed_up_to_a_limit() -> None:
    assert texts(parse_answer(pointer_ladder(dns.MAX_POINTERS))) == ["0.0.0.0"]
    with pytest.raises(WireError, match="does not lead back"):
        parse_answer(pointer_ladder(dns.MAX_POINTERS + 1))


def test_the_worst_message_does_not_hold_up_the_loop() -> None:
    # Every owner is a different long name of one-octet labels; about a hundredth of the bound.
    filler = record(b"\0", 65_280, b"\x01a" * 15_000)
    targets = range(FIRST + 11, FIRST + 11 + 5_000, 2)
    owners = [record(struct.pack("!H", 0xC000 | at), A, bytes(4)) for at in targets][:2_000]
    payload = answers(filler, *owners)
    assert len(payload) <= dns.MAX_MESSAGE
    begin = time.perf_counter()
    with pytest.raises(WireError, match="no end"):
        parse_answer(payload)
    assert time.perf_counter() - begin < 1


def test_records_that_do_not_matter_cost_their_frame_only() -> None:
    # 31,000 octets of labels that end, pointed into by more owners than are looked at.
    labels = b"\x01a" * 100 + b"\0"
    filler = record(b"\0", 65_280, labels * 100)
    base = FIRST + 11
    owners = [
        record(struct.pack("!H", 0xC000 | base + 201 * n + 2 * k), A, bytes(4))
        for n in range(80)
        for k in range(30)
    ]
    payload = answers(filler, *owners)
    begin = time.perf_counter()
    assert parse_answer(payload).addresses == ()
    assert time.perf_counter() - begin < 1

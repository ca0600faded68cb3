"""Reads DNS messages off the wire: whose question was it, and which addresses answer it.

Bytes in, frozen values out; anything malformed is a ``WireError`` and never another exception.
The answer path runs once per DNS answer in the queue's loop, so the question can be read on its own
first (`parse_answer_head`): an answer to a name that nobody allowed costs no more than that.

What an answer may teach is decided here, stricter than a stub resolver would:

- A and AAAA only, of the type that was asked, in class IN, and only at the end of the CNAME chain
  that starts at the question. Records may come in any order, names compare without case. A DNAME is
  not read: the CNAME that a server must send along with it is (RFC 6672 section 3.1).
- A truncated answer teaches nothing: its records are not read at all (RFC 2181 section 9), since
  the client asks again over TCP.
- An error (``rcode`` not 0) teaches nothing.
- A chain that loops, forks or has more than ``MAX_CNAMES`` links is a ``WireError``.
- Octets after the last record are ignored, as resolvers ignore them; nothing can point there.

Sources: RFC 1035 section 4, RFC 2181 (TTL, truncation), RFC 6891 (EDNS).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final

from ramnet.core.names import HostName, host_from_wire
from ramnet.errors import WireError

IPAddress = IPv4Address | IPv6Address
Payload = bytes | bytearray | memoryview

DNS_PORT: Final = 53

TYPE_A: Final = 1
TYPE_CNAME: Final = 5
TYPE_AAAA: Final = 28
TYPE_OPT: Final = 41
CLASS_IN: Final = 1

#: Length field of DNS over TCP is 16 bits (RFC 1035 section 4.2.2); UDP carries less.
MAX_MESSAGE: Final = 65_535
#: A name in wire form, with its length octets and the root (RFC 1035 section 2.3.4).
MAX_NAME: Final = 255
#: A name has at most 127 labels, and a compressor puts at most one pointer behind each.
MAX_POINTERS: Final = 127
#: Resolvers themselves give up after 11 (Unbound) to 16 (BIND) links.
MAX_CNAMES: Final = 16
#: As many A records as an EDNS answer of 4,096 octets carries, the largest usual by UDP. Further
#: records of the asked type are passed over: clients try addresses from the front.
MAX_ADDRESSES: Final = 256
#: Names seen again and again are checked once; about half a megabyte when full.
_HOST_CACHE: Final = 2_048

_HEADER: Final = Struct("!HHHHHH")
#: EDNS option code and length, then the info code of an extended error (RFC 8914 section 2).
_EDNS_OPTION: Final = Struct("!HHH")
_EDE: Final = 15
_EDE_BLOCKED: Final = 15
#: Enough for a sentence; the whole answer stays far below any payload limit.
MAX_EXTRA_TEXT: Final = 200
#: What an answer's OPT says we could take, as resolvers do (DNS flag day 2020).
EDNS_PAYLOAD: Final = 1232
_QUESTION_TAIL: Final = Struct("!HH")
_RECORD_FIXED: Final = Struct("!HHIH")
_HEADER_SIZE: Final = 12
_SMALLEST_QUESTION: Final = 5  # root name, type, class
_SMALLEST_RECORD: Final = 11  # root name, type, class, TTL, length

_QR: Final = 0x8000
_OPCODE: Final = 0x7800
_TC: Final = 0x0200
_RD: Final = 0x0100
_RA: Final = 0x0080
_NXDOMAIN: Final = 3
_RCODE: Final = 0x000F

_ADDRESS_SIZE: Final = {TYPE_A: 4, TYPE_AAAA: 16}
#: CNAMEs by owner: the target and the TTL. Names are in lower-case wire form.
_Links = dict[bytes, tuple[bytes, int]]
#: An address record: owner, TTL, packed address.
_Found = tuple[bytes, int, bytes]

_POINTER: Final = 0xC0  # both top bits of a length octet; 0x40 and 0x80 are not in use
_LABEL_LIMIT: Final = 0x40
_TTL_TOP_BIT: Final = 0x8000_0000


@dataclass(frozen=True, slots=True)
class Question:
    """What a message asks.

    ``wire`` is the name in uncompressed wire form, lower case, with the root octet: two questions
    are the same when it is, whatever case a client mixed in against spoofing (draft "dns-0x20").
    ``name`` is None when the name cannot be that of a host.
    """

    name: HostName | None
    wire: bytes
    qtype: int
    qclass: int


@dataclass(frozen=True, slots=True)
class Query:
    """The head of a message: its ID and its only question."""

    id: int
    question: Question


@dataclass(frozen=True, slots=True)
class Answer:
    """What a response says about its question.

    ``addresses`` are those at the end of the CNAME chain, in the order of the message, each once.
    ``ttl`` is the least one (seconds) of the chain and the addresses, 0 without addresses.
    ``chain`` holds the CNAME targets in order, without the question's own name and without targets
    that cannot be host names. ``rcode`` is the one of the header; EDNS extends it, unread here.
    """

    id: int
    question: Question
    rcode: int
    truncated: bool
    addresses: tuple[IPAddress, ...]
    ttl: int
    chain: tuple[HostName, ...]


def parse_query(payload: Payload) -> Query:
    """Read the ID and question of a query; what follows the question is not looked at.

    Raises ``WireError`` unless it is a standard query (opcode 0) with exactly one question.
    """
    return _read_head(bytes(payload), response=False)[0]


def parse_answer_head(payload: Payload) -> Query:
    """Read the ID and question of a response and leave its records alone.

    The cheap first look of the hot path. Raises ``WireError`` as `parse_answer` does for the head.
    """
    return _read_head(bytes(payload), response=True)[0]


def parse_answer(payload: Payload) -> Answer:
    """Read a response to a standard query.

    Raises ``WireError`` (``where``: the section) on anything malformed in any of its sections.
    Names that do not matter to the result are checked for their framing only.
    """
    data = bytes(payload)  # no copy when it is bytes already, and slices of bytes are the fastest
    head, flags, counts = _read_head(data, response=True)
    question = head.question
    rcode = flags & _RCODE
    truncated = bool(flags & _TC)
    addresses: tuple[IPAddress, ...] = ()
    chain: tuple[HostName, ...] = ()
    least = 0
    if not truncated:
        links, found, pos = _read_answers(data, counts[0], question)
        for section, count in (("authority", counts[1]), ("additional", counts[2])):
            for _ in range(count):
                pos = _read_record(data, pos, section)[4]
        last, chain, least = _follow(links, question.wire)
        if found and not rcode:
            addresses, least = _select(found, last, least)
    return Answer(head.id, question, rcode, truncated, addresses, least if addresses else 0, chain)


def blocked_answer(payload: Payload, text: str) -> bytes:
    """Make the answer that a name is blocked, in the place of the answer ``payload``.

    NXDOMAIN, and where the client speaks EDNS, the extended error 15 "Blocked" with ``text`` (RFC
    8914). Raises ``WireError`` when ``payload`` is not an answer.
    """
    data = bytes(payload)
    head, flags, counts = _read_head(data, response=True)
    end = _HEADER_SIZE + len(head.question.wire) + _QUESTION_TAIL.size
    edns = b""
    if _has_opt(data, end, counts):
        message = text.encode()[:MAX_EXTRA_TEXT]
        option = _EDNS_OPTION.pack(_EDE, len(message) + 2, _EDE_BLOCKED) + message
        edns = b"\0" + _RECORD_FIXED.pack(TYPE_OPT, EDNS_PAYLOAD, 0, len(option)) + option
    # Not authoritative, not authenticated: what stays is that it is an answer, RD and RA.
    kept = flags & (_QR | _RD | _RA)
    header = _HEADER.pack(head.id, kept | _NXDOMAIN, 1, 0, 0, 1 if edns else 0)
    return header + data[_HEADER_SIZE:end] + edns


def _has_opt(data: bytes, pos: int, counts: tuple[int, int, int]) -> bool:
    """Tell whether there is an OPT record: the server sends one to whoever sent one (RFC 6891)."""
    for _ in range(sum(counts)):
        rtype, *_, pos = _read_record(data, pos, "additional")
        if rtype == TYPE_OPT:
            return True
    return False


def _read_head(data: bytes, *, response: bool) -> tuple[Query, int, tuple[int, int, int]]:
    """Read header and question; return them, the flags and the counts of the record sections."""
    size = len(data)
    if not _HEADER_SIZE <= size <= MAX_MESSAGE:
        raise WireError(f"a message of {size} octets", where="header")
    ident, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    if bool(flags & _QR) is not response:
        raise WireError("a query" if response else "not a query", where="header")
    if flags & _OPCODE:
        raise WireError(f"opcode {(flags & _OPCODE) >> 11}", where="header")
    if questions != 1:
        raise WireError(f"{questions} questions", where="header")
    records = answers + authorities + additionals
    least = _HEADER_SIZE + _SMALLEST_QUESTION
    if not flags & _TC:  # a truncated message may count the records that did not fit
        least += records * _SMALLEST_RECORD
    if least > size:
        raise WireError(f"{records} records in {size} octets", where="header")

    # Length octets are below 0x40, so lower() changes letters of labels and nothing else.
    wire = data[_HEADER_SIZE : _question_name_end(data)].lower()
    qtype, qclass = _QUESTION_TAIL.unpack_from(data, _HEADER_SIZE + len(wire))
    question = Question(_host(wire), wire, qtype, qclass)
    return Query(ident, question), flags, (answers, authorities, additionals)


def _question_name_end(data: bytes) -> int:
    """Find the octet behind the question's name, and check that type and class follow it.

    The name stands first in the message, so a pointer in it would have nowhere to point to.
    """
    last = len(data) - _QUESTION_TAIL.size - 1
    pos = _HEADER_SIZE
    while pos <= last:
        length = data[pos]
        if not length:
            break
        if length >= _LABEL_LIMIT:
            raise WireError(f"length octet 0x{length:02x}", where="question")
        pos += length + 1
    else:
        raise WireError("the question ends early", where="question")
    pos += 1
    if pos - _HEADER_SIZE > MAX_NAME:
        raise WireError(f"a name of {pos - _HEADER_SIZE} octets", where="question")
    return pos


def _read_answers(data: bytes, count: int, question: Question) -> tuple[_Links, list[_Found], int]:
    """Read the answer section: the CNAMEs, the addresses of the asked type, where it ends."""
    pos = _HEADER_SIZE + len(question.wire) + _QUESTION_TAIL.size
    links: _Links = {}
    found: list[_Found] = []
    names = {_HEADER_SIZE: question.wire}
    # 0 is no type: a question for anything else gives no addresses.
    address_size = _ADDRESS_SIZE.get(question.qtype, 0) if question.qclass == CLASS_IN else 0
    wanted = question.qtype if address_size else 0
    links_left = MAX_CNAMES
    for _ in range(count):
        start = pos
        rtype, rclass, ttl, body, pos = _read_record(data, start, "answer")
        if not wanted or rclass != CLASS_IN:
            continue
        if rtype == wanted:
            if pos - body != address_size:
                raise WireError(f"an address of {pos - body} octets", where="answer")
            if len(found) < MAX_ADDRESSES:
                found.append((_read_name(data, start, names, "answer")[0], ttl, data[body:pos]))
        elif rtype == TYPE_CNAME:
            links_left -= 1
            if links_left < 0:
                raise WireError(f"more than {MAX_CNAMES} CNAME records", where="answer")
            owner = _read_name(data, start, names, "answer")[0]
            target, end = _read_name(data, body, names, "answer")
            if end != pos:
                raise WireError("a CNAME whose name does not fill its record", where="answer")
            _add_link(links, owner, target, ttl)
    return links, found, pos


def _add_link(links: _Links, owner: bytes, target: bytes, ttl: int) -> None:
    """Note a CNAME; the same one twice counts once, with the smaller TTL."""
    known = links.get(owner)
    if known is not None:
        if known[0] != target:  # RFC 2181 section 10.1
            raise WireError("two CNAMEs for one name", where="answer")
        ttl = min(ttl, known[1])
    links[owner] = (target, ttl)


def _read_record(data: bytes, pos: int, section: str) -> tuple[int, int, int, int, int]:
    """Read the frame of the record at ``pos``: type, class, TTL, where its data starts, its end."""
    size = len(data)
    start = pos
    while True:
        if pos >= size:
            raise WireError(f"the name at {start} ends early", where=section)
        length = data[pos]
        if length >= _POINTER:
            pos += 2  # where it points to matters only if the name does
            break
        if length >= _LABEL_LIMIT:
            raise WireError(f"length octet 0x{length:02x} at {pos}", where=section)
        pos += length + 1
        if not length:
            break
    body = pos + _RECORD_FIXED.size
    if body > size:
        raise WireError(f"the record at {start} ends early", where=section)
    rtype, rclass, ttl, length = _RECORD_FIXED.unpack_from(data, pos)
    end = body + length
    if end > size:
        raise WireError(f"the data of the record at {start} ends early", where=section)
    if ttl >= _TTL_TOP_BIT:  # RFC 2181 section 8
        ttl = 0
    return rtype, rclass, ttl, body, end


def _read_name(data: bytes, pos: int, names: dict[int, bytes], section: str) -> tuple[bytes, int]:
    """Read the name at ``pos``; return its lower-case wire form and the octet behind it in place.

    ``names`` remembers the names read so far by their position: owners mostly point at one of them.
    Every pointer must lead below where the part before it began, so reading ends.
    """
    size = len(data)
    start = run = floor = pos
    stop = min(size, run + MAX_NAME)
    head = b""
    end = 0
    hops = 0
    while True:
        if pos >= stop:
            raise WireError(f"the name at {start} has no end within its limits", where=section)
        length = data[pos]
        if length < _LABEL_LIMIT:
            pos += length + 1
            if length:
                continue
            head += data[run:pos]
            break
        if length < _POINTER:
            raise WireError(f"length octet 0x{length:02x} at {pos}", where=section)
        if pos + 2 > size:
            raise WireError(f"the pointer at {pos} ends early", where=section)
        hops += 1
        target = (length & 0x3F) << 8 | data[pos + 1]
        if not _HEADER_SIZE <= target < floor or hops > MAX_POINTERS:
            raise WireError(f"the pointer at {pos} does not lead back to a name", where=section)
        head += data[run:pos]
        end = end or pos + 2
        tail = names.get(target)
        if tail is not None:
            head += tail
            break
        run = floor = pos = target
        stop = min(size, run + MAX_NAME - len(head))
    if len(head) > MAX_NAME:
        raise WireError(f"a name of {len(head)} octets at {start}", where=section)
    wire = names[start] = head.lower()
    return wire, end or pos


def _follow(links: _Links, name: bytes) -> tuple[bytes, tuple[HostName, ...], int]:
    """Walk the CNAMEs from ``name``: the last name, the targets on the way, the least TTL."""
    least = _TTL_TOP_BIT
    if name not in links:
        return name, (), least
    chain: list[HostName] = []
    for _ in range(len(links)):
        name, ttl = links[name]
        least = min(least, ttl)
        host = _host(name)
        if host is not None:
            chain.append(host)
        if name not in links:
            return name, tuple(chain), least
    raise WireError("the CNAMEs form a loop", where="answer")


def _select(found: list[_Found], owner: bytes, least: int) -> tuple[tuple[IPAddress, ...], int]:
    """Pick the addresses that belong to ``owner``; return them and the least TTL with theirs."""
    packed: dict[bytes, None] = {}
    for name, ttl, address in found:
        if name == owner:
            packed[address] = None
            least = min(least, ttl)
    kind = IPv4Address if len(found[0][2]) == _ADDRESS_SIZE[TYPE_A] else IPv6Address
    return tuple([kind(address) for address in packed]), least


@lru_cache(maxsize=_HOST_CACHE)
def _host(wire: bytes) -> HostName | None:
    """Turn a lower-case name in wire form into a host name, None where it cannot be one."""
    labels: list[bytes] = []
    pos = 0
    while length := wire[pos]:
        labels.append(wire[pos + 1 : pos + 1 + length])
        pos += length + 1
    return host_from_wire(tuple(labels))
